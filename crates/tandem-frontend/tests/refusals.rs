//! Requests that are refused: status, code and field of each, and that the server goes on.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use proptest::prelude::*;
use serde_json::{Value, json};
use support::Frontend;
use support::client::Client;
use support::plan::{MAX_SEQ_LEN, plan};
use tandem_tokenizer::{ByteLevelConfig, Tokenizer};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn good() -> Value {
    json!({"model": "nano", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
}

fn with(extra: &Value) -> Value {
    let mut body = good();
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[tokio::test]
async fn each_wrong_request_is_refused_with_its_field() {
    let (frontend, _prefill, _decode) = Frontend::with_auto(plan(1, 1)).await;
    let invalid = "invalid_value";
    let cases = [
        (CHAT, with(&json!({"model": "gpt-4"})), 404, "model_not_found", "model"),
        (CHAT, json!({"messages": []}), 400, "missing_required_parameter", "model"),
        (CHAT, with(&json!({"messages": []})), 400, invalid, "messages"),
        (CHAT, with(&json!({"messages": [{"role": "robot", "content": ""}]})), 400, invalid, "messages[0].role"),
        (CHAT, with(&json!({"max_tokens": -1})), 400, invalid, "max_tokens"),
        (CHAT, with(&json!({"max_tokens": 18_446_744_073_709_551_615u64})), 400, invalid, "max_tokens"),
        (CHAT, with(&json!({"max_tokens": MAX_SEQ_LEN})), 400, "context_length_exceeded", "messages"),
        (CHAT, with(&json!({"messages": [{"role": "user", "content": "x".repeat(20_000)}]})), 400, "context_length_exceeded", "messages"),
        (CHAT, with(&json!({"max_tokens": null, "min_tokens": MAX_SEQ_LEN})), 400, invalid, "min_tokens"),
        (CHAT, with(&json!({"n": 3})), 400, "unsupported_parameter", "n"),
        (CHAT, with(&json!({"temperature": 2.5})), 400, invalid, "temperature"),
        (CHAT, with(&json!({"stream_options": {}})), 400, invalid, "stream_options"),
        (COMPLETIONS, json!({"model": "nano"}), 400, "missing_required_parameter", "prompt"),
        (COMPLETIONS, json!({"model": "nano", "prompt": ["a", "b"]}), 400, "unsupported_parameter", "prompt"),
        (COMPLETIONS, json!({"model": "nano", "prompt": [5, 384]}), 400, invalid, "prompt[1]"),
        (COMPLETIONS, json!({"model": "nano", "prompt": vec![1; 4096]}), 400, "context_length_exceeded", "prompt"),
        (COMPLETIONS, json!({"model": "nano", "prompt": "x", "logprobs": 1}), 400, "unsupported_parameter", "logprobs"),
    ];
    let mut client = frontend.client().await;
    for (path, body, status, code, param) in cases {
        let response = client.post(path, &[], body.to_string().as_bytes()).await;
        let shown: String = body.to_string().chars().take(200).collect();
        assert_eq!(response.error(), (status, code.to_owned(), param.to_owned()), "{shown}");
        assert!(response.header("x-request-id").is_some());
    }
    assert_eq!(client.post(CHAT, &[], good().to_string().as_bytes()).await.status, 200, "the connection goes on");
    assert_eq!(frontend.metric(r#"tandem_requests_total{endpoint="chat",outcome="invalid"}"#).await, Some(12.0));
    frontend.stop().await;
}

#[tokio::test]
async fn bytes_that_are_no_request_are_refused() {
    let (frontend, _prefill, _decode) = Frontend::with_auto(plan(1, 1)).await;
    let deep = [vec![b'['; 1_000_000], b"1".to_vec()].concat();
    let deep_object = br#"{"a":"#.repeat(100_000);
    let bodies: [&[u8]; 9] =
        [b"", b"{", b"nonsense", b"[1]", b"\"text\"", b"{\"model\": \"\xff\xfe\"}", b"\xef\xbb\xbf{}", &deep, &deep_object];
    let mut client = frontend.client().await;
    for body in bodies {
        let response = client.post(CHAT, &[], body).await;
        assert_eq!(
            response.error(),
            (400, "invalid_json".into(), String::new()),
            "{}",
            String::from_utf8_lossy(&body[..body.len().min(20)])
        );
    }
    for bytes in [&b"nonsense\r\n\r\n"[..], b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", &[0x16, 3, 1, 2, 0]]
    {
        let mut client = frontend.client().await;
        client.send(bytes).await;
        client.send(b"\r\n\r\n").await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer:?} for {:?}", String::from_utf8_lossy(bytes));
    }
    let mut client = frontend.client().await;
    client.send(format!("GET /health HTTP/1.1\r\n{}", "a: b\r\n".repeat(500)).as_bytes()).await;
    assert!(client.rest().await.starts_with("HTTP/1.1 431"), "too many headers");
    frontend.stop().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_however_it_is_sent() {
    let (frontend, _prefill, _decode) = Frontend::with_auto(plan(1, 1)).await;
    let large = with(&json!({"messages": [{"role": "user", "content": "x".repeat(10 << 20)}]})).to_string();
    let announced = frontend.client().await.post(CHAT, &[], large.as_bytes()).await;
    assert_eq!(announced.error(), (413, "body_too_large".into(), String::new()));
    let mut client = frontend.client().await;
    client.send(format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").as_bytes()).await;
    for piece in large.as_bytes().chunks(1 << 20) {
        client.send(format!("{:x}\r\n", piece.len()).as_bytes()).await;
        client.send(&[piece, b"\r\n"].concat()).await;
    }
    client.send(b"0\r\n\r\n").await;
    assert_eq!(client.response().await.error(), (413, "body_too_large".into(), String::new()));
    frontend.stop().await;
}

#[tokio::test]
async fn a_large_body_within_the_limit_is_a_long_prompt() {
    let mut plan = plan(1, 1);
    plan.frontend.max_body_bytes = 64 << 20;
    let (frontend, _prefill, _decode) = Frontend::with_auto(plan).await;
    let large = with(&json!({"messages": [{"role": "user", "content": "x".repeat(10 << 20)}]})).to_string();
    let response = frontend.client().await.post(CHAT, &[], large.as_bytes()).await;
    assert_eq!(response.error(), (400, "context_length_exceeded".into(), "messages".into()));
    frontend.stop().await;
}

#[tokio::test]
async fn only_the_right_key_opens_the_api() {
    let frontend = Frontend::start_with(plan(1, 1), Some("secret"), Tokenizer::byte_level(&ByteLevelConfig::deepseek())).await;
    let (_prefill, _decode) = (frontend.auto("prefill-0").await, frontend.auto("decode-0").await);
    frontend.until_ready(1, 1).await;
    let (mut client, body) = (frontend.client().await, good().to_string());
    for (headers, status, code) in [
        (vec![], 401, "missing_api_key"),
        (vec![("authorization", "Basic secret")], 401, "missing_api_key"),
        (vec![("authorization", "Bearer wrong")], 401, "invalid_api_key"),
        (vec![("authorization", "Bearer secret2")], 401, "invalid_api_key"),
        (vec![("authorization", "Bearer")], 401, "missing_api_key"),
    ] {
        let response = client.post(CHAT, &headers, body.as_bytes()).await;
        assert_eq!(response.error(), (status, code.to_owned(), String::new()), "{headers:?}");
        assert_eq!(response.header("www-authenticate"), Some("Bearer"));
    }
    assert_eq!(client.post(CHAT, &[("authorization", "Bearer secret")], body.as_bytes()).await.status, 200);
    assert_eq!(client.post(CHAT, &[("authorization", "bearer secret")], body.as_bytes()).await.status, 200);
    assert_eq!(client.get("/v1/models").await.status, 401);
    for (path, status) in [(CHAT, 401), ("/nowhere", 404), ("/health", 405)] {
        let response = frontend.client().await.post(path, &[], &vec![b'x'; 8 << 20]).await;
        assert_eq!(response.status, status, "a large body does not hide the refusal");
    }
    assert_eq!(client.get("/health").await.status, 200, "probes need no key");
    frontend.stop().await;
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let (frontend, _prefill, _decode) = Frontend::with_auto(plan(1, 1)).await;
    let mut client = frontend.client().await;
    assert_eq!(client.get("/v1/nothing").await.error(), (404, "unknown_url".into(), String::new()));
    assert_eq!(client.get(CHAT).await.error(), (405, "method_not_allowed".into(), String::new()));
    assert_eq!(client.post("/health", &[], b"").await.error(), (405, "method_not_allowed".into(), String::new()));
    assert_eq!(client.get("/v1/models/other").await.error(), (404, "model_not_found".into(), "model".into()));
    frontend.stop().await;
}

#[tokio::test]
async fn one_request_too_many_is_told_to_come_back() {
    let mut plan = plan(1, 1);
    plan.frontend.max_inflight = 1;
    let frontend = Frontend::start(plan).await;
    let (_prefill, mut decode) = (frontend.worker("prefill-0").await, frontend.worker("decode-0").await);
    frontend.until_ready(1, 1).await;
    let mut first = frontend.client().await;
    first.start(CHAT, &[], good().to_string().as_bytes()).await;
    let (id, _) = decode.reserve().await;
    let second = frontend.chat(&good()).await;
    assert_eq!(second.error(), (429, "queue_full".into(), String::new()));
    assert_eq!(second.header("retry-after"), Some("1"));
    assert_eq!(frontend.metric("tandem_queue_rejections_total").await, Some(1.0));
    drop(first);
    assert_eq!(decode.cancel().await, id);
    frontend.until_metric("tandem_requests_in_flight", 0.0).await;
    let mut third = frontend.client().await;
    third.start(CHAT, &[], good().to_string().as_bytes()).await;
    decode.reserve().await;
    frontend.stop().await;
}

#[tokio::test]
async fn without_a_worker_of_each_phase_there_is_no_service() {
    let frontend = Frontend::start(plan(1, 1)).await;
    let nobody = frontend.chat(&good()).await;
    assert_eq!(nobody.error(), (503, "no_worker".into(), String::new()));
    assert_eq!(nobody.header("retry-after"), Some("1"));
    let _decode = frontend.auto("decode-0").await;
    frontend.until_ready(0, 1).await;
    let response = frontend.chat(&good()).await;
    assert_eq!(response.error(), (503, "no_worker".into(), String::new()));
    assert!(response.text().contains("prefill"), "{}", response.text());
    frontend.stop().await;
}

/// What replaces a value of a good request.
fn odd_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!(1e308)),
        Just(json!([])),
        Just(json!({})),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((field(), inner), 0..4).prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn field() -> impl Strategy<Value = String> {
    let known = [
        "model",
        "messages",
        "role",
        "content",
        "type",
        "text",
        "prompt",
        "max_tokens",
        "max_completion_tokens",
        "min_tokens",
        "ignore_eos",
        "nvext",
        "stop",
        "stop_token_ids",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "n",
        "best_of",
        "stream",
        "stream_options",
        "include_usage",
        "continuous_usage_stats",
        "logprobs",
        "top_logprobs",
        "tools",
        "tool_choice",
        "response_format",
        "logit_bias",
        "modalities",
        "echo",
        "suffix",
        "presence_penalty",
        "repetition_penalty",
        "unknown",
    ];
    prop::sample::select(known.to_vec()).prop_map(str::to_owned)
}

/// A good request with some fields replaced, and then some bytes replaced.
fn mutated() -> impl Strategy<Value = (bool, Vec<u8>)> {
    let fields = prop::collection::vec((field(), odd_value()), 0..4);
    let bytes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (any::<bool>(), fields, bytes).prop_map(|(chat, fields, bytes)| {
        let mut body = good();
        if !chat {
            body["prompt"] = "hi".into();
        }
        for (name, value) in fields {
            body[name] = value;
        }
        let mut body = body.to_string().into_bytes();
        for (at, byte) in bytes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        (chat, body)
    })
}

#[test]
fn whatever_is_sent_is_answered_with_success_or_a_refusal() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (frontend, _prefill, _decode) = runtime.block_on(Frontend::with_auto(plan(1, 1)));
    let client = std::cell::RefCell::new(runtime.block_on(Client::connect(frontend.http)));
    let config = ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |((chat, body) in mutated())| {
        let path = if chat { CHAT } else { COMPLETIONS };
        let response = runtime.block_on(client.borrow_mut().post(path, &[], &body));
        prop_assert!(matches!(response.status, 200 | 400 | 404), "{} for {}", response.status, String::from_utf8_lossy(&body));
        if response.status != 200 {
            response.error();
        }
    });
    runtime.block_on(frontend.until_metric("tandem_requests_in_flight", 0.0));
    runtime.block_on(frontend.stop());
}
