//! What leaves the engine thread: encoded messages in a shared buffer that the connection empties.
//!
//! The engine thread never waits for the network: it appends and wakes. All token events of a
//! step are one message, and whatever has gathered since the last write is one write.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tandem_wire::frame;
use tandem_wire::worker::{FailureKind, FinishReason, FromWorker, RequestId, TokenEvent, WorkerStats};
use tokio::sync::Notify;

/// Bytes that may wait for a frontend that does not read; beyond, the connection is given up.
const MAX_UNSENT_BYTES: usize = 64 << 20;

/// Shared between the engine thread and the frontend connection.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct State {
    unsent: Vec<u8>,
    overflowed: bool,
    stats: WorkerStats,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Occupancy as the engine thread last published it.
    pub(crate) fn stats(&self) -> WorkerStats {
        self.lock().stats
    }

    /// Waits for bytes and swaps them into `buffer`, which is cleared first. False when too many had gathered.
    pub(crate) async fn take(&self, buffer: &mut Vec<u8>) -> bool {
        buffer.clear();
        loop {
            {
                let mut state = self.lock();
                if state.overflowed {
                    return false;
                }
                if !state.unsent.is_empty() {
                    std::mem::swap(&mut state.unsent, buffer);
                    return true;
                }
            }
            self.filled.notified().await;
        }
    }
}

/// The engine thread's end.
#[derive(Debug)]
pub(crate) struct Outgoing {
    outbox: Arc<Outbox>,
    tokens: Vec<TokenEvent>,
    frames: Vec<u8>,
}

impl Outgoing {
    pub(crate) fn new(outbox: Arc<Outbox>) -> Self {
        Self { outbox, tokens: Vec::new(), frames: Vec::new() }
    }

    pub(crate) fn tokens(&mut self, id: RequestId, tokens: Vec<u32>, finish: Option<FinishReason>) {
        self.tokens.push(TokenEvent { id, tokens, finish });
    }

    pub(crate) fn failed(&mut self, id: RequestId, kind: FailureKind, message: impl Into<String>) {
        let message = message.into();
        tracing::debug!(request_id = id.0, ?kind, message, "request failed");
        self.message(&FromWorker::Failed { id, kind, message });
    }

    pub(crate) fn message(&mut self, message: &FromWorker) {
        self.gather_tokens();
        self.encode(message);
    }

    /// Hands everything to the connection, with fresh statistics.
    pub(crate) fn flush(&mut self, stats: WorkerStats) {
        self.gather_tokens();
        let mut state = self.outbox.lock();
        state.stats = stats;
        if self.frames.is_empty() {
            return;
        }
        if state.unsent.len() + self.frames.len() > MAX_UNSENT_BYTES {
            state.overflowed = true;
        } else if state.unsent.is_empty() {
            std::mem::swap(&mut state.unsent, &mut self.frames);
        } else {
            state.unsent.extend_from_slice(&self.frames);
        }
        drop(state);
        self.frames.clear();
        self.outbox.filled.notify_one();
    }

    /// Forgets what a lost connection did not take.
    pub(crate) fn reset(&mut self) {
        self.tokens.clear();
        self.frames.clear();
        let mut state = self.outbox.lock();
        state.unsent.clear();
        state.overflowed = false;
    }

    fn gather_tokens(&mut self) {
        if !self.tokens.is_empty() {
            let events = std::mem::take(&mut self.tokens);
            self.encode(&FromWorker::Tokens { events });
        }
    }

    fn encode(&mut self, message: &FromWorker) {
        if let Err(error) = frame::encode(message, &mut self.frames) {
            // Only an absurd batch or error text could be over the limit.
            tracing::error!(%error, "a message to the frontend was dropped");
        }
    }
}
