//! Writes requests: one head, made once a run, and a body, in one buffer for one `write`.

use std::fmt;
use std::io::Write;

use tandem_metrics::LoadPhase;

use crate::error::LoadError;
use crate::target::Target;

/// Headers that the writer sets itself; changing them would break the framing.
const RESERVED: [&str; 6] = ["host", "content-length", "transfer-encoding", "connection", "content-encoding", "x-request-id"];

/// A secret that never shows in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// Wraps a key.
    #[must_use]
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// The part of each request's head that is the same for all.
#[derive(Clone)]
pub struct RequestHead {
    fixed: Vec<u8>,
}

impl fmt::Debug for RequestHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The bytes may hold the API key.
        f.debug_struct("RequestHead").field("n_bytes", &self.fixed.len()).finish()
    }
}

impl RequestHead {
    /// The head of a chat request to `target`.
    ///
    /// # Errors
    /// [`LoadError::Spec`] when a header's name or value cannot be sent as it is.
    pub fn new(target: &Target, streaming: bool, api_key: Option<&ApiKey>, headers: &[(String, String)]) -> Result<Self, LoadError> {
        let accept = if streaming { "text/event-stream" } else { "application/json" };
        let mut head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nAccept: {accept}\r\nUser-Agent: tandem/{}\r\n",
            target.request_target(),
            target.authority(),
            env!("CARGO_PKG_VERSION")
        );
        if let Some(value) = target.proxy_authorization() {
            head.push_str(&format!("Proxy-Authorization: {value}\r\n"));
        }
        if let Some(ApiKey(key)) = api_key {
            if !is_value(key) || key.is_empty() {
                return Err(LoadError::Spec { field: "api_key", reason: "empty, or holds characters that no header may hold".into() });
            }
            head.push_str(&format!("Authorization: Bearer {key}\r\n"));
        }
        for (name, value) in headers {
            let reason = if name.is_empty() || !name.bytes().all(is_token) {
                "is not a header name"
            } else if RESERVED.iter().any(|r| name.eq_ignore_ascii_case(r)) {
                "is set by the load generator itself"
            } else if api_key.is_some() && name.eq_ignore_ascii_case("authorization") {
                "is given twice, by the API key and by a header"
            } else if !is_value(value) {
                "has a value that no header may hold"
            } else {
                head.push_str(&format!("{name}: {value}\r\n"));
                continue;
            };
            return Err(LoadError::Spec { field: "headers", reason: format!("`{name}` {reason}") });
        }
        Ok(Self { fixed: head.into_bytes() })
    }

    /// A whole request with `body`, named by phase and index in `x-request-id` so that server logs can be joined.
    #[must_use]
    pub fn request(&self, phase: LoadPhase, index: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.fixed.len() + body.len() + 80);
        bytes.extend_from_slice(&self.fixed);
        write!(bytes, "X-Request-Id: {}\r\nContent-Length: {}\r\n\r\n", request_id(phase, index), body.len())
            .expect("writing to memory cannot fail");
        bytes.extend_from_slice(body);
        bytes
    }
}

/// The value of `x-request-id`: `warmup-<index>` or `profiling-<index>`.
#[must_use]
pub fn request_id(phase: LoadPhase, index: u32) -> String {
    format!("{}-{index}", phase.as_str())
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

fn is_value(value: &str) -> bool {
    value.bytes().all(|b| b == b'\t' || (b >= b' ' && b != 0x7F))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(api_key: Option<&str>, headers: &[(&str, &str)]) -> Result<RequestHead, LoadError> {
        let headers: Vec<_> = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        RequestHead::new(&Target::parse("h:9").unwrap(), true, api_key.map(ApiKey::new).as_ref(), &headers)
    }

    #[test]
    fn a_request_parses_back() {
        let bytes = head(Some("secret"), &[("X-Team", "a b")]).unwrap().request(LoadPhase::Profiling, 7, b"{}");
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut request = httparse::Request::new(&mut headers);
        let n = request.parse(&bytes).unwrap().unwrap();
        assert_eq!((request.method, request.path, &bytes[n..]), (Some("POST"), Some("/v1/chat/completions"), b"{}".as_slice()));
        let value =
            |name: &str| request.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| std::str::from_utf8(h.value).unwrap());
        assert_eq!(value("content-length"), Some("2"));
        assert_eq!(value("authorization"), Some("Bearer secret"));
        assert_eq!(value("x-request-id"), Some("profiling-7"));
        assert_eq!(value("x-team"), Some("a b"));
        assert_eq!(value("host"), Some("h:9"));
    }

    #[test]
    fn the_api_key_does_not_show_in_debug_output() {
        assert!(!format!("{:?} {:?}", ApiKey::new("secret"), head(Some("secret"), &[]).unwrap()).contains("secret"));
    }

    #[test]
    fn headers_that_would_break_the_request_are_refused() {
        for (key, headers) in [
            (Some("a\r\nb"), vec![]),
            (Some(""), vec![]),
            (None, vec![("X", "a\r\nInjected: 1")]),
            (None, vec![("X Y", "1")]),
            (None, vec![("", "1")]),
            (None, vec![("Content-Length", "1")]),
            (Some("k"), vec![("authorization", "x")]),
        ] {
            assert!(matches!(head(key, &headers), Err(LoadError::Spec { .. })), "{key:?} {headers:?}");
        }
    }
}
