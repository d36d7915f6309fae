//! What the receive threads share: the pacer that decides, and the requests that are ready.
//!
//! A thread asks for its next request when one of its own has ended or is due, so the lock is taken once a
//! request and never for a chunk. The pacer sees the requests in flight of all threads; beyond that each
//! thread keeps to an equal share, or the first to ask would take all connections.
//! Invariant: each ticket goes to one thread, in order, and with it the request made for it.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};

use tandem_plan::Nanos;

use super::supply::Supply;
use crate::clock::Clock;
use crate::pacing::{Load, Pacer, Ticket, Turn};

/// What a thread is to do next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send this.
    Send(Ticket, Vec<u8>),
    /// Nothing is due before this time.
    WaitUntil(Nanos),
    /// Ask again when a request has ended.
    WaitForEnd,
    /// Nothing is left.
    Done,
}

/// The desk where tickets are handed out.
#[derive(Debug)]
pub(crate) struct Desk {
    shared: Mutex<Shared>,
    load: Load,
    seed: u64,
    n_in_flight: AtomicUsize,
    n_left: AtomicU32,
    ready: Barrier,
}

#[derive(Debug)]
struct Shared {
    pacer: Pacer,
    supply: Supply,
}

impl Desk {
    /// A desk for `n_threads` threads. `load` has a cap.
    pub(crate) fn new(load: Load, seed: u64, supply: Supply, n_threads: usize) -> Self {
        let pacer = Pacer::new(&load, Nanos::ZERO, seed);
        Self {
            n_left: AtomicU32::new(pacer.n_left()),
            shared: Mutex::new(Shared { pacer, supply }),
            load,
            seed,
            n_in_flight: AtomicUsize::new(0),
            ready: Barrier::new(n_threads),
        }
    }

    /// Waits until every thread has its connections and the first `n_ready` requests are made; the schedule begins then.
    pub(crate) fn start(&self, clock: &Clock, n_ready: usize) {
        if self.ready.wait().is_leader() {
            let mut shared = self.lock();
            shared.supply.fill(n_ready);
            shared.pacer = Pacer::new(&self.load, clock.now(), self.seed);
        }
        self.ready.wait();
    }

    /// What the asking thread does at `now`.
    pub(crate) fn next(&self, now: Nanos) -> Next {
        // Without the lock: when all is sent nobody has business here.
        if self.n_left() == 0 {
            return Next::Done;
        }
        let mut shared = self.lock();
        let next = match shared.pacer.next(now, self.n_in_flight.load(Ordering::Acquire)) {
            Turn::Send(ticket) => match shared.supply.next() {
                Some(request) => {
                    self.n_in_flight.fetch_add(1, Ordering::AcqRel);
                    Next::Send(ticket, request)
                }
                None => {
                    // A prompt thread that has ended early has panicked; its join says so.
                    self.n_left.store(0, Ordering::Release);
                    return Next::Done;
                }
            },
            Turn::WaitUntil(due) => Next::WaitUntil(due),
            Turn::WaitForEnd => Next::WaitForEnd,
            Turn::Done => Next::Done,
        };
        self.n_left.store(shared.pacer.n_left(), Ordering::Release);
        next
    }

    /// Whether the time to send is over.
    pub(crate) fn is_over(&self, now: Nanos) -> bool {
        self.lock().pacer.is_over(now)
    }

    /// A request (with conversations: one of these) has ended.
    pub(crate) fn ended(&self) {
        self.n_in_flight.fetch_sub(1, Ordering::AcqRel);
    }

    /// Requests that have not been given out.
    pub(crate) fn n_left(&self) -> u32 {
        self.n_left.load(Ordering::Acquire)
    }

    /// How often a request was due and not made yet.
    pub(crate) fn n_supply_waits(&self) -> u64 {
        self.lock().supply.n_waits
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // The state is whole after each call, so a thread that panicked with the lock left nothing half done.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pacing::Arrivals;
    use crate::transport::supply::supply;

    #[test]
    fn every_ticket_is_given_out_once_with_its_request_and_never_more_than_the_cap() {
        let (supply, maker) = supply();
        let prompts = std::thread::spawn(move || maker.run((0..10u8).map(|i| vec![i])));
        let load = Load::new(Arrivals::ClosedLoop, Some(4), 0, 10);
        let desk = Desk::new(load, 1, supply, 2);
        let take = || match desk.next(Nanos::ZERO) {
            Next::Send(ticket, request) => {
                assert_eq!(request, [u8::try_from(ticket.index).unwrap()]);
                Some(ticket.index)
            }
            _ => None,
        };
        assert_eq!([take(), take(), take(), take(), take()], [Some(0), Some(1), Some(2), Some(3), None], "four are in flight");
        for i in 4..10 {
            desk.ended();
            assert_eq!(take(), Some(i));
        }
        assert_eq!(desk.n_left(), 0);
        assert!(matches!(desk.next(Nanos::ZERO), Next::Done));
        prompts.join().unwrap();
    }
}
