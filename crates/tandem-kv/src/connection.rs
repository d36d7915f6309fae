//! One connection on the prefill side: the pushes it carries and the task that serves it.
//!
//! Whoever removes a push from the table decides its outcome, so there is one outcome each.
//! Writing, reading answers and watching deadlines run side by side in one task; whichever
//! fails ends the connection, and that fails the pushes which are still in the table.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::io::BufReader;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

use crate::layout::{Digest, Extent, PiecePlace};
use crate::sender::KvSendEvent;
use crate::tcp::{self, KvTimeouts, LinkError};
use crate::wire::{self, Frame, PREAMBLE};

/// Larger pieces are cut to about this, bytes: small enough that checksum and copies find it in the cache, large enough
/// that system calls do not count (of 128 KiB, 256 KiB and 1 MiB it took the least processor time).
const CUT_BYTES: usize = 256 << 10;

/// Work for the writer, in order.
#[derive(Debug)]
pub(crate) enum Command {
    Open { ticket: u64, extent: Extent },
    Piece { ticket: u64, alive: Arc<AtomicBool>, place: PiecePlace, bytes: Bytes },
    Commit { ticket: u64, alive: Arc<AtomicBool>, first_token: u32 },
    Abort { ticket: u64 },
}

#[derive(Debug)]
pub(crate) struct Connection {
    address: String,
    timeouts: KvTimeouts,
    events: UnboundedSender<KvSendEvent>,
    commands: UnboundedSender<Command>,
    pushes: Mutex<Pushes>,
    /// Signalled when the next deadline may have changed.
    changed: Notify,
}

#[derive(Debug)]
struct Pushes {
    live: HashMap<u64, LivePush>,
    /// Since when `live` has been empty.
    idle_since: Instant,
    closed: bool,
}

#[derive(Debug)]
struct LivePush {
    alive: Arc<AtomicBool>,
    give_up: Instant,
}

impl Connection {
    /// A connection that is not served yet, and the commands that its task must be given.
    pub(crate) fn new(
        address: &str,
        timeouts: KvTimeouts,
        events: UnboundedSender<KvSendEvent>,
    ) -> (Arc<Self>, UnboundedReceiver<Command>) {
        let (commands, receiver) = unbounded_channel();
        let pushes = Mutex::new(Pushes { live: HashMap::new(), idle_since: Instant::now(), closed: false });
        let connection = Self { address: address.to_owned(), timeouts, events, commands, pushes, changed: Notify::new() };
        (Arc::new(connection), receiver)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Takes a push on: `None` when the connection has closed, `Some(false)` when the ticket is being pushed already.
    pub(crate) fn admit(&self, ticket: u64, extent: Extent, alive: &Arc<AtomicBool>, give_up: Instant) -> Option<bool> {
        let mut pushes = self.lock();
        if pushes.closed {
            return None;
        }
        if pushes.live.contains_key(&ticket) {
            return Some(false);
        }
        pushes.live.insert(ticket, LivePush { alive: Arc::clone(alive), give_up });
        self.queue(Command::Open { ticket, extent });
        drop(pushes);
        self.changed.notify_one();
        Some(true)
    }

    /// Hands work to the writer; dropped when the connection has closed, whose end fails the pushes.
    pub(crate) fn queue(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    pub(crate) fn commit(&self, ticket: u64, first_token: u32, alive: &Arc<AtomicBool>) {
        if let Some(push) = self.lock().live.get_mut(&ticket) {
            push.give_up = push.give_up.max(Instant::now() + self.timeouts.ack);
        }
        self.queue(Command::Commit { ticket, alive: Arc::clone(alive), first_token });
    }

    /// Ends a push without an event.
    pub(crate) fn abort(&self, ticket: u64) {
        if self.end(ticket, None) {
            self.queue(Command::Abort { ticket });
        }
    }

    /// Ends a push as failed and tells the receiver to forget it.
    pub(crate) fn fail(&self, ticket: u64, reason: &str) {
        if self.end(ticket, Some(KvSendEvent::Failed { ticket, reason: reason.to_owned() })) {
            self.queue(Command::Abort { ticket });
        }
    }

    /// Serves the connection until it ends. The future of one task.
    pub(crate) async fn run(self: Arc<Self>, commands: UnboundedReceiver<Command>, cancel: CancellationToken) {
        let ended = tokio::select! {
            () = cancel.cancelled() => Err(LinkError::ShutDown),
            ended = self.serve(commands) => ended,
        };
        let reason = match ended {
            Ok(()) => "closed".to_owned(),
            Err(error) => error.one_line(),
        };
        tracing::debug!(address = self.address, reason, "kv connection ended");
        let orphans: Vec<_> = {
            let mut pushes = self.lock();
            pushes.closed = true;
            pushes.live.drain().collect()
        };
        for (ticket, push) in orphans {
            push.alive.store(false, Ordering::Release);
            let reason = format!("kv connection to {}: {reason}", self.address);
            let _ = self.events.send(KvSendEvent::Failed { ticket, reason });
        }
    }

    async fn serve(&self, commands: UnboundedReceiver<Command>) -> Result<(), LinkError> {
        let mut stream = tcp::connect(&self.address, &self.timeouts).await?;
        let (read, write) = stream.split();
        tokio::select! {
            ended = self.write(write, commands) => ended,
            ended = self.read(read) => ended,
            ended = self.watch() => ended,
        }
    }

    async fn write(&self, mut stream: WriteHalf<'_>, mut commands: UnboundedReceiver<Command>) -> Result<(), LinkError> {
        let stall = self.timeouts.stall;
        tcp::write_frame(&mut stream, &PREAMBLE, &[], stall).await?;
        let mut digests: HashMap<u64, Digest> = HashMap::new();
        while let Some(command) = commands.recv().await {
            match command {
                // Opened even if it has been aborted since: the abort that follows then frees the reservation at once.
                Command::Open { ticket, extent } => {
                    digests.insert(ticket, Digest::default());
                    tcp::write_frame(&mut stream, &wire::encode(Frame::Open { ticket, extent }), &[], stall).await?;
                }
                Command::Piece { ticket, alive, place, bytes } => {
                    let Some(digest) = digests.get_mut(&ticket) else { continue };
                    for (place, bytes) in cut(place, &bytes) {
                        if !alive.load(Ordering::Acquire) {
                            break;
                        }
                        let crc = crc32fast::hash(bytes);
                        digest.add(place, crc);
                        let length = u32::try_from(bytes.len()).expect("a cut piece is within the frame limit");
                        let header = wire::encode(Frame::Piece { ticket, place, length, crc });
                        tcp::write_frame(&mut stream, &header, bytes, stall).await?;
                    }
                }
                Command::Commit { ticket, alive, first_token } => {
                    if let Some(digest) = digests.remove(&ticket)
                        && alive.load(Ordering::Acquire)
                    {
                        tcp::write_frame(&mut stream, &wire::encode(Frame::Commit { ticket, first_token, digest }), &[], stall).await?;
                    }
                }
                Command::Abort { ticket } => {
                    digests.remove(&ticket);
                    tcp::write_frame(&mut stream, &wire::encode(Frame::Abort { ticket }), &[], stall).await?;
                }
            }
        }
        Ok(())
    }

    async fn read(&self, stream: ReadHalf<'_>) -> Result<(), LinkError> {
        let stall = self.timeouts.stall;
        let mut stream = BufReader::with_capacity(4 << 10, stream);
        tcp::read_preamble(&mut stream, stall).await?;
        loop {
            match tcp::read_frame(&mut stream, None, stall).await? {
                Frame::Acked { ticket } => {
                    self.end(ticket, Some(KvSendEvent::Acked { ticket }));
                }
                Frame::Refused { ticket, length } => {
                    let reason = tcp::read_payload(&mut stream, length as usize, stall).await?;
                    self.fail(ticket, &format!("refused: {}", String::from_utf8_lossy(&reason)));
                }
                _ => return Err(LinkError::Unexpected),
            }
        }
    }

    /// Fails pushes whose time is up; returns when the connection has been idle for long, after closing it for new ones.
    async fn watch(&self) -> Result<(), LinkError> {
        loop {
            let next = {
                let pushes = self.lock();
                pushes.live.values().map(|p| p.give_up).min().unwrap_or(pushes.idle_since + self.timeouts.idle)
            };
            tokio::select! {
                () = self.changed.notified() => continue,
                () = tokio::time::sleep_until(next.into()) => {}
            }
            let now = Instant::now();
            let late: Vec<u64> = {
                let mut pushes = self.lock();
                if pushes.live.is_empty() && pushes.idle_since + self.timeouts.idle <= now {
                    pushes.closed = true;
                    return Err(LinkError::Idle);
                }
                pushes.live.iter().filter(|(_, p)| p.give_up <= now).map(|(ticket, _)| *ticket).collect()
            };
            for ticket in late {
                self.fail(ticket, "no answer from the decode worker by the deadline");
            }
        }
    }

    /// Removes a push; whether this call is what ended it, and then its event is sent.
    fn end(&self, ticket: u64, event: Option<KvSendEvent>) -> bool {
        let mut pushes = self.lock();
        let Some(push) = pushes.live.remove(&ticket) else { return false };
        push.alive.store(false, Ordering::Release);
        pushes.idle_since = Instant::now();
        if let Some(event) = event {
            let _ = self.events.send(event);
        }
        drop(pushes);
        self.changed.notify_one();
        true
    }

    fn lock(&self) -> MutexGuard<'_, Pushes> {
        self.pushes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts a piece at token boundaries into pieces that a frame may carry.
fn cut(place: PiecePlace, bytes: &[u8]) -> impl Iterator<Item = (PiecePlace, &[u8])> {
    let n_tokens = (place.end - place.start) as usize;
    let bytes_per_token = bytes.len() / n_tokens;
    let tokens_per_cut = (CUT_BYTES / bytes_per_token).max(1);
    bytes.chunks(tokens_per_cut * bytes_per_token).scan(place.start, move |start, chunk| {
        let n = u32::try_from(chunk.len() / bytes_per_token).expect("a part of a piece has fewer tokens than the piece");
        let part = PiecePlace { start: *start, end: *start + n, ..place };
        *start = part.end;
        Some((part, chunk))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pieces_are_cut_at_token_boundaries_without_loss() {
        let bytes_per_token = 1152;
        let place = PiecePlace { layer: 3, start: 100, end: 100 + 2000 };
        let bytes: Vec<u8> = (0..2000 * bytes_per_token).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let parts: Vec<_> = cut(place, &bytes).collect();
        assert_eq!(parts.len(), 9);
        assert!(parts.iter().all(|(p, b)| b.len() == (p.end - p.start) as usize * bytes_per_token && b.len() <= CUT_BYTES && p.layer == 3));
        assert_eq!(parts.iter().flat_map(|(_, b)| b.iter().copied()).collect::<Vec<u8>>(), bytes);
        assert!(parts.windows(2).all(|w| w[0].0.end == w[1].0.start) && parts[0].0.start == 100 && parts[8].0.end == 2100);
    }
}
