//! Server-sent events: an incremental parser and the writer of data lines.
//!
//! The parser follows the WHATWG event-stream format: lines end with LF, CRLF or CR, a leading
//! byte-order mark is dropped, comments are skipped, several `data` lines are joined with LF, and
//! an event is delivered by the blank line after it. Input may be split at any byte; the events
//! are the same. An event that lies whole in one input is handed out without a copy.
//!
//! Bytes stay bytes: whether `data` is UTF-8 or JSON is for the caller to find out, so that one
//! bad event is a fact about that event. Not here: `id`, `retry` and reconnection, which chat
//! streams do not use.

use memchr::memchr2;
use thiserror::Error;

/// Data of the event that ends an OpenAI stream.
pub const DONE: &[u8] = b"[DONE]";

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// The `event` field; empty when there was none.
    pub kind: &'a [u8],
    /// The `data` lines joined with LF. May be empty.
    pub data: &'a [u8],
}

/// Why a stream cannot be parsed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SseError {
    /// A line or an event is over the parser's limit.
    #[error("server-sent event is over the limit of {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
}

/// Cuts a byte stream into events.
#[derive(Debug)]
pub struct SseParser {
    limit_bytes: usize,
    /// A line whose end has not been seen.
    line: Vec<u8>,
    /// Data of the event under way, each line followed by LF.
    data: Vec<u8>,
    kind: Vec<u8>,
    has_data: bool,
    /// The last line ended with CR at the end of an input: an LF that follows belongs to it.
    skip_lf: bool,
    at_start: bool,
}

impl SseParser {
    /// A parser that refuses events and lines over `limit_bytes`.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, line: Vec::new(), data: Vec::new(), kind: Vec::new(), has_data: false, skip_lf: false, at_start: true }
    }

    /// Forgets everything, keeping buffers: the next input starts a new stream.
    pub fn reset(&mut self) {
        self.line.clear();
        self.data.clear();
        self.kind.clear();
        self.has_data = false;
        self.skip_lf = false;
        self.at_start = true;
    }

    /// Whether bytes of an unfinished event are held; at the end of a stream they are lost.
    #[must_use]
    pub fn has_partial(&self) -> bool {
        !self.line.is_empty() || self.has_data || !self.kind.is_empty()
    }

    /// Takes the next bytes of the stream and calls `deliver` for each event that they complete.
    ///
    /// # Errors
    /// [`SseError::TooLarge`]; the stream cannot be continued then. Events before the fault have been delivered.
    pub fn feed(&mut self, mut input: &[u8], deliver: &mut dyn FnMut(SseEvent<'_>)) -> Result<(), SseError> {
        while !input.is_empty() {
            if std::mem::take(&mut self.skip_lf) && input[0] == b'\n' {
                input = &input[1..];
                continue;
            }
            let Some(end) = memchr2(b'\n', b'\r', input) else {
                self.check_size(self.line.len() + input.len())?;
                self.line.extend_from_slice(input);
                return Ok(());
            };
            let (line, terminator) = (&input[..end], input[end]);
            input = &input[end + 1..];
            if terminator == b'\r' {
                match input.first() {
                    Some(b'\n') => input = &input[1..],
                    Some(_) => {}
                    None => self.skip_lf = true,
                }
            }
            // Checked for lines of every kind, so that where the input was split makes no difference.
            self.check_size(self.line.len() + line.len())?;
            if self.line.is_empty() {
                input = self.take_line(line, input, deliver)?;
            } else {
                let mut whole = std::mem::take(&mut self.line);
                whole.extend_from_slice(line);
                input = self.take_line(&whole, input, deliver)?;
                whole.clear();
                self.line = whole;
            }
        }
        Ok(())
    }

    /// Handles one line without its end; returns what is left of `rest`, whose first blank line may have been used up.
    fn take_line<'a>(&mut self, line: &[u8], rest: &'a [u8], deliver: &mut dyn FnMut(SseEvent<'_>)) -> Result<&'a [u8], SseError> {
        let line = if std::mem::take(&mut self.at_start) { line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line) } else { line };
        if line.is_empty() {
            self.dispatch(deliver);
            return Ok(rest);
        }
        let (field, value) = split_field(line);
        match field {
            b"data" => {
                self.check_size(self.data.len() + value.len() + 1)?;
                if !self.has_data
                    && !self.skip_lf
                    && let Some(after) = strip_blank_line(rest)
                {
                    deliver(SseEvent { kind: &self.kind, data: value });
                    self.kind.clear();
                    return Ok(after);
                }
                self.data.extend_from_slice(value);
                self.data.push(b'\n');
                self.has_data = true;
            }
            b"event" => {
                self.kind.clear();
                self.kind.extend_from_slice(value);
            }
            // Comments have an empty field name; unknown fields are ignored by the format's own rule.
            _ => {}
        }
        Ok(rest)
    }

    fn dispatch(&mut self, deliver: &mut dyn FnMut(SseEvent<'_>)) {
        if self.has_data {
            deliver(SseEvent { kind: &self.kind, data: &self.data[..self.data.len() - 1] });
        }
        self.has_data = false;
        self.data.clear();
        self.kind.clear();
    }

    fn check_size(&self, n_bytes: usize) -> Result<(), SseError> {
        if n_bytes > self.limit_bytes { Err(SseError::TooLarge { limit_bytes: self.limit_bytes }) } else { Ok(()) }
    }
}

/// Appends one event with `data` to `out`; `data` that holds line ends becomes several data lines.
pub fn write_data(data: &[u8], out: &mut Vec<u8>) {
    let mut rest = data;
    loop {
        out.extend_from_slice(b"data: ");
        let Some(end) = memchr2(b'\n', b'\r', rest) else {
            out.extend_from_slice(rest);
            break;
        };
        out.extend_from_slice(&rest[..end]);
        out.push(b'\n');
        rest = if rest[end..].starts_with(b"\r\n") { &rest[end + 2..] } else { &rest[end + 1..] };
    }
    out.extend_from_slice(b"\n\n");
}

/// Appends the event that ends an OpenAI stream.
pub fn write_done(out: &mut Vec<u8>) {
    write_data(DONE, out);
}

/// Field name and value of a line; one space after the colon belongs to neither.
fn split_field(line: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b':', line) {
        Some(colon) => {
            let value = &line[colon + 1..];
            (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
        }
        None => (line, b""),
    }
}

/// `rest` after a blank line at its front. A lone CR at the very end is left alone: its LF may follow in the next input.
fn strip_blank_line(rest: &[u8]) -> Option<&[u8]> {
    match rest {
        [b'\n', after @ ..] | [b'\r', b'\n', after @ ..] => Some(after),
        [b'\r', next, ..] if *next != b'\n' => Some(&rest[1..]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<(String, Vec<u8>)> {
        let (mut parser, mut events) = (SseParser::new(1 << 20), Vec::new());
        for piece in pieces {
            let mut push = |e: SseEvent<'_>| events.push((String::from_utf8_lossy(e.kind).into_owned(), e.data.to_vec()));
            parser.feed(piece, &mut push).unwrap();
        }
        events
    }

    fn data(stream: &[u8]) -> Vec<String> {
        parse(&[stream]).into_iter().map(|(_, d)| String::from_utf8(d).unwrap()).collect()
    }

    #[test]
    fn every_line_ending_gives_the_same_events() {
        for eol in ["\n", "\r\n", "\r"] {
            let stream = format!("data: one{eol}{eol}data: two{eol}data: three{eol}{eol}");
            assert_eq!(data(stream.as_bytes()), ["one", "two\nthree"], "{eol:?}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_dropped_only_at_the_start() {
        assert_eq!(data(b"\xEF\xBB\xBFdata: a\n\n\xEF\xBB\xBFdata: b\n\n"), ["a"]);
    }

    #[test]
    fn comments_unknown_fields_and_blank_events_are_skipped() {
        assert_eq!(data(b": ping\n\nid: 7\nretry: 5\n\nevent: x\n\ndata: a\n: in between\n\n\n\n"), ["a"]);
    }

    #[test]
    fn only_one_space_after_the_colon_is_removed() {
        assert_eq!(data(b"data:  a\n\ndata:b\n\ndata\n\n"), [" a", "b", ""]);
    }

    #[test]
    fn the_event_field_names_the_next_event_only() {
        let events = parse(&[b"event: error\ndata: {}\n\ndata: x\n\ndata: 1\nevent: late\ndata: 2\n\n"]);
        assert_eq!(events, [("error".into(), b"{}".to_vec()), (String::new(), b"x".to_vec()), ("late".into(), b"1\n2".to_vec())]);
    }

    #[test]
    fn an_event_without_its_blank_line_is_not_delivered_but_known() {
        let mut parser = SseParser::new(100);
        parser.feed(b"data: a\n", &mut |_| panic!("delivered too early")).unwrap();
        assert!(parser.has_partial());
        parser.reset();
        assert!(!parser.has_partial());
    }

    #[test]
    fn events_over_the_limit_are_refused_whether_in_one_line_or_many() {
        for stream in
            ["data: 0123456789abcdef\n\n", "data: 01234567\ndata: 01234567\n\n", "0123456789abcdef0123456789abcdef", ": 0123456789abcdef\n"]
        {
            for n in [1, stream.len()] {
                let mut parser = SseParser::new(15);
                let result = stream.as_bytes().chunks(n).try_for_each(|piece| parser.feed(piece, &mut |_| {}));
                assert!(result.is_err(), "{stream} in pieces of {n}");
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut stream = Vec::new();
        write_data(b"{\"a\":1}", &mut stream);
        write_data(b"two\nlines\r\nthree", &mut stream);
        write_data(b"", &mut stream);
        write_done(&mut stream);
        assert_eq!(data(&stream), ["{\"a\":1}", "two\nlines\nthree", "", "[DONE]"]);
    }

    /// The format as a slow, whole-input function: the oracle of the incremental parser.
    fn oracle(stream: &[u8]) -> Vec<(String, Vec<u8>)> {
        let text = stream.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(stream);
        let (mut lines, mut line, mut i) = (Vec::new(), Vec::new(), 0);
        while i < text.len() {
            match text[i] {
                b'\r' if text.get(i + 1) == Some(&b'\n') => {
                    i += 1;
                    lines.push(std::mem::take(&mut line));
                }
                b'\r' | b'\n' => lines.push(std::mem::take(&mut line)),
                b => line.push(b),
            }
            i += 1;
        }
        let (mut events, mut kind, mut data): (Vec<_>, Vec<u8>, Vec<Vec<u8>>) = (Vec::new(), Vec::new(), Vec::new());
        for line in lines {
            let value = |name: &[u8]| {
                let v = line.strip_prefix(name)?;
                if v.is_empty() { Some(Vec::new()) } else { v.strip_prefix(b":").map(|v| v.strip_prefix(b" ").unwrap_or(v).to_vec()) }
            };
            if line.is_empty() {
                if !data.is_empty() {
                    events.push((String::from_utf8_lossy(&kind).into_owned(), data.join(&b'\n')));
                }
                (kind, data) = (Vec::new(), Vec::new());
            } else if let Some(v) = value(b"data") {
                data.push(v);
            } else if let Some(v) = value(b"event") {
                kind = v;
            }
        }
        events
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(b"data: ".to_vec()),
            Just(b"data".to_vec()),
            Just(b"event:".to_vec()),
            Just(b":".to_vec()),
            Just(b"\n".to_vec()),
            Just(b"\r".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"\n\n".to_vec()),
            Just(b"\xEF\xBB\xBF".to_vec()),
            Just(b" ".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..4),
        ];
        proptest::collection::vec(piece, 0..40).prop_map(|p| p.concat())
    }

    proptest! {
        #[test]
        fn any_split_gives_the_events_of_the_whole(stream in stream(), mut cuts in proptest::collection::vec(0usize..200, 0..6)) {
            cuts.iter_mut().for_each(|c| *c = (*c).min(stream.len()));
            cuts.sort_unstable();
            cuts.push(stream.len());
            let (mut from, mut pieces) = (0, Vec::new());
            for cut in cuts {
                pieces.push(&stream[from..cut]);
                from = cut;
            }
            let whole = oracle(&stream);
            prop_assert_eq!(&parse(&pieces), &whole);
            prop_assert_eq!(&parse(&stream.chunks(1).collect::<Vec<_>>()), &whole);
        }
    }
}
