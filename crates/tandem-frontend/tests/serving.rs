//! Requests that succeed: bytes of a stream, whole responses, counts, what reaches the workers.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use serde_json::json;
use support::Frontend;
use support::plan::plan;
use tandem_wire::worker::{FinishReason, SamplingParams};

#[tokio::test]
async fn a_streamed_chat_is_openais_byte_for_byte() {
    let (frontend, _prefill, _decode) = Frontend::with_auto(plan(1, 1)).await;
    let response = frontend
        .chat(&json!({"model": "nano", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": true, "stream_options": {"include_usage": true}}))
        .await;
    assert_eq!((response.status, response.header("content-type")), (200, Some("text/event-stream")));
    assert_eq!(response.header("x-tandem-prefill-worker"), Some("prefill-0"));
    assert_eq!(response.header("x-tandem-decode-worker"), Some("decode-0"));
    let first = &response.chunks()[0];
    let (id, created) = (first["id"].as_str().unwrap().to_owned(), first["created"].as_u64().unwrap());
    assert!(id.starts_with("chatcmpl-"));
    let n_prompt = response.chunks().last().unwrap()["usage"]["prompt_tokens"].as_u64().unwrap();
    let head = format!(r#"data: {{"id":"{id}","object":"chat.completion.chunk","created":{created},"model":"nano","choices":["#);
    let chunk = |delta: &str, finish: &str| {
        format!("{head}{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}],\"usage\":null}}\n\n")
    };
    let expected = [
        chunk(r#"{"role":"assistant","content":""}"#, "null"),
        chunk(r#"{"content":"a"}"#, "null"),
        chunk(r#"{"content":"b"}"#, "null"),
        chunk(r#"{"content":"c"}"#, "null"),
        chunk("{}", r#""length""#),
        format!(
            "{head}],\"usage\":{{\"prompt_tokens\":{n_prompt},\"completion_tokens\":3,\"total_tokens\":{},\"completion_tokens_details\":{{\"reasoning_tokens\":0}}}}}}\n\n",
            n_prompt + 3
        ),
        "data: [DONE]\n\n".into(),
    ];
    assert_eq!(response.text(), expected.concat());
    frontend.stop().await;
}

#[tokio::test]
async fn a_whole_chat_and_a_streamed_one_say_the_same() {
    let (frontend, _prefill, _decode) = Frontend::with_auto(plan(1, 1)).await;
    let mut body = json!({"model": "nano", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 40});
    let whole = frontend.chat(&body).await;
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let streamed = frontend.chat(&body).await;
    let value = whole.json();
    assert_eq!((whole.status, &value["object"]), (200, &json!("chat.completion")));
    assert_eq!(value["choices"][0]["message"]["role"], "assistant");
    assert_eq!(value["choices"][0]["message"]["content"], streamed.streamed_text());
    assert_eq!(value["choices"][0]["finish_reason"], "length");
    assert_eq!(value["usage"], streamed.chunks().last().unwrap()["usage"]);
    assert_eq!(value["usage"]["completion_tokens"], 40);
    frontend.stop().await;
}

#[tokio::test]
async fn completions_take_text_or_tokens() {
    let (frontend, prefill, _decode) = Frontend::with_auto(plan(1, 1)).await;
    let mut client = frontend.client().await;
    for prompt in [json!([104, 105]), json!("hi")] {
        let body = json!({"model": "nano", "prompt": prompt, "max_tokens": 2});
        let response = client.post("/v1/completions", &[], body.to_string().as_bytes()).await;
        let value = response.json();
        assert_eq!((response.status, &value["object"], &value["choices"][0]["text"]), (200, &json!("text_completion"), &json!("ab")));
    }
    let body = json!({"model": "nano", "prompt": [1], "max_tokens": 2, "stream": true});
    let streamed = client.post("/v1/completions", &[], body.to_string().as_bytes()).await;
    let texts: Vec<String> = streamed.chunks().iter().map(|c| c["choices"][0]["text"].as_str().unwrap().to_owned()).collect();
    assert_eq!(texts, ["a", "b", ""]);
    assert_eq!(streamed.chunks()[2]["choices"][0]["finish_reason"], "length");
    let prompts = prefill.seen.lock().unwrap().prompts.clone();
    assert_eq!(prompts[0], [104, 105]);
    assert!(prompts[1].ends_with(&[104, 105]), "a beginning-of-text token may come first: {prompts:?}");
    frontend.stop().await;
}

#[tokio::test]
async fn what_the_client_asks_for_reaches_both_workers() {
    let (frontend, prefill, decode) = Frontend::with_auto(plan(1, 1)).await;
    let body = json!({
        "model": "nano", "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 5, "min_tokens": 4, "nvext": {"ignore_eos": true},
        "temperature": 0.5, "top_p": 0.25, "top_k": 7, "seed": 11, "stop_token_ids": [9],
    });
    assert_eq!(frontend.chat(&body).await.status, 200);
    let expected = SamplingParams {
        max_tokens: 5,
        min_tokens: 4,
        ignore_eos: true,
        temperature: 0.5,
        top_p: 0.25,
        top_k: 7,
        seed: 11,
        stop_token_ids: vec![9],
    };
    assert_eq!(prefill.seen.lock().unwrap().sampling, std::slice::from_ref(&expected));
    assert_eq!(decode.seen.lock().unwrap().sampling, [expected]);
    frontend.stop().await;
}

#[tokio::test]
async fn without_max_tokens_all_that_fits_may_be_generated() {
    let mut plan = plan(1, 1);
    plan.workers[1].limits.max_seq_len = 20;
    let (frontend, _prefill, decode) = Frontend::with_auto(plan).await;
    let body = json!({"model": "nano", "prompt": [1, 2, 3]});
    let response = frontend.client().await.post("/v1/completions", &[], body.to_string().as_bytes()).await;
    assert_eq!(response.json()["usage"]["completion_tokens"], 17);
    assert_eq!(decode.seen.lock().unwrap().sampling[0].max_tokens, 17);
    frontend.stop().await;
}

#[tokio::test]
async fn one_token_needs_only_the_prefill_worker() {
    let (frontend, _prefill, decode) = Frontend::with_auto(plan(1, 1)).await;
    let response = frontend.chat(&json!({"model": "nano", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1})).await;
    assert_eq!(response.json()["choices"][0]["message"]["content"], "a");
    assert_eq!((response.header("x-tandem-prefill-worker"), response.header("x-tandem-decode-worker")), (Some("prefill-0"), None));
    assert!(decode.seen.lock().unwrap().sampling.is_empty());
    frontend.stop().await;
}

#[tokio::test]
async fn headers_pick_the_pair_and_name_it() {
    let frontend = Frontend::start(plan(2, 2)).await;
    let mut workers = Vec::new();
    for name in ["prefill-0", "prefill-1", "decode-0", "decode-1"] {
        workers.push(frontend.auto(name).await);
    }
    frontend.until_ready(2, 2).await;
    let body = json!({"model": "nano", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}).to_string();
    let mut client = frontend.client().await;
    for prefill in ["prefill-0", "prefill-1"] {
        for decode in ["decode-1", "decode-0"] {
            let headers = [("x-tandem-prefill", prefill), ("x-tandem-decode", decode), ("x-request-id", "mine")];
            let response = client.post("/v1/chat/completions", &headers, body.as_bytes()).await;
            assert_eq!(response.header("x-tandem-prefill-worker"), Some(prefill));
            assert_eq!(response.header("x-tandem-decode-worker"), Some(decode));
            assert_eq!(response.header("x-request-id"), Some("mine"));
        }
    }
    let wrong = client.post("/v1/chat/completions", &[("x-tandem-decode", "prefill-0")], body.as_bytes()).await;
    assert_eq!(wrong.error(), (400, "invalid_value".into(), "x-tandem-decode".into()));
    frontend.stop().await;
}

#[tokio::test]
async fn usage_comes_with_every_chunk_when_asked_for() {
    let (frontend, _prefill, _decode) = Frontend::with_auto(plan(1, 1)).await;
    let body = json!({"model": "nano", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "stream": true, "stream_options": {"continuous_usage_stats": true}});
    let counts: Vec<u64> = frontend.chat(&body).await.chunks().iter().map(|c| c["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert_eq!(counts, [0, 1, 2, 3, 3, 3]);
    frontend.stop().await;
}

#[tokio::test]
async fn a_stop_string_ends_the_text_wherever_chunks_break_it_and_frees_the_workers() {
    let frontend = Frontend::start(plan(1, 1)).await;
    let (mut prefill, mut decode) = (frontend.worker("prefill-0").await, frontend.worker("decode-0").await);
    frontend.until_ready(1, 1).await;
    for stream in [true, false] {
        let body = json!({"model": "nano", "messages": [{"role": "user", "content": "x"}], "max_tokens": 50, "stop": ["cde", "zz"], "stream": stream});
        let mut client = frontend.client().await;
        client.start("/v1/chat/completions", &[], body.to_string().as_bytes()).await;
        let (id, _) = decode.reserve().await;
        decode.reserved(id);
        prefill.prefill().await;
        prefill.text(id, "a", None);
        for piece in ["b", "c", "cc", "d", "efgh", "never"] {
            decode.text(id, piece, None);
        }
        assert_eq!((decode.cancel().await, prefill.cancel().await), (id, id));
        let response = client.response().await;
        let (text, finish, n_tokens) = if stream {
            let finish = response.chunks().last().unwrap()["choices"][0]["finish_reason"].clone();
            (response.streamed_text(), finish, None)
        } else {
            let value = response.json();
            let text = value["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
            (text, value["choices"][0]["finish_reason"].clone(), value["usage"]["completion_tokens"].as_u64())
        };
        assert_eq!((text.as_str(), finish), ("abcc", json!("stop")));
        assert!(n_tokens.is_none_or(|n| n == 10), "{n_tokens:?}");
    }
    frontend.stop().await;
}

#[tokio::test]
async fn an_end_of_sequence_token_is_counted_but_is_not_text() {
    let frontend = Frontend::start(plan(1, 1)).await;
    let (mut prefill, mut decode) = (frontend.worker("prefill-0").await, frontend.worker("decode-0").await);
    frontend.until_ready(1, 1).await;
    let mut client = frontend.client().await;
    let body = json!({"model": "nano", "messages": [{"role": "user", "content": "x"}], "max_tokens": 50});
    client.start("/v1/chat/completions", &[], body.to_string().as_bytes()).await;
    let (id, _) = decode.reserve().await;
    decode.reserved(id);
    prefill.prefill().await;
    prefill.text(id, "a", None);
    decode.tokens(id, vec![98, 257], Some(FinishReason::Stop));
    let value = client.response().await.json();
    assert_eq!(value["choices"][0]["message"]["content"], "ab");
    assert_eq!((&value["choices"][0]["finish_reason"], &value["usage"]["completion_tokens"]), (&json!("stop"), &json!(3)));
    frontend.stop().await;
}

#[tokio::test]
async fn a_keep_alive_connection_serves_many_requests_in_turn() {
    let (frontend, _prefill, _decode) = Frontend::with_auto(plan(1, 1)).await;
    let mut client = frontend.client().await;
    for n in 1..30 {
        let body = json!({"model": "nano", "messages": [{"role": "user", "content": "x"}], "max_tokens": n, "stream": n % 2 == 0});
        let response = client.post("/v1/chat/completions", &[], body.to_string().as_bytes()).await;
        assert_eq!(response.status, 200);
    }
    frontend.stop().await;
}

#[tokio::test]
async fn reasoning_has_a_field_of_its_own() {
    let frontend = Frontend::start(plan(1, 1)).await;
    let (mut prefill, mut decode) = (frontend.worker("prefill-0").await, frontend.worker("decode-0").await);
    frontend.until_ready(1, 1).await;
    for stream in [true, false] {
        let mut client = frontend.client().await;
        let body = json!({"model": "nano", "messages": [{"role": "user", "content": "x"}], "max_tokens": 7, "stream": stream});
        client.start("/v1/chat/completions", &[], body.to_string().as_bytes()).await;
        let (id, _) = decode.reserve().await;
        decode.reserved(id);
        prefill.prefill().await;
        prefill.tokens(id, vec![258], None);
        decode.text(id, "hm", None);
        decode.tokens(id, vec![109, 259, 111], None);
        decode.text(id, "k", Some(FinishReason::Length));
        let response = client.response().await;
        if stream {
            let deltas: Vec<_> = response.chunks().iter().map(|c| c["choices"][0]["delta"].clone()).collect();
            let expected = [
                json!({"role": "assistant", "content": ""}),
                json!({"reasoning_content": "hm"}),
                json!({"reasoning_content": "m"}),
                json!({"content": "o"}),
                json!({"content": "k"}),
                json!({}),
            ];
            assert_eq!(deltas, expected);
        } else {
            let value = response.json();
            let message = &value["choices"][0]["message"];
            assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("hmm"), &json!("ok")));
            let usage = json!({"prompt_tokens": 4, "completion_tokens": 7, "total_tokens": 11, "completion_tokens_details": {"reasoning_tokens": 5}});
            assert_eq!(value["usage"], usage);
        }
    }
    frontend.stop().await;
}

#[tokio::test]
async fn many_clients_at_once_some_of_whom_leave_keep_nothing() {
    let mut plan = plan(2, 2);
    plan.frontend.routing = tandem_plan::Routing::LeastLoaded;
    let frontend = Frontend::start(plan).await;
    let names = ["prefill-0", "prefill-1", "decode-0", "decode-1"];
    let mut workers = Vec::new();
    for name in names {
        workers.push(frontend.auto(name).await);
    }
    frontend.until_ready(2, 2).await;
    let mut clients = tokio::task::JoinSet::new();
    for i in 0..100_u32 {
        let mut client = frontend.client().await;
        clients.spawn(async move {
            for n in 0..5 {
                let body = json!({"model": "nano", "prompt": vec![1; 10 + i as usize], "max_tokens": 1 + (i + n) % 60, "stream": (i + n) % 2 == 0});
                client.start("/v1/completions", &[], body.to_string().as_bytes()).await;
                if i % 4 == 0 && n == 4 {
                    return;
                }
                assert_eq!(client.response().await.status, 200);
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    frontend.until(|health| health["requests_in_flight"] == 0).await;
    frontend.until_metric("tandem_requests_in_flight", 0.0).await;
    for name in names {
        let phase = &name[..name.len() - 2];
        frontend.until_metric(&format!("tandem_outstanding_load{{phase=\"{phase}\",worker=\"{name}\"}}"), 0.0).await;
    }
    assert!(workers.iter().all(|w| w.seen.lock().unwrap().sampling.len() > 50), "both workers of a phase have worked");
    frontend.stop().await;
}
