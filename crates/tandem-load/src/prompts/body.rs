//! The JSON body of a chat request: everything but the messages and the output length is rendered once.
//!
//! Fields come in GenAI-Perf's order: model, messages, stream, max_tokens, then the rest. `ignore_eos` and `min_tokens` stand at the top
//! level, where vLLM, SGLang, TensorRT-LLM and every Dynamo take them; `nvext.ignore_eos` is refused by Dynamo from 1.3 on.

use std::io::Write;

use serde_json::{Map, Value, json};

use super::files::Message;
use crate::error::LoadError;
use crate::spec::LoadSpec;

/// Stand for what differs while the rest is rendered; no user can write a lone control character into a JSON text.
const MESSAGES: &str = "\u{1}messages\u{1}";
const OSL: &str = "\u{1}osl\u{1}";

/// A body with holes for the messages and the output length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyTemplate {
    before: String,
    /// Between them is the output length.
    after: Vec<String>,
}

impl BodyTemplate {
    /// The body that `spec` asks for.
    ///
    /// # Errors
    /// [`LoadError::Spec`] when an extra input would replace the prompt.
    pub fn new(spec: &LoadSpec) -> Result<Self, LoadError> {
        let mut body = fields(spec);
        for (name, value) in &spec.extra_inputs {
            if name == "messages" || name == "stream" {
                return Err(LoadError::Spec { field: "extra_inputs", reason: format!("`{name}` is set by the load generator itself") });
            }
            if value.is_null() {
                body.shift_remove(name);
            } else {
                body.insert(name.clone(), value.clone());
            }
        }
        let rendered = Value::Object(body).to_string();
        let (messages, osl) = (Value::from(MESSAGES).to_string(), Value::from(OSL).to_string());
        let (before, after) = rendered.split_once(&messages).expect("the place has just been put there");
        Ok(Self { before: before.to_owned(), after: after.split(&osl).map(str::to_owned).collect() })
    }

    /// The body with `messages` in it, asking for `n_osl` tokens.
    pub fn write(&self, messages: &[Message], n_osl: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(self.before.as_bytes());
        out.push(b'[');
        for (i, message) in messages.iter().enumerate() {
            out.extend_from_slice(if i == 0 { b"{\"role\":\"" } else { b",{\"role\":\"" });
            escape(&message.role, out);
            out.extend_from_slice(b"\",\"content\":\"");
            escape(&message.content, out);
            out.extend_from_slice(b"\"}");
        }
        out.push(b']');
        for (i, part) in self.after.iter().enumerate() {
            if i > 0 {
                write!(out, "{n_osl}").expect("writing to memory cannot fail");
            }
            out.extend_from_slice(part.as_bytes());
        }
    }
}

fn fields(spec: &LoadSpec) -> Map<String, Value> {
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
    put("model", json!(spec.model));
    put("messages", json!(MESSAGES));
    if spec.streaming {
        put("stream", json!(true));
    }
    put("max_tokens", json!(OSL));
    put("min_tokens", json!(OSL));
    put("ignore_eos", json!(true));
    if spec.streaming && spec.include_usage {
        put("stream_options", json!({"include_usage": true}));
    }
    body
}
/// Appends `text` as the inside of a JSON string.
fn escape(text: &str, out: &mut Vec<u8>) {
    // Most prompts are words: they need no escape and are copied whole.
    if text.bytes().all(|b| b >= b' ' && b != b'"' && b != b'\\') {
        out.extend_from_slice(text.as_bytes());
    } else {
        let quoted = Value::from(text).to_string();
        out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(spec: &LoadSpec, prompt: &str) -> Value {
        let mut out = Vec::new();
        BodyTemplate::new(spec).unwrap().write(&[Message::user(prompt)], 16, &mut out);
        serde_json::from_slice(&out).unwrap()
    }

    fn spec() -> LoadSpec {
        LoadSpec::closed_loop("h", "r1", 1, 1, 4, 16).unwrap()
    }

    #[test]
    fn a_body_has_its_fields_in_the_order_of_genai_perf() {
        let mut out = Vec::new();
        BodyTemplate::new(&spec()).unwrap().write(&[Message::user("hi")], 16, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"model":"r1","messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":16,"min_tokens":16,"ignore_eos":true,"stream_options":{"include_usage":true}}"#
        );
    }

    #[test]
    fn without_streaming_there_is_no_stream_field_and_without_usage_no_stream_options() {
        let whole = body(&LoadSpec { streaming: false, ..spec() }, "x");
        assert!(whole.get("stream").is_none() && whole.get("stream_options").is_none());
        assert!(body(&LoadSpec { include_usage: false, ..spec() }, "x").get("stream_options").is_none());
    }

    #[test]
    fn extra_inputs_replace_add_and_remove() {
        let mut s = spec();
        s.extra_inputs = serde_json::from_str(r#"{"max_tokens":7,"temperature":0.5,"ignore_eos":null}"#).unwrap();
        let b = body(&s, "x");
        assert_eq!((&b["max_tokens"], &b["temperature"], b.get("ignore_eos")), (&json!(7), &json!(0.5), None));
        s.extra_inputs = serde_json::from_str(r#"{"messages":[]}"#).unwrap();
        assert!(BodyTemplate::new(&s).is_err());
    }

    #[test]
    fn messages_keep_their_roles_and_each_request_its_own_output_length() {
        let template = BodyTemplate::new(&spec()).unwrap();
        for n in [1, 4096] {
            let mut out = Vec::new();
            template.write(&[Message { role: "system".into(), content: "\"s\"".into() }, Message::user("u")], n, &mut out);
            let b: Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(b["messages"], json!([{"role": "system", "content": "\"s\""}, {"role": "user", "content": "u"}]));
            assert_eq!((&b["max_tokens"], &b["min_tokens"]), (&json!(n), &json!(n)));
        }
    }

    #[test]
    fn any_prompt_comes_back_from_the_json() {
        for prompt in ["plain words", "\"quoted\" \\ back\n\u{1}prompt\u{1}", "日本語 🦀", ""] {
            assert_eq!(body(&spec(), prompt)["messages"][0]["content"], prompt);
        }
    }
}
