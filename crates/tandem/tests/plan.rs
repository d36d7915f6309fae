//! `tandem plan`, `list` and `load` as a user sees them: answers, mistakes, exit codes.

mod common;

use std::fs;

use common::{Background, output, read_json, stderr, stdout, tandem};
use serde_json::Value;

fn failure(args: &[&str]) -> (Option<i32>, String) {
    let run = output(args);
    assert!(run.stdout.is_empty(), "standard output is for results: {}", stdout(&run));
    (run.status.code(), stderr(&run))
}

#[test]
fn mistakes_name_the_key_and_the_nearest_name() {
    let cases: &[(&[&str], i32, &str)] = &[
        (&["plan", "nano", "--set", "CONCURENCY=4"], 3, "CONCURRENCY"),
        (&["plan", "nano", "--set", "ISL=0"], 3, "ISL"),
        (&["plan", "nano", "--set", "CTX_GPU_MEMORY_FRACTION=1.5"], 3, "CTX_GPU_MEMORY_FRACTION"),
        (&["plan", "nan"], 3, "nano"),
        (&["plan", "nano", "--explain", "NCTXX"], 3, "NCTX"),
        (&["plan", "nano", "--device-memory", "16MiB"], 4, "DEVICE_MEMORY"),
        (&["plan", "deepseek-r1"], 3, "h100"),
        (&["plan", "--gpu-type", "h1000"], 2, "h100"),
        (&["serv"], 2, "serve"),
        (&["plan", "./no-such-recipe.yaml"], 3, "no-such-recipe.yaml"),
        (&["serve", "--plan", "/no/such/plan.json"], 9, "/no/such/plan.json"),
        (&["load", "--url", "http://127.0.0.1:1", "--model", "m", "--concurrency", "0"], 2, "--concurrency"),
    ];
    for (args, code, word) in cases {
        let (exit, text) = failure(args);
        assert_eq!(exit, Some(*code), "{args:?}: {text}");
        assert!(text.contains(word), "{args:?} should name {word}: {text}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn a_mistake_in_a_recipe_file_is_shown_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.yaml");
    fs::write(&path, "base: nano\nNCTX: 1\nGEN_MAX_BATCH_SIZ: 4\n").unwrap();
    let (exit, text) = failure(&["plan", path.to_str().unwrap()]);
    assert_eq!(exit, Some(3));
    assert!(text.contains("mine.yaml:3") && text.contains("GEN_MAX_BATCH_SIZE"), "{text}");
}

#[test]
fn the_last_layer_wins_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.yaml");
    fs::write(&path, "base: nano\nCONCURRENCY: 3\nMULTI_ROUND: 2\n").unwrap();
    let explain = |knob: &str, args: &[&str], env: Option<(&str, &str)>| {
        let mut command = tandem();
        command.args(["plan", path.to_str().unwrap(), "--explain", knob]).args(args);
        if let Some((name, value)) = env {
            command.env(name, value);
        }
        let run = command.output().unwrap();
        assert!(run.status.success(), "{}", stderr(&run));
        stdout(&run)
    };
    assert!(explain("CONCURRENCY", &[], None).contains("mine.yaml:2"));
    let by_env = explain("CONCURRENCY", &[], Some(("CONCURRENCY", "5")));
    assert!(by_env.contains("CONCURRENCY = 5") && by_env.contains("environment"), "{by_env}");
    let by_set = explain("CONCURRENCY", &["--set", "CONCURRENCY=7"], Some(("CONCURRENCY", "5")));
    assert!(by_set.contains("CONCURRENCY = 7") && by_set.contains("command line"), "{by_set}");
}

#[test]
fn the_published_recipes_plan_with_their_published_sizes() {
    for (gpu, n_devices, n_workers, n_requests) in [("gb200", 32, 7, 16384), ("b200", 32, 4, 16384), ("H100", 48, 3, 8192)] {
        let run = output(&["plan", "deepseek-r1", "--gpu-type", gpu, "--json"]);
        assert!(run.status.success(), "{}", stderr(&run));
        let plan: Value = serde_json::from_slice(&run.stdout).unwrap();
        let workers = plan["workers"].as_array().unwrap();
        let ranks: usize = workers.iter().map(|w| w["ranks"].as_array().unwrap().len()).sum();
        assert_eq!((workers.len(), ranks, &plan["load"]["points"][0]["n_requests"]), (n_workers, n_devices, &Value::from(n_requests)));
    }
}

#[test]
fn a_published_recipe_is_predicted_with_a_range_and_the_embedded_one_is_not() {
    let run = output(&["plan", "deepseek-r1", "--gpu-type", "h100"]);
    let text = stdout(&run);
    assert!(text.contains("predicted at concurrency 1024") && text.contains("extrapolated: "), "{text}");
    assert!(!stdout(&output(&["plan", "nano"])).contains("predicted"));
}

#[test]
fn a_dry_submission_of_the_published_recipe_starts_its_workers_as_the_recipe_does() {
    let dir = tempfile::tempdir().unwrap();
    let run = tandem().args(["submit", "deepseek-r1", "--gpu-type", "h100", "--dry-run"]).current_dir(dir.path()).output().unwrap();
    let text = stdout(&run);
    for (server, nodes) in [("prefill-0", "NODE_0,NODE_1"), ("prefill-1", "NODE_2,NODE_3"), ("decode-0", "NODE_4,NODE_5")] {
        let line = text.lines().find(|line| line.contains(&format!("--job-name={server}"))).unwrap_or_else(|| panic!("{server}: {text}"));
        for part in [nodes, "--nodes=2", "--ntasks=16", "--mpi=pmix", "trtllm-llmapi-launch python3 -m dynamo.trtllm"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}

#[test]
fn a_sweep_shares_a_deployment_where_it_can() {
    let plans = |set: &str| {
        let run = output(&["plan", "nano", "--set", set, "--json"]);
        assert!(run.status.success(), "{}", stderr(&run));
        serde_json::from_slice::<Value>(&run.stdout).unwrap()
    };
    assert_eq!(plans("CONCURRENCY=1,2,4")["load"]["points"].as_array().unwrap().len(), 3);
    assert_eq!(plans("NCTX=1,2").as_array().unwrap().len(), 2);
}

#[test]
fn list_shows_every_recipe() {
    let run = output(&["list"]);
    assert!(["nano", "tiny", "deepseek-r1"].iter().all(|name| stdout(&run).contains(name)), "{}", stdout(&run));
}

#[test]
fn load_measures_any_endpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (_run, url) = Background::serve(&["tiny"]);
    let out = dir.path().join("out");
    let args = ["load", "--url", &url, "--model", "tiny", "--concurrency", "2,3", "--requests", "12", "--isl", "24", "--osl", "6", "--out"];
    let load = output(&[&args[..], &[out.to_str().unwrap()]].concat());
    assert_eq!(load.status.code(), Some(0), "{}", stderr(&load));
    // Requests this short leave gaps between them that a busy machine makes suspect.
    assert_ne!(read_json(&out.join("result.json"))["validity"], "invalid");
    for concurrency in [2, 3] {
        let name = format!("tiny-openai-chat-concurrency{concurrency}/profile_export.jsonl");
        assert_eq!(fs::read_to_string(out.join(name)).unwrap().lines().count(), 12);
    }
}

#[test]
fn strict_fails_on_figures_that_are_not_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (_run, url) = Background::serve(&["tiny"]);
    let out = dir.path().join("out");
    // More requests in flight than requests: the steady state that was asked for is never reached.
    let args =
        ["load", "--strict", "--url", &url, "--model", "tiny", "--concurrency", "9", "--requests", "4", "--warmup", "0", "--isl", "24"];
    let load = output(&[&args[..], &["--osl", "6", "--out", out.to_str().unwrap()]].concat());
    assert_eq!(load.status.code(), Some(8), "{}", stderr(&load));
    assert!(out.join("perf_summary.txt").is_file());
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let load = output(&["load", "--url", "http://127.0.0.1:1", "--model", "m", "--out", out.to_str().unwrap()]);
    assert_eq!(load.status.code(), Some(7), "{}", stderr(&load));
    assert!(stderr(&load).contains("127.0.0.1:1"), "{}", stderr(&load));
}

/// A folder of tables with the routed experts of DEP8 on GB200, which take `ms` at every size.
fn experts_table(ms: f64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder of the test");
    let place = folder.path().join("gb200/moe/trtllm/9.9");
    fs::create_dir_all(&place).expect("a folder of the test");
    let mut csv = "moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,distribution,latency\n".to_owned();
    for tokens in [1, 2048, 65536] {
        csv += &format!("nvfp4,{tokens},7168,2048,8,256,1,8,power_law_1.01,{ms}\n");
    }
    fs::write(place.join("moe_perf.csv"), csv).expect("a folder of the test");
    folder
}

fn plan_with_tables(folder: &std::path::Path) -> String {
    let run = output(&["plan", "deepseek-r1", "--gpu-type", "gb200", "--tables", folder.to_str().expect("a folder of the test")]);
    assert!(run.status.success(), "{}", stderr(&run));
    stdout(&run)
}

#[test]
fn measured_operators_change_the_prediction_which_names_them() {
    let tpot = |text: &str| -> f64 {
        let rest = text.split("TPOT ").nth(1).expect("a prediction");
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    let (fast, slow) = (experts_table(0.1), experts_table(1.0));
    let (fast, slow) = (plan_with_tables(fast.path()), plan_with_tables(slow.path()));
    assert!(fast.contains("decode experts: moe_perf trtllm 9.9, exact"), "{fast}");
    assert!(fast.contains("decode attention: not in the tables, roofline"), "{fast}");
    assert!(tpot(&slow) > tpot(&fast) + 20.0, "58 layers of experts are 0.9 ms slower: {fast}{slow}");
}

#[test]
fn tables_that_cannot_be_used_are_named() {
    let folder = experts_table(0.1);
    let file = folder.path().join("gb200/moe/trtllm/9.9/moe_perf.csv");
    let run = |place: &str| failure(&["plan", "deepseek-r1", "--gpu-type", "gb200", "--tables", place]);
    fs::write(&file, "moe_dtype,num_tokens\nnvfp4,1\n").unwrap();
    let (exit, text) = run(folder.path().to_str().unwrap());
    assert_eq!(exit, Some(9));
    assert!(text.contains("moe_perf has no column `hidden_size`"), "{text}");
    fs::rename(&file, file.with_extension("parquet")).unwrap();
    let (exit, text) = run(folder.path().to_str().unwrap());
    assert_eq!(exit, Some(9));
    assert!(text.contains("moe_perf.parquet"), "{text}");
    let (exit, text) = run("/no/such/folder");
    assert_eq!(exit, Some(9));
    assert!(text.contains("/no/such/folder"), "{text}");
}

/// AIConfigurator's tables where `benches/peers/install-predict.sh` puts them.
fn aiconfigurator() -> Option<std::path::PathBuf> {
    let peers = std::env::var_os("PEERS_DIR").map(std::path::PathBuf::from);
    let peers = peers.unwrap_or_else(|| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers"));
    let pythons = fs::read_dir(peers.join("predict/lib")).ok()?;
    let data = |python: fs::DirEntry| python.path().join("site-packages/aiconfigurator_core/systems/data");
    pythons.filter_map(Result::ok).map(data).find(|data| data.is_dir())
}

#[test]
fn aiconfigurators_own_files_price_every_operator() {
    let Some(folder) = aiconfigurator() else {
        tandem_testkit::not_run("AIConfigurator's tables", "not installed (benches/peers/install-predict.sh)");
        return;
    };
    for gpu in ["gb200", "b200", "h100"] {
        let run = output(&["plan", "deepseek-r1", "--gpu-type", gpu, "--tables", folder.to_str().unwrap()]);
        assert!(run.status.success(), "{}", stderr(&run));
        let text = stdout(&run);
        for table in ["gemm_perf", "moe_perf", "context_mla_perf", "generation_mla_perf"] {
            assert!(text.contains(table), "{gpu}: {text}");
        }
        assert!(!text.contains("not in the tables"), "{gpu}: {text}");
    }
}

fn plan(args: &[&str]) -> String {
    let run = output(&[&["plan", "deepseek-r1"], args].concat());
    assert!(run.status.success(), "{args:?}: {}", stderr(&run));
    stdout(&run)
}

#[test]
fn every_gpu_type_has_a_plan_that_fits_and_a_prediction() {
    for gpu in ["gb200", "b200", "h100", "h200", "b300", "gb300"] {
        let text = plan(&["--gpu-type", gpu]);
        assert!(text.contains(&format!("devices of {gpu} on")) && text.contains("predicted at concurrency"), "{text}");
        assert!(!text.contains("is not in the hardware table"), "{text}");
    }
    assert_eq!(plan(&["--gpu-type", "h200,b300"]).matches("predicted at concurrency").count(), 2, "several at once");
}

const OWN_GPU: &str = r#"{"gpus": [{"name": "mine", "memory": 400, "hbm": 13, "bf16": 4, "fp8": 8, "fp4": 20, "nvlink": 1800, "nvlink_domain": 144,
"gpus_per_node": 4, "scale_out": 100}]}"#;

#[test]
fn a_gpu_of_the_users_own_has_the_figures_of_its_table() {
    let dir = tempfile::tempdir().unwrap();
    let table = dir.path().join("gpus.json");
    fs::write(&table, OWN_GPU).unwrap();
    let own = ["--gpu-type", "mine:gb300", "--hardware", table.to_str().unwrap()];
    let text = plan(&own);
    // 400 GB are 372.5 GiB; twice the bandwidth and more memory than the GPU that it is like.
    assert!(text.contains("devices of mine:gb300 on") && text.contains("372.5 GiB"), "{text}");
    assert!(text.contains("extrapolated: no measurement of mine trt nvfp4 was fitted"), "{text}");
    let tpot = |text: &str| -> f64 { text.split_once("TPOT ").unwrap().1.split_once(' ').unwrap().0.parse().unwrap() };
    let unknown = plan(&own[..2]);
    assert!(unknown.contains("GPU mine is not in the hardware table"), "{unknown}");
    assert!(tpot(&text) < tpot(&unknown), "{text} {unknown}");
    let explained = plan(&[&own[..], &["--explain", "DEVICE_MEMORY"]].concat());
    assert!(explained.contains("hardware table"), "{explained}");
    // A shipped GPU with other figures is no longer the one that was measured.
    fs::write(&table, OWN_GPU.replace("mine", "gb200")).unwrap();
    let changed = plan(&["--gpu-type", "gb200", "--hardware", table.to_str().unwrap()]);
    assert!(changed.contains("not those that the constants were fitted with") && changed.contains("372.5 GiB"), "{changed}");
    let (exit, text) = failure(&["plan", "deepseek-r1", "--gpu-type", "mine:mine"]);
    assert!(exit == Some(2) && text.contains("NAME:LIKE"), "{text}");
    fs::write(&table, "{}").unwrap();
    let (exit, text) = failure(&[&["plan", "deepseek-r1"], &own[..]].concat());
    assert!(exit == Some(9) && text.contains("no list `gpus`"), "{text}");
}

#[test]
fn steps_that_are_too_large_run_out_of_memory_and_the_hint_fits() {
    let set =
        |tokens: &str| ["plan", "deepseek-r1", "--gpu-type", "gb200", "--set", &format!("CTX_MAX_NUM_TOKENS={tokens}")].map(str::to_owned);
    let (exit, text) = failure(&set("1000000").each_ref().map(String::as_str));
    assert!(exit == Some(4) && text.contains("of a prefill rank exceed"), "{text}");
    let tokens = text.split_once("hint: lower CTX_MAX_NUM_TOKENS to ").expect(&text).1.trim().to_owned();
    assert!(tokens.parse::<u32>().unwrap() > 8192, "{tokens}");
    let text = plan(&set(&tokens).each_ref().map(String::as_str)[2..]);
    assert!(text.contains("experts") && text.contains("transceiver"), "{text}");
}

#[test]
fn facts_are_the_published_ones() {
    let text = plan(&["--gpu-type", "gb200", "--facts"]);
    for fact in [
        "671026419200",
        "653908770816",
        "673.151",
        "396.678",
        "386.380",
        "71.396",
        "16.990",
        "4.997",
        "0.7479 PFLOP",
        "35136 B a token",
        "286.4 MB",
    ] {
        assert!(text.contains(fact), "{fact}: {text}");
    }
    let json: Value = serde_json::from_str(&plan(&["--gpu-type", "gb200", "--facts", "--json"])).unwrap();
    assert_eq!(json["flops_per_pair_and_layer"]["decode"], 2 * 128 * (2 * 512 + 64));
    assert_eq!(json["servers"][1]["memory"]["budget"]["sequences"], 281);
}

#[test]
fn weights_in_another_format_than_the_checkpoints_are_noted() {
    let dir = tempfile::tempdir().unwrap();
    let config = include_str!("../../tandem-recipe/data/deepseek-r1.json");
    let mut json: Value = serde_json::from_str(config).unwrap();
    json["quantization_config"] = serde_json::json!({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]});
    fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    let model = dir.path().to_str().unwrap();
    let text = plan(&["--gpu-type", "gb200", "--model", model, "--set", "WEIGHT_DTYPE=fp8", "--set", "GEN_MAX_BATCH_SIZE=128"]);
    assert!(text.contains("weights are counted in fp8") && text.contains("config.json says nvfp4-v2"), "{text}");
    let auto = plan(&["--gpu-type", "gb200", "--model", model, "--set", "WEIGHT_DTYPE=auto"]);
    assert!(!auto.contains("weights are counted") && auto.contains("no measurement of gb200 trt nvfp4-v2 was fitted"), "{auto}");
    assert!(!plan(&["--gpu-type", "gb200"]).contains("weights are counted"));
}
