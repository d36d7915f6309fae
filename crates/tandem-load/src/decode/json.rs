//! What a server's JSON says, read leniently: any OpenAI-compatible server is to be measured.
//!
//! Unknown fields are ignored, absent ones are absent, texts are borrowed. Both shapes of output (chat
//! and completions) and of errors (`{"error": {…}}`, `{"object": "error", …}`) are understood.
//! The serde types are private to this file; what comes out are plain values.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::scan::scan;

/// What a piece of output says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Output<'a> {
    /// The answer's text; `None` when absent or empty.
    pub content: Option<Cow<'a, str>>,
    /// The reasoning's text (`reasoning_content`, or `reasoning`); `None` when absent or empty.
    pub reasoning: Option<Cow<'a, str>>,
    /// Whether there is output that is not text: a tool call.
    pub has_tool_call: bool,
    /// Why the output ended, in the piece that ends it.
    pub finish_reason: Option<Cow<'a, str>>,
    /// Whether there was any choice.
    pub has_choice: bool,
    /// `usage.prompt_tokens`.
    pub prompt_tokens: Option<u32>,
    /// `usage.completion_tokens`: so far in a piece with a choice, of all output otherwise.
    pub completion_tokens: Option<u32>,
    /// The error, if this is one.
    pub error: Option<String>,
}

impl Output<'_> {
    /// Whether it carries output.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.content.is_some() || self.reasoning.is_some() || self.has_tool_call
    }
}

/// Reads one chunk of a stream, or one whole response.
///
/// # Errors
/// A message for people when it is not JSON of a usable shape.
pub fn parse(bytes: &[u8]) -> Result<Output<'_>, String> {
    scan(bytes).map_or_else(|| parse_any(bytes), Ok)
}

/// As [`parse`], with a general parser.
pub(super) fn parse_any(bytes: &[u8]) -> Result<Output<'_>, String> {
    let message: Message<'_> = serde_json::from_slice(bytes).map_err(|e| format!("{e} in `{}`", excerpt(bytes)))?;
    let mut output = Output::default();
    if let Some(usage) = message.usage {
        (output.prompt_tokens, output.completion_tokens) = (usage.prompt_tokens, usage.completion_tokens);
    }
    output.error = match message.error {
        Some(error) => Some(error.to_string()),
        None if message.object.as_ref().is_some_and(|o| o.0 == "error") => {
            Some(message.message.map_or_else(|| excerpt(bytes), |m| m.0.into_owned()))
        }
        None => None,
    };
    for choice in message.choices.into_iter().flatten() {
        output.has_choice = true;
        output.finish_reason = output.finish_reason.or_else(|| choice.finish_reason.map(|r| r.0));
        let delta = choice.delta.or(choice.message).unwrap_or_default();
        output.content = output.content.or(first([delta.content, choice.text]));
        output.reasoning = output.reasoning.or(first([delta.reasoning_content, delta.reasoning]));
        output.has_tool_call |= delta.tool_calls.is_some_and(|calls| !calls.is_empty());
    }
    Ok(output)
}

/// The first bytes of something, for messages.
#[must_use]
pub fn excerpt(bytes: &[u8]) -> String {
    const MAX_CHARS: usize = 200;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAX_CHARS)]);
    let mut out: String = text.chars().take(MAX_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if out.len() < bytes.len() {
        out.push('…');
    }
    out
}

/// The first that is there and not empty.
fn first<'a>(texts: [Option<Text<'a>>; 2]) -> Option<Cow<'a, str>> {
    texts.into_iter().flatten().map(|t| t.0).find(|t| !t.is_empty())
}

/// A string that is borrowed where it can be; serde borrows a bare `Cow` only.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    object: Option<Text<'a>>,
    #[serde(borrow, default)]
    message: Option<Text<'a>>,
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<ErrorBody>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    message: Option<Delta<'a>>,
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<Text<'a>>,
}

#[derive(Deserialize, Default)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<Text<'a>>,
    #[serde(borrow, default)]
    reasoning_content: Option<Text<'a>>,
    #[serde(borrow, default)]
    reasoning: Option<Text<'a>>,
    #[serde(default)]
    tool_calls: Option<Vec<IgnoredAny>>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<u32>,
    #[serde(default)]
    completion_tokens: Option<u32>,
}

/// An error in any shape: an object with a message, a string, or something else.
struct ErrorBody(serde_json::Value);

impl<'de> Deserialize<'de> for ErrorBody {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_json::Value::deserialize(deserializer).map(ErrorBody)
    }
}

impl std::fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let message = self.0.get("message").unwrap_or(&self.0);
        f.write_str(&excerpt(message.as_str().map_or_else(|| message.to_string(), str::to_owned).as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_chunk_is_borrowed() {
        let output =
            parse(br#"{"id":"x","choices":[{"index":0,"delta":{"role":"assistant","content":"hi"},"finish_reason":null}],"usage":null}"#)
                .unwrap();
        assert!(matches!(output.content, Some(Cow::Borrowed("hi"))));
        assert!(output.has_output() && output.has_choice && output.finish_reason.is_none());
    }

    #[test]
    fn role_and_empty_chunks_carry_no_output() {
        for chunk in [
            r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"delta":{}}]}"#,
            r#"{"choices":[{"delta":{"content":null,"tool_calls":[]}}]}"#,
            r#"{"choices":[]}"#,
            r#"{"choices":null}"#,
            "{}",
        ] {
            assert!(!parse(chunk.as_bytes()).unwrap().has_output(), "{chunk}");
        }
    }

    #[test]
    fn reasoning_under_either_name_and_tool_calls_are_output() {
        for name in ["reasoning_content", "reasoning"] {
            let chunk = format!(r#"{{"choices":[{{"delta":{{"{name}":"hm\n"}}}}]}}"#);
            assert_eq!(parse(chunk.as_bytes()).unwrap().reasoning.as_deref(), Some("hm\n"));
        }
        assert!(parse(br#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#).unwrap().has_tool_call);
    }

    #[test]
    fn whole_responses_and_completions_are_read_the_same_way() {
        let whole = r#"{"choices":[{"message":{"role":"assistant","content":"a","reasoning_content":"b"},"finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#;
        let output = parse(whole.as_bytes()).unwrap();
        assert_eq!(
            (output.content.as_deref(), output.reasoning.as_deref(), output.finish_reason.as_deref()),
            (Some("a"), Some("b"), Some("length"))
        );
        assert_eq!((output.prompt_tokens, output.completion_tokens), (Some(3), Some(4)));
        assert_eq!(parse(br#"{"choices":[{"text":"t","finish_reason":null}]}"#).unwrap().content.as_deref(), Some("t"));
    }

    #[test]
    fn errors_of_every_shape_are_found() {
        for (body, wanted) in [
            (r#"{"error":{"message":"too long","type":"invalid_request_error","code":400}}"#, "too long"),
            (r#"{"error":"plain"}"#, "plain"),
            (r#"{"error":{"code":7}}"#, r#"{"code":7}"#),
            (r#"{"object":"error","message":"old style","code":400}"#, "old style"),
        ] {
            assert_eq!(parse(body.as_bytes()).unwrap().error.as_deref(), Some(wanted));
        }
        assert_eq!(parse(br#"{"error":null,"choices":[]}"#).unwrap().error, None);
    }

    #[test]
    fn what_is_not_json_is_an_error_that_shows_its_beginning() {
        for bytes in [b"<html>".as_slice(), b"{\"choices\":3}", b"\xff\xfe", b"", b"[1"] {
            assert!(parse(bytes).is_err());
        }
        assert!(parse(b"<html>\r\n").unwrap_err().contains("`<html>  `"));
    }
}
