//! `tandem load` as a user runs it: its modes, their artifacts, and what it says when a goal is missed.

mod common;

use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{output, read_request, stderr, stdout, tandem, wait_for};
use serde_json::Value;
use tandem_load::paced::{PacedConfig, PacedServer};
use tandem_plan::Nanos;

#[allow(clippy::unwrap_used, reason = "a helper of tests")]
fn paced() -> PacedServer {
    let (ttft, itl) = (Nanos::from_millis(4), Nanos::from_millis(1));
    PacedServer::start(PacedConfig { ttft, itl, tokens_per_chunk: 1, n_prompt: 32 }).unwrap()
}

#[allow(clippy::unwrap_used, reason = "a helper of tests")]
fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The records of a point as lines.
#[allow(clippy::unwrap_used, reason = "a helper of tests")]
fn lines(directory: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(directory.join("profile_export.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn load(url: &str, out: &Path, args: &[&str]) -> std::process::Output {
    let mut all = vec!["load", "--url", url, "--model", "m", "--out", out.to_str().expect("UTF-8")];
    all.extend_from_slice(args);
    output(&all)
}

#[test]
fn a_rate_reports_latencies_from_the_schedule_beside_those_from_the_send() {
    let server = paced();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    // One at a time can never carry that rate: those that wait keep their scheduled time.
    let args = ["--request-rate", "2000", "--arrival", "constant", "--max-concurrency", "1", "--requests", "20", "--warmup", "0"];
    let done = load(&server.url(), &out, &[&args[..], &["--isl", "32", "--osl", "4"]].concat());
    assert!(done.status.success(), "{}", stderr(&done));
    let result = json(&out.join("result.json"));
    assert_eq!(result["points"][0]["load"]["request_rate"], 2000.0);
    let avg = |name: &str| result["summary"][name]["avg"].as_f64().unwrap();
    assert!(avg("effective_latency") > 2.0 * avg("request_latency"), "{} {}", avg("effective_latency"), avg("request_latency"));
    assert!(avg("effective_ttft") > 2.0 * avg("ttft"));
    assert!(stdout(&done).contains("TTFT from schedule"));
    let lines = lines(&out.join("m-openai-chat-request_rate2000.0"));
    let issued: Vec<u64> = lines.iter().map(|l| l["metadata"]["credit_issued_ns"].as_u64().unwrap()).collect();
    assert!(issued.windows(2).all(|w| (w[1] - w[0]).abs_diff(500_000) <= 1), "due every 0.5 ms: {issued:?}");
}

#[test]
fn a_point_is_on_disk_before_the_next_one_ends() {
    let server = paced();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    // The second point takes 64 times as long as the first.
    let args = ["--concurrency", "64,1", "--requests", "2000", "--warmup", "0", "--isl", "32", "--osl", "4", "--out"];
    let mut command = tandem();
    command.args(["load", "--url", &server.url(), "--model", "m"]).args(args).arg(&out);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let first = out.join("m-openai-chat-concurrency64");
    wait_for("the files of the first point", || first.join("inputs.json").exists().then_some(()));
    // Nothing is left to such an end.
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(lines(&first).len(), 2000);
    assert!(first.join("profile_export_genai_perf.json").exists() && !out.join("result.json").exists());
}

#[test]
fn a_trace_and_own_prompts_set_the_lengths() {
    let server = paced();
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.jsonl");
    let line = |t, i, o| format!("{{\"timestamp\": {t}, \"input_length\": {i}, \"output_length\": {o}, \"hash_ids\": [1]}}\n");
    std::fs::write(&trace, line(0, 64, 3) + &line(30, 96, 5)).unwrap();
    let out = dir.path().join("trace");
    let done = load(&server.url(), &out, &["--trace", trace.to_str().unwrap()]);
    assert!(done.status.success(), "{}", stderr(&done));
    let of = |lines: &[Value], key: &str| lines.iter().map(|l| l["record"][key].as_u64().unwrap()).collect::<Vec<_>>();
    let trace_lines = lines(&out.join("m-openai-chat-fixed_schedule"));
    assert_eq!((of(&trace_lines, "isl_client"), of(&trace_lines, "osl_server")), (vec![64, 96], vec![3, 5]));
    // The server claims 32 tokens for every prompt: that is said.
    assert!(stderr(&done).contains("another number of prompt tokens"), "{}", stderr(&done));
    let prompts = dir.path().join("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"first\", \"max_tokens\": 2}\n{\"prompt\": \"second\", \"max_tokens\": 6}\n").unwrap();
    let out = dir.path().join("prompts");
    let done = load(&server.url(), &out, &["--prompts", prompts.to_str().unwrap(), "--requests", "2", "--warmup", "0"]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert_eq!(of(&lines(&out.join("m-openai-chat-concurrency1")), "osl_server"), [2, 6]);
    let inputs = json(&out.join("m-openai-chat-concurrency1/inputs.json"));
    assert_eq!(inputs["data"][1]["payload"][0]["messages"][0]["content"], "second");
}

#[test]
fn conversations_and_durations_leave_records_that_name_session_and_turn() {
    let server = paced();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let args = ["--turns", "3", "--think-time", "5", "--concurrency", "2", "--requests", "4", "--warmup", "0", "--isl", "32", "--osl", "3"];
    let done = load(&server.url(), &out, &args);
    assert!(done.status.success(), "{}", stderr(&done));
    let mut turns: Vec<_> = lines(&out.join("m-openai-chat-concurrency2"))
        .iter()
        .map(|l| (l["metadata"]["session_num"].as_u64().unwrap(), l["metadata"]["turn_index"].as_u64().unwrap()))
        .collect();
    turns.sort_unstable();
    assert_eq!(turns, (0..4).flat_map(|s| (0..3).map(move |t| (s, t))).collect::<Vec<_>>());
    let out = dir.path().join("duration");
    let done = load(&server.url(), &out, &["--duration", "0.3", "--concurrency", "2", "--isl", "32", "--osl", "3"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let result = json(&out.join("result.json"));
    assert_eq!(result["points"][0]["load"]["n_requests"], result["outcomes"]["ok"]);
}

/// Answers well while at most `n` requests are in it, else with 503.
#[allow(clippy::unwrap_used, reason = "a helper of tests")]
fn start_small_server(n: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let busy = Arc::new(AtomicUsize::new(0));
    // It ends with the process of the test.
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let busy = busy.clone();
            std::thread::spawn(move || serve(stream, n, &busy));
        }
    });
    url
}

fn serve(mut stream: TcpStream, n: usize, busy: &AtomicUsize) {
    let Ok(mut reader) = stream.try_clone().map(BufReader::new) else { return };
    while read_request(&mut reader) {
        busy.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(20));
        let (status, body) = if busy.load(Ordering::SeqCst) > n {
            ("503 Busy", "{}")
        } else {
            (
                "200 OK",
                r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"abc"},"finish_reason":"length"}],"usage":{"prompt_tokens":32,"completion_tokens":3}}"#,
            )
        };
        std::thread::sleep(Duration::from_millis(5));
        busy.fetch_sub(1, Ordering::SeqCst);
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).is_err() {
            return;
        }
    }
}

#[test]
fn the_search_finds_what_a_server_can_carry_and_keeps_every_measurement() {
    let url = start_small_server(3);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let args = ["--search", "concurrency", "--goodput", "request_latency:60000", "--streaming", "false", "--isl", "32", "--osl", "3"];
    let done = load(&url, &out, &args);
    assert!(done.status.success(), "{}", stderr(&done));
    let search = json(&out.join("search.json"));
    assert_eq!(search["found"], 3.0, "{search}");
    let tried: Vec<f64> = search["loads"].as_array().unwrap().iter().map(|l| l["load"].as_f64().unwrap()).collect();
    assert_eq!(tried, [1.0, 2.0, 3.0, 4.0]);
    assert!(stderr(&done).contains("the highest load that meets request_latency:60000: concurrency 3"), "{}", stderr(&done));
    assert_eq!(json(&out.join("result.json"))["points"][0]["load"]["concurrency"], 3);
    assert!(out.join("search/001-m-openai-chat-concurrency1/profile_export.jsonl").exists());
}

#[test]
fn a_search_that_even_the_lowest_load_fails_says_so() {
    let server = paced();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let args = [
        "--search",
        "rate",
        "--search-from",
        "20",
        "--goodput",
        "ttft:0.01",
        "--requests",
        "5",
        "--warmup",
        "0",
        "--isl",
        "32",
        "--osl",
        "3",
    ];
    let done = load(&server.url(), &out, &args);
    assert_eq!(done.status.code(), Some(8), "{}", stderr(&done));
    assert!(stderr(&done).contains("even at rate 20/s"), "{}", stderr(&done));
    let search = json(&out.join("search.json"));
    assert_eq!((&search["found"], search["loads"].as_array().unwrap().len()), (&Value::Null, 1));
}

#[test]
fn flags_that_exclude_each_other_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["--request-rate", "1", "--concurrency", "1"][..],
        &["--trace", "x", "--request-rate", "1"],
        &["--search", "rate"],
        &["--turns", "0"],
        &["--goodput", "nonsense"],
        &["--isl-dist", "normal:1"],
    ] {
        let done = load("http://127.0.0.1:9", &dir.path().join("out"), args);
        assert_eq!(done.status.code(), Some(2), "{args:?}: {}", stderr(&done));
    }
}
