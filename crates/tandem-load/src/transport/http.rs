//! Reads one HTTP/1.1 response after another from bytes as they come. Pure, and strict.
//!
//! [`ResponseReader::next`] is a pull parser over the bytes of one read: it hands out the head, then
//! pieces of the body as slices of the input (nothing is copied), then the end. The framing is
//! RFC 9112's: chunked, content-length, or until the connection closes. Everything has a limit, and
//! whatever leaves the framing in doubt is an error, since a wrong guess would put bytes of one
//! response into the next.

use std::mem;

use memchr::memchr;
use thiserror::Error;

/// Sizes beyond which a response is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Status line and headers, bytes.
    pub head_bytes: usize,
    /// One chunk of a chunked body, bytes.
    pub chunk_bytes: u64,
    /// The whole body, bytes.
    pub body_bytes: u64,
}

impl Limits {
    /// Enough for any chat completion.
    pub const DEFAULT: Limits = Limits { head_bytes: 32 << 10, chunk_bytes: 16 << 20, body_bytes: 256 << 20 };
}

/// Headers in a response at most.
const MAX_HEADERS: usize = 64;
/// A chunk-size line with its extensions, or one trailer line, bytes.
const MAX_LINE_BYTES: usize = 4 << 10;
/// Trailer lines at most.
const MAX_TRAILERS: u32 = 64;

/// Why bytes are not a response.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HttpError {
    /// The head does not parse.
    #[error("malformed response head: {0}")]
    Head(String),
    /// A size is over its limit.
    #[error("{what} is over the limit of {limit} bytes")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The chunked framing is broken.
    #[error("malformed chunked body: {0}")]
    Chunk(&'static str),
}

/// How a body is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// `text/event-stream`.
    EventStream,
    /// Anything else.
    Whole,
}

/// The head of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Status code; never an interim one.
    pub status: u16,
    /// Kind of body.
    pub kind: BodyKind,
}

/// What came next.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The head is complete.
    Head(Head),
    /// Bytes of the body, never empty.
    Body(&'a [u8]),
    /// The response is complete; what is left of the input belongs to nothing.
    End,
    /// The input is used up.
    NeedMore,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Length(u64),
    UntilClose,
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers(u32),
    Done,
}

/// Reads responses of one connection.
#[derive(Debug)]
pub struct ResponseReader {
    limits: Limits,
    state: State,
    /// Head or line whose end has not been seen.
    held: Vec<u8>,
    n_body: u64,
    keep_alive: bool,
}

impl ResponseReader {
    /// A reader that expects a response.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, state: State::Head, held: Vec::new(), n_body: 0, keep_alive: true }
    }

    /// Makes ready for the next response.
    pub fn reset(&mut self) {
        self.state = State::Head;
        self.held.clear();
        self.n_body = 0;
        self.keep_alive = true;
    }

    /// Whether the connection may carry another request after a complete response.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Whether the end of the connection is the regular end of the response.
    #[must_use]
    pub fn ends_with_connection(&self) -> bool {
        self.state == State::UntilClose
    }

    /// Takes the next piece from the front of `input`.
    ///
    /// # Errors
    /// [`HttpError`]; the connection cannot be used on.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Piece<'a>, HttpError> {
        loop {
            match self.state {
                State::Done => return Ok(Piece::End),
                _ if input.is_empty() && self.state != State::Length(0) => return Ok(Piece::NeedMore),
                State::Head => {
                    if let Some(head) = self.take_head(input)? {
                        return Ok(Piece::Head(head));
                    }
                }
                State::Length(0) => self.state = State::Done,
                State::Length(left) => {
                    let piece = split_up_to(input, left);
                    self.state = State::Length(left - piece.len() as u64);
                    return Ok(Piece::Body(piece));
                }
                State::UntilClose => {
                    let piece = mem::take(input);
                    self.count_body(piece.len() as u64)?;
                    return Ok(Piece::Body(piece));
                }
                State::ChunkSize => self.take_chunk_size(input)?,
                State::Chunk(left) => {
                    let piece = split_up_to(input, left);
                    let left = left - piece.len() as u64;
                    self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                    return Ok(Piece::Body(piece));
                }
                State::ChunkEnd => {
                    if self
                        .take_line(input, |line| if line.is_empty() { Ok(()) } else { Err(HttpError::Chunk("no line end after a chunk")) })?
                        .is_some()
                    {
                        self.state = State::ChunkSize;
                    }
                }
                State::Trailers(n) => match self.take_line(input, |line| Ok(line.is_empty()))? {
                    Some(true) => self.state = State::Done,
                    Some(false) if n == MAX_TRAILERS => return Err(HttpError::Chunk("too many trailers")),
                    Some(false) => self.state = State::Trailers(n + 1),
                    None => {}
                },
            }
        }
    }

    fn take_chunk_size(&mut self, input: &mut &[u8]) -> Result<(), HttpError> {
        let Some(size) = self.take_line(input, parse_chunk_size)? else { return Ok(()) };
        if size > self.limits.chunk_bytes {
            return Err(HttpError::TooLarge { what: "chunk", limit: self.limits.chunk_bytes });
        }
        self.count_body(size)?;
        self.state = if size == 0 { State::Trailers(0) } else { State::Chunk(size) };
        Ok(())
    }

    fn count_body(&mut self, n: u64) -> Result<(), HttpError> {
        self.n_body = self.n_body.saturating_add(n);
        if self.n_body > self.limits.body_bytes {
            return Err(HttpError::TooLarge { what: "body", limit: self.limits.body_bytes });
        }
        Ok(())
    }

    /// Parses the head when it is complete; interim responses are read over.
    fn take_head(&mut self, input: &mut &[u8]) -> Result<Option<Head>, HttpError> {
        let parsed = if self.held.is_empty() {
            parse_head(input)?
        } else {
            self.held.extend_from_slice(&input[..input.len().min(self.limits.head_bytes)]);
            parse_head(&self.held)?
        };
        let over = HttpError::TooLarge { what: "response head", limit: self.limits.head_bytes as u64 };
        let Some(head) = parsed else {
            if self.held.is_empty() {
                self.held.extend_from_slice(input);
            }
            *input = &[];
            return if self.held.len() > self.limits.head_bytes { Err(over) } else { Ok(None) };
        };
        if head.n_bytes > self.limits.head_bytes {
            return Err(over);
        }
        // What was held before this input is the front of the head.
        let n_held_before = if self.held.is_empty() { 0 } else { self.held.len() - input.len().min(self.limits.head_bytes) };
        *input = &input[head.n_bytes - n_held_before..];
        self.held.clear();
        if head.status < 200 {
            return if head.status == 101 { Err(HttpError::Head("switching protocols was not asked for".into())) } else { Ok(None) };
        }
        self.keep_alive = head.keep_alive;
        self.state = match head.framing {
            Framing::Chunked => State::ChunkSize,
            Framing::Length(n) if n > self.limits.body_bytes => {
                return Err(HttpError::TooLarge { what: "body", limit: self.limits.body_bytes });
            }
            Framing::Length(n) => State::Length(n),
            Framing::UntilClose => State::UntilClose,
        };
        Ok(Some(Head { status: head.status, kind: head.kind }))
    }

    /// Takes one line ending in CRLF and applies `parse` to what is before it; `None` when its end has not come.
    fn take_line<T>(&mut self, input: &mut &[u8], parse: impl FnOnce(&[u8]) -> Result<T, HttpError>) -> Result<Option<T>, HttpError> {
        let end = memchr(b'\n', input);
        let piece = split_up_to(input, end.map_or(input.len(), |e| e + 1) as u64);
        if self.held.len() + piece.len() > MAX_LINE_BYTES {
            return Err(HttpError::TooLarge { what: "line of a chunked body", limit: MAX_LINE_BYTES as u64 });
        }
        let line = if self.held.is_empty() && end.is_some() {
            piece
        } else {
            self.held.extend_from_slice(piece);
            if end.is_none() {
                return Ok(None);
            }
            &self.held
        };
        let value = line.strip_suffix(b"\r\n").ok_or(HttpError::Chunk("line feed without carriage return")).and_then(parse);
        self.held.clear();
        value.map(Some)
    }
}

fn split_up_to<'a>(input: &mut &'a [u8], n: u64) -> &'a [u8] {
    let n = usize::try_from(n).unwrap_or(usize::MAX).min(input.len());
    let (front, rest) = input.split_at(n);
    *input = rest;
    front
}

fn parse_chunk_size(line: &[u8]) -> Result<u64, HttpError> {
    let n_digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    if n_digits == 0 || n_digits > 15 {
        return Err(HttpError::Chunk("chunk size is not a hexadecimal number"));
    }
    let size = line[..n_digits].iter().fold(0u64, |n, b| n << 4 | u64::from((*b as char).to_digit(16).unwrap_or(0)));
    match line[n_digits..].trim_ascii_start() {
        [] | [b';', ..] => Ok(size),
        _ => Err(HttpError::Chunk("chunk size is followed by something else")),
    }
}

enum Framing {
    Chunked,
    Length(u64),
    UntilClose,
}

struct ParsedHead {
    n_bytes: usize,
    status: u16,
    kind: BodyKind,
    framing: Framing,
    keep_alive: bool,
}

fn parse_head(bytes: &[u8]) -> Result<Option<ParsedHead>, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let n_bytes = match response.parse(bytes) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(HttpError::Head(error.to_string())),
    };
    let status = response.code.unwrap_or(0);
    let bad = |reason: &str| Err(HttpError::Head(reason.to_owned()));
    let (mut kind, mut length, mut chunked, mut close, mut stay) = (BodyKind::Whole, None, false, false, false);
    for header in response.headers.iter() {
        let value = header.value.trim_ascii();
        if header.name.eq_ignore_ascii_case("content-length") {
            match parse_length(value) {
                Some(n) if length.is_none_or(|before| before == n) => length = Some(n),
                _ => return bad("content-length is not one number"),
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return bad("a transfer encoding other than chunked");
            }
            chunked = true;
        } else if header.name.eq_ignore_ascii_case("content-encoding") {
            if !value.eq_ignore_ascii_case(b"identity") && !value.is_empty() {
                return bad("a content encoding that was not asked for");
            }
        } else if header.name.eq_ignore_ascii_case("content-type") {
            if value.len() >= 17 && value[..17].eq_ignore_ascii_case(b"text/event-stream") {
                kind = BodyKind::EventStream;
            }
        } else if header.name.eq_ignore_ascii_case("connection") {
            for token in value.split(|b| *b == b',') {
                close |= token.trim_ascii().eq_ignore_ascii_case(b"close");
                stay |= token.trim_ascii().eq_ignore_ascii_case(b"keep-alive");
            }
        }
    }
    if chunked && length.is_some() {
        return bad("both content-length and transfer-encoding");
    }
    let framing = match (status, chunked, length) {
        (204 | 304, ..) => Framing::Length(0),
        (_, true, _) => Framing::Chunked,
        (_, _, Some(n)) => Framing::Length(n),
        (100..=199, ..) => Framing::Length(0),
        _ => Framing::UntilClose,
    };
    let persistent = if response.version == Some(1) { !close } else { stay && !close };
    let keep_alive = persistent && !matches!(framing, Framing::UntilClose);
    Ok(Some(ParsedHead { n_bytes, status, kind, framing, keep_alive }))
}

fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0, |n, b| n * 10 + u64::from(b - b'0')))
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
