//! `tandem explore` as a process: files, resuming, and what it says when nothing is left.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use common::Live;

fn explore(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    command.args(["explore", "deepseek-r1", "--gpu-type", "gb200"]).args(args);
    // Knobs of the environment of whoever runs the tests must not count.
    command.env_clear().output().unwrap()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_search_writes_its_files_and_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("search");
    let run = |nctx: &str| explore(&["--set", nctx, "--set", "GEN_MAX_BATCH_SIZE=64,128", "--out", out.to_str().unwrap()]);
    let first = run("NCTX=3,4");
    assert!(first.status.success(), "{first:?}");
    let text = String::from_utf8(first.stdout).unwrap();
    assert!(text.contains("simulated 4 in") && text.contains("Measure next"), "{text}");
    let before = json(&out.join("explore.json"));
    assert_eq!(before["screened"]["points"], 4);
    assert!(std::fs::read_to_string(out.join("explore.html")).unwrap().contains("<svg class=\"chart\""));
    assert_eq!(std::fs::read_to_string(out.join("explore.csv")).unwrap().lines().count(), 5);

    let again = String::from_utf8(run("NCTX=3,4").stdout).unwrap();
    assert!(again.contains("simulated 0 in") && again.contains("(4 taken from before)"), "{again}");
    assert_eq!(json(&out.join("explore.json")), before);
    let wider = String::from_utf8(run("NCTX=3,4,5").stdout).unwrap();
    // How many of the two new points are near enough to the frontier to be simulated is the model's to say.
    let is_more = wider.contains("simulated 1 in") || wider.contains("simulated 2 in");
    assert!(is_more && wider.contains("6 points screened") && wider.contains("(4 taken from before)"), "{wider}");
}

/// A DeepSeek-V2-Lite-like architecture: no query compression, 64 experts, 27 layers.
const V2_LITE: &str = r#"{"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "hidden_size": 2048,
"num_attention_heads": 16, "num_key_value_heads": 16, "kv_lora_rank": 512, "q_lora_rank": null, "qk_nope_head_dim": 128,
"qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64,
"n_shared_experts": 2, "num_experts_per_tok": 6, "num_hidden_layers": 27, "first_k_dense_replace": 1, "moe_layer_freq": 1,
"vocab_size": 102400, "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "rope_theta": 10000, "routed_scaling_factor": 1.0,
"scoring_func": "softmax", "topk_method": "greedy", "n_group": 1, "topk_group": 1, "norm_topk_prob": false,
"tie_word_embeddings": false, "torch_dtype": "bfloat16", "rope_scaling": null, "hidden_act": "silu"}"#;

#[test]
fn the_architecture_is_that_of_the_model() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), V2_LITE).unwrap();
    let search = |more: &[&str]| {
        let mut args = vec!["--set", "NCTX=1,2", "--set", "GEN_MAX_BATCH_SIZE=64,128", "--json"];
        args.extend(more);
        let output = explore(&args);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let (large, small) = (search(&[]), search(&["--model", dir.path().to_str().unwrap()]));
    let best = |e: &serde_json::Value, name: &str| e["frontier"][0]["prediction"][name]["value"].as_f64().unwrap();
    // 2.4 of 15.7 billion parameters are active in place of 37 of 671.
    assert!(best(&small, "tpot_s") < 0.6 * best(&large, "tpot_s"), "{small} {large}");
    assert!(best(&small, "tokens_per_gpu") > 2.0 * best(&large, "tokens_per_gpu"));
    let remarks = |e: &serde_json::Value| e["remarks"].to_string().contains("no measurement of this architecture was fitted");
    assert!(remarks(&small) && !remarks(&large), "{} {}", small["remarks"], large["remarks"]);
    // All points serve one model.
    let layers = explore(&["--load-format", "dummy", "--set", "DUMMY_LAYERS=2,4"]);
    assert_eq!(layers.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&layers.stderr).contains("DUMMY_LAYERS cannot vary"));
}

/// What the modeled engine is asked in the tests below; steps long enough that a busy machine hardly matters.
const MODELED: [&str; 8] = ["--set", "ENGINE=modeled", "--set", "MODELED_STEP_US=10000", "--set", "OSL=24", "--set", "WARMUP_ROUNDS=1"];

fn tandem(args: &[&str], more: &[&str]) -> Output {
    let output = common::tandem().args(args).args(MODELED).args(more).output().unwrap();
    assert!(output.status.success(), "{args:?} {more:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn what_is_proposed_can_be_measured_and_is_drawn_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let axes = ["--set", "CONCURRENCY=1,2,4,8", "--set", "GEN_MAX_BATCH_SIZE=2,4"];
    let (search, again) = (path("search"), path("again"));
    tandem(&["explore", "tiny", "--out", &search, "--propose", "2"], &axes);
    let before = json(&dir.path().join("search/explore.json"));
    let proposals = before["proposals"].as_array().unwrap().clone();
    assert_eq!(proposals.len(), 2);
    // The first proposal is measured for real, and beside it a sweep of two loads.
    let knobs: Vec<String> = proposals[0]["point"]["knobs"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| format!("{name}={}", value.as_str().unwrap()))
        .collect();
    let sets: Vec<&str> = knobs.iter().flat_map(|knob| ["--set", knob.as_str()]).collect();
    let (run, sweep) = (path("run"), path("sweep"));
    tandem(&["run", "tiny", "--port", "0", "--out", &run], &sets);
    tandem(
        &["run", "tiny", "--port", "0", "--out", &sweep],
        &["--set", "CONCURRENCY=1,4", "--set", "GEN_MAX_BATCH_SIZE=4", "--set", "GEN_MAX_NUM_TOKENS=4"],
    );
    tandem(&["explore", "tiny", "--out", &again, "--propose", "2", "--measured", &run, &sweep], &axes);
    let after = json(&dir.path().join("again/explore.json"));
    let measured = after["measured"].as_array().unwrap();
    assert_eq!(measured.len(), 3, "{measured:?}");
    for point in measured {
        // A prediction stands beside each: the plan of the run is that of a point.
        let (value, predicted) = (&point["tokens_per_gpu"], &point["predicted"]["tokens_per_gpu"]);
        let ratio =
            predicted["value"].as_f64().unwrap_or_else(|| panic!("not found among the simulated: {point}")) / value.as_f64().unwrap();
        assert!((0.5..2.0).contains(&ratio), "{point}");
    }
    // What was measured is not proposed again, and what is left promises less of a larger area.
    let plan = |p: &serde_json::Value| p["point"]["plan"].as_str().unwrap().to_owned();
    let next = after["proposals"].as_array().unwrap();
    assert!(next.iter().all(|p| measured.iter().all(|m| m["plan"] != plan(p).as_str())), "{next:?}");
    assert!(next.iter().all(|p| p["expected_gain"].as_f64().unwrap() < 1.0), "{next:?}");
    let page = std::fs::read_to_string(dir.path().join("again/explore.html")).unwrap();
    assert!(page.contains("<span><i class=\"c2\"></i>measured</span>") && page.contains("sweep at concurrency 4"), "they are on the page");
    let csv = std::fs::read_to_string(dir.path().join("again/explore.csv")).unwrap();
    assert!(csv.starts_with("CONCURRENCY,GEN_MAX_BATCH_SIZE,GEN_MAX_NUM_TOKENS,gpus,"), "{csv}");
}

#[test]
fn a_search_that_was_killed_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["explore", "deepseek-r1", "--gpu-type", "gb200", "--set", "NCTX=1..8", "--set", "GEN_MAX_BATCH_SIZE=8..256:x2"];
    let args = [&args[..], &["--set", "GEN_MTP_SIZE=0,1", "--band", "1000", "--out"]].concat();
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    let mut child = common::tandem().args(&args).arg(&killed).stdout(std::process::Stdio::null()).spawn().unwrap();
    let state = killed.join("state.jsonl");
    let n_lines = || std::fs::read_to_string(&state).map_or(0, |text| text.lines().count());
    let seen = common::wait_for("some points to be kept", || {
        let n = n_lines();
        (n >= 3).then_some(n)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    // It may have been faster than the signal; then there is nothing left to do, which is fine too.
    let kept = n_lines();
    assert!(kept >= seen);
    let run = |out: &Path| {
        let output = common::tandem().args(&args).arg(out).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = run(&killed);
    let taken: usize = text.split_once(" taken from before").unwrap().0.rsplit('(').next().unwrap().parse().unwrap();
    // The last line may have been cut off.
    assert!(taken == kept || taken + 1 == kept, "{taken} of {kept}: {text}");
    run(&whole);
    assert_eq!(json(&killed.join("explore.json")), json(&whole.join("explore.json")), "as if it had never been stopped");
}

#[test]
fn an_interrupted_search_gives_what_it_has_and_goes_on_later() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("search");
    // Millions of points, and so many simulations that they take a while.
    let sets = ["NCTX=1..16", "NGEN=1..4", "GEN_MAX_BATCH_SIZE=1..256", "CONCURRENCY=64..65536:64"];
    let mut command = common::tandem();
    command.args(["explore", "deepseek-r1", "--gpu-type", "gb200", "--band", "1000", "--simulate", "3000", "--out"]).arg(&out);
    for set in sets {
        command.args(["--set", set]);
    }
    let mut child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let id = child.id().to_string();
    let interrupt = || {
        // It may have ended by itself before the second one.
        let _ = Command::new("kill").args(["-INT", &id]).status().unwrap();
    };
    // The process catches it from the moment on that it says how long it will take.
    let mut told = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut told, &mut line).unwrap();
    assert!(line.starts_with("screened ") && line.contains(" of 16777216 points, about ") && line.contains(" s left"), "{line}");
    interrupt();
    let state = out.join("state.jsonl");
    common::wait_for("a simulation to be kept", || std::fs::read_to_string(&state).is_ok_and(|text| !text.is_empty()).then_some(()));
    interrupt();
    let mut rest = String::new();
    told.read_to_string(&mut rest).unwrap();
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(130), "{rest}");
    assert!(rest.contains("goes on with the simulations that are done"), "{rest}");
    let found = json(&out.join("explore.json"));
    let (screened, simulated) = (found["screened"]["points"].as_u64().unwrap(), found["simulated"].as_array().unwrap());
    assert!((1..16_777_216).contains(&screened) && !simulated.is_empty(), "{screened} screened, {} simulated", simulated.len());
    assert!(found["remarks"][0].as_str().unwrap().starts_with("interrupted: "), "{}", found["remarks"]);
}

#[test]
fn a_port_that_is_taken_is_told_at_once() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = explore(&["--set", "NCTX=3,4", "--serve", "--port", &port]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(5) && output.stdout.is_empty(), "{text}");
    assert!(text.contains("cannot listen on 127.0.0.1") && text.contains("hint: another --port"), "{text}");
}

#[test]
fn nothing_left_is_an_error_with_the_nearest_change() {
    let output = explore(&["--set", "NCTX=4,6", "--slo", "tpot:1"]);
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("2 × misses the SLO tpot") && text.contains("hint: nearest change: --slo tpot:"), "{text}");
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    // Nothing is left of what was simulated: the screen knows no percentiles.
    let output = explore(&["--set", "NCTX=4,6", "--slo", "ttft_p99:1"]);
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("simulated ones meets the SLOs") && text.contains("--slo ttft_p99:"), "{text}");
    // Every message says what to do.
    for (args, hint) in [
        (["--set", "NCTX=4..1"], "hint: an axis is --set NAME=A,B,C"),
        (["--set", "NCTX=1,x"], "hint: an axis is --set NAME=A,B,C"),
        (["--set", "NTCX=1,2"], "hint: did you mean NCTX?"),
        (["--where", "NTCX > 1"], "hint: for example --where"),
        (["--where", "nctx > 1"], "`nctx` is not a number"),
        (["--slo", "tpot=30"], "hint: for example --slo tpot:30"),
        (["--band", "-5"], "hint: --band 15"),
        (["--max-gpus", "0"], "not in 1.."),
        (["--simulate", "0"], "not in 1.."),
        (["--max-gpus", "8"], "--max-gpus 32 would admit"),
    ] {
        let text = String::from_utf8(explore(&args).stderr).unwrap();
        assert!(text.contains(hint), "{args:?}: {text}");
    }
    for args in [["--set", "NCTX=4..1"], ["--where", "NTCX > 1"], ["--slo", "speed:3"], ["--where", "NCTX >"], ["--where", "nctx > 1"]] {
        assert_eq!(explore(&args).status.code(), Some(2), "{args:?}");
    }
    assert_eq!(explore(&["--set", "NTCX=1,2"]).status.code(), Some(3));
}

/// Status and body of a request with these headers.
fn ask(live: &Live, head: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(&live.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let text = format!("{head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    // A server that refuses a long body may close before it has read it.
    let _ = stream.write_all(text.as_bytes());
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    let reply = String::from_utf8_lossy(&reply).into_owned();
    let status = reply.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, reply.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned()))
}

fn predict(live: &Live, knobs: &str) -> (u16, serde_json::Value) {
    let (status, body) = ask(live, "POST /api/predict HTTP/1.1\r\nHost: localhost", &format!("{{\"knobs\": {knobs}}}"));
    (status, serde_json::from_str(&body).unwrap())
}

#[test]
fn the_live_api_predicts_and_refuses() {
    let live = Live::start();
    let (status, space) = ask(&live, "GET /api/space HTTP/1.1\r\nHost: 127.0.0.1", "");
    assert_eq!(status, 200);
    let space: serde_json::Value = serde_json::from_str(&space).unwrap();
    assert_eq!(space["axes"][0]["values"], serde_json::json!(["3", "4", "6"]));
    assert!(!space["frontier"].as_array().unwrap().is_empty());

    let value = |answer: &serde_json::Value| answer["prediction"]["tokens_per_gpu"]["value"].as_f64().unwrap();
    let (few, many) = (predict(&live, r#"{"NCTX": "1"}"#).1, predict(&live, r#"{"NCTX": "6"}"#).1);
    assert!(few["gpus"].as_u64() < many["gpus"].as_u64() && value(&few) != value(&many), "{few} {many}");
    // The page answers as the command does.
    let again = predict(&live, r#"{"NCTX": 6}"#).1;
    assert_eq!(again, many);
    let (status, starved) = predict(&live, r#"{"GEN_MAX_BATCH_SIZE": "5000"}"#);
    assert!(status == 200 && starved["fits"] == false && starved["verdict"].as_str().unwrap().contains("KV cache"), "{starved}");

    for knobs in [r#"{"NTCX": "1"}"#, r#"{"NCTX": "many"}"#, r#"{"MODEL": "/somewhere"}"#] {
        assert_eq!(predict(&live, knobs).0, 400, "{knobs}");
    }
    assert_eq!(ask(&live, "POST /api/predict HTTP/1.1\r\nHost: localhost", "no json").0, 400);
    assert_eq!(ask(&live, "POST /api/predict HTTP/1.1\r\nHost: localhost", &"x".repeat(70_000)).0, 413);
    assert_eq!(ask(&live, "GET /api/space HTTP/1.1\r\nHost: elsewhere.example", "").0, 403);
    assert_eq!(ask(&live, "GET /etc HTTP/1.1\r\nHost: localhost", "").0, 404);
    assert_eq!(ask(&live, "DELETE / HTTP/1.1\r\nHost: localhost", "").0, 405);
}
