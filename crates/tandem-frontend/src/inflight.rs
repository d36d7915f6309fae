//! Where messages of the workers find their request.
//!
//! Each try of a request has an identity of its own. A message for an identity that is no
//! longer in the table belongs to a try that was given up, and is dropped. The request
//! itself runs in the task of its HTTP connection and takes its messages from a mailbox.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tandem_plan::Phase;
use tandem_wire::worker::{RequestId, TokenEvent};

use crate::lifecycle::Input;
use crate::workers::WorkerKey;

/// Locks a mutex whose data no panic can leave half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Messages that one request has not looked at yet.
#[derive(Debug)]
pub(crate) struct Mailbox {
    inner: Mutex<MailboxInner>,
    /// Tokens, or messages without tokens, that may wait. A worker that keeps its promises never
    /// reaches it; of one that does not, enough has arrived to end the request.
    capacity: usize,
}

#[derive(Debug, Default)]
struct MailboxInner {
    messages: VecDeque<(RequestId, Input)>,
    n_waiting: usize,
    waker: Option<Waker>,
}

impl Mailbox {
    /// For a request of at most `max_tokens`.
    pub(crate) fn new(max_tokens: u32) -> Self {
        // Twice, for the tokens of a try that was given up may still be unread; and some for everything else.
        Mailbox { inner: Mutex::default(), capacity: 2 * max_tokens as usize + 64 }
    }

    /// Adds a message and wakes the request.
    fn post(&self, id: RequestId, input: Input) {
        let waker = {
            let mut inner = lock(&self.inner);
            let size = if let Input::Tokens { tokens, .. } = &input { tokens.len().max(1) } else { 1 };
            if inner.n_waiting + size > self.capacity && !matches!(input, Input::Lost(_)) {
                return;
            }
            inner.n_waiting += size;
            inner.messages.push_back((id, input));
            inner.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Moves all messages into `into`, which must be empty; pending when there are none.
    pub(crate) fn poll_take(&self, cx: &Context<'_>, into: &mut VecDeque<(RequestId, Input)>) -> Poll<()> {
        debug_assert!(into.is_empty(), "unread messages would get out of order");
        let mut inner = lock(&self.inner);
        if inner.messages.is_empty() {
            if !inner.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                inner.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        std::mem::swap(&mut inner.messages, into);
        inner.n_waiting = 0;
        Poll::Ready(())
    }
}

/// All tries that are under way.
#[derive(Debug, Default)]
pub(crate) struct Inflight {
    tries: Mutex<HashMap<u64, Entry, BuildHasherDefault<IdHasher>>>,
    last_id: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    mailbox: Arc<Mailbox>,
    /// Workers that may speak about this try, by phase.
    prefill: Option<WorkerKey>,
    decode: Option<WorkerKey>,
}

impl Entry {
    fn worker(&self, phase: Phase) -> Option<WorkerKey> {
        match phase {
            Phase::Prefill => self.prefill,
            Phase::Decode => self.decode,
        }
    }
}

impl Inflight {
    /// Registers a new try whose messages go to `mailbox`.
    pub(crate) fn open(&self, mailbox: &Arc<Mailbox>) -> RequestId {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        lock(&self.tries).insert(id, Entry { mailbox: Arc::clone(mailbox), prefill: None, decode: None });
        RequestId(id)
    }

    /// Lets `worker` speak about the try; to be called before the worker hears of it.
    pub(crate) fn assign(&self, id: RequestId, phase: Phase, worker: WorkerKey) {
        if let Some(entry) = lock(&self.tries).get_mut(&id.0) {
            match phase {
                Phase::Prefill => entry.prefill = Some(worker),
                Phase::Decode => entry.decode = Some(worker),
            }
        }
    }

    /// Forgets a try: messages about it are dropped from now on.
    pub(crate) fn close(&self, id: RequestId) {
        lock(&self.tries).remove(&id.0);
    }

    /// Tries that are under way.
    pub(crate) fn len(&self) -> usize {
        lock(&self.tries).len()
    }

    /// Hands out the tokens of one step of `worker`.
    pub(crate) fn post_tokens(&self, phase: Phase, worker: WorkerKey, events: Vec<TokenEvent>) {
        let tries = lock(&self.tries);
        for TokenEvent { id, tokens, finish } in events {
            if let Some(entry) = tries.get(&id.0).filter(|e| e.worker(phase) == Some(worker)) {
                entry.mailbox.post(id, Input::Tokens { from: phase, tokens, finish });
            }
        }
    }

    /// Hands out any other message of `worker`.
    pub(crate) fn post(&self, phase: Phase, worker: WorkerKey, id: RequestId, input: Input) {
        if let Some(entry) = lock(&self.tries).get(&id.0).filter(|e| e.worker(phase) == Some(worker)) {
            entry.mailbox.post(id, input);
        }
    }

    /// Tells every request that uses `worker` that it is gone.
    pub(crate) fn lose(&self, phase: Phase, worker: WorkerKey) {
        for (&id, entry) in lock(&self.tries).iter().filter(|(_, e)| e.worker(phase) == Some(worker)) {
            entry.mailbox.post(RequestId(id), Input::Lost(phase));
        }
    }
}

/// Spreads the bits of consecutive identities; they are ours, so nobody can make them collide.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(mailbox: &Mailbox) -> Vec<(RequestId, Input)> {
        let (mut out, cx) = (VecDeque::new(), Context::from_waker(Waker::noop()));
        let _ = mailbox.poll_take(&cx, &mut out);
        out.into()
    }

    #[test]
    fn only_the_assigned_worker_is_heard_and_only_while_the_try_is_open() {
        let (inflight, mailbox) = (Inflight::default(), Arc::new(Mailbox::new(4)));
        let id = inflight.open(&mailbox);
        inflight.assign(id, Phase::Decode, WorkerKey(1));
        let event = || vec![TokenEvent { id, tokens: vec![5], finish: None }];
        inflight.post_tokens(Phase::Decode, WorkerKey(2), event());
        inflight.post_tokens(Phase::Prefill, WorkerKey(1), event());
        assert_eq!(taken(&mailbox), []);
        inflight.post_tokens(Phase::Decode, WorkerKey(1), event());
        inflight.lose(Phase::Decode, WorkerKey(1));
        let tokens = Input::Tokens { from: Phase::Decode, tokens: vec![5], finish: None };
        assert_eq!(taken(&mailbox), [(id, tokens), (id, Input::Lost(Phase::Decode))]);
        inflight.close(id);
        inflight.post_tokens(Phase::Decode, WorkerKey(1), event());
        inflight.lose(Phase::Decode, WorkerKey(1));
        assert_eq!(taken(&mailbox), []);
        assert_eq!(inflight.len(), 0);
    }

    #[test]
    fn a_worker_that_floods_a_request_fills_no_memory() {
        let (inflight, mailbox) = (Inflight::default(), Arc::new(Mailbox::new(100)));
        let id = inflight.open(&mailbox);
        inflight.assign(id, Phase::Decode, WorkerKey(1));
        for _ in 0..1000 {
            inflight.post_tokens(Phase::Decode, WorkerKey(1), vec![TokenEvent { id, tokens: vec![1; 10], finish: None }]);
            inflight.post_tokens(Phase::Decode, WorkerKey(1), vec![TokenEvent { id, tokens: vec![], finish: None }]);
        }
        inflight.lose(Phase::Decode, WorkerKey(1));
        let n_tokens = |(_, input): &(RequestId, Input)| if let Input::Tokens { tokens, .. } = input { tokens.len() } else { 0 };
        let waiting = taken(&mailbox);
        let n: usize = waiting.iter().map(n_tokens).sum();
        assert!(waiting.len() <= 264 && (100..=264).contains(&n), "{} messages, {n} tokens", waiting.len());
        assert_eq!(waiting.last(), Some(&(id, Input::Lost(Phase::Decode))), "a loss is never dropped");
    }
}
