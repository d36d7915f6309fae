//! The decode side: accepts connections, checks what arrives and delivers it as events.
//!
//! Every event is sent under the lock that guards the reservations, with room in the channel
//! reserved beforehand. So a ticket's events come in the order of its state changes, and none
//! comes after its end. A full channel stops the reading of that connection, and TCP then
//! stops the sender: the undelivered bytes are bounded by the channel's capacity plus one
//! piece a connection, times [`crate::MAX_PIECE_BYTES`].

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::layout::{Extent, KvShape, ShapeError};
use crate::reservations::{ConnectionId, Reservations};
use crate::tcp::KvTimeouts;

mod connection;

use connection::{Answer, Answers};

/// Connections held at once; more are closed at once (a sender holds one to each receiver).
const MAX_CONNECTIONS: usize = 1024;

/// What happens to registered tickets.
#[derive(Debug)]
pub enum KvEvent {
    /// Part of a cache, checked: no token of a layer comes twice.
    Piece {
        /// The reservation.
        ticket: u64,
        /// Layer, from 0.
        layer: usize,
        /// Tokens, from 0 at the start of the prompt.
        tokens: Range<usize>,
        /// `tokens.len() * bytes_per_token_layer` bytes, token-major.
        bytes: Bytes,
    },
    /// All of the cache has been delivered. Ends the ticket here; the sender waits for the answer.
    Commit {
        /// The reservation.
        ticket: u64,
        /// The first generated token, sampled by the prefill worker.
        first_token: u32,
        /// Tells the sender that it may free its blocks, or that it must fail the request.
        ack: CommitAck,
    },
    /// The transfer failed after it had begun, or was refused for its shape. Ends the ticket.
    Failed {
        /// The reservation.
        ticket: u64,
        /// For logs and the client.
        reason: String,
    },
    /// The prefill worker gave the transfer up and knows it (its request ended there or was cancelled, or it got
    /// [`crate::KvSendEvent::Failed`]), so nobody needs to be told. Ends the ticket.
    Aborted {
        /// The reservation.
        ticket: u64,
    },
    /// Not committed by its deadline. Ends the ticket.
    Expired {
        /// The reservation.
        ticket: u64,
    },
}

/// The answer to a commit. Dropping it refuses.
#[derive(Debug)]
pub struct CommitAck {
    ticket: u64,
    answers: Option<Answers>,
}

impl CommitAck {
    /// The cache is in place: the sender frees its blocks. If the connection is gone the sender has failed the push
    /// already, or will, and this does nothing.
    pub fn accept(mut self) {
        if let Some(answers) = self.answers.take() {
            answers.give(Answer::Acked { ticket: self.ticket });
        }
    }

    /// The cache cannot be used: the sender fails the push with this reason (clipped to 512 bytes).
    pub fn refuse(mut self, reason: impl Into<String>) {
        if let Some(answers) = self.answers.take() {
            answers.give(Answer::Refused { ticket: self.ticket, reason: reason.into() });
        }
    }
}

impl Drop for CommitAck {
    fn drop(&mut self) {
        if let Some(answers) = self.answers.take() {
            answers.give(Answer::Refused { ticket: self.ticket, reason: "the decode worker dropped the transfer".to_owned() });
        }
    }
}

/// A ticket that cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RegisterError {
    /// Shape or length.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The ticket is registered and has not ended.
    #[error("ticket {0:016x} is registered already")]
    Duplicate(u64),
}

/// Receives KV caches. Clones are handles to the same receiver; it stops when the last is dropped or at [`Self::shutdown`].
#[derive(Debug, Clone)]
pub struct KvReceiver {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    book: Arc<Book>,
    tasks: TaskTracker,
}

/// What handles and tasks share.
#[derive(Debug, Default)]
struct Book {
    reservations: Mutex<Reservations<Answers>>,
    /// Signalled when the earliest deadline may have changed.
    registered: Notify,
    cancel: CancellationToken,
}

/// What the tasks share. Handles are not among its owners, so the channel of events closes when the tasks have ended.
#[derive(Debug)]
struct Shared {
    book: Arc<Book>,
    events: mpsc::Sender<KvEvent>,
    timeouts: KvTimeouts,
    next_connection: AtomicU64,
}

impl KvReceiver {
    /// Starts to accept on `listener`, on the current tokio runtime, and delivers to `events`.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn start(listener: TcpListener, events: mpsc::Sender<KvEvent>) -> Self {
        Self::start_with(listener, events, KvTimeouts::default())
    }

    /// [`Self::start`] with other timeouts.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn start_with(listener: TcpListener, events: mpsc::Sender<KvEvent>, timeouts: KvTimeouts) -> Self {
        let book = Arc::new(Book::default());
        let shared = Arc::new(Shared { book: Arc::clone(&book), events, timeouts, next_connection: AtomicU64::new(0) });
        let tasks = TaskTracker::new();
        tasks.spawn(accept(listener, Arc::clone(&shared), tasks.clone()));
        tasks.spawn(expire(shared));
        Self { inner: Arc::new(Inner { book, tasks }) }
    }

    /// Expects a push: from now until `deadline` has passed a sender that knows the ticket may send a cache of this shape.
    /// Callable from any thread.
    ///
    /// # Errors
    /// [`RegisterError`] when no transfer can have this shape, or the ticket exists.
    pub fn register(&self, ticket: u64, shape: KvShape, n_tokens: usize, deadline: Duration) -> Result<(), RegisterError> {
        let extent = Extent::new(shape, n_tokens)?;
        let book = &self.inner.book;
        if !book.lock().register(ticket, extent, Instant::now() + deadline) {
            return Err(RegisterError::Duplicate(ticket));
        }
        book.registered.notify_one();
        Ok(())
    }

    /// Ends a ticket without an event; a push for it is refused from now on. Events that are in the channel already
    /// are not taken back: whoever reads them skips tickets that it released. Does nothing for unknown tickets.
    pub fn release(&self, ticket: u64) {
        let answers = self.inner.book.lock().release(ticket);
        if let Some(answers) = answers {
            answers.give(Answer::Refused { ticket, reason: "the decode worker released the reservation".to_owned() });
        }
    }

    /// Tickets that are registered and have not ended.
    #[must_use]
    pub fn n_registered(&self) -> usize {
        self.inner.book.lock().len()
    }

    /// Closes the listener and every connection and waits until their tasks have ended. No events follow: the channel is
    /// closed then, even while handles remain.
    pub async fn shutdown(&self) {
        self.inner.book.cancel.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.book.cancel.cancel();
        self.tasks.close();
    }
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, Reservations<Answers>> {
        self.reservations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Reservations<Answers>> {
        self.book.lock()
    }

    /// Tells the owner of every transfer that `connection` carried that it failed.
    async fn fail_all(&self, connection: ConnectionId, reason: &str) {
        let begun = self.lock().begun_on(connection);
        for ticket in begun {
            let Ok(room) = self.events.reserve().await else { return };
            let mut reservations = self.lock();
            if reservations.fail(ticket, connection) {
                room.send(KvEvent::Failed { ticket, reason: reason.to_owned() });
            }
        }
    }
}

/// Accepts until shutdown; each connection is a task of its own.
async fn accept(listener: TcpListener, shared: Arc<Shared>, tasks: TaskTracker) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shared.book.cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match Arc::clone(&slots).try_acquire_owned() {
                Ok(slot) => {
                    tasks.spawn(serve(stream, Arc::clone(&shared), slot));
                }
                Err(_) => tracing::warn!(%peer, "too many kv connections, closed one"),
            },
            Err(error) => {
                // Out of descriptors, most likely: the connection stays in the backlog, so do not spin on it.
                tracing::warn!(%error, "cannot accept a kv connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>, slot: tokio::sync::OwnedSemaphorePermit) {
    let id = shared.next_connection.fetch_add(1, Ordering::Relaxed);
    tokio::select! {
        () = shared.book.cancel.cancelled() => {}
        () = async {
            let reason = connection::run(stream, id, &shared).await.one_line();
            tracing::debug!(connection = id, reason, "kv connection ended");
            shared.fail_all(id, &format!("kv connection lost: {reason}")).await;
        } => {}
    }
    drop(slot);
}

/// Ends reservations whose deadline has passed.
async fn expire(shared: Arc<Shared>) {
    loop {
        let next = shared.lock().next_deadline();
        let due = async {
            match next {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.book.cancel.cancelled() => return,
            () = shared.book.registered.notified() => continue,
            () = due => {}
        }
        let room = tokio::select! {
            () = shared.book.cancel.cancelled() => return,
            room = shared.events.reserve() => room,
        };
        let Ok(room) = room else { return };
        let expired = {
            let mut reservations = shared.lock();
            let expired = reservations.expire_one(Instant::now());
            if let Some((ticket, _)) = &expired {
                room.send(KvEvent::Expired { ticket: *ticket });
            }
            expired
        };
        if let Some((ticket, Some(answers))) = expired {
            answers.give(Answer::Refused { ticket, reason: "the reservation has expired".to_owned() });
        }
    }
}
