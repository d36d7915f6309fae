//! What is accepted, and what is refused with which field named.

use serde_json::json;

use super::*;

fn chat(extra: &serde_json::Value) -> Result<GenerateRequest, ApiError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    GenerateRequest::parse(Api::Chat, body.to_string().as_bytes())
}

fn refused(extra: &serde_json::Value) -> (u16, String) {
    let error = chat(extra).expect_err(&extra.to_string());
    (error.status, error.param.unwrap_or_default().into_owned())
}

#[test]
fn defaults_are_openais() {
    let request = chat(&json!({})).unwrap();
    let hi = ChatMessage { role: Role::User, content: "hi".into() };
    let expected = GenerateRequest {
        model: "m".into(),
        prompt: Prompt::Chat(vec![hi]),
        stream: false,
        usage: UsageMode::Never,
        max_tokens: None,
        min_tokens: 0,
        ignore_eos: false,
        stop: vec![],
        stop_token_ids: vec![],
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        seed: None,
    };
    assert_eq!(request, expected);
}

#[test]
fn a_benchmark_client_gets_what_it_asks_for() {
    let request = chat(&json!({
        "stream": true, "stream_options": {"include_usage": true}, "max_completion_tokens": 64, "min_tokens": 64,
        "nvext": {"ignore_eos": true, "top_k": 5}, "temperature": 0, "top_p": 0.5, "seed": -1, "stop": ["a", "b"],
        "messages": [{"role": "developer", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}, {"role": "assistant"}],
        "unknown": {"anything": [1]}, "user": "u", "n": 1, "tools": [], "response_format": {"type": "text"}, "logprobs": null,
    }))
    .unwrap();
    assert_eq!((request.max_tokens, request.min_tokens, request.ignore_eos, request.top_k), (Some(64), 64, true, 5));
    assert_eq!((request.stream, request.usage, request.seed, request.stop.len()), (true, UsageMode::AtEnd, Some(u64::MAX), 2));
    let Prompt::Chat(messages) = request.prompt else { panic!() };
    assert_eq!(messages[0], ChatMessage { role: Role::System, content: "xy".into() });
    assert_eq!(messages[1], ChatMessage { role: Role::Assistant, content: String::new() });
}

#[test]
fn refusals_name_their_field() {
    let cases = [
        (json!({"model": null}), "model"),
        (json!({"model": 3}), "model"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": null}), "messages"),
        (json!({"messages": ["hi"]}), "messages[0]"),
        (json!({"messages": [{"content": "hi"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "tool", "content": "hi"}]}), "messages[0].role"),
        (json!({"messages": [{"role": 1, "content": "hi"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": 7}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": ["hi"]}]}), "messages[0].content[0]"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages[0].content[0].type"),
        (json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}), "messages[0].content[0].text"),
        (json!({"messages": [{"role": "assistant", "tool_calls": [{}]}]}), "messages[0].tool_calls"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -5}), "max_tokens"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"max_tokens": "64"}), "max_tokens"),
        (json!({"max_tokens": 4_294_967_296u64}), "max_tokens"),
        (json!({"max_completion_tokens": -1}), "max_completion_tokens"),
        (json!({"max_completion_tokens": 4, "max_tokens": 5}), "max_completion_tokens"),
        (json!({"min_tokens": 5, "max_tokens": 4}), "min_tokens"),
        (json!({"min_tokens": true}), "min_tokens"),
        (json!({"ignore_eos": 1}), "ignore_eos"),
        (json!({"nvext": []}), "nvext"),
        (json!({"nvext": {"ignore_eos": "yes"}}), "nvext.ignore_eos"),
        (json!({"nvext": {"token_data": [1]}}), "nvext.token_data"),
        (json!({"stop": [""]}), "stop"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": ["a", 5]}), "stop[1]"),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids[0]"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_p": 1.01}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"n": 2}), "n"),
        (json!({"n": 0}), "n"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"tools": [{}]}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"logit_bias": {"1": 2}}), "logit_bias"),
        (json!({"presence_penalty": 0.5}), "presence_penalty"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"modalities": ["audio"]}), "modalities"),
        (json!({"echo": true}), "echo"),
        (json!({"suffix": "x"}), "suffix"),
    ];
    for (extra, field) in cases {
        assert_eq!(refused(&extra), (400, field.to_owned()), "{extra}");
    }
}

#[test]
fn what_is_not_an_object_is_refused() {
    let deep = "[".repeat(100_000);
    for body in ["", "{", "[]", "null", "\"x\"", "{\"model\": NaN}", "{\"temperature\": 1e999}", deep.as_str()] {
        let error = GenerateRequest::parse(Api::Chat, body.as_bytes()).unwrap_err();
        assert_eq!((error.status, error.code), (400, Some("invalid_json")), "{}", &body[..body.len().min(20)]);
    }
    assert_eq!(GenerateRequest::parse(Api::Chat, b"{\"model\": \"\xff\xfe\"}").unwrap_err().code, Some("invalid_json"));
}

#[test]
fn a_completion_takes_text_or_tokens_and_refuses_batches() {
    let parse =
        |prompt: serde_json::Value| GenerateRequest::parse(Api::Completion, json!({"model": "m", "prompt": prompt}).to_string().as_bytes());
    assert_eq!(parse(json!("x")).unwrap().prompt, Prompt::Text("x".into()));
    assert_eq!(parse(json!([1, 2])).unwrap().prompt, Prompt::Tokens(vec![1, 2]));
    assert_eq!(parse(json!(["x"])).unwrap().prompt, Prompt::Text("x".into()));
    assert_eq!(parse(json!([[1, 2]])).unwrap().prompt, Prompt::Tokens(vec![1, 2]));
    for (prompt, param) in [
        (json!(["a", "b"]), "prompt"),
        (json!([[1], [2]]), "prompt"),
        (json!(""), "prompt"),
        (json!([]), "prompt"),
        (json!([""]), "prompt"),
        (json!([[]]), "prompt"),
        (json!([["a"]]), "prompt"),
        (json!(null), "prompt"),
        (json!({}), "prompt"),
        (json!([1, -2]), "prompt[1]"),
        (json!([1, "a"]), "prompt[1]"),
    ] {
        assert_eq!(parse(prompt.clone()).unwrap_err().param.as_deref(), Some(param), "{prompt}");
    }
}
