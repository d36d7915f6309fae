//! Later turns of conversations, from the decode thread to the receive thread: requests that did not exist before an answer did.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};

use mio::{Registry, Token, Waker};
use tandem_plan::Nanos;

use crate::pacing::Ticket;

/// What follows the end of a turn.
#[derive(Debug)]
pub(crate) enum FollowUp {
    /// Another turn.
    Turn {
        /// Its ticket.
        ticket: Ticket,
        /// When it is due.
        due: Nanos,
        /// Head and body.
        request: Vec<u8>,
    },
    /// The conversation is over.
    Over,
}

/// The decode thread's end.
#[derive(Debug)]
pub(crate) struct TurnSender {
    queue: Sender<FollowUp>,
    waker: Arc<OnceLock<Waker>>,
}

/// The receive thread's end.
#[derive(Debug)]
pub(crate) struct TurnQueue {
    queue: Receiver<FollowUp>,
    waker: Arc<OnceLock<Waker>>,
    /// By due time, and the order of arrival among equal ones.
    waiting: BTreeMap<(Nanos, u64), (Ticket, Vec<u8>)>,
    n_arrived: u64,
    /// Conversations begun and not over.
    n_open: usize,
    /// Conversations that are over and have not been asked for.
    n_over: usize,
}

/// A connected pair.
pub(crate) fn turns() -> (TurnSender, TurnQueue) {
    let (sender, receiver) = channel();
    let waker = Arc::new(OnceLock::new());
    let queue = TurnQueue { queue: receiver, waker: waker.clone(), waiting: BTreeMap::new(), n_arrived: 0, n_open: 0, n_over: 0 };
    (TurnSender { queue: sender, waker }, queue)
}

impl TurnSender {
    /// Hands over what follows, and wakes the receive thread.
    pub(crate) fn send(&self, next: FollowUp) {
        // The receive thread may have been stopped; then nobody needs it. It looks at least every 50 ms, should waking fail.
        let _ = self.queue.send(next);
        let _ = self.waker.get().map(Waker::wake);
    }
}

impl TurnQueue {
    /// Has the poll of `registry` woken when something comes.
    pub(crate) fn wake_with(&self, registry: &Registry, token: Token) -> std::io::Result<()> {
        let waker = Waker::new(registry, token)?;
        // It is set once: a queue belongs to one run.
        let _ = self.waker.set(waker);
        Ok(())
    }

    /// A conversation has begun.
    pub(crate) fn opened(&mut self) {
        self.n_open += 1;
    }

    /// Conversations under way.
    pub(crate) fn n_open(&self) -> usize {
        self.n_open
    }

    /// The next turn that is due at `now`, or when one will be.
    pub(crate) fn next(&mut self, now: Nanos) -> Result<(Ticket, Vec<u8>), Option<Nanos>> {
        while let Ok(follow_up) = self.queue.try_recv() {
            match follow_up {
                FollowUp::Over => {
                    self.n_open = self.n_open.saturating_sub(1);
                    self.n_over += 1;
                }
                FollowUp::Turn { ticket, due, request } => {
                    self.waiting.insert((due, self.n_arrived), (ticket, request));
                    self.n_arrived += 1;
                }
            }
        }
        match self.waiting.first_entry() {
            Some(first) if first.key().0 <= now => Ok(first.remove()),
            first => Err(first.map(|entry| entry.key().0)),
        }
    }

    /// How many conversations have ended since this was last asked.
    pub(crate) fn take_over(&mut self) -> usize {
        std::mem::take(&mut self.n_over)
    }

    /// Forgets the conversations: nothing more is sent.
    pub(crate) fn close(&mut self) {
        self.waiting.clear();
        self.n_open = 0;
    }
}
