//! Refusals and failures in OpenAI's form.

use std::borrow::Cow;
use std::fmt;

use bytes::BytesMut;

use super::escape::escape_into;

/// An error as a client sees it: an HTTP status and `{"error":{"message","type","param","code"}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// OpenAI's `type`, e.g. `invalid_request_error`.
    pub kind: &'static str,
    /// OpenAI's `code`, e.g. `context_length_exceeded`.
    pub code: Option<&'static str>,
    /// The field that is wrong, e.g. `messages[2].role`.
    pub param: Option<Cow<'static, str>>,
    /// For a person to read.
    pub message: String,
    /// Seconds after which another try makes sense.
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    /// 400: a field has a wrong value.
    #[must_use]
    pub fn invalid(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        let param = param.into();
        // Many clients show the message alone, so it names the field as well.
        let message = format!("{param}: {}", message.into());
        ApiError { param: Some(param), ..Self::bare(400, "invalid_request_error", Some("invalid_value"), message) }
    }

    /// 400: a field asks for something that this server does not do.
    #[must_use]
    pub fn unsupported(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        ApiError { code: Some("unsupported_parameter"), ..Self::invalid(param, message) }
    }

    /// An error without a field.
    #[must_use]
    pub fn bare(status: u16, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        ApiError { status, kind, code, param: None, message: message.into(), retry_after_s: None }
    }

    /// 503: nobody can serve this now.
    #[must_use]
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        ApiError { retry_after_s: Some(1), ..Self::bare(503, "service_unavailable", Some(code), message) }
    }

    /// Appends `{"error":{…}}`, the body of a response or of an event in a stream that has begun.
    pub fn write_json(&self, out: &mut BytesMut) {
        let quoted = |out: &mut BytesMut, text: &str| {
            out.extend_from_slice(b"\"");
            escape_into(text, out);
            out.extend_from_slice(b"\"");
        };
        let nullable = |out: &mut BytesMut, text: Option<&str>| match text {
            Some(text) => quoted(out, text),
            None => out.extend_from_slice(b"null"),
        };
        out.extend_from_slice(b"{\"error\":{\"message\":");
        quoted(out, &self.message);
        out.extend_from_slice(b",\"type\":");
        quoted(out, self.kind);
        out.extend_from_slice(b",\"param\":");
        nullable(out, self.param.as_deref());
        out.extend_from_slice(b",\"code\":");
        nullable(out, self.code);
        out.extend_from_slice(b"}}");
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.message)
    }
}

impl std::error::Error for ApiError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_the_four_fields_of_openai() {
        let mut out = BytesMut::new();
        ApiError::invalid("stop", "a \"quoted\" reason").write_json(&mut out);
        assert_eq!(
            out,
            &br#"{"error":{"message":"stop: a \"quoted\" reason","type":"invalid_request_error","param":"stop","code":"invalid_value"}}"#[..]
        );
        out.clear();
        ApiError::bare(500, "server_error", None, "x").write_json(&mut out);
        assert_eq!(out, &br#"{"error":{"message":"x","type":"server_error","param":null,"code":null}}"#[..]);
    }
}
