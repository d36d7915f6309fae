//! Chunks of a streamed response, and whole responses.
//!
//! What stays the same in every chunk of a response (id, model, time) is rendered once.

use bytes::BytesMut;

use super::escape::escape_into;
use super::{Api, ApiError, FinishWord, Usage};

/// Where a streamed response carries its token counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageMode {
    /// Nowhere.
    Never,
    /// In a last chunk without choices (`stream_options.include_usage`).
    AtEnd,
    /// There, and so far in every chunk (`continuous_usage_stats`).
    Always,
}

/// Writes the events of one response.
#[derive(Debug)]
pub struct ChunkWriter {
    api: Api,
    usage: UsageMode,
    /// `data: {"id":…,"model":…,"choices":[`: the start of every event.
    head: Vec<u8>,
}

/// The text of a whole response.
#[derive(Debug, Clone, Copy)]
pub struct FinalText<'a> {
    /// What the model answered.
    pub content: &'a str,
    /// What it thought before, when it marks that.
    pub reasoning: Option<&'a str>,
    /// Why it ended.
    pub finish: FinishWord,
    /// Token counts.
    pub usage: Usage,
}

impl ChunkWriter {
    /// For the response `id` of `model`, created at `created` (Unix seconds).
    #[must_use]
    pub fn new(api: Api, usage: UsageMode, id: &str, created: u64, model: &str) -> Self {
        let object = match api {
            Api::Chat => "chat.completion.chunk",
            Api::Completion => "text_completion",
        };
        let mut head = BytesMut::from(&b"data: "[..]);
        write_head(&mut head, object, id, created, model);
        ChunkWriter { api, usage, head: head.to_vec() }
    }

    /// The first chunk of a chat, which names the role; nothing for a completion.
    pub fn role(&self, so_far: Usage, out: &mut BytesMut) {
        if self.api == Api::Chat {
            out.extend_from_slice(&self.head);
            out.extend_from_slice(
                b"{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]",
            );
            self.end(so_far, out);
        }
    }

    /// New text of the answer.
    pub fn content(&self, text: &str, so_far: Usage, out: &mut BytesMut) {
        out.extend_from_slice(&self.head);
        match self.api {
            Api::Chat => {
                out.extend_from_slice(b"{\"index\":0,\"delta\":{\"content\":\"");
                escape_into(text, out);
                out.extend_from_slice(b"\"},\"logprobs\":null,\"finish_reason\":null}]");
            }
            Api::Completion => {
                out.extend_from_slice(b"{\"index\":0,\"text\":\"");
                escape_into(text, out);
                out.extend_from_slice(b"\",\"logprobs\":null,\"finish_reason\":null}]");
            }
        }
        self.end(so_far, out);
    }

    /// New text of the reasoning before the answer (chats only).
    pub fn reasoning(&self, text: &str, so_far: Usage, out: &mut BytesMut) {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b"{\"index\":0,\"delta\":{\"reasoning_content\":\"");
        escape_into(text, out);
        out.extend_from_slice(b"\"},\"logprobs\":null,\"finish_reason\":null}]");
        self.end(so_far, out);
    }

    /// The end of a complete response: why it ended, the counts if asked for, `[DONE]`.
    pub fn finish(&self, reason: FinishWord, usage: Usage, out: &mut BytesMut) {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(match self.api {
            Api::Chat => b"{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"",
            Api::Completion => b"{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"",
        });
        out.extend_from_slice(reason.as_str().as_bytes());
        out.extend_from_slice(b"\"}]");
        self.end(usage, out);
        if self.usage != UsageMode::Never {
            out.extend_from_slice(&self.head);
            out.extend_from_slice(b"],\"usage\":");
            write_usage(usage, out);
            out.extend_from_slice(b"}\n\n");
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// The end of a response that failed after it had begun. No `[DONE]` follows, so that a client which ignores errors still sees a broken stream.
    pub fn error(error: &ApiError, out: &mut BytesMut) {
        out.extend_from_slice(b"data: ");
        error.write_json(out);
        out.extend_from_slice(b"\n\n");
    }

    fn end(&self, so_far: Usage, out: &mut BytesMut) {
        match self.usage {
            UsageMode::Never => {}
            UsageMode::AtEnd => out.extend_from_slice(b",\"usage\":null"),
            UsageMode::Always => {
                out.extend_from_slice(b",\"usage\":");
                write_usage(so_far, out);
            }
        }
        out.extend_from_slice(b"}\n\n");
    }
}

impl FinalText<'_> {
    /// Appends the whole response as one JSON object.
    pub fn write(&self, api: Api, id: &str, created: u64, model: &str, out: &mut BytesMut) {
        write_head(out, if api == Api::Chat { "chat.completion" } else { "text_completion" }, id, created, model);
        match api {
            Api::Chat => {
                out.extend_from_slice(b"{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"");
                escape_into(self.content, out);
                out.extend_from_slice(b"\",\"refusal\":null");
                if let Some(reasoning) = self.reasoning {
                    out.extend_from_slice(b",\"reasoning_content\":\"");
                    escape_into(reasoning, out);
                    out.extend_from_slice(b"\"");
                }
                out.extend_from_slice(b"}");
            }
            Api::Completion => {
                out.extend_from_slice(b"{\"index\":0,\"text\":\"");
                escape_into(self.content, out);
                out.extend_from_slice(b"\"");
            }
        }
        out.extend_from_slice(b",\"logprobs\":null,\"finish_reason\":\"");
        out.extend_from_slice(self.finish.as_str().as_bytes());
        out.extend_from_slice(b"\"}],\"usage\":");
        write_usage(self.usage, out);
        out.extend_from_slice(b"}");
    }
}

fn write_head(out: &mut BytesMut, object: &str, id: &str, created: u64, model: &str) {
    out.extend_from_slice(b"{\"id\":\"");
    escape_into(id, out);
    out.extend_from_slice(b"\",\"object\":\"");
    out.extend_from_slice(object.as_bytes());
    out.extend_from_slice(format!("\",\"created\":{created},\"model\":\"").as_bytes());
    escape_into(model, out);
    out.extend_from_slice(b"\",\"choices\":[");
}

fn write_usage(usage: Usage, out: &mut BytesMut) {
    let Usage { prompt_tokens, completion_tokens, reasoning_tokens } = usage;
    let total = u64::from(prompt_tokens) + u64::from(completion_tokens);
    out.extend_from_slice(
        format!("{{\"prompt_tokens\":{prompt_tokens},\"completion_tokens\":{completion_tokens},\"total_tokens\":{total}").as_bytes(),
    );
    if let Some(n) = reasoning_tokens {
        out.extend_from_slice(format!(",\"completion_tokens_details\":{{\"reasoning_tokens\":{n}}}").as_bytes());
    }
    out.extend_from_slice(b"}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(api: Api, usage: UsageMode) -> String {
        let writer = ChunkWriter::new(api, usage, "x-1", 7, "m\"");
        let (mut out, mut so_far) = (BytesMut::new(), Usage { prompt_tokens: 3, completion_tokens: 1, reasoning_tokens: None });
        writer.role(so_far, &mut out);
        writer.content("a\n", so_far, &mut out);
        so_far.completion_tokens = 2;
        writer.finish(FinishWord::Length, so_far, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn chat_chunks_are_openais() {
        let expected = concat!(
            r#"data: {"id":"x-1","object":"chat.completion.chunk","created":7,"model":"m\"","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            "\n\n",
            r#"data: {"id":"x-1","object":"chat.completion.chunk","created":7,"model":"m\"","choices":[{"index":0,"delta":{"content":"a\n"},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            "\n\n",
            r#"data: {"id":"x-1","object":"chat.completion.chunk","created":7,"model":"m\"","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null}"#,
            "\n\n",
            r#"data: {"id":"x-1","object":"chat.completion.chunk","created":7,"model":"m\"","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}"#,
            "\n\ndata: [DONE]\n\n",
        );
        assert_eq!(stream(Api::Chat, UsageMode::AtEnd), expected);
    }

    #[test]
    fn every_event_is_json_in_every_mode() {
        for api in [Api::Chat, Api::Completion] {
            for usage in [UsageMode::Never, UsageMode::AtEnd, UsageMode::Always] {
                let text = stream(api, usage);
                let events: Vec<&str> = text.split("\n\n").filter_map(|e| e.strip_prefix("data: ")).collect();
                assert_eq!(events.last(), Some(&"[DONE]"));
                let parsed: Vec<serde_json::Value> = events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
                let n_with_usage = parsed.iter().filter(|v| v["usage"].is_object()).count();
                let expected = match usage {
                    UsageMode::Never => 0,
                    UsageMode::AtEnd => 1,
                    UsageMode::Always => parsed.len(),
                };
                assert_eq!(n_with_usage, expected, "{api:?} {usage:?}");
            }
        }
    }

    #[test]
    fn a_whole_response_is_json_with_reasoning_apart() {
        let usage = Usage { prompt_tokens: 1, completion_tokens: 2, reasoning_tokens: Some(1) };
        let text = FinalText { content: "yes", reasoning: Some("hm\""), finish: FinishWord::Stop, usage };
        let mut out = BytesMut::new();
        text.write(Api::Chat, "i", 0, "m", &mut out);
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["choices"][0]["message"]["content"], "yes");
        assert_eq!(value["choices"][0]["message"]["reasoning_content"], "hm\"");
        assert_eq!(value["usage"]["completion_tokens_details"]["reasoning_tokens"], 1);
    }
}
