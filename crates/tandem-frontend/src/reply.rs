//! One path from tokens to a response: a streamed one as it comes, a whole one folded from the same pieces.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use tandem_wire::openai::{ApiError, ChunkWriter, FinishWord, Usage};
use tandem_wire::worker::FinishReason;

use crate::failures::{api_error, outcome};
use crate::generation::{Generation, Output, Served};
use crate::lifecycle::Failure;
use crate::metrics::Outcome;
use crate::shared::{Shared, Ticket};
use crate::text::{Channel, TextStream};

/// Room for the chunks of one write.
const BUFFER_BYTES: usize = 4 << 10;

/// Takes the pieces of a response.
pub(crate) trait Sink {
    /// New text; `so_far` counts the tokens up to it.
    fn text(&mut self, channel: Channel, text: &str, so_far: Usage);
    /// All text so far is void.
    fn restart(&mut self);
}

/// One request, from tokens to text and counts.
#[derive(Debug)]
pub(crate) struct Reply {
    shared: Arc<Shared>,
    generation: Generation,
    text: TextStream,
    usage: Usage,
    first: Option<Instant>,
    last: Instant,
    ticket: Ticket,
}

impl Reply {
    pub(crate) fn new(shared: Arc<Shared>, generation: Generation, text: TextStream, n_prompt: u32, ticket: Ticket) -> Self {
        let usage = Usage { prompt_tokens: n_prompt, completion_tokens: 0, reasoning_tokens: text.n_reasoning() };
        Reply { shared, generation, text, usage, first: None, last: ticket.arrived, ticket }
    }

    /// The workers that serve or served it.
    pub(crate) fn served(&self) -> &Served {
        self.generation.served()
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// Takes one step: text of new tokens goes to `sink`; ready with the reason when that was the end.
    pub(crate) fn poll_step(&mut self, cx: &mut Context<'_>, sink: &mut dyn Sink) -> Poll<Result<Option<FinishWord>, Failure>> {
        let output = match ready!(self.generation.poll_next(cx)) {
            Ok(output) => output,
            Err(failure) => {
                self.ticket.ended(outcome(&failure));
                return Poll::Ready(Err(failure));
            }
        };
        let Output::Tokens { tokens, finish } = output else {
            self.restart(sink);
            return Poll::Ready(Ok(None));
        };
        let n_new = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        self.usage.completion_tokens += n_new;
        self.shared.metrics.output_tokens.inc_by(u64::from(n_new));
        self.note_time();
        let mut so_far = self.usage;
        let stopped = self.text.push(&tokens, finish, &mut |channel, text| sink.text(channel, text, so_far));
        so_far.reasoning_tokens = self.text.n_reasoning();
        self.usage = so_far;
        let end = match (stopped, finish) {
            (true, _) => Some(FinishWord::Stop),
            (false, Some(FinishReason::Stop)) => Some(FinishWord::Stop),
            (false, Some(FinishReason::Length)) => Some(FinishWord::Length),
            (false, None) => None,
        };
        if end.is_some() {
            self.complete(finish.is_none());
        }
        Poll::Ready(Ok(end))
    }

    fn restart(&mut self, sink: &mut dyn Sink) {
        self.shared.metrics.retries.inc();
        self.text.restart();
        self.usage.completion_tokens = 0;
        self.usage.reasoning_tokens = self.text.n_reasoning();
        sink.restart();
    }

    fn note_time(&mut self) {
        let now = Instant::now();
        match self.first {
            None => {
                self.first = Some(now);
                self.shared.metrics.first_token(now.saturating_duration_since(self.ticket.arrived));
            }
            Some(_) => self.shared.metrics.gap(now.saturating_duration_since(self.last)),
        }
        self.last = now;
    }

    fn complete(&mut self, workers_go_on: bool) {
        if workers_go_on {
            self.generation.cancel();
        }
        self.ticket.ended(Outcome::Ok);
        let since = |t: Instant| t.saturating_duration_since(self.ticket.arrived);
        let first = self.first.unwrap_or(self.last);
        self.shared.metrics.complete(since(first), since(self.last), self.usage.completion_tokens);
    }
}

/// A response that is folded into one text.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) content: String,
    pub(crate) reasoning: String,
}

impl Sink for Whole {
    fn text(&mut self, channel: Channel, text: &str, _: Usage) {
        match channel {
            Channel::Content => self.content.push_str(text),
            Channel::Reasoning => self.reasoning.push_str(text),
        }
    }

    fn restart(&mut self) {
        self.content.clear();
        self.reasoning.clear();
    }
}

/// A response that is written as it comes.
#[derive(Debug)]
struct Events {
    writer: ChunkWriter,
    out: BytesMut,
}

impl Sink for Events {
    fn text(&mut self, channel: Channel, text: &str, so_far: Usage) {
        match channel {
            Channel::Content => self.writer.content(text, so_far, &mut self.out),
            Channel::Reasoning => self.writer.reasoning(text, so_far, &mut self.out),
        }
    }

    // Requests that stream start again only before their first token.
    fn restart(&mut self) {}
}

/// The body of a streamed response.
#[derive(Debug)]
pub(crate) struct EventBody {
    /// `None` once the response is over: dropping it frees its place at once.
    reply: Option<Reply>,
    events: Events,
    begun: bool,
    served: Served,
}

impl EventBody {
    pub(crate) fn new(reply: Reply, writer: ChunkWriter) -> Self {
        EventBody {
            reply: Some(reply),
            events: Events { writer, out: BytesMut::with_capacity(BUFFER_BYTES) },
            begun: false,
            served: Served::default(),
        }
    }

    /// Waits for the first token, so that a failure before it can still be an HTTP status.
    pub(crate) async fn begin(&mut self) -> Result<(), ApiError> {
        std::future::poll_fn(|cx| self.poll_begin(cx)).await
    }

    /// The workers that computed the first token, once [`EventBody::begin`] is done.
    pub(crate) fn served(&self) -> &Served {
        &self.served
    }

    fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ApiError>> {
        while !self.begun {
            let Some(reply) = &mut self.reply else { break };
            let at_start = self.events.out.len();
            self.events.writer.role(reply.usage(), &mut self.events.out);
            let step = reply.poll_step(cx, &mut self.events);
            let has_token = reply.first.is_some();
            if has_token {
                self.served = reply.served().clone();
            } else {
                self.events.out.truncate(at_start);
            }
            match ready!(step) {
                Ok(end) => {
                    self.begun = has_token;
                    self.end(end);
                }
                Err(failure) => return Poll::Ready(Err(api_error(&failure))),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn end(&mut self, finish: Option<FinishWord>) {
        if let (Some(finish), Some(reply)) = (finish, &self.reply) {
            self.events.writer.finish(finish, reply.usage(), &mut self.events.out);
            self.reply = None;
        }
    }

    /// Writes all chunks that can be written now.
    fn fill(&mut self, cx: &mut Context<'_>) {
        while let Some(reply) = &mut self.reply {
            match reply.poll_step(cx, &mut self.events) {
                Poll::Pending => return,
                Poll::Ready(Ok(finish)) => self.end(finish),
                Poll::Ready(Err(failure)) => {
                    ChunkWriter::error(&api_error(&failure), &mut self.events.out);
                    self.reply = None;
                }
            }
        }
    }
}

impl http_body::Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.fill(cx);
        if !self.events.out.is_empty() {
            let data = self.events.out.split().freeze();
            self.events.out.reserve(BUFFER_BYTES / 4);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if self.reply.is_none() { Poll::Ready(None) } else { Poll::Pending }
    }

    fn is_end_stream(&self) -> bool {
        self.reply.is_none() && self.events.out.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
