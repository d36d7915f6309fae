//! One connection on the decode side: reads frames, asks the reservations, delivers, answers.
//!
//! Reading and answering run side by side in one task, so a peer that is slow to read its
//! answers does not stop the reading, and one that never reads them is cut off. A refused
//! transfer is answered once; what its sender had under way is read and dropped until the
//! sender, which learned of the refusal, aborts it.

use std::collections::HashSet;
use std::time::Instant;

use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{CommitAck, KvEvent, Shared};
use crate::layout::{Digest, Extent, PiecePlace};
use crate::reservations::{ConnectionId, Refusal};
use crate::tcp::{self, LinkError};
use crate::wire::{self, Frame, PREAMBLE};

/// Answers that wait to be written, and refused transfers that are not aborted yet, at most. Far above what an honest
/// sender reaches.
const MAX_PENDING: usize = 4096;

/// A frame back to the sender.
#[derive(Debug)]
pub(super) enum Answer {
    Acked { ticket: u64 },
    Refused { ticket: u64, reason: String },
}

/// Where answers go; never blocks.
#[derive(Debug, Clone)]
pub(super) struct Answers {
    queue: mpsc::Sender<Answer>,
    /// Ends the connection when the queue is full: the peer does not read.
    overflow: CancellationToken,
}

impl Answers {
    pub(super) fn give(&self, answer: Answer) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(answer) {
            self.overflow.cancel();
        }
    }
}

/// Serves the connection until it ends and says why it did.
pub(super) async fn run(mut stream: TcpStream, id: ConnectionId, shared: &Shared) -> LinkError {
    if let Err(error) = stream.set_nodelay(true) {
        return error.into();
    }
    let (queue, answers) = mpsc::channel(MAX_PENDING);
    let overflow = CancellationToken::new();
    let (read, write) = stream.split();
    let mut reader = Reader {
        stream: BufReader::with_capacity(8 << 10, read),
        id,
        shared,
        answers: Answers { queue, overflow: overflow.clone() },
        refused: HashSet::new(),
    };
    let ended = tokio::select! {
        () = overflow.cancelled() => Err(LinkError::AnswersUnread),
        ended = reader.run() => ended,
        ended = write_answers(write, answers, shared) => ended,
    };
    ended.err().unwrap_or(LinkError::Closed)
}

async fn write_answers(mut stream: WriteHalf<'_>, mut answers: mpsc::Receiver<Answer>, shared: &Shared) -> Result<(), LinkError> {
    let stall = shared.timeouts.stall;
    tcp::write_frame(&mut stream, &PREAMBLE, &[], stall).await?;
    while let Some(answer) = answers.recv().await {
        match answer {
            Answer::Acked { ticket } => tcp::write_frame(&mut stream, &wire::encode(Frame::Acked { ticket }), &[], stall).await?,
            Answer::Refused { ticket, reason } => {
                let reason = wire::clip_reason(&reason);
                let length = u32::try_from(reason.len()).expect("a clipped reason is short");
                tcp::write_frame(&mut stream, &wire::encode(Frame::Refused { ticket, length }), reason.as_bytes(), stall).await?;
            }
        }
    }
    Ok(())
}

struct Reader<'a> {
    stream: BufReader<ReadHalf<'a>>,
    id: ConnectionId,
    shared: &'a Shared,
    answers: Answers,
    /// Transfers that were refused on this connection and whose sender has not aborted them yet.
    refused: HashSet<u64>,
}

impl Reader<'_> {
    async fn run(&mut self) -> Result<(), LinkError> {
        let timeouts = self.shared.timeouts;
        tcp::read_preamble(&mut self.stream, timeouts.stall).await?;
        loop {
            match tcp::read_frame(&mut self.stream, Some(timeouts.idle * 5), timeouts.stall).await? {
                Frame::Open { ticket, extent } => self.open(ticket, extent).await?,
                Frame::Piece { ticket, place, length, crc } => self.piece(ticket, place, length, crc).await?,
                Frame::Commit { ticket, first_token, digest } => self.commit(ticket, first_token, digest).await?,
                Frame::Abort { ticket } => self.abort(ticket).await?,
                Frame::Acked { .. } | Frame::Refused { .. } => return Err(LinkError::Unexpected),
            }
        }
    }

    async fn open(&mut self, ticket: u64, extent: Extent) -> Result<(), LinkError> {
        let room = room(self.shared).await?;
        let (answers, id) = (self.answers.clone(), self.id);
        let mut reservations = self.shared.lock();
        let Err(refusal) = reservations.open(Instant::now(), ticket, id, answers, extent) else { return Ok(()) };
        tell_owner(room, ticket, &refusal);
        drop(reservations);
        self.refuse(ticket, refusal.reason)
    }

    async fn piece(&mut self, ticket: u64, place: PiecePlace, length: u32, crc: u32) -> Result<(), LinkError> {
        let (n_bytes, stall) = (length as usize, self.shared.timeouts.stall);
        if self.refused.contains(&ticket) {
            return tcp::skip_payload(&mut self.stream, n_bytes, stall).await;
        }
        let expected = {
            let room = room(self.shared).await?;
            let mut reservations = self.shared.lock();
            let expected = reservations.expect_piece(Instant::now(), ticket, self.id, place, n_bytes);
            if let Err(refusal) = &expected {
                tell_owner(room, ticket, refusal);
            }
            expected
        };
        if let Err(refusal) = expected {
            self.refuse(ticket, refusal.reason)?;
            return tcp::skip_payload(&mut self.stream, n_bytes, stall).await;
        }
        let bytes = tcp::read_payload(&mut self.stream, n_bytes, stall).await?;
        let intact = crc32fast::hash(&bytes) == crc;

        let room = room(self.shared).await?;
        let mut reservations = self.shared.lock();
        let taken = if intact {
            reservations.piece(Instant::now(), ticket, self.id, place, crc)
        } else {
            let ended = reservations.fail(ticket, self.id);
            Err(Refusal { reason: format!("layer {}, tokens {}..{} arrived damaged", place.layer, place.start, place.end), ended })
        };
        match taken {
            Ok(()) => {
                let tokens = place.start as usize..place.end as usize;
                room.send(KvEvent::Piece { ticket, layer: place.layer as usize, tokens, bytes });
                Ok(())
            }
            Err(refusal) => {
                tell_owner(room, ticket, &refusal);
                drop(reservations);
                self.refuse(ticket, refusal.reason)
            }
        }
    }

    async fn commit(&mut self, ticket: u64, first_token: u32, digest: Digest) -> Result<(), LinkError> {
        if self.refused.contains(&ticket) {
            return Ok(());
        }
        let room = room(self.shared).await?;
        let mut reservations = self.shared.lock();
        match reservations.commit(Instant::now(), ticket, self.id, digest) {
            Ok(()) => {
                let ack = CommitAck { ticket, answers: Some(self.answers.clone()) };
                room.send(KvEvent::Commit { ticket, first_token, ack });
                Ok(())
            }
            Err(refusal) => {
                tell_owner(room, ticket, &refusal);
                drop(reservations);
                self.refuse(ticket, refusal.reason)
            }
        }
    }

    async fn abort(&mut self, ticket: u64) -> Result<(), LinkError> {
        if self.refused.remove(&ticket) {
            return Ok(());
        }
        let room = room(self.shared).await?;
        let mut reservations = self.shared.lock();
        if reservations.fail(ticket, self.id) {
            room.send(KvEvent::Aborted { ticket });
        }
        Ok(())
    }

    fn refuse(&mut self, ticket: u64, reason: String) -> Result<(), LinkError> {
        if self.refused.len() >= MAX_PENDING {
            return Err(LinkError::Unexpected);
        }
        if self.refused.insert(ticket) {
            self.answers.give(Answer::Refused { ticket, reason });
        }
        Ok(())
    }
}

/// Room for one event; waiting here is what slows the sender down.
async fn room(shared: &Shared) -> Result<mpsc::Permit<'_, KvEvent>, LinkError> {
    shared.events.reserve().await.map_err(|_| LinkError::ShutDown)
}

fn tell_owner(room: mpsc::Permit<'_, KvEvent>, ticket: u64, refusal: &Refusal) {
    if refusal.ended {
        room.send(KvEvent::Failed { ticket, reason: refusal.reason.clone() });
    }
}
