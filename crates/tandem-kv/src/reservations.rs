//! What the receiver decides about tickets: who may push where, and when a transfer is whole.
//!
//! Pure: no IO, and time comes in as an argument. A reservation is registered, then *begun* by
//! one connection, then removed by exactly one of commit, failure, expiry or release. `O` is
//! whatever the caller needs to answer the connection that began it.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use crate::layout::{Coverage, Digest, Extent, PiecePlace};

/// Names a connection for the receiver's lifetime.
pub(crate) type ConnectionId = u64;

/// All tickets that are registered and not yet ended.
#[derive(Debug)]
pub(crate) struct Reservations<O> {
    by_ticket: HashMap<u64, Reservation<O>>,
    deadlines: BTreeSet<(Instant, u64)>,
}

#[derive(Debug)]
struct Reservation<O> {
    extent: Extent,
    deadline: Instant,
    begun: Option<Begun<O>>,
}

#[derive(Debug)]
struct Begun<O> {
    by: ConnectionId,
    answer: O,
    coverage: Coverage,
    digest: Digest,
}

/// Why a frame was refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    /// Whether the reservation ended with it, which its owner must be told.
    pub(crate) ended: bool,
}

impl<O> Default for Reservations<O> {
    fn default() -> Self {
        Self { by_ticket: HashMap::new(), deadlines: BTreeSet::new() }
    }
}

impl<O> Reservations<O> {
    /// Adds a ticket; false when it exists already.
    #[must_use]
    pub(crate) fn register(&mut self, ticket: u64, extent: Extent, deadline: Instant) -> bool {
        if self.by_ticket.contains_key(&ticket) {
            return false;
        }
        self.by_ticket.insert(ticket, Reservation { extent, deadline, begun: None });
        self.deadlines.insert((deadline, ticket));
        true
    }

    /// Forgets a ticket without an event; whom to tell, when a push had begun.
    pub(crate) fn release(&mut self, ticket: u64) -> Option<O> {
        self.remove(ticket)?.begun.map(|b| b.answer)
    }

    /// A connection begins a transfer.
    pub(crate) fn open(&mut self, now: Instant, ticket: u64, by: ConnectionId, answer: O, extent: Extent) -> Result<(), Refusal> {
        let reservation = self.live(now, ticket)?;
        if reservation.begun.is_some() {
            return Err(refuse("another transfer has begun for this ticket"));
        }
        if reservation.extent != extent {
            let reason = format!("push of {extent} for a reservation of {}", reservation.extent);
            return Err(self.end(ticket, reason));
        }
        reservation.begun = Some(Begun { by, answer, coverage: Coverage::new(extent), digest: Digest::default() });
        Ok(())
    }

    /// Whether a piece of `n_bytes` may come; called before its payload is read.
    pub(crate) fn expect_piece(
        &mut self,
        now: Instant,
        ticket: u64,
        by: ConnectionId,
        place: PiecePlace,
        n_bytes: usize,
    ) -> Result<(), Refusal> {
        self.begun_by(now, ticket, by)?;
        let extent = self.by_ticket[&ticket].extent;
        match place.misfit(extent, n_bytes) {
            Some(reason) => Err(self.end(ticket, reason)),
            None => Ok(()),
        }
    }

    /// Takes note of an expected piece whose payload has this (verified) CRC.
    pub(crate) fn piece(&mut self, now: Instant, ticket: u64, by: ConnectionId, place: PiecePlace, crc: u32) -> Result<(), Refusal> {
        let begun = self.begun_by(now, ticket, by)?;
        if !begun.coverage.insert(place) {
            let PiecePlace { layer, start, end } = place;
            return Err(self.end(ticket, format!("layer {layer}, tokens {start}..{end} arrived twice")));
        }
        begun.digest.add(place, crc);
        Ok(())
    }

    /// Ends a whole transfer.
    pub(crate) fn commit(&mut self, now: Instant, ticket: u64, by: ConnectionId, digest: Digest) -> Result<(), Refusal> {
        let begun = self.begun_by(now, ticket, by)?;
        if !begun.coverage.is_complete() {
            let reason = format!("commit with {} token-layers missing", begun.coverage.n_missing());
            return Err(self.end(ticket, reason));
        }
        if begun.digest != digest {
            return Err(self.end(ticket, "the checksum over all pieces differs".to_owned()));
        }
        self.remove(ticket);
        Ok(())
    }

    /// Ends a transfer that `by` began; false when it is not its to end.
    #[must_use]
    pub(crate) fn fail(&mut self, ticket: u64, by: ConnectionId) -> bool {
        let owned = self.by_ticket.get(&ticket).and_then(|r| r.begun.as_ref()).is_some_and(|b| b.by == by);
        if owned {
            self.remove(ticket);
        }
        owned
    }

    /// Tickets that a connection has begun.
    pub(crate) fn begun_on(&self, by: ConnectionId) -> Vec<u64> {
        self.by_ticket.iter().filter(|(_, r)| r.begun.as_ref().is_some_and(|b| b.by == by)).map(|(ticket, _)| *ticket).collect()
    }

    /// When [`Self::expire_one`] has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Removes one ticket whose deadline has passed: it and whom to tell.
    pub(crate) fn expire_one(&mut self, now: Instant) -> Option<(u64, Option<O>)> {
        let &(deadline, ticket) = self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        let reservation = self.remove(ticket)?;
        Some((ticket, reservation.begun.map(|b| b.answer)))
    }

    /// Registered tickets.
    pub(crate) fn len(&self) -> usize {
        self.by_ticket.len()
    }

    /// The reservation, unless its deadline has passed and only its expiry event is outstanding.
    fn live(&mut self, now: Instant, ticket: u64) -> Result<&mut Reservation<O>, Refusal> {
        match self.by_ticket.get_mut(&ticket) {
            Some(r) if r.deadline > now => Ok(r),
            Some(_) => Err(refuse("the reservation has expired")),
            None => Err(refuse("no such reservation: never made, released, expired or already ended")),
        }
    }

    fn begun_by(&mut self, now: Instant, ticket: u64, by: ConnectionId) -> Result<&mut Begun<O>, Refusal> {
        match self.live(now, ticket)?.begun.as_mut() {
            Some(begun) if begun.by == by => Ok(begun),
            Some(_) => Err(refuse("another connection has begun this transfer")),
            None => Err(refuse("the transfer was not opened")),
        }
    }

    fn end(&mut self, ticket: u64, reason: String) -> Refusal {
        self.remove(ticket);
        Refusal { reason, ended: true }
    }

    fn remove(&mut self, ticket: u64) -> Option<Reservation<O>> {
        let reservation = self.by_ticket.remove(&ticket)?;
        self.deadlines.remove(&(reservation.deadline, ticket));
        Some(reservation)
    }
}

fn refuse(reason: &str) -> Refusal {
    Refusal { reason: reason.to_owned(), ended: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KvShape;
    use std::time::Duration;

    const A: ConnectionId = 1;
    const B: ConnectionId = 2;

    fn extent(n_tokens: usize) -> Extent {
        Extent::new(KvShape { n_layers: 1, bytes_per_token_layer: 4 }, n_tokens).unwrap()
    }

    fn place(start: u32, end: u32) -> PiecePlace {
        PiecePlace { layer: 0, start, end }
    }

    struct World {
        now: Instant,
        all: Reservations<()>,
    }

    fn with_ticket_7() -> World {
        let now = Instant::now();
        let mut all = Reservations::default();
        assert!(all.register(7, extent(8), now + Duration::from_secs(1)));
        World { now, all }
    }

    #[test]
    fn a_ticket_is_begun_once_and_only_its_connection_continues_it() {
        let World { now, mut all } = with_ticket_7();
        assert!(all.open(now, 7, A, (), extent(8)).is_ok());
        assert!(!all.open(now, 7, B, (), extent(8)).unwrap_err().ended);
        assert!(!all.piece(now, 7, B, place(0, 8), 0).unwrap_err().ended);
        assert!(!all.fail(7, B));
        assert!(all.piece(now, 7, A, place(0, 8), 0).is_ok());
        assert_eq!(all.begun_on(A), [7]);
        assert!(all.begun_on(B).is_empty());
    }

    #[test]
    fn another_extent_ends_the_reservation() {
        let World { now, mut all } = with_ticket_7();
        assert!(all.open(now, 7, A, (), extent(9)).unwrap_err().ended);
        assert_eq!(all.len(), 0);
        assert_eq!(all.next_deadline(), None);
    }

    #[test]
    fn overlap_and_incomplete_commit_end_the_transfer() {
        let World { now, mut all } = with_ticket_7();
        all.open(now, 7, A, (), extent(8)).unwrap();
        all.piece(now, 7, A, place(0, 5), 0).unwrap();
        assert!(all.piece(now, 7, A, place(4, 8), 0).unwrap_err().ended);

        let World { now, mut all } = with_ticket_7();
        all.open(now, 7, A, (), extent(8)).unwrap();
        all.piece(now, 7, A, place(0, 5), 0).unwrap();
        let refusal = all.commit(now, 7, A, Digest::default()).unwrap_err();
        assert!(refusal.ended && refusal.reason.contains("3 token-layers missing"), "{refusal:?}");
    }

    #[test]
    fn a_commit_with_another_digest_is_refused() {
        let World { now, mut all } = with_ticket_7();
        all.open(now, 7, A, (), extent(8)).unwrap();
        all.piece(now, 7, A, place(0, 8), 5).unwrap();
        let mut other = Digest::default();
        other.add(place(0, 8), 6);
        assert!(all.commit(now, 7, A, other).unwrap_err().ended);
    }

    #[test]
    fn after_the_deadline_nothing_is_accepted_and_expiry_happens_once() {
        let World { now, mut all } = with_ticket_7();
        all.open(now, 7, A, (), extent(8)).unwrap();
        assert_eq!(all.expire_one(now), None);
        let late = now + Duration::from_secs(1);
        assert!(!all.expect_piece(late, 7, A, place(0, 8), 32).unwrap_err().ended);
        assert!(!all.commit(late, 7, A, Digest::default()).unwrap_err().ended);
        assert_eq!(all.expire_one(late), Some((7, Some(()))));
        assert_eq!(all.expire_one(late), None);
    }

    #[test]
    fn a_released_ticket_is_unknown_and_can_be_registered_again() {
        let World { now, mut all } = with_ticket_7();
        assert!(!all.register(7, extent(8), now));
        all.open(now, 7, A, (), extent(8)).unwrap();
        assert_eq!(all.release(7), Some(()));
        assert_eq!(all.release(7), None);
        assert!(!all.piece(now, 7, A, place(0, 1), 0).unwrap_err().ended);
        assert!(all.register(7, extent(8), now));
    }
}
