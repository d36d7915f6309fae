//! The prefill side: pushes that can be fed from any thread and never block it.
//!
//! A push only queues; one task per target address owns the connection and writes. What waits
//! in the queues is bounded by the caches of the open pushes: a push takes each byte of its
//! extent once, and the caller opens no more pushes than its own cache holds sequences.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tandem_wire::worker::KvTarget;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::{Command, Connection};
use crate::layout::{Extent, KvShape, PiecePlace};
use crate::tcp::KvTimeouts;

/// How a push ended; exactly one for each push that its owner did not abort.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvSendEvent {
    /// The decode worker has the whole cache: the blocks may be freed.
    Acked {
        /// The reservation.
        ticket: u64,
    },
    /// The push is over without success; pieces that still come are dropped.
    Failed {
        /// The reservation.
        ticket: u64,
        /// For logs and the client.
        reason: String,
    },
}

/// Sends KV caches. Clones are handles to the same sender; when the last is dropped, or at [`Self::shutdown`], open
/// pushes fail.
#[derive(Debug, Clone)]
pub struct KvSender {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    events: UnboundedSender<KvSendEvent>,
    timeouts: KvTimeouts,
    runtime: Handle,
    tasks: TaskTracker,
    cancel: CancellationToken,
    /// The connection to each target address, possibly closed.
    connections: Mutex<HashMap<String, Arc<Connection>>>,
}

impl KvSender {
    /// A sender that runs its connections on the current tokio runtime; afterwards usable from any thread.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(events: UnboundedSender<KvSendEvent>) -> Self {
        Self::with_timeouts(events, KvTimeouts::default())
    }

    /// [`Self::new`] with other timeouts.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn with_timeouts(events: UnboundedSender<KvSendEvent>, timeouts: KvTimeouts) -> Self {
        let inner = Inner {
            events,
            timeouts,
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
            connections: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Begins to push a cache of `n_tokens` tokens to `target`. Never blocks: the connection is made on demand, kept
    /// for later pushes to the same address, and whatever goes wrong comes as [`KvSendEvent::Failed`]. A ticket that is
    /// being pushed to the same address already fails at once (and its first push goes on).
    #[must_use]
    pub fn open(&self, target: &KvTarget, shape: KvShape, n_tokens: usize) -> KvPush {
        let ticket = target.ticket;
        let extent = match Extent::new(shape, n_tokens) {
            Ok(extent) => extent,
            Err(error) => return self.stillborn(ticket, error.to_string()),
        };
        if self.inner.cancel.is_cancelled() {
            return self.stillborn(ticket, "the kv sender is shut down".to_owned());
        }
        let alive = Arc::new(AtomicBool::new(true));
        // The receiver lets the reservation expire at its deadline and says so; our own clock is for a receiver that is gone.
        let give_up = Instant::now() + Duration::from_millis(target.deadline_ms) + self.inner.timeouts.ack;
        let mut connections = self.inner.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let known = connections.get(&target.address).cloned();
        let admitted =
            known.and_then(|connection| connection.admit(ticket, extent, &alive, give_up).map(|admitted| (connection, admitted)));
        let (connection, admitted) = admitted.unwrap_or_else(|| {
            let (connection, commands) = self.connect(&mut connections, &target.address);
            // Before it is served: a connection that cannot be made may have ended at once.
            let admitted = connection.admit(ticket, extent, &alive, give_up) == Some(true);
            self.serve(Arc::clone(&connection), commands);
            (connection, admitted)
        });
        if !admitted {
            return self.stillborn(ticket, "this ticket is being pushed already".to_owned());
        }
        KvPush { ticket, extent, live: Some(Live { connection, alive, bytes_left: AtomicU64::new(extent.total_bytes()) }) }
    }

    /// Closes every connection, fails the open pushes and waits until all tasks have ended.
    pub async fn shutdown(&self) {
        self.inner.cancel.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// A connection that is not served yet, and its commands.
    fn connect(&self, connections: &mut HashMap<String, Arc<Connection>>, address: &str) -> (Arc<Connection>, UnboundedReceiver<Command>) {
        connections.retain(|_, c| !c.is_closed());
        let (connection, commands) = Connection::new(address, self.inner.timeouts, self.inner.events.clone());
        connections.insert(address.to_owned(), Arc::clone(&connection));
        (connection, commands)
    }

    fn serve(&self, connection: Arc<Connection>, commands: UnboundedReceiver<Command>) {
        let Inner { runtime, tasks, cancel, .. } = &*self.inner;
        tasks.spawn_on(connection.run(commands, cancel.clone()), runtime);
    }

    fn stillborn(&self, ticket: u64, reason: String) -> KvPush {
        // Nobody listens when the owner of the events is gone, and then nobody needs to know.
        let _ = self.inner.events.send(KvSendEvent::Failed { ticket, reason });
        let extent = Extent { n_layers: 0, bytes_per_token_layer: 0, n_tokens: 0 };
        KvPush { ticket, extent, live: None }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.tasks.close();
    }
}

/// One cache on its way. Dropping it before [`Self::commit`] aborts it.
#[derive(Debug)]
pub struct KvPush {
    ticket: u64,
    extent: Extent,
    /// None when it could not begin, or has been committed or aborted.
    live: Option<Live>,
}

#[derive(Debug)]
struct Live {
    connection: Arc<Connection>,
    /// Cleared when the push has failed, so that no more is queued for it.
    alive: Arc<AtomicBool>,
    /// What may still be queued; keeps a caller that repeats itself from filling the memory.
    bytes_left: AtomicU64,
}

impl KvPush {
    /// The reservation that it pushes to.
    #[must_use]
    pub fn ticket(&self) -> u64 {
        self.ticket
    }

    /// Whether the push has failed, so that its remaining pieces need not be read from the cache.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        !self.live.as_ref().is_some_and(|live| live.alive.load(Ordering::Acquire))
    }

    /// Queues tokens `tokens` of `layer`: `tokens.len() * bytes_per_token_layer` bytes, token-major. Never blocks; does
    /// nothing once the push has failed. Each token of each layer must be pushed exactly once, in any order and in pieces
    /// of any size; a piece that does not fit the shape fails the push.
    pub fn piece(&self, layer: usize, tokens: Range<usize>, bytes: Bytes) {
        let Some(live) = &self.live else { return };
        if !live.alive.load(Ordering::Acquire) {
            return;
        }
        match self.place(layer, &tokens, bytes.len(), live) {
            Ok(place) => live.connection.queue(Command::Piece { ticket: self.ticket, alive: Arc::clone(&live.alive), place, bytes }),
            Err(reason) => live.connection.fail(self.ticket, &reason),
        }
    }

    /// All pieces are queued: sends the first generated token and waits (in the background) for the acknowledgement.
    pub fn commit(mut self, first_token: u32) {
        if let Some(live) = self.live.take() {
            live.connection.commit(self.ticket, first_token, &live.alive);
        }
    }

    /// Stops the push. No event follows, unless one was on its way already.
    pub fn abort(self) {
        drop(self);
    }

    fn place(&self, layer: usize, tokens: &Range<usize>, n_bytes: usize, live: &Live) -> Result<PiecePlace, String> {
        let narrow = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let place = PiecePlace { layer: narrow(layer), start: narrow(tokens.start), end: narrow(tokens.end) };
        if let Some(reason) = place.misfit(self.extent, n_bytes) {
            return Err(reason);
        }
        let n_bytes = n_bytes as u64;
        let enough = live.bytes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(n_bytes));
        enough.map(|_| place).map_err(|_| "more pieces than the cache has bytes".to_owned())
    }
}

impl Drop for KvPush {
    fn drop(&mut self) {
        if let Some(live) = self.live.take() {
            live.alive.store(false, Ordering::Release);
            live.connection.abort(self.ticket);
        }
    }
}
