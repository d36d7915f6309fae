//! What a response means, through the real binary: reasoning, several tokens a chunk, usage of all kinds, failures. And whether GenAI-Perf
//! reads our raw file as we do: its own parser and exporters (from PyPI) write the same JSON and CSV.

mod common;
#[path = "../../tandem-load/tests/scripted/mod.rs"]
mod scripted;

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{output, read_json, stderr, stdout};
use scripted::{LAST_CHUNK, Request, STREAM_HEAD, Server, Then, chunked, event, put};
use serde_json::{Value, json};
use tandem_testkit::not_run;

const ISL: u32 = 32;

/// A piece of output: kind (`content` or `reasoning_content`) and text. With the built-in tokenizer a letter is a token.
type Piece = (&'static str, String);

/// How the server answers; the model's name of a request says which of these.
#[derive(Clone, Copy, PartialEq)]
enum Usage {
    AtTheEnd,
    Continuous,
    Never,
    Wrong,
}

fn pieces(kind: &'static str, n: usize, tokens: usize) -> Vec<Piece> {
    (0..n).map(|i| (kind, "abcdefghijklmnop"[i..][..tokens].to_owned())).collect()
}

/// 12 tokens of all, unless the name says otherwise; `index` is that of the request.
fn answer_of(model: &str, index: usize) -> (Vec<Piece>, Usage) {
    let plain = || pieces("content", 12, 1);
    let reasoning = || [pieces("reasoning_content", 6, 1), pieces("content", 6, 1)].concat();
    match (model, index % 6) {
        ("reasoning", _) | ("mixed", 1) => (reasoning(), Usage::AtTheEnd),
        ("eight", _) | ("mixed", 2) => (pieces("content", 4, 8), Usage::AtTheEnd),
        ("continuous", _) => (pieces("content", 4, 8), Usage::Continuous),
        ("one", _) | ("mixed", 3) => (pieces("content", 1, 1), Usage::AtTheEnd),
        ("mixed", 4) => (pieces("reasoning_content", 6, 1), Usage::AtTheEnd),
        ("mixed", 5) => (vec![("content", "\"a\\\n".to_owned()), ("content", "\u{1}b/c".to_owned())], Usage::AtTheEnd),
        ("silent", _) => (plain(), Usage::Never),
        ("wrong", _) => (plain(), Usage::Wrong),
        _ => (plain(), Usage::AtTheEnd),
    }
}

fn respond(request: &Request, stream: &mut TcpStream) -> Then {
    let model = request.body["model"].as_str().expect("a model");
    let index = request.id.rsplit('-').next().and_then(|n| n.parse().ok()).expect("a number at the end of the id");
    if model == "failing" && index % 3 == 1 {
        let body = r#"{"error":{"message":"busy","type":"overloaded"}}"#;
        put(stream, &format!("HTTP/1.1 503 Busy\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        return Then::Keep;
    }
    let (pieces, usage) = answer_of(model, index);
    let n_tokens: usize = pieces.iter().map(|(_, text)| text.len()).sum();
    let said = if usage == Usage::Wrong { 99 } else { n_tokens };
    let usage_of = |n: usize| json!({"prompt_tokens": ISL, "completion_tokens": n, "total_tokens": ISL as usize + n});
    if request.body["stream"] != true {
        let text: String = pieces.iter().map(|(_, text)| text.as_str()).collect();
        let choice = json!({"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"});
        let body = json!({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage_of(said)}).to_string();
        std::thread::sleep(Duration::from_millis(3));
        put(stream, &format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        return Then::Keep;
    }
    put(stream, STREAM_HEAD);
    let chunk = |delta: Value, finish: Value| json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
    put(stream, &chunked(&event(&chunk(json!({"role": "assistant", "content": null}), Value::Null).to_string())));
    let mut n_so_far = 0;
    for (i, (kind, text)) in pieces.iter().enumerate() {
        // Stamps differ, so that statistics say something.
        std::thread::sleep(Duration::from_micros(2000 + 100 * ((index * 7 + i) % 11) as u64));
        n_so_far += text.len();
        let mut event_of = chunk(json!({(*kind): text}), Value::Null);
        if usage == Usage::Continuous {
            event_of["usage"] = usage_of(n_so_far);
        }
        put(stream, &chunked(&event(&event_of.to_string())));
        if model == "failing" && index % 3 == 2 && i == 5 {
            put(stream, &chunked(&event(r#"{"error":{"message":"out of blocks","code":500}}"#)));
            return Then::Close;
        }
    }
    let mut end = event(&chunk(json!({}), "length".into()).to_string());
    if usage != Usage::Never {
        end += &event(&json!({"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": usage_of(said)}).to_string());
    }
    put(stream, &(chunked(&(end + "data: [DONE]\n\n")) + LAST_CHUNK));
    Then::Keep
}

/// Runs a load of `model` and returns the directory of its point.
fn load(server: &Server, model: &str, out: &Path, more: &[&str]) -> PathBuf {
    let tokenizer = repository().join("models/nano");
    let fixed = ["load", "--url", &server.url(), "--model", model, "--tokenizer", tokenizer.to_str().expect("UTF-8")].map(str::to_owned);
    let sizes = ["--isl", "32", "--requests", "20", "--warmup", "2", "--telemetry", "none", "--out", out.to_str().expect("UTF-8")];
    let concurrency: &[&str] = if more.contains(&"--request-rate") { &[] } else { &["--concurrency", "3"] };
    let osl: &[&str] = if more.contains(&"--osl") { &[] } else { &["--osl", "12"] };
    let args: Vec<&str> = fixed.iter().map(String::as_str).chain(sizes).chain([concurrency, osl, more].concat()).collect();
    let done = output(&args);
    // Where many requests fail the exit code says so; the files are there all the same.
    assert!(out.join("result.json").exists(), "{model}: {}{}", stdout(&done), stderr(&done));
    let result = read_json(&out.join("result.json"));
    out.join(result["points"][0]["directory"].as_str().expect("a directory"))
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

fn records(point: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(point.join("profile_export.jsonl")).expect("records");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The value of a metric in a record line, ns or as it is.
fn value(record: &Value, tag: &str) -> f64 {
    record["metrics"][tag]["value"].as_f64().unwrap_or_else(|| panic!("no {tag} in {}", record["metrics"]))
}

fn chunk_ms(record: &Value, i: usize) -> f64 {
    record["record"]["chunk_ns"][i].as_f64().expect("a stamp") * 1e-6
}

fn figure(point: &Path, name: &str, stat: &str) -> Option<f64> {
    read_json(&point.parent().expect("the run folder").join("result.json"))["summary"][name][stat].as_f64()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

#[test]
fn reasoning_counts_as_output_and_its_end_is_told_apart() {
    let (server, dir) = (Server::start(respond), tempfile::tempdir().unwrap());
    let point = load(&server, "reasoning", &dir.path().join("run"), &[]);
    for record in records(&point) {
        assert_eq!(value(&record, "output_sequence_length"), 12.0);
        assert!(close(value(&record, "time_to_first_token"), chunk_ms(&record, 0)), "{record}");
        assert!(close(value(&record, "time_to_first_output_token"), chunk_ms(&record, 6)), "{record}");
        assert!(value(&record, "time_to_first_output_token") > value(&record, "time_to_first_token") + 10.0, "six pauses of 2 ms");
    }
    let mean = |name| figure(&point, name, "avg").unwrap();
    assert!(close(mean("ttft"), mean("ttfr")) && mean("ttfo") > mean("ttft"));
}

#[test]
fn several_tokens_a_chunk_give_the_same_itl_with_continuous_usage_and_without() {
    let (server, dir) = (Server::start(respond), tempfile::tempdir().unwrap());
    for model in ["eight", "continuous"] {
        let point = load(&server, model, &dir.path().join(model), &["--osl", "32"]);
        let mut gaps = Vec::new();
        for record in records(&point) {
            assert_eq!(record["record"]["chunk_tokens"], json!([8, 8, 8, 8]), "{model}");
            assert_eq!(value(&record, "output_sequence_length"), 32.0);
            // The common definition, which counts the first chunk as one token.
            let decode = value(&record, "request_latency") - value(&record, "time_to_first_token");
            assert!((value(&record, "inter_token_latency") - decode / 31.0).abs() < 1e-6);
            gaps.extend((1..4).map(|i| chunk_ms(&record, i) - chunk_ms(&record, i - 1)));
        }
        let mean_gap = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let (itl, icl) = (figure(&point, "itl", "avg").unwrap(), figure(&point, "icl", "avg").unwrap());
        assert!((itl / (mean_gap / 8.0) - 1.0).abs() < 1e-6, "{model}: {itl}, chunks {mean_gap}");
        assert!((icl / mean_gap - 1.0).abs() < 1e-6, "{model}: {icl}");
        assert_eq!(figure(&point, "itl", "count"), Some(20.0 * 24.0), "24 tokens of each request follow a gap");
    }
}

#[test]
fn without_usage_tokens_are_counted_and_wrong_usage_is_said() {
    let (server, dir) = (Server::start(respond), tempfile::tempdir().unwrap());
    let point = load(&server, "silent", &dir.path().join("silent"), &[]);
    for record in records(&point) {
        assert_eq!((&record["record"]["osl_client"], &record["record"]["osl_server"]), (&json!(12), &Value::Null));
        assert_eq!(value(&record, "output_sequence_length"), 12.0);
    }
    let out = dir.path().join("wrong");
    let point = load(&server, "wrong", &out, &[]);
    // The server's word goes before ours, and the verdict says that it is not what was asked for.
    assert!(records(&point).iter().all(|record| value(record, "output_sequence_length") == 99.0));
    let result = read_json(&out.join("result.json"));
    assert_ne!(result["verdict"], "valid", "{}", result["reasons"]);
    assert_eq!(figure(&point, "osl_mismatch", "avg"), Some(20.0), "every request");
    assert!(figure(&point, "itl", "avg").is_none(), "99 tokens in 12 chunks: nobody knows how many in each");
    // The flag counts the text itself: as GenAI-Perf does.
    let point = load(&server, "wrong", &dir.path().join("compat"), &["--genai-perf-compat"]);
    assert_eq!(read_json(&point.join("profile_export_genai_perf.json"))["output_sequence_length"]["avg"], 12.0);
}

#[test]
fn failed_requests_are_all_there_and_in_no_latency() {
    let (server, dir) = (Server::start(respond), tempfile::tempdir().unwrap());
    let point = load(&server, "failing", &dir.path().join("run"), &["--raw-export"]);
    let records = records(&point);
    let outcomes: Vec<&str> = records.iter().map(|r| r["record"]["outcome"].as_str().unwrap()).collect();
    let expected: Vec<&str> = (0..20).map(|i| ["ok", "http_status", "sse_error"][i % 3]).collect();
    assert_eq!(outcomes, expected);
    assert_eq!(figure(&point, "ttft", "count"), Some(7.0));
    let raw = read_json(&point.join("profile_export.json"));
    assert_eq!(raw["experiments"][0]["requests"].as_array().unwrap().len(), 7);
}

/// Without the flag a prompt's length is what the server counts, its chat template included; GenAI-Perf counts the text alone.
const TEMPLATE: &str = "input_sequence_length";
/// If set, what GenAI-Perf wrote is kept there: new data for the golden test of tandem-metrics.
const KEEP: &str = "TANDEM_KEEP_GOLDEN";

/// A case of the golden test: name, model, further flags, metrics that may differ (and must).
const GOLDEN: [(&str, &str, &[&str], &str); 13] = [
    ("plain", "plain", &[], TEMPLATE),
    ("plain-compat", "plain", &["--genai-perf-compat"], ""),
    ("eight", "eight", &["--osl", "32"], TEMPLATE),
    ("eight-compat", "eight", &["--osl", "32", "--genai-perf-compat"], ""),
    ("one", "one", &["--osl", "1"], TEMPLATE),
    ("one-compat", "one", &["--osl", "1", "--genai-perf-compat"], ""),
    ("failing", "failing", &[], TEMPLATE),
    ("failing-compat", "failing", &["--genai-perf-compat"], ""),
    ("whole", "plain", &["--streaming", "false"], TEMPLATE),
    ("rate-compat", "continuous", &["--request-rate", "200", "--osl", "32", "--genai-perf-compat"], ""),
    // Defects of GenAI-Perf, which the flag reproduces: reasoning is not seen, an answer that is empty but for it counts in one metric
    // only, goodput mixes requests.
    (
        "reasoning",
        "reasoning",
        &[],
        "input_sequence_length,inter_token_latency,output_sequence_length,output_token_throughput,output_token_throughput_per_user,time_to_first_token,time_to_second_token",
    ),
    ("reasoning-compat", "reasoning", &["--genai-perf-compat"], ""),
    ("mixed-compat", "mixed", &["--goodput", "ttft:18,tpot:2.4", "--genai-perf-compat"], ""),
];

#[test]
fn genai_perf_reads_our_raw_file_as_we_do() {
    let (server, dir) = (Server::start(respond), tempfile::tempdir().unwrap());
    let mut cases = Vec::new();
    for (name, model, more, differ) in GOLDEN {
        let more: Vec<&str> = more.iter().copied().chain(["--raw-export"]).collect();
        let point = load(&server, model, &dir.path().join(name), &more);
        assert!(point.join("profile_export.json").exists());
        cases.push(format!("{}={differ}", point.display()));
    }
    let script = repository().join("tests/clients/genai_perf_golden.py");
    let tokenizer = repository().join("models/nano/tokenizer.json");
    let keep = std::env::var(KEEP).map(|folder| vec![format!("--keep={folder}")]).unwrap_or_default();
    let done = match Command::new("python3").arg(script).arg(tokenizer).args(&cases).args(keep).output() {
        Ok(done) => done,
        Err(error) => return not_run("genai_perf_golden.py", format!("python3: {error}")),
    };
    // 77: GenAI-Perf could not be installed, and the script has noted why.
    assert!(matches!(done.status.code(), Some(0 | 77)), "{}{}", stdout(&done), stderr(&done));
}
