//! Decides when the next request is sent. Pure: time comes in as an argument.
//!
//! Every load mode is one thing: a schedule (an iterator over due times) and a cap on requests in
//! flight. A closed loop has everything due at once and a cap; an open loop has a schedule and no
//! cap; a rate with a cap has both; a trace is a schedule that was recorded.
//!
//! Warm-up requests come first and are handed over without draining: the first measured request
//! is sent as soon as the cap lets it, while the last warm-up ones are still being answered.
//! Invariant: tickets come out in order, each exactly once, and never more than the cap at a time.

use rand::SeedableRng;
use rand_distr::{Distribution, Gamma};
use rand_xoshiro::Xoshiro256PlusPlus;
use tandem_metrics::LoadPhase;
use tandem_plan::Nanos;

/// When requests are due.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrivals {
    /// All at once: only the cap holds them back.
    ClosedLoop,
    /// Equal gaps.
    Constant {
        /// Requests per second.
        rate: f64,
    },
    /// Gamma-distributed gaps; shape 1 is a Poisson process, smaller is burstier, larger more regular.
    Gamma {
        /// Requests per second on average.
        rate: f64,
        /// Shape of the distribution ("burstiness").
        shape: f64,
    },
    /// At recorded times after the start, ascending; requests beyond the trace's end are not sent.
    Trace(Vec<Nanos>),
}

/// Everything that pacing depends on.
///
/// With conversations of several turns it paces conversations, not requests: what it counts, caps and schedules are these.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// When requests are due.
    pub arrivals: Arrivals,
    /// Requests in flight at most; `None` = as many as are due.
    pub max_in_flight: Option<usize>,
    /// Unmeasured requests that come first.
    pub n_warmup: u32,
    /// Measured requests at most.
    pub n_requests: u32,
    /// Time in which the load rises to its full height: a closed loop's cap from 1 on, a rate from 0 on, both linearly. Traces do not ramp.
    pub ramp: Nanos,
    /// Nothing is sent later than this after the first measured request; `None` = until `n_requests` are sent.
    pub duration: Option<Nanos>,
    /// Indices from one ticket to the next: the turns of a conversation at most.
    pub n_turns_max: u32,
}

impl Load {
    /// A load of single requests without ramp or end in time.
    #[must_use]
    pub const fn new(arrivals: Arrivals, max_in_flight: Option<usize>, n_warmup: u32, n_requests: u32) -> Self {
        Load { arrivals, max_in_flight, n_warmup, n_requests, ramp: Nanos::ZERO, duration: None, n_turns_max: 1 }
    }
}

/// Permission to send one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Which part of the run.
    pub phase: LoadPhase,
    /// From 0 within its phase; conversations take `n_turns_max` numbers each.
    pub index: u32,
    /// When it was due; `None` in a closed loop, where nothing is ever late.
    pub scheduled: Option<Nanos>,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Send this request.
    Send(Ticket),
    /// Nothing is due before this time.
    WaitUntil(Nanos),
    /// The cap is reached: ask again when a request has ended.
    WaitForEnd,
    /// All requests have been sent.
    Done,
}

/// Hands out tickets.
#[derive(Debug)]
pub struct Pacer {
    schedule: Schedule,
    max_in_flight: usize,
    n_warmup: u32,
    n_total: u32,
    n_issued: u32,
    due: Option<Option<Nanos>>,
    start: Nanos,
    /// Of the cap; zero when it is the rate that ramps.
    ramp: Nanos,
    duration: Option<Nanos>,
    /// After this nothing is sent; known from the first measured request on.
    deadline: Option<Nanos>,
    n_turns_max: u32,
}

impl Pacer {
    /// A pacer for `load` whose schedule begins at `start`.
    #[must_use]
    pub fn new(load: &Load, start: Nanos, seed: u64) -> Self {
        Self {
            schedule: Schedule::new(&load.arrivals, start, load.ramp, seed),
            max_in_flight: load.max_in_flight.unwrap_or(usize::MAX),
            n_warmup: load.n_warmup,
            n_total: load.n_warmup.saturating_add(load.n_requests),
            n_issued: 0,
            due: None,
            start,
            ramp: if load.arrivals == Arrivals::ClosedLoop { load.ramp } else { Nanos::ZERO },
            duration: load.duration,
            deadline: None,
            n_turns_max: load.n_turns_max.max(1),
        }
    }

    /// What to do at `now` with `n_in_flight` requests unanswered. A ticket that is returned counts as sent.
    pub fn next(&mut self, now: Nanos, n_in_flight: usize) -> Turn {
        if self.is_over(now) {
            self.n_total = self.n_issued;
        }
        if self.n_issued >= self.n_total {
            return Turn::Done;
        }
        let Some(due) = self.due.take().or_else(|| self.schedule.next()) else {
            self.n_total = self.n_issued;
            return Turn::Done;
        };
        if let Some(time) = due.filter(|t| *t > now) {
            self.due = Some(due);
            return Turn::WaitUntil(self.deadline.map_or(time, |deadline| deadline.min(time)));
        }
        if n_in_flight >= self.max_in_flight {
            self.due = Some(due);
            return Turn::WaitForEnd;
        }
        if let Some(time) = self.ramp_allows_at(n_in_flight).filter(|t| *t > now) {
            self.due = Some(due);
            return Turn::WaitUntil(time);
        }
        let n = self.n_issued;
        self.n_issued += 1;
        let (phase, index) = if n < self.n_warmup { (LoadPhase::Warmup, n) } else { (LoadPhase::Profiling, n - self.n_warmup) };
        if let (LoadPhase::Profiling, Some(duration), None) = (phase, self.duration, self.deadline) {
            self.deadline = Some(due.unwrap_or(now) + duration);
        }
        Turn::Send(Ticket { phase, index: index.saturating_mul(self.n_turns_max), scheduled: due })
    }

    /// Whether the time to send is over.
    #[must_use]
    pub fn is_over(&self, now: Nanos) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// When the ramp lets one more than `n_in_flight` be in flight: the cap is 1 at the start and full at the ramp's end.
    fn ramp_allows_at(&self, n_in_flight: usize) -> Option<Nanos> {
        let steps = self.max_in_flight.saturating_sub(1).max(1);
        let wait = u128::from(self.ramp.0) * n_in_flight as u128 / steps as u128;
        (self.ramp > Nanos::ZERO).then(|| self.start + Nanos(u64::try_from(wait).unwrap_or(u64::MAX / 2)))
    }

    /// Requests that have not been sent.
    #[must_use]
    pub fn n_left(&self) -> u32 {
        self.n_total - self.n_issued
    }
}

/// Due times in order; `Some(None)` = due at once.
#[derive(Debug)]
enum Schedule {
    AtOnce,
    /// `last` is the next due time in ns after the start, were there no ramp.
    Gaps {
        start: Nanos,
        last: f64,
        gaps: Gaps,
        ramp: f64,
    },
    Recorded {
        start: Nanos,
        times: std::vec::IntoIter<Nanos>,
    },
}

#[derive(Debug)]
enum Gaps {
    Constant(f64),
    Random { nanos: Gamma<f64>, rng: Xoshiro256PlusPlus },
}

impl Schedule {
    fn new(arrivals: &Arrivals, start: Nanos, ramp: Nanos, seed: u64) -> Self {
        let (last, ramp) = (0.0, ramp.0 as f64);
        match arrivals {
            Arrivals::ClosedLoop => Schedule::AtOnce,
            Arrivals::Constant { rate } => Schedule::Gaps { start, last, gaps: Gaps::Constant(1e9 / rate), ramp },
            Arrivals::Gamma { rate, shape } => {
                let nanos = Gamma::new(*shape, 1e9 / (rate * shape)).expect("rate and shape are validated to be positive and finite");
                Schedule::Gaps { start, last, gaps: Gaps::Random { nanos, rng: Xoshiro256PlusPlus::seed_from_u64(seed) }, ramp }
            }
            Arrivals::Trace(times) => Schedule::Recorded { start, times: times.clone().into_iter() },
        }
    }
}

impl Iterator for Schedule {
    type Item = Option<Nanos>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Schedule::AtOnce => Some(None),
            Schedule::Gaps { start, last, gaps, ramp } => {
                let due = ramped(*last, *ramp);
                *last += match gaps {
                    Gaps::Constant(gap) => *gap,
                    Gaps::Random { nanos, rng } => nanos.sample(rng),
                };
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a float-to-integer cast saturates, and no run lasts 580 years"
                )]
                Some(Some(*start + Nanos(due as u64)))
            }
            Schedule::Recorded { start, times } => times.next().map(|t| Some(*start + t)),
        }
    }
}

/// When what an unramped schedule has at `time` is due if the rate rises linearly from 0 for `ramp`: by then half as much has
/// come as without, so `t^2 / (2 ramp) = time` below that and `t = time + ramp / 2` above.
fn ramped(time: f64, ramp: f64) -> f64 {
    if time < ramp / 2.0 { (2.0 * ramp * time).sqrt() } else { time + ramp / 2.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn closed(concurrency: usize, n_warmup: u32, n_requests: u32) -> Pacer {
        Pacer::new(&Load::new(Arrivals::ClosedLoop, Some(concurrency), n_warmup, n_requests), Nanos::ZERO, 1)
    }

    fn open(arrivals: Arrivals, n_requests: u32, seed: u64) -> Vec<Nanos> {
        drain(&Load::new(arrivals, None, 0, n_requests), seed)
    }

    fn drain(load: &Load, seed: u64) -> Vec<Nanos> {
        let mut pacer = Pacer::new(load, Nanos(1000), seed);
        let mut times = Vec::new();
        let mut now = Nanos::ZERO;
        loop {
            match pacer.next(now, 0) {
                Turn::Send(ticket) => times.push(ticket.scheduled.unwrap()),
                Turn::WaitUntil(due) => now = due,
                Turn::WaitForEnd => panic!("there is no cap"),
                Turn::Done => return times,
            }
        }
    }

    #[test]
    fn a_closed_loop_sends_up_to_its_cap_and_one_more_for_each_end() {
        let mut pacer = closed(2, 1, 2);
        assert!(matches!(pacer.next(Nanos(0), 0), Turn::Send(Ticket { phase: LoadPhase::Warmup, index: 0, scheduled: None })));
        assert!(matches!(pacer.next(Nanos(0), 1), Turn::Send(Ticket { phase: LoadPhase::Profiling, index: 0, .. })));
        assert_eq!(pacer.next(Nanos(0), 2), Turn::WaitForEnd);
        assert!(matches!(pacer.next(Nanos(9), 1), Turn::Send(Ticket { phase: LoadPhase::Profiling, index: 1, .. })));
        assert_eq!(pacer.next(Nanos(9), 0), Turn::Done);
        assert_eq!(pacer.n_left(), 0);
    }

    #[test]
    fn a_constant_rate_is_exact_over_many_requests() {
        let times = open(Arrivals::Constant { rate: 3.0 }, 3001, 1);
        assert_eq!(times[0], Nanos(1000));
        assert!(times[3000].0.abs_diff(1_000_000_001_000) <= 1, "{:?}", times[3000]);
    }

    #[test]
    fn random_gaps_have_the_asked_mean_and_spread_and_follow_the_seed() {
        for shape in [0.5, 1.0, 4.0] {
            let arrivals = Arrivals::Gamma { rate: 1000.0, shape };
            let times = open(arrivals.clone(), 20_001, 7);
            assert_eq!(times, open(arrivals.clone(), 20_001, 7));
            assert_ne!(times, open(arrivals, 20_001, 8));
            let gaps: Vec<f64> = times.windows(2).map(|w| (w[1].0 - w[0].0) as f64 * 1e-6).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            assert!((mean - 1.0).abs() < 0.05, "mean {mean} at shape {shape}");
            assert!((variance * shape - 1.0).abs() < 0.15, "variance {variance} at shape {shape}");
        }
    }

    #[test]
    fn a_trace_is_replayed_and_its_end_ends_the_load() {
        let times = open(Arrivals::Trace(vec![Nanos(0), Nanos(5), Nanos(5)]), 10, 1);
        assert_eq!(times, [Nanos(1000), Nanos(1005), Nanos(1005)]);
    }

    #[test]
    fn a_capped_rate_keeps_the_due_time_of_a_request_that_had_to_wait() {
        let load = Load::new(Arrivals::Constant { rate: 1e9 }, Some(1), 0, 3);
        let mut pacer = Pacer::new(&load, Nanos(10), 1);
        assert_eq!(pacer.next(Nanos(9), 0), Turn::WaitUntil(Nanos(10)));
        assert!(matches!(pacer.next(Nanos(10), 0), Turn::Send(_)));
        assert_eq!(pacer.next(Nanos(500), 1), Turn::WaitForEnd);
        let Turn::Send(late) = pacer.next(Nanos(900), 0) else { panic!("not sent") };
        assert_eq!(late.scheduled, Some(Nanos(11)));
    }

    #[test]
    fn a_ramped_rate_rises_linearly_and_then_holds() {
        let load = Load { ramp: Nanos::from_millis(10_000), ..Load::new(Arrivals::Constant { rate: 100.0 }, None, 0, 1001) };
        let times: Vec<f64> = drain(&load, 1).iter().map(|t| (t.0 - 1000) as f64 * 1e-9).collect();
        // Until t, 100 t^2 / 20 requests have come.
        for (n, at) in [(0, 0.0), (125, 5.0), (500, 10.0), (1000, 15.0)] {
            assert!((times[n] - at).abs() < 1e-6, "request {n} at {}", times[n]);
        }
    }

    #[test]
    fn a_ramped_closed_loop_opens_one_slot_after_the_other() {
        let load = Load { ramp: Nanos(300), ..Load::new(Arrivals::ClosedLoop, Some(4), 0, 10) };
        let mut pacer = Pacer::new(&load, Nanos(1000), 1);
        for (n, at) in [(0, 1000), (1, 1100), (2, 1200), (3, 1300)] {
            if n > 0 {
                assert_eq!(pacer.next(Nanos(at - 1), n), Turn::WaitUntil(Nanos(at)));
            }
            assert!(matches!(pacer.next(Nanos(at), n), Turn::Send(_)));
        }
        assert_eq!(pacer.next(Nanos(1300), 4), Turn::WaitForEnd);
        assert!(matches!(pacer.next(Nanos(1301), 3), Turn::Send(_)));
    }

    #[test]
    fn a_duration_counts_from_the_first_measured_request_and_ends_the_load() {
        let load = Load { duration: Some(Nanos(100)), ..Load::new(Arrivals::ClosedLoop, Some(1), 1, 1000) };
        let mut pacer = Pacer::new(&load, Nanos::ZERO, 1);
        let mut phases = Vec::new();
        for at in [0, 500, 550, 599, 600] {
            match pacer.next(Nanos(at), 0) {
                Turn::Send(ticket) => phases.push(ticket.phase),
                other => assert_eq!((at, other), (600, Turn::Done)),
            }
        }
        assert_eq!((phases.len(), phases[0], pacer.n_left()), (4, LoadPhase::Warmup, 0));
        // An open loop does not sleep past the end.
        let load = Load { duration: Some(Nanos(100)), ..Load::new(Arrivals::Constant { rate: 1e3 }, None, 0, 1000) };
        let mut pacer = Pacer::new(&load, Nanos::ZERO, 1);
        assert!(matches!(pacer.next(Nanos(0), 0), Turn::Send(_)));
        assert_eq!(pacer.next(Nanos(0), 0), Turn::WaitUntil(Nanos(100)));
        assert_eq!(pacer.next(Nanos(100), 0), Turn::Done);
    }

    #[test]
    fn conversations_leave_numbers_for_their_turns() {
        let load = Load { n_turns_max: 3, ..Load::new(Arrivals::ClosedLoop, Some(9), 1, 2) };
        let mut pacer = Pacer::new(&load, Nanos::ZERO, 1);
        let mut next = || match pacer.next(Nanos::ZERO, 0) {
            Turn::Send(ticket) => (ticket.phase, ticket.index),
            other => panic!("{other:?}"),
        };
        assert_eq!([next(), next(), next()], [(LoadPhase::Warmup, 0), (LoadPhase::Profiling, 0), (LoadPhase::Profiling, 3)]);
    }

    proptest! {
        #[test]
        fn every_ticket_comes_once_in_order_and_the_cap_holds(cap in 1usize..9, n_warmup in 0u32..20, n_requests in 0u32..40, ends in proptest::collection::vec(1usize..5, 0..200)) {
            let mut pacer = closed(cap, n_warmup, n_requests);
            let (mut in_flight, mut tickets, mut ends) = (0usize, Vec::new(), ends.into_iter().chain(std::iter::repeat(1)));
            loop {
                match pacer.next(Nanos::ZERO, in_flight) {
                    Turn::Send(ticket) => {
                        in_flight += 1;
                        prop_assert!(in_flight <= cap);
                        tickets.push((ticket.phase, ticket.index));
                    }
                    Turn::WaitForEnd => {
                        prop_assert_eq!(in_flight, cap);
                        in_flight -= ends.next().unwrap().min(in_flight);
                    }
                    Turn::Done => break,
                    Turn::WaitUntil(_) => prop_assert!(false, "a closed loop never waits for time"),
                }
            }
            let wanted: Vec<_> = (0..n_warmup).map(|i| (LoadPhase::Warmup, i)).chain((0..n_requests).map(|i| (LoadPhase::Profiling, i))).collect();
            prop_assert_eq!(tickets, wanted);
        }
    }
}
