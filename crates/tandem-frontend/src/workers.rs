//! The workers that are connected, what each has outstanding, and the queue of messages to each.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tandem_plan::{Phase, Plan};
use tandem_wire::frame;
use tandem_wire::worker::{ToWorker, WorkerStats};
use tokio::sync::Notify;

use crate::inflight::lock;
use tandem_sched::router::{Candidate, Router};

/// Bytes that may wait for one worker before it counts as stuck; cancellations may go over it.
const MAX_OUTBOX_BYTES: usize = 64 << 20;

/// Names one connection of a worker; a worker that comes back has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct WorkerKey(pub(crate) u64);

/// One connected worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) key: WorkerKey,
    pub(crate) name: String,
    pub(crate) phase: Phase,
    pub(crate) index: u32,
    pub(crate) peer: SocketAddr,
    pub(crate) outbox: Outbox,
    /// Prompt tokens (prefill) or sequences (decode) that this frontend has outstanding there.
    load: AtomicU64,
    stats: Mutex<WorkerStats>,
}

impl Worker {
    pub(crate) fn set_stats(&self, stats: WorkerStats) {
        *lock(&self.stats) = stats;
    }

    pub(crate) fn stats(&self) -> WorkerStats {
        *lock(&self.stats)
    }

    pub(crate) fn load(&self) -> u64 {
        self.load.load(Ordering::Relaxed)
    }
}

/// Messages on their way to one worker, encoded already, so that one write takes all that have gathered.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pending: Mutex<Pending>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    closed: bool,
}

/// Why a message was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The connection is gone.
    Closed,
    /// Too much is waiting, or the message is larger than a frame may be.
    Full,
}

impl Outbox {
    /// Queues `message`.
    pub(crate) fn send(&self, message: &ToWorker) -> Result<(), Refused> {
        let mut pending = lock(&self.pending);
        if pending.closed {
            return Err(Refused::Closed);
        }
        // A cancellation frees memory on the other side and is tiny: never refused.
        if pending.bytes.len() >= MAX_OUTBOX_BYTES && !matches!(message, ToWorker::Cancel { .. }) {
            return Err(Refused::Full);
        }
        frame::encode(message, &mut pending.bytes).map_err(|_| Refused::Full)?;
        drop(pending);
        self.filled.notify_one();
        Ok(())
    }

    /// Waits for messages and swaps them into `into`, which must be empty.
    pub(crate) async fn take(&self, into: &mut Vec<u8>) {
        loop {
            {
                let mut pending = lock(&self.pending);
                if !pending.bytes.is_empty() {
                    std::mem::swap(&mut pending.bytes, into);
                    return;
                }
            }
            self.filled.notified().await;
        }
    }

    fn close(&self) {
        let mut pending = lock(&self.pending);
        pending.closed = true;
        pending.bytes = Vec::new();
    }
}

/// Work given to a worker; counts as its load until dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) worker: Arc<Worker>,
    amount: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.worker.load.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

/// Which worker a request wants.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    /// By name, or any.
    pub(crate) name: Option<String>,
    /// A worker that failed this request before.
    pub(crate) avoid: Option<WorkerKey>,
}

/// The workers of the Plan: who should be there, and who is.
#[derive(Debug)]
pub(crate) struct Workers {
    expected: Vec<Expected>,
    connected: Mutex<Connected>,
    last_key: AtomicU64,
}

#[derive(Debug)]
struct Expected {
    name: String,
    phase: Phase,
    index: u32,
}

#[derive(Debug)]
struct Connected {
    workers: Vec<Arc<Worker>>,
    prefill: Router,
    decode: Router,
}

/// One phase as `/health` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PhaseHealth {
    pub(crate) n_expected: usize,
    pub(crate) ready: Vec<String>,
    pub(crate) missing: Vec<String>,
}

impl Workers {
    pub(crate) fn new(plan: &Plan) -> Self {
        let expected = plan.workers.iter().map(|w| Expected { name: w.name.clone(), phase: w.phase, index: w.index }).collect();
        let router = || Router::new(plan.frontend.routing);
        let connected = Mutex::new(Connected { workers: Vec::new(), prefill: router(), decode: router() });
        Workers { expected, connected, last_key: AtomicU64::new(0) }
    }

    /// Adds a worker that has said hello.
    ///
    /// # Errors
    /// The reason for the worker when it cannot be who it says.
    pub(crate) fn register(&self, name: &str, phase: Phase, peer: SocketAddr) -> Result<Arc<Worker>, String> {
        let Some(expected) = self.expected.iter().find(|e| e.name == name) else {
            return Err(format!("the plan has no worker called '{name}'"));
        };
        if expected.phase != phase {
            return Err(format!("the plan says that '{name}' serves {}, not {phase}", expected.phase));
        }
        let mut connected = lock(&self.connected);
        if let Some(there) = connected.workers.iter().find(|w| w.name == name) {
            return Err(format!("'{name}' is connected already, from {}", there.peer));
        }
        let worker = Arc::new(Worker {
            key: WorkerKey(self.last_key.fetch_add(1, Ordering::Relaxed) + 1),
            name: name.to_owned(),
            phase,
            index: expected.index,
            peer,
            outbox: Outbox::default(),
            load: AtomicU64::new(0),
            stats: Mutex::default(),
        });
        connected.workers.push(Arc::clone(&worker));
        connected.workers.sort_by_key(|w| (w.phase, w.index));
        Ok(worker)
    }

    /// Removes a worker whose connection is gone; messages to it are refused from now on.
    pub(crate) fn remove(&self, worker: &Worker) {
        lock(&self.connected).workers.retain(|w| w.key != worker.key);
        worker.outbox.close();
    }

    /// Picks a worker of `phase` and charges it `amount`.
    pub(crate) fn pick(&self, phase: Phase, wish: &Wish, amount: u64) -> Option<Lease> {
        let mut connected = lock(&self.connected);
        let Connected { workers, prefill, decode } = &mut *connected;
        let fits = |w: &&Arc<Worker>| w.phase == phase && wish.name.as_ref().is_none_or(|name| *name == w.name);
        let able: Vec<&Arc<Worker>> = workers.iter().filter(fits).collect();
        let candidates: Vec<Candidate> =
            able.iter().map(|w| Candidate { index: w.index, load: w.load(), avoid: wish.avoid == Some(w.key) }).collect();
        let router = if phase == Phase::Prefill { prefill } else { decode };
        let worker = Arc::clone(able[router.pick(&candidates)?]);
        worker.load.fetch_add(amount, Ordering::Relaxed);
        Some(Lease { worker, amount })
    }

    /// Whether the plan has a worker `name` of this phase.
    pub(crate) fn knows(&self, phase: Phase, name: &str) -> bool {
        self.expected.iter().any(|e| e.phase == phase && e.name == name)
    }

    /// The connected workers.
    pub(crate) fn connected(&self) -> Vec<Arc<Worker>> {
        lock(&self.connected).workers.clone()
    }

    /// Whether at least one worker of `phase` is connected.
    pub(crate) fn has(&self, phase: Phase) -> bool {
        lock(&self.connected).workers.iter().any(|w| w.phase == phase)
    }

    /// Who of `phase` is there and who is not.
    pub(crate) fn health(&self, phase: Phase) -> PhaseHealth {
        let ready: Vec<String> = self.connected().iter().filter(|w| w.phase == phase).map(|w| w.name.clone()).collect();
        let there: BTreeSet<&str> = ready.iter().map(String::as_str).collect();
        let expected: Vec<&str> = self.expected.iter().filter(|e| e.phase == phase).map(|e| e.name.as_str()).collect();
        let missing = expected.iter().filter(|name| !there.contains(*name)).map(|name| (*name).to_owned()).collect();
        PhaseHealth { n_expected: expected.len(), ready, missing }
    }
}
