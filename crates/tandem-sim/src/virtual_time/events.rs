//! The queue of events: by time, then by class, then in the order in which they were made.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use tandem_plan::Nanos;

/// One try of a request: what answers to an earlier one is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Try {
    pub(super) request: u32,
    pub(super) number: u32,
}

/// What the frontend tells a worker, and what reaches it from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// Prefill: compute this prompt.
    Prefill(Try),
    /// Prefill: the decode worker has the KV cache.
    Acked(Try),
    /// Decode: hold blocks.
    Reserve(Try),
    /// Decode: the KV cache is whole; it came from worker `from`.
    Commit { of: Try, from: usize },
    /// Forget it.
    Cancel(Try),
}

/// What a worker tells the frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Note {
    /// A request has been read (this one comes from the client).
    New(Try),
    /// The decode worker holds blocks.
    Reserved(Try),
    /// The prompt is computed, by worker `by`; its KV cache waits there.
    Computed { of: Try, by: usize },
    /// New tokens.
    Tokens { of: Try, n: u32, last: bool },
    /// The request can never run at that worker.
    Impossible(Try),
    /// The transfer broke.
    Broken(Try),
}

/// What happens. Of events at one moment, those earlier in this list come first, so that a worker that begins a step has seen
/// everything of that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A worker dies.
    Lost { worker: usize },
    /// The load generator may send.
    Due,
    /// A message is in a worker's inbox.
    Inbox { worker: usize, message: Message },
    /// A worker's word is at the frontend.
    Frontend(Note),
    /// A request has taken too long.
    Deadline { request: u32 },
    /// A step is computed, unless it has been slowed down or sped up since: then its `version` has passed.
    StepEnd { worker: usize, version: u32 },
    /// A worker looks at its inbox and forms a step.
    Wake { worker: usize },
}

impl Event {
    const fn class(&self) -> u8 {
        match self {
            Event::Lost { .. } => 0,
            Event::Due => 1,
            Event::Inbox { .. } => 2,
            Event::Frontend(_) => 3,
            Event::Deadline { .. } => 4,
            Event::StepEnd { .. } => 5,
            Event::Wake { .. } => 6,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Timed {
    key: (Nanos, u8, u64),
    event: Event,
}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}

/// Events to come.
#[derive(Debug, Default)]
pub(super) struct Events {
    heap: BinaryHeap<Reverse<Timed>>,
    n: u64,
}

impl Events {
    pub(super) fn at(&mut self, time: Nanos, event: Event) {
        self.n += 1;
        self.heap.push(Reverse(Timed { key: (time, event.class(), self.n), event }));
    }

    pub(super) fn pop(&mut self) -> Option<(Nanos, Event)> {
        self.heap.pop().map(|Reverse(t)| (t.key.0, t.event))
    }
}

/// Seconds as a span of virtual time; never negative.
pub(super) fn span(seconds: f64) -> Nanos {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates, and a negative span is none")]
    let nanos = (seconds.max(0.0) * 1e9).round() as u64;
    Nanos(nanos)
}
