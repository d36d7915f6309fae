//! Assembles one request's record from its wire events.

use tandem_metrics::{Chunk, ChunkKind, ChunkLog, FailureKind, LoadPhase, Outcome, RequestRecord};
use tandem_plan::Nanos;
use tandem_wire::sse::{DONE, SseEvent, SseParser, write_data};

use super::json::{self, Output};
use crate::pacing::Ticket;
use crate::transport::http::{BodyKind, Head};
use crate::transport::outbox::Failure;
use crate::transport::request::request_id;

/// A single event over this many bytes is no chat chunk.
const MAX_EVENT_BYTES: usize = 4 << 20;
/// Bytes of an error response's body that are kept for its message.
const MAX_ERROR_BODY_BYTES: usize = 16 << 10;

/// What all requests of a run have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Common {
    /// Prompt length by construction.
    pub(crate) isl: u32,
    /// Output length asked for, to size logs.
    pub(crate) osl: u32,
    /// Whether to keep output texts, for counting tokens later.
    pub(crate) keep_text: bool,
    /// Whether to keep answers (without reasoning), to send them back as history.
    pub(crate) keep_answer: bool,
    /// Whether to keep the events of measured requests.
    pub(crate) keep_events: bool,
}

/// Output seen in one read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// Chunks.
    pub(crate) n_chunks: u32,
    /// Their tokens, unknown ones counted as one.
    pub(crate) n_tokens: u32,
    /// Chunks that shared the read with an earlier one.
    pub(crate) n_clumped: u32,
}

/// A finished request.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Its record.
    pub(crate) record: RequestRecord,
    /// Its output, kept only when the server did not count its tokens, or has put several into some chunks without saying how many.
    pub(crate) uncounted: Option<Pieces>,
    /// Its answer, if answers are kept.
    pub(crate) answer: String,
    /// What came when, ns, if events are kept: events as they were sent, or one whole response.
    pub(crate) events: Vec<(u64, String)>,
}

/// The text of an output, chunk by chunk.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    text: String,
    /// Where each chunk ends in it.
    ends: Vec<usize>,
}

/// One request under way. Buffers stay allocated from request to request.
#[derive(Debug)]
pub(crate) struct Assembly {
    common: Common,
    sse: SseParser,
    request: Option<Request>,
    body: Vec<u8>,
}

#[derive(Debug)]
struct Request {
    record: RequestRecord,
    head: Option<Head>,
    pieces: Pieces,
    answer: String,
    events: Vec<(u64, String)>,
    /// `completion_tokens` of the last chunk that had one, when usage is continuous.
    n_tokens_so_far: Option<u32>,
    /// The stream's end marker has been seen.
    done: bool,
    fault: Option<(FailureKind, String)>,
}

impl Assembly {
    /// An assembly that waits for a request.
    pub(crate) fn new(common: Common) -> Self {
        Self { common, sse: SseParser::new(MAX_EVENT_BYTES), request: None, body: Vec::new() }
    }

    /// Begins a request.
    pub(crate) fn start(&mut self, slot: u32, ticket: Ticket, due: Nanos, sent: Nanos) {
        let mut record = RequestRecord::issued(u64::from(ticket.index), request_id(ticket.phase, ticket.index), 0, ticket.phase, due.0);
        record.worker = slot;
        record.start_ns = sent.0;
        record.isl.client = Some(self.common.isl);
        self.sse.reset();
        self.body.clear();
        self.request = Some(Request {
            record,
            head: None,
            pieces: Pieces::default(),
            answer: String::new(),
            events: Vec::new(),
            n_tokens_so_far: None,
            done: false,
            fault: None,
        });
    }

    /// The whole request has left.
    pub(crate) fn sent(&mut self, at: Nanos) {
        if let Some(request) = &mut self.request {
            request.record.sent_ns = Some(at.0);
        }
    }

    /// The response's head.
    pub(crate) fn head(&mut self, at: Nanos, head: Head) {
        let Some(request) = &mut self.request else { return };
        request.record.ack_ns = Some(at.0);
        request.record.http_status = Some(head.status);
        request.head = Some(head);
        if head.status == 200 && head.kind == BodyKind::EventStream {
            // One chunk a token is the most that is usual; a longer stream grows the log.
            request.record.chunks = ChunkLog::with_capacity(self.common.osl.min(1 << 16) as usize);
        }
    }

    /// Body bytes of one read.
    pub(crate) fn body(&mut self, at: Nanos, bytes: &[u8]) -> Seen {
        let Some(request) = &mut self.request else { return Seen::default() };
        let mut seen = Seen::default();
        match request.head {
            Some(Head { status: 200, kind: BodyKind::EventStream }) => {
                if request.fault.is_some() {
                    return seen;
                }
                let common = self.common;
                let result = self.sse.feed(bytes, &mut |event| request.event(at, event, common, &mut seen));
                if let Err(error) = result {
                    request.fault.get_or_insert((FailureKind::BadResponse, error.to_string()));
                }
            }
            Some(Head { status: 200, .. }) => self.body.extend_from_slice(bytes),
            _ => {
                let room = MAX_ERROR_BODY_BYTES.saturating_sub(self.body.len());
                self.body.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
        }
        seen
    }

    /// Ends the request; `None` when there was none.
    pub(crate) fn end(&mut self, at: Nanos, failure: Option<Failure>) -> Option<(Finished, Seen)> {
        let mut request = self.request.take()?;
        let mut seen = Seen::default();
        let whole = failure.is_none() && request.head.is_some_and(|h| h.status == 200 && h.kind == BodyKind::Whole);
        if whole {
            if request.keeps_events(self.common) {
                request.events.push((at.0, String::from_utf8_lossy(&self.body).into_owned()));
            }
            match json::parse(&self.body) {
                Ok(output) => request.output(at, &output, self.common, &mut seen),
                Err(error) => request.fault = Some((FailureKind::BadResponse, error)),
            }
            request.done = true;
        }
        request.record.end_ns = at.0;
        request.record.outcome = request.outcome(failure, &self.body);
        // A large body's memory is not kept for the next request.
        if self.body.capacity() > MAX_EVENT_BYTES {
            self.body = Vec::new();
        }
        let record = &request.record;
        let (n_chunks, counts_whole) = (record.chunks.len(), record.osl.server.is_some());
        let counts_each = n_chunks < 2
            || record.phase == LoadPhase::Warmup
            || record.osl.server.is_some_and(|n| n as usize == n_chunks)
            || record.chunks.iter().all(|c| c.n_tokens.is_some());
        let is_open = !(counts_whole && counts_each);
        let uncounted = (is_open && self.common.keep_text).then_some(request.pieces);
        Some((Finished { uncounted, answer: request.answer, events: request.events, record: request.record }, seen))
    }
}

impl Request {
    fn keeps_events(&self, common: Common) -> bool {
        common.keep_events && self.record.phase == LoadPhase::Profiling
    }

    fn event(&mut self, at: Nanos, event: SseEvent<'_>, common: Common, seen: &mut Seen) {
        if self.keeps_events(common) {
            self.events.push((at.0, text_of(event)));
        }
        if event.data == DONE {
            self.done = true;
            return;
        }
        if event.data.is_empty() || self.fault.is_some() {
            return;
        }
        let parsed = json::parse(event.data);
        if event.kind == b"error" {
            let message = parsed.ok().and_then(|o| o.error).unwrap_or_else(|| json::excerpt(event.data));
            self.fault = Some((FailureKind::SseError, message));
            return;
        }
        match parsed {
            Ok(output) => self.output(at, &output, common, seen),
            Err(error) => self.fault = Some((FailureKind::BadResponse, error)),
        }
    }

    fn output(&mut self, at: Nanos, output: &Output<'_>, common: Common, seen: &mut Seen) {
        if let Some(error) = &output.error {
            self.fault = Some((FailureKind::SseError, error.clone()));
            return;
        }
        if let Some(n) = output.prompt_tokens {
            self.record.isl.server = Some(n);
        }
        if let Some(reason) = &output.finish_reason {
            self.record.finish_reason = Some(reason.clone().into_owned());
        }
        let mut n_tokens = None;
        if let Some(n) = output.completion_tokens {
            self.record.osl.server = Some(n);
            if output.has_choice {
                n_tokens = n.checked_sub(self.n_tokens_so_far.unwrap_or(0)).filter(|n| *n > 0);
                self.n_tokens_so_far = Some(n);
            }
        }
        if !output.has_output() {
            return;
        }
        let kind = if output.content.is_none() && output.reasoning.is_some() { ChunkKind::Reasoning } else { ChunkKind::Content };
        let clumped = seen.n_chunks > 0;
        self.record.chunks.push(Chunk { at_ns: at.0, n_tokens, kind, clumped });
        seen.n_chunks += 1;
        seen.n_clumped += u32::from(clumped);
        seen.n_tokens += n_tokens.unwrap_or(1);
        if common.keep_text {
            self.pieces.text.extend(output.reasoning.as_deref());
            self.pieces.text.extend(output.content.as_deref());
            self.pieces.ends.push(self.pieces.text.len());
        }
        if common.keep_answer {
            self.answer.extend(output.content.as_deref());
        }
    }

    /// How the request ended. What the server said goes before how the connection ended.
    fn outcome(&mut self, failure: Option<Failure>, body: &[u8]) -> Outcome {
        if let Some(head) = self.head.filter(|h| h.status != 200) {
            let said = json::parse(body).ok().and_then(|o| o.error).unwrap_or_else(|| json::excerpt(body));
            return Outcome::failed(FailureKind::HttpStatus, format!("{}: {said}", head.status));
        }
        if let Some((kind, message)) = self.fault.take() {
            return Outcome::failed(kind, message);
        }
        // After its end marker a stream has nothing more to say, however its connection ends.
        let closed_after_done = self.done && failure.as_ref().is_some_and(|f| f.kind == FailureKind::Truncated);
        if let Some(Failure { kind, message }) = failure.filter(|_| !closed_after_done) {
            return Outcome::Failed { kind, message };
        }
        if !self.done && self.record.finish_reason.is_none() {
            return Outcome::failed(FailureKind::Truncated, "the stream ended without [DONE] or a finish reason");
        }
        if self.record.chunks.is_empty() && self.record.osl.server.unwrap_or(0) == 0 {
            return Outcome::failed(FailureKind::BadResponse, "a complete response without output");
        }
        Outcome::Ok
    }
}

/// An event as a server would write it.
fn text_of(event: SseEvent<'_>) -> String {
    let mut bytes = Vec::with_capacity(event.data.len() + 8);
    if !event.kind.is_empty() {
        bytes.extend_from_slice(b"event: ");
        bytes.extend_from_slice(event.kind);
        bytes.push(b'\n');
    }
    write_data(event.data, &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Fills in the client's own count of output tokens where the server has none, and that of each chunk where these make up the whole:
/// a token may be cut between chunks, and then nobody can tell.
pub(crate) fn count_output(finished: &mut Finished, count: &dyn Fn(&str) -> Option<u32>) {
    let Some(Pieces { text, ends }) = finished.uncounted.take() else { return };
    let record = &mut finished.record;
    if record.osl.server.is_none() {
        record.osl.client = count(&text);
    }
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let counts: Option<Vec<u32>> = starts.zip(&ends).map(|(from, &to)| count(&text[from..to]).filter(|n| *n > 0)).collect();
    if let Some(counts) = counts.filter(|counts| record.osl_tokens().map(u64::from) == Some(counts.iter().map(|n| u64::from(*n)).sum())) {
        record.chunks = record.chunks.iter().zip(counts).map(|(chunk, n)| Chunk { n_tokens: Some(n), ..chunk }).collect();
    }
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
