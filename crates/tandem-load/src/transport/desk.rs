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
use crate::gate::Gate;
use crate::pacing::{Arrivals, Load, Pacer, Ticket, Turn};
use crate::spec::{LoadSpec, Share};

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
    share: Share,
    seed: u64,
    n_in_flight: AtomicUsize,
    n_left: AtomicU32,
    ready: Barrier,
}

#[derive(Debug)]
struct Shared {
    pacer: Pacer,
    supply: Supply,
    /// Tickets of this client that have not been given out.
    n_own_left: u32,
}

impl Desk {
    /// A desk for `n_threads` threads that gives out this client's part of the load.
    pub(crate) fn new(spec: &LoadSpec, supply: Supply, n_threads: usize) -> Self {
        let (load, share, seed) = (spec.own_load(), spec.share, spec.seed);
        let pacer = Pacer::new(&load, Nanos::ZERO, seed);
        let n_own_left = share.of(spec.load.n_warmup).saturating_add(share.of(spec.load.n_requests));
        Self {
            n_left: AtomicU32::new(n_own_left),
            shared: Mutex::new(Shared { pacer, supply, n_own_left }),
            load,
            share,
            seed,
            n_in_flight: AtomicUsize::new(0),
            ready: Barrier::new(n_threads),
        }
    }

    /// Waits until every thread has its connections and the first `n_ready` requests are made; the schedule begins when `gate` opens.
    pub(crate) fn start(&self, clock: &Clock, n_ready: usize, gate: &dyn Gate) {
        if self.ready.wait().is_leader() {
            let mut shared = self.lock();
            shared.supply.fill(n_ready);
            shared.pacer = Pacer::new(&self.load, gate.wait(clock), self.seed);
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
        let turn = loop {
            match shared.pacer.next(now, self.n_in_flight.load(Ordering::Acquire)) {
                Turn::Send(ticket) => match self.own(ticket) {
                    Some(ticket) => break Turn::Send(ticket),
                    None => continue,
                },
                turn => break turn,
            }
        };
        let next = match turn {
            Turn::Send(ticket) => match shared.supply.next() {
                Some(request) => {
                    self.n_in_flight.fetch_add(1, Ordering::AcqRel);
                    shared.n_own_left = shared.n_own_left.saturating_sub(1);
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
        let n_left = if shared.pacer.n_left() == 0 { 0 } else { shared.n_own_left };
        self.n_left.store(n_left, Ordering::Release);
        next
    }

    /// A ticket of the pacer as this client's, with the number that it has in the whole load; `None` if it is another client's.
    fn own(&self, ticket: Ticket) -> Option<Ticket> {
        let step = self.load.n_turns_max.max(1);
        let number = ticket.index / step;
        if self.load.arrivals == Arrivals::ClosedLoop {
            let whole = number.saturating_mul(self.share.n).saturating_add(self.share.index);
            return Some(Ticket { index: whole.saturating_mul(step), ..ticket });
        }
        self.share.has(number).then_some(ticket)
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
    use crate::transport::supply::supply;

    #[test]
    fn every_ticket_is_given_out_once_with_its_request_and_never_more_than_the_cap() {
        let (supply, maker) = supply();
        let prompts = std::thread::spawn(move || maker.run((0..10u8).map(|i| vec![i])));
        let mut spec = LoadSpec::closed_loop("h", "m", 4, 10, 1, 1).unwrap();
        spec.load.n_warmup = 0;
        let desk = Desk::new(&spec, supply, 2);
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

    #[test]
    fn clients_give_out_each_ticket_of_the_whole_load_once_at_its_time() {
        for arrivals in [Arrivals::ClosedLoop, Arrivals::Gamma { rate: 1e6, shape: 1.0 }] {
            let mut spec = LoadSpec::closed_loop("h", "m", 64, 17, 1, 1).unwrap();
            (spec.load.arrivals, spec.load.n_warmup, spec.load.n_turns_max) = (arrivals, 5, 2);
            let tickets = |share| {
                let (supply, maker) = supply();
                let prompts = std::thread::spawn(move || maker.run((0..22).map(|_| Vec::new())));
                let desk = Desk::new(&LoadSpec { share, ..spec.clone() }, supply, 1);
                let mut all = Vec::new();
                while let Next::Send(ticket, _) = desk.next(Nanos::from_millis(1000)) {
                    all.push((ticket.phase.as_str(), ticket.index, ticket.scheduled));
                }
                assert_eq!(desk.n_left(), 0, "{share:?}");
                drop(desk);
                prompts.join().unwrap();
                all
            };
            let mut parts: Vec<_> = (0..3).flat_map(|index| tickets(Share { index, n: 3 })).collect();
            let mut whole = tickets(Share::WHOLE);
            assert_eq!(whole.len(), 22);
            parts.sort_unstable();
            whole.sort_unstable();
            assert_eq!(parts, whole);
        }
    }
}
