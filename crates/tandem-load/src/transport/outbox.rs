//! What the receive thread hands to the decode thread: events and body bytes, many in one batch.
//!
//! Handing over costs a wake-up, so it happens for some hundreds of events at a time, or when the
//! oldest has waited for a while. The channel is bounded: a decoder that falls behind first makes
//! the receiver wait, which is counted, and never makes memory grow.

use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};

use tandem_metrics::FailureKind;
use tandem_plan::Nanos;

use super::http::Head;
use crate::pacing::Ticket;

/// Events in a batch after which it is handed over.
const BATCH_EVENTS: usize = 256;
/// Body bytes in a batch after which it is handed over.
const BATCH_BYTES: usize = 256 << 10;
/// Batches between the threads at most.
const MAX_BATCHES: usize = 256;
/// How long an event may wait for its batch to fill.
pub(crate) const MAX_WAIT: Nanos = Nanos::from_millis(20);

/// Something that happened to the request in a slot.
#[derive(Debug)]
pub(crate) enum What {
    /// Sending began, or the request failed before.
    Start {
        /// Which request.
        ticket: Ticket,
        /// When it was due; in a closed loop, when its slot became free.
        due: Nanos,
    },
    /// The request's last byte left: at the kernel's stamp, or if it gave none when the last write had returned.
    Sent,
    /// The response's head arrived.
    Head(Head),
    /// The next `n_bytes` of the batch's bytes are body, from one read.
    Body {
        /// How many.
        n_bytes: u32,
    },
    /// The request is over; no more events until the slot's next start.
    End(Option<Failure>),
}

/// How a request failed on the wire.
#[derive(Debug)]
pub(crate) struct Failure {
    /// In which way.
    pub(crate) kind: FailureKind,
    /// What was seen.
    pub(crate) message: Box<str>,
}

impl Failure {
    /// A failure of `kind`.
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into().into_boxed_str() }
    }
}

/// An event of one slot.
#[derive(Debug)]
pub(crate) struct WireEvent {
    /// The slot.
    pub(crate) slot: u32,
    /// When it happened.
    pub(crate) at: Nanos,
    /// What happened.
    pub(crate) what: What,
}

/// Events in order, and the body bytes that they speak of, in the same order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// In order.
    pub(crate) events: Vec<WireEvent>,
    /// Body bytes.
    pub(crate) bytes: Vec<u8>,
}

/// The receive thread's end.
#[derive(Debug)]
pub(crate) struct Outbox {
    batch: Batch,
    oldest: Option<Nanos>,
    to_decoder: SyncSender<Batch>,
    emptied: Receiver<Batch>,
    /// How often the decoder had fallen so far behind that the receive thread had to wait.
    pub(crate) n_waits: u64,
}

/// The decode thread's end.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// Full batches.
    pub(crate) batches: Receiver<Batch>,
    /// Where emptied ones go back to, for their memory.
    pub(crate) emptied: Sender<Batch>,
}

/// A connected pair.
pub(crate) fn outbox() -> (Outbox, Inbox) {
    let (to_decoder, batches) = sync_channel(MAX_BATCHES);
    let (emptied, returned) = channel();
    (Outbox { batch: Batch::default(), oldest: None, to_decoder, emptied: returned, n_waits: 0 }, Inbox { batches, emptied })
}

impl Outbox {
    /// Appends an event other than a body.
    pub(crate) fn push(&mut self, slot: u32, at: Nanos, what: What) {
        self.oldest.get_or_insert(at);
        self.batch.events.push(WireEvent { slot, at, what });
    }

    /// Appends body bytes; those of one read are joined into one event.
    pub(crate) fn body(&mut self, slot: u32, at: Nanos, bytes: &[u8]) {
        self.batch.bytes.extend_from_slice(bytes);
        // A read is far smaller than 4 GiB.
        let n = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        match self.batch.events.last_mut() {
            Some(WireEvent { slot: s, at: t, what: What::Body { n_bytes } }) if *s == slot && *t == at => *n_bytes += n,
            _ => self.push(slot, at, What::Body { n_bytes: n }),
        }
    }

    /// When the batch has to be handed over at the latest.
    pub(crate) fn due(&self) -> Option<Nanos> {
        self.oldest.map(|oldest| oldest + MAX_WAIT)
    }

    /// Hands the batch over if it is full or due.
    pub(crate) fn flush_if_due(&mut self, now: Nanos) {
        let full = self.batch.events.len() >= BATCH_EVENTS || self.batch.bytes.len() >= BATCH_BYTES;
        if full || self.due().is_some_and(|due| due <= now) {
            self.flush();
        }
    }

    /// Hands the batch over.
    pub(crate) fn flush(&mut self) {
        self.oldest = None;
        if self.batch.events.is_empty() {
            return;
        }
        let batch = std::mem::replace(&mut self.batch, self.emptied.try_recv().unwrap_or_default());
        match self.to_decoder.try_send(batch) {
            Ok(()) => {}
            Err(TrySendError::Full(batch)) => {
                self.n_waits += 1;
                // A decoder that is gone has panicked; whoever joins it says so.
                let _ = self.to_decoder.send(batch);
            }
            Err(TrySendError::Disconnected(_)) => {}
        }
    }
}
