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
    assert!(wider.contains("simulated 2 in") && wider.contains("(4 taken from before)"), "{wider}");
}

#[test]
fn nothing_left_is_an_error_with_the_nearest_change() {
    let output = explore(&["--set", "NCTX=4,6", "--slo", "tpot:1"]);
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("2 × misses the SLO tpot") && text.contains("hint: nearest change: --slo tpot:"), "{text}");
}

#[test]
fn bad_axes_and_conditions_are_usage_errors() {
    for args in [["--set", "NCTX=4..1"], ["--where", "NTCX > 1"], ["--slo", "speed:3"], ["--where", "NCTX >"]] {
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
