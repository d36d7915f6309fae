//! The bytes of a paced answer, and what has to be known of a request to write them.

use memchr::memmem;
use tandem_wire::sse::{write_data, write_done};

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Its `x-request-id`.
    pub(super) id: String,
    /// Its `max_tokens`.
    pub(super) n_tokens: u32,
    /// Whether it wants a stream.
    pub(super) streaming: bool,
}

/// A request at the front of `buffer`, and its length; `None` when it is not whole.
///
/// # Errors
/// When the bytes are no request with a length; the connection is of no use then.
pub(super) fn parse_request(buffer: &[u8]) -> Result<Option<(Asked, usize)>, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let n_head = match request.parse(buffer) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err("not HTTP"),
    };
    let header = |name: &str| {
        let value = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name))?.value;
        std::str::from_utf8(value).ok()
    };
    let n_body: usize = header("content-length").and_then(|v| v.parse().ok()).ok_or("no content length")?;
    let Some(body) = buffer.get(n_head..n_head + n_body) else { return Ok(None) };
    // The fields after the prompt are found without parsing the prompt.
    let n_tokens = number_after(body, b"\"max_tokens\":").unwrap_or(16).max(1);
    let streaming = memmem::rfind(body, b"\"stream\":true").is_some();
    let id = header("x-request-id").unwrap_or_default().to_owned();
    Ok(Some((Asked { id, n_tokens, streaming }, n_head + n_body)))
}

fn number_after(body: &[u8], key: &[u8]) -> Option<u32> {
    let digits = &body[memmem::rfind(body, key)? + key.len()..];
    let n = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&digits[..n]).ok()?.parse().ok()
}

/// The pieces of every answer, rendered once.
#[derive(Debug)]
pub(super) struct Answers {
    head: &'static [u8],
    chunk: Vec<u8>,
    tokens_per_chunk: u32,
    n_prompt: u32,
}

impl Answers {
    /// Answers whose chunks carry `tokens_per_chunk` tokens and whose usage says `n_prompt` prompt tokens.
    pub(super) fn new(tokens_per_chunk: u32, n_prompt: u32) -> Self {
        let text = " tok".repeat(tokens_per_chunk as usize);
        let json = format!(
            r#"{{"id":"chatcmpl-4f1d2c3b5a69788796a5b4c3d2e1f001","object":"chat.completion.chunk","created":1700000000,"model":"paced","choices":[{{"index":0,"delta":{{"content":"{text}"}},"logprobs":null,"finish_reason":null}}]}}"#
        );
        Self {
            head: b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n",
            chunk: http_chunk(|out| write_data(json.as_bytes(), out)),
            tokens_per_chunk,
            n_prompt,
        }
    }

    /// Appends what is sent with chunk `n` of an answer, the first being 0.
    pub(super) fn write_chunk(&self, asked: &Asked, n: u32, out: &mut Vec<u8>) {
        if n == 0 {
            out.extend_from_slice(self.head);
        }
        out.extend_from_slice(&self.chunk);
        if n + 1 == self.n_chunks(asked) {
            out.extend_from_slice(&http_chunk(|events| {
                write_data(
                    br#"{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#,
                    events,
                );
                write_data(
                    format!(r#"{{"id":"c","object":"chat.completion.chunk","choices":[],"usage":{}}}"#, self.usage(asked)).as_bytes(),
                    events,
                );
                write_done(events);
            }));
            out.extend_from_slice(b"0\r\n\r\n");
        }
    }

    /// Appends a whole, unstreamed answer.
    pub(super) fn write_whole(&self, asked: &Asked, out: &mut Vec<u8>) {
        let text = " tok".repeat(asked.n_tokens as usize);
        let body = format!(
            r#"{{"id":"c","object":"chat.completion","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"length"}}],"usage":{}}}"#,
            self.usage(asked)
        );
        out.extend_from_slice(
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes(),
        );
    }

    /// Chunks of a streamed answer.
    pub(super) fn n_chunks(&self, asked: &Asked) -> u32 {
        asked.n_tokens.div_ceil(self.tokens_per_chunk)
    }

    fn usage(&self, asked: &Asked) -> String {
        let (p, c) = (self.n_prompt, asked.n_tokens);
        format!(r#"{{"prompt_tokens":{p},"completion_tokens":{c},"total_tokens":{}}}"#, u64::from(p) + u64::from(c))
    }
}

fn http_chunk(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut data = Vec::new();
    write(&mut data);
    let mut out = format!("{:x}\r\n", data.len()).into_bytes();
    out.extend_from_slice(&data);
    out.extend_from_slice(b"\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_at_any_split_and_left_whole() {
        let body = r#"{"model":"m","messages":[{"role":"user","content":"\"max_tokens\":9"}],"stream":true,"max_tokens":12}"#;
        let request = format!("POST / HTTP/1.1\r\nX-Request-Id: a-1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let bytes = [request.as_bytes(), b"POST"].concat();
        for cut in 0..request.len() {
            assert_eq!(parse_request(&bytes[..cut]), Ok(None));
        }
        let asked = Asked { id: "a-1".into(), n_tokens: 12, streaming: true };
        assert_eq!(parse_request(&bytes), Ok(Some((asked, request.len()))));
        assert!(parse_request(b"\x01\r\n\r\n").is_err());
        assert!(parse_request(b"GET / HTTP/1.1\r\n\r\n").is_err());
    }

    #[test]
    fn an_answer_has_as_many_chunks_as_its_tokens_need() {
        let answers = Answers::new(8, 3);
        let asked = |n_tokens| Asked { id: String::new(), n_tokens, streaming: true };
        assert_eq!([1, 8, 9, 128].map(|n| answers.n_chunks(&asked(n))), [1, 1, 2, 16]);
    }
}
