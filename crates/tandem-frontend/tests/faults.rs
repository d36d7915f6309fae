//! Clients that leave and workers that die, fail or fall silent.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::plan::plan;
use support::worker::Worker;
use support::{DEADLINE, Frontend};
use tandem_plan::Phase;
use tandem_wire::worker::{FailureKind, FinishReason, FromWorker, PROTOCOL_VERSION, ToWorker, WorkerStats};
use tokio::time::timeout;

const CHAT: &str = "/v1/chat/completions";

fn body(stream: bool) -> Vec<u8> {
    json!({"model": "nano", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": stream}).to_string().into_bytes()
}

async fn manual(n_prefill: u32, n_decode: u32) -> (Frontend, Vec<Worker>, Vec<Worker>) {
    let frontend = Frontend::start(plan(n_prefill, n_decode)).await;
    let (mut prefills, mut decodes) = (Vec::new(), Vec::new());
    for i in 0..n_prefill {
        prefills.push(frontend.worker(&format!("prefill-{i}")).await);
    }
    for i in 0..n_decode {
        decodes.push(frontend.worker(&format!("decode-{i}")).await);
    }
    frontend.until_ready(n_prefill.into(), n_decode.into()).await;
    (frontend, prefills, decodes)
}

/// Serves one request from its reservation on.
async fn serve(prefill: &mut Worker, decode: &mut Worker) {
    let (id, _) = decode.reserve().await;
    decode.reserved(id);
    let (prefill_id, _, target) = prefill.prefill().await;
    assert_eq!((prefill_id, target.map(|t| t.ticket)), (id, Some(id.0)));
    prefill.text(id, "a", None);
    decode.text(id, "b", None);
    decode.text(id, "c", Some(FinishReason::Length));
}

fn content(value: &Value) -> &str {
    value["choices"][0]["message"]["content"].as_str().unwrap()
}

#[tokio::test]
async fn a_client_that_leaves_cancels_at_both_workers() {
    let (frontend, mut prefills, mut decodes) = manual(1, 1).await;
    let (prefill, decode) = (&mut prefills[0], &mut decodes[0]);
    for stream in [true, false] {
        // Before the first token.
        let mut client = frontend.client().await;
        client.start(CHAT, &[], &body(stream)).await;
        let (id, _) = decode.reserve().await;
        decode.reserved(id);
        prefill.prefill().await;
        drop(client);
        assert_eq!((prefill.cancel().await, decode.cancel().await), (id, id));
        // After it.
        let mut client = frontend.client().await;
        client.start(CHAT, &[], &body(stream)).await;
        let (id, _) = decode.reserve().await;
        decode.reserved(id);
        prefill.prefill().await;
        prefill.text(id, "a", None);
        if stream {
            client.until("\"a\"").await;
        }
        drop(client);
        assert_eq!((prefill.cancel().await, decode.cancel().await), (id, id));
    }
    frontend.until_metric(r#"tandem_requests_total{endpoint="chat",outcome="cancelled"}"#, 4.0).await;
    frontend.until(|health| health["requests_in_flight"] == 0).await;
    frontend.stop().await;
}

#[tokio::test]
async fn a_prefill_worker_that_dies_is_replaced_before_the_first_token() {
    for stream in [true, false] {
        let (frontend, mut prefills, mut decodes) = manual(2, 1).await;
        let (mut second, mut first, decode) = (prefills.pop().unwrap(), prefills.pop().unwrap(), &mut decodes[0]);
        let mut client = frontend.client().await;
        client.start(CHAT, &[], &body(stream)).await;
        let (id, _) = decode.reserve().await;
        decode.reserved(id);
        first.prefill().await;
        first.kill().await;
        assert_eq!(decode.cancel().await, id, "the reservation of the dead try is given back");
        serve(&mut second, decode).await;
        let response = client.response().await;
        assert_eq!((response.status, response.header("x-tandem-prefill-worker")), (200, Some("prefill-1")));
        assert_eq!(if stream { response.streamed_text() } else { content(&response.json()).to_owned() }, "abc");
        let health = frontend.until(|health| health["workers"]["prefill"]["ready"] == 1).await;
        assert_eq!((&health["status"], &health["workers"]["prefill"]["missing"]), (&json!("degraded"), &json!(["prefill-0"])));
        assert_eq!(frontend.get("/health").await.status, 503);
        assert_eq!(frontend.get("/ready").await.status, 200);
        assert_eq!(frontend.metric("tandem_request_retries_total").await, Some(1.0));
        frontend.stop().await;
    }
}

#[tokio::test]
async fn a_decode_worker_that_dies_before_anything_was_sent_is_replaced() {
    for stream in [true, false] {
        let (frontend, mut prefills, mut decodes) = manual(1, 2).await;
        let (mut second, mut first, prefill) = (decodes.pop().unwrap(), decodes.pop().unwrap(), &mut prefills[0]);
        let mut client = frontend.client().await;
        client.start(CHAT, &[], &body(stream)).await;
        let (id, _) = first.reserve().await;
        first.reserved(id);
        prefill.prefill().await;
        if !stream {
            // Nobody has seen these tokens, so they can be forgotten.
            prefill.text(id, "x", None);
            first.text(id, "y", None);
            frontend.until_metric("tandem_output_tokens_total", 2.0).await;
        }
        first.kill().await;
        assert_eq!(prefill.cancel().await, id);
        serve(prefill, &mut second).await;
        let response = client.response().await;
        assert_eq!((response.status, response.header("x-tandem-decode-worker")), (200, Some("decode-1")));
        if stream {
            assert_eq!(response.streamed_text(), "abc");
        } else {
            let value = response.json();
            assert_eq!((content(&value), &value["usage"]["completion_tokens"]), ("abc", &json!(3)), "usage counts what is in the response");
        }
        frontend.stop().await;
    }
}

#[tokio::test]
async fn a_decode_worker_that_dies_in_a_stream_ends_it_with_an_error_event() {
    let (frontend, mut prefills, mut decodes) = manual(1, 2).await;
    let (mut second, mut first, prefill) = (decodes.pop().unwrap(), decodes.pop().unwrap(), &mut prefills[0]);
    let mut client = frontend.client().await;
    client.start(CHAT, &[], &body(true)).await;
    let (id, _) = first.reserve().await;
    first.reserved(id);
    prefill.prefill().await;
    prefill.text(id, "a", None);
    client.until("\"a\"").await;
    first.kill().await;
    let response = client.response().await;
    let last: Value = serde_json::from_str(response.events().last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "worker_lost");
    assert_eq!(prefill.cancel().await, id);
    // Others go on, on the same connection too.
    client.start(CHAT, &[], &body(true)).await;
    serve(prefill, &mut second).await;
    assert_eq!(client.response().await.streamed_text(), "abc");
    frontend.until_metric(r#"tandem_requests_total{endpoint="chat",outcome="failed"}"#, 1.0).await;
    frontend.stop().await;
}

#[tokio::test]
async fn without_another_worker_a_death_is_a_503() {
    let (frontend, _prefills, mut decodes) = manual(1, 1).await;
    let mut client = frontend.client().await;
    client.start(CHAT, &[], &body(true)).await;
    let mut decode = decodes.pop().unwrap();
    decode.reserve().await;
    decode.kill().await;
    let response = client.response().await;
    assert_eq!(response.error(), (503, "no_worker".into(), String::new()));
    assert_eq!(response.header("retry-after"), Some("1"));
    let health = frontend.until(|health| health["workers"]["decode"]["ready"] == 0).await;
    assert_eq!(health["status"], "unavailable");
    assert_eq!(frontend.get("/ready").await.status, 503);
    frontend.stop().await;
}

#[tokio::test]
async fn tries_are_bounded() {
    let (frontend, mut prefills, mut decodes) = manual(1, 1).await;
    let (prefill, decode) = (&mut prefills[0], &mut decodes[0]);
    let mut client = frontend.client().await;
    client.start(CHAT, &[], &body(false)).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let (id, _) = decode.reserve().await;
        decode.reserved(id);
        prefill.prefill().await;
        decode.fail(id, FailureKind::Expired, "no commit in time");
        assert_eq!((decode.cancel().await, prefill.cancel().await), (id, id));
        ids.push(id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "each try has an identity of its own");
    let response = client.response().await;
    assert_eq!(response.error(), (500, "worker_failed".into(), String::new()));
    assert!(response.text().contains("no commit in time"));
    frontend.stop().await;
}

#[tokio::test]
async fn what_a_worker_says_of_a_request_decides_its_status() {
    let (frontend, mut prefills, mut decodes) = manual(1, 1).await;
    let (prefill, decode) = (&mut prefills[0], &mut decodes[0]);
    for (kind, status, code) in [(FailureKind::Impossible, 400, "request_impossible"), (FailureKind::Engine, 500, "worker_failed")] {
        let mut client = frontend.client().await;
        client.start(CHAT, &[], &body(true)).await;
        let (id, _) = decode.reserve().await;
        decode.reserved(id);
        prefill.prefill().await;
        prefill.fail(id, kind, "because");
        let response = client.response().await;
        assert_eq!(response.error(), (status, code.to_owned(), String::new()));
        assert!(response.text().contains("because"));
        assert_eq!((decode.cancel().await, prefill.cancel().await), (id, id));
    }
    frontend.stop().await;
}

#[tokio::test]
async fn a_late_answer_to_a_try_that_was_given_up_is_ignored() {
    let (frontend, mut prefills, mut decodes) = manual(1, 1).await;
    let (prefill, decode) = (&mut prefills[0], &mut decodes[0]);
    let mut client = frontend.client().await;
    client.start(CHAT, &[], &body(true)).await;
    let (old, _) = decode.reserve().await;
    decode.fail(old, FailureKind::Transfer, "x");
    assert_eq!(decode.cancel().await, old);
    decode.reserved(old);
    decode.text(old, "zzz", Some(FinishReason::Stop));
    serve(prefill, decode).await;
    assert_eq!(client.response().await.streamed_text(), "abc");
    frontend.stop().await;
}

#[tokio::test]
async fn a_request_that_takes_too_long_fails_at_its_deadline() {
    let mut plan = plan(1, 1);
    plan.frontend.request_timeout_ms = 300;
    let frontend = Frontend::start(plan).await;
    let (mut prefill, mut decode) = (frontend.worker("prefill-0").await, frontend.worker("decode-0").await);
    frontend.until_ready(1, 1).await;
    let mut client = frontend.client().await;
    client.start(CHAT, &[], &body(true)).await;
    let (id, _) = decode.reserve().await;
    assert_eq!(client.response().await.error(), (504, "request_timeout".into(), String::new()));
    assert_eq!(decode.cancel().await, id);
    client.start(CHAT, &[], &body(true)).await;
    let (id, _) = decode.reserve().await;
    decode.reserved(id);
    prefill.prefill().await;
    prefill.text(id, "a", None);
    let response = client.response().await;
    assert_eq!((response.status, response.streamed_text().as_str()), (200, "a"));
    let last: Value = serde_json::from_str(response.events().last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "request_timeout");
    assert_eq!((decode.cancel().await, prefill.cancel().await), (id, id));
    frontend.stop().await;
}

#[tokio::test]
async fn a_silent_worker_is_lost_and_may_come_back() {
    let frontend = Frontend::start(plan(1, 1)).await;
    let hash = frontend.plan.hash();
    let (stream, answer) = Worker::hello(frontend.control, PROTOCOL_VERSION, &hash, "decode-0", Phase::Decode).await;
    assert_eq!(answer, Some(ToWorker::Welcome));
    let mut silent = Worker::over(stream, Phase::Decode, false);
    frontend.until_ready(0, 1).await;
    frontend.until_ready(0, 0).await;
    assert!(timeout(DEADLINE, silent.inbox.recv()).await.unwrap().is_none(), "its connection is closed");
    let _again = frontend.worker("decode-0").await;
    frontend.until_ready(0, 1).await;
    frontend.stop().await;
}

#[tokio::test]
async fn a_stranger_is_told_why_it_is_refused() {
    let frontend = Frontend::start(plan(1, 1)).await;
    let hash = frontend.plan.hash();
    let _there = frontend.worker("decode-0").await;
    for (version, hash, name, phase, why) in [
        (PROTOCOL_VERSION + 1, hash.as_str(), "prefill-0", Phase::Prefill, "protocol"),
        (PROTOCOL_VERSION, "other", "prefill-0", Phase::Prefill, "plan"),
        (PROTOCOL_VERSION, &hash, "prefill-7", Phase::Prefill, "prefill-7"),
        (PROTOCOL_VERSION, &hash, "prefill-0", Phase::Decode, "serves prefill"),
        (PROTOCOL_VERSION, &hash, "decode-0", Phase::Decode, "connected already"),
    ] {
        let (_, answer) = Worker::hello(frontend.control, version, hash, name, phase).await;
        let Some(ToWorker::Rejected { reason }) = answer else { panic!("{name} got {answer:?}") };
        assert!(reason.contains(why), "{reason}");
    }
    frontend.until_ready(0, 1).await;
    frontend.stop().await;
}

#[tokio::test]
async fn a_worker_that_sends_garbage_is_lost() {
    use tokio::io::AsyncWriteExt;
    let frontend = Frontend::start(plan(1, 1)).await;
    let hash = frontend.plan.hash();
    for garbage in [&[0xff; 64][..], &[1, 0, 0, 0, 0xee]] {
        let (mut stream, _) = Worker::hello(frontend.control, PROTOCOL_VERSION, &hash, "decode-0", Phase::Decode).await;
        frontend.until_ready(0, 1).await;
        stream.write_all(garbage).await.unwrap();
        frontend.until_ready(0, 0).await;
    }
    frontend.stop().await;
}

#[tokio::test]
async fn occupancy_of_workers_is_shown_while_they_are_there() {
    let (frontend, prefills, mut decodes) = manual(1, 1).await;
    let stats = WorkerStats { kv_blocks_used: 5, kv_blocks_total: 64, n_running: 2, n_output_tokens: 77, ..WorkerStats::default() };
    decodes[0].send(FromWorker::Heartbeat { stats });
    let used = r#"tandem_kv_blocks_used{phase="decode",worker="decode-0"}"#;
    frontend.until_metric(used, 5.0).await;
    for (line, value) in [
        (r#"tandem_kv_blocks{phase="decode",worker="decode-0"}"#, 64.0),
        (r#"tandem_requests_running{phase="decode",worker="decode-0"}"#, 2.0),
        (r#"tandem_kv_blocks_used{phase="prefill",worker="prefill-0"}"#, 0.0),
        (r#"tandem_workers_ready{phase="prefill"}"#, 1.0),
    ] {
        assert_eq!(frontend.metric(line).await, Some(value), "{line}");
    }
    decodes.pop().unwrap().kill().await;
    frontend.until_ready(1, 0).await;
    assert_eq!(frontend.metric(used).await, None, "nothing stale is left");
    drop(prefills);
    frontend.stop().await;
}

#[tokio::test]
async fn shutdown_lets_a_stream_end_and_then_closes_everything() {
    let (mut frontend, mut prefills, mut decodes) = manual(1, 1).await;
    let (prefill, decode) = (&mut prefills[0], &mut decodes[0]);
    let mut client = frontend.client().await;
    let mut idle = frontend.client().await;
    assert_eq!(idle.get("/live").await.status, 200);
    client.start(CHAT, &[], &body(true)).await;
    let (id, _) = decode.reserve().await;
    decode.reserved(id);
    prefill.prefill().await;
    prefill.text(id, "a", None);
    client.until("\"a\"").await;
    frontend.shutdown.cancel();
    assert_eq!(idle.rest().await, "", "idle connections close at once");
    decode.text(id, "bc", Some(FinishReason::Length));
    assert_eq!(client.response().await.streamed_text(), "abc");
    assert!(timeout(DEADLINE, decode.inbox.recv()).await.unwrap().is_none(), "workers see the end of their connection");
    timeout(DEADLINE, async { while frontend.tasks.join_next().await.is_some() {} }).await.unwrap();
}

#[tokio::test]
async fn shutdown_cuts_off_what_does_not_end() {
    let (frontend, _prefills, mut decodes) = manual(1, 1).await;
    let mut client = frontend.client().await;
    client.start(CHAT, &[], &body(true)).await;
    let (id, _) = decodes[0].reserve().await;
    timeout(Duration::from_secs(10), frontend.stop()).await.expect("a stuck request does not hold up the end");
    assert_eq!(decodes[0].cancel().await, id);
}

#[tokio::test]
async fn a_pair_that_failed_a_transfer_is_avoided_if_there_is_another() {
    let (frontend, mut prefills, mut decodes) = manual(2, 2).await;
    let mut client = frontend.client().await;
    client.start(CHAT, &[], &body(true)).await;
    let (id, _) = decodes[0].reserve().await;
    decodes[0].reserved(id);
    prefills[0].prefill().await;
    prefills[0].fail(id, FailureKind::Transfer, "connection refused");
    assert_eq!((decodes[0].cancel().await, prefills[0].cancel().await), (id, id));
    serve(&mut prefills[1], &mut decodes[1]).await;
    let response = client.response().await;
    assert_eq!(
        (response.header("x-tandem-prefill-worker"), response.header("x-tandem-decode-worker")),
        (Some("prefill-1"), Some("decode-1"))
    );
    frontend.stop().await;
}

#[tokio::test]
async fn a_worker_that_is_asked_for_by_name_is_not_replaced_by_another() {
    let (frontend, _prefills, mut decodes) = manual(1, 2).await;
    decodes.remove(1).kill().await;
    frontend.until_ready(1, 1).await;
    let mut client = frontend.client().await;
    let response = client.post(CHAT, &[("x-tandem-decode", "decode-1")], &body(true)).await;
    assert_eq!(response.error(), (503, "no_worker".into(), String::new()));
    frontend.stop().await;
}
