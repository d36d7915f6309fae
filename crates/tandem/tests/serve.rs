//! A deployment that serves: text, deaths of its parts, leaks.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use common::{Background, get, kill, metric, post, wait_for, wait_until_gone};
use rustix::process::Signal;
use serde_json::{Value, json};

fn chat(content: &str, max_tokens: u32) -> Value {
    json!({"model": "nano", "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true})
}

fn workers(url: &str) -> Value {
    serde_json::from_str::<Value>(&get(url, "/health").1).expect("JSON")["workers"].clone()
}

/// All KV blocks are free again; a leaked one fails the test at the deadline.
fn wait_until_no_block_is_held(url: &str) {
    wait_for("all KV blocks to be free", || {
        let used = metric(url, "tandem_kv_blocks_used");
        (!used.is_empty() && used.iter().all(|(_, n)| *n == 0.0)).then_some(())
    });
}

/// Asks for the reference's texts and returns the decode worker's steps.
fn check_golden_texts(settings: &[&str]) -> f64 {
    let (_run, url) = Background::serve(&[&["nano"], settings].concat());
    let golden: Value = serde_json::from_str(include_str!("../../../models/nano/golden.json")).expect("JSON");
    let of_decode = |name: &str| metric(&url, name).into_iter().filter(|(key, _)| key.contains("decode")).map(|(_, n)| n).sum::<f64>();
    let prompts = [("docs", "/// Returns the number of elements in the "), ("question", "What is a key-value cache?")];
    for (name, prompt) in prompts {
        let (status, answer) = post(&url, "/v1/chat/completions", &chat(prompt, 64));
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["choices"][0]["message"]["content"], golden[name]["text"], "{name}");
        assert_eq!(answer["usage"]["completion_tokens"], 64);
        assert_eq!(answer["usage"]["prompt_tokens"], golden[name]["prompt"].as_array().expect("a list").len());
    }
    wait_until_no_block_is_held(&url);
    // All tokens but each prompt's first are the decode worker's; it tells with its next heartbeat. Canaries come on top.
    wait_for("the steps to be known", || (of_decode("tandem_worker_output_tokens_total") >= 126.0 + 6.0).then_some(()));
    of_decode("tandem_engine_steps_total")
}

#[test]
fn the_trained_model_says_over_two_processes_what_the_reference_says() {
    check_golden_texts(&[]);
}

#[test]
fn drafts_change_the_number_of_steps_and_no_token() {
    let (plain, drafted) = (check_golden_texts(&[]), check_golden_texts(&["--set", "GEN_MTP_SIZE=1", "--set", "GEN_MAX_NUM_TOKENS=16"]));
    // Nine drafts of ten are right (golden.json), so almost half of the steps are saved.
    assert!(drafted < 0.65 * plain, "{drafted} steps with drafts, {plain} without");
}

/// Starts a streaming request and returns its lines.
fn stream(url: &str, body: &Value) -> BufReader<TcpStream> {
    let mut socket = TcpStream::connect(url.trim_start_matches("http://")).expect("a connection");
    socket.set_read_timeout(Some(common::DEADLINE)).expect("a timeout");
    let mut body = body.clone();
    body["stream"] = true.into();
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).expect("sent");
    socket.write_all(body.as_bytes()).expect("sent");
    BufReader::new(socket)
}

/// Reads until a chunk with text has come.
fn first_text(lines: &mut BufReader<TcpStream>) -> String {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).expect("a line") > 0, "the stream ended: {seen}");
        seen.push_str(&line);
        let event = line.strip_prefix("data: ").and_then(|data| serde_json::from_str::<Value>(data.trim()).ok());
        if event.is_some_and(|e| e["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty())) {
            return seen;
        }
    }
}

const SLOW: [&str; 5] = ["nano", "--set", "ENGINE=modeled", "--set", "MODELED_STEP_US=20000"];

#[test]
fn a_client_that_leaves_frees_everything_it_held() {
    let (_run, url) = Background::serve(&SLOW);
    let mut lines = stream(&url, &chat("Count to a hundred.", 200));
    first_text(&mut lines);
    assert!(metric(&url, "tandem_requests_in_flight").iter().any(|(_, n)| *n > 0.0));
    drop(lines);
    wait_until_no_block_is_held(&url);
    wait_for("no request in flight", || metric(&url, "tandem_requests_in_flight").iter().all(|(_, n)| *n == 0.0).then_some(()));
}

#[test]
fn a_decode_worker_that_dies_fails_only_its_requests() {
    let (run, url) = Background::serve(&[&SLOW[..], &["--set", "NGEN=2", "--set", "ROUTING=round-robin"]].concat());
    let pids = run.pids(5);
    let mut streams = [stream(&url, &chat("one", 150)), stream(&url, &chat("two", 150))];
    let heads: Vec<String> = streams.iter_mut().map(first_text).collect();
    let on_victim = |head: &String| head.contains("x-tandem-decode-worker: decode-0");
    assert_eq!(heads.iter().filter(|head| on_victim(head)).count(), 1, "{heads:?}");
    let victim = pids.iter().find(|(name, _)| name == "decode-0").unwrap();
    kill(victim.1, Signal::KILL);
    wait_for("/health to show it", || (workers(&url)["decode"]["ready"] == 1).then_some(()));
    for (head, lines) in heads.iter().zip(&mut streams) {
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        if on_victim(head) {
            assert!(rest.contains("\"error\""), "its client must be told: {rest}");
        } else {
            assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"), "{rest}");
        }
    }
    assert_eq!(post(&url, "/v1/chat/completions", &chat("three", 4)).0, 200);
    wait_until_no_block_is_held(&url);
}

#[test]
fn a_prefill_worker_that_dies_is_replaced_by_another() {
    let settings = ["nano", "--set", "ENGINE=modeled", "--set", "MODELED_PREFILL_TOKEN_US=20000"];
    let (run, url) = Background::serve(&settings);
    let pids = run.pids(4);
    let (sender, receiver) = std::sync::mpsc::channel();
    let asking = url.clone();
    std::thread::spawn(move || sender.send(post(&asking, "/v1/chat/completions", &chat("a prompt that takes a while", 4))));
    // The worker that computes is the one to kill.
    let busy = wait_for("a prefill worker to be busy", || {
        let running = metric(&url, "tandem_requests_running");
        running.into_iter().find(|(key, n)| *n > 0.0 && key.contains("prefill")).map(|(key, _)| key)
    });
    let victim = pids.iter().find(|(name, _)| busy.contains(name.as_str())).expect("its process");
    kill(victim.1, Signal::KILL);
    wait_for("/health to show it", || (workers(&url)["prefill"]["ready"] == 1).then_some(()));
    let (status, answer) = receiver.recv_timeout(common::DEADLINE).expect("an answer");
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(4)), "{answer}");
    wait_until_no_block_is_held(&url);
}

#[test]
fn a_frontend_that_dies_ends_a_serving_deployment() {
    let (mut run, _url) = Background::serve(&SLOW);
    let pids = run.pids(4);
    kill(pids.iter().find(|(name, _)| name == "frontend").unwrap().1, Signal::KILL);
    assert_eq!(run.wait(), Some(6), "{}", run.stderr());
    wait_until_gone(&pids);
}

#[test]
fn ctrl_c_ends_a_serving_deployment_cleanly() {
    let (mut run, url) = Background::serve(&SLOW);
    let pids = run.pids(4);
    assert_eq!(get(&url, "/v1/models").0, 200);
    run.signal(Signal::INT);
    assert_eq!(run.wait(), Some(130), "{}", run.stderr());
    wait_until_gone(&pids);
    let address = url.trim_start_matches("http://").to_owned();
    assert!(TcpStream::connect(address).is_err(), "the port is free again");
}
