//! The events of a run, in order of time.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::decode::{Candidate, DecodeWorker};
use super::deployment::{Deployment, Load, RankSpread, WorkerChoice};
use super::outcome::{Outcome, RequestTimes};
use super::prefill::PrefillWorker;

/// What happens; of events at one moment, the earlier in this list come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A request reaches the frontend.
    Arrival { request: u32 },
    /// The iteration of a prefill worker is over.
    PrefillDone { worker: u32 },
    /// A prefill worker may begin an iteration; after all arrivals of the moment.
    PrefillStart { worker: u32 },
    /// The KV cache of a request is with the decode workers.
    KvArrived { request: u32 },
    /// The segment of a decode worker is over.
    SegmentEnd { worker: u32, version: u32 },
}

#[derive(Debug, Clone, Copy)]
struct Timed {
    at: f64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Timed {}
impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    /// Reversed, because the heap gives the largest first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.total_cmp(&self.at).then_with(|| other.event.cmp(&self.event))
    }
}

/// Runs `load` against `deployment`.
#[must_use]
pub fn simulate(deployment: &Deployment, load: &Load) -> Outcome {
    let mut run = Run::new(deployment, load);
    for _ in 0..load.concurrency.min(load.requests) {
        run.send(0.0);
    }
    while let Some(Timed { at, event }) = run.events.pop() {
        run.handle(at, event);
    }
    Outcome::new(run.requests)
}

#[derive(Debug)]
struct Run<'a> {
    deployment: &'a Deployment,
    load: &'a Load,
    rng: Xoshiro256PlusPlus,
    requests: Vec<RequestTimes>,
    events: BinaryHeap<Timed>,
    prefill: Vec<PrefillWorker>,
    decode: Vec<DecodeWorker>,
    /// Requests that have a decode worker.
    routed: usize,
}

impl<'a> Run<'a> {
    fn new(deployment: &'a Deployment, load: &'a Load) -> Self {
        Run {
            deployment,
            load,
            rng: Xoshiro256PlusPlus::seed_from_u64(load.seed),
            requests: Vec::with_capacity(load.requests as usize),
            events: BinaryHeap::with_capacity(load.concurrency as usize + 64),
            prefill: (0..deployment.prefill.workers.max(1)).map(|_| PrefillWorker::new(&deployment.prefill)).collect(),
            decode: (0..deployment.decode.workers.max(1)).map(|_| DecodeWorker::new(&deployment.decode)).collect(),
            routed: 0,
        }
    }

    fn at(&mut self, at: f64, event: Event) {
        self.events.push(Timed { at, event });
    }

    /// The client sends its next request, if there is one.
    fn send(&mut self, now: f64) {
        let Ok(request) = u32::try_from(self.requests.len()) else { return };
        if request >= self.load.requests {
            return;
        }
        let (isl, osl) = (self.load.isl.draw(&mut self.rng), self.load.osl.draw(&mut self.rng));
        self.requests.push(RequestTimes { sent: now, first: now, end: now, isl, osl });
        self.at(now + self.deployment.request_s, Event::Arrival { request });
    }

    fn handle(&mut self, now: f64, event: Event) {
        match event {
            Event::Arrival { request } => self.route_to_prefill(now, request),
            Event::PrefillStart { worker } => self.start_prefill(now, worker),
            Event::PrefillDone { worker } => self.finish_prefill(now, worker),
            Event::KvArrived { request } => self.route_to_decode(now, request),
            Event::SegmentEnd { worker, version } => self.end_segment(now, worker, version),
        }
    }

    fn route_to_prefill(&mut self, now: f64, request: u32) {
        let worker = least(&self.prefill, |w| (w.outstanding(), usize::from(w.busy)));
        let chosen = &mut self.prefill[worker as usize];
        let rank = match self.deployment.prefill.spread {
            RankSpread::Balanced => chosen.least_loaded(),
            RankSpread::Random => self.rng.random_range(0..chosen.n_ranks()),
        };
        chosen.push(rank, request, self.requests[request as usize].isl);
        if !chosen.busy {
            self.at(now, Event::PrefillStart { worker });
        }
    }

    fn start_prefill(&mut self, now: f64, worker: u32) {
        let pool = &self.deployment.prefill;
        let state = &mut self.prefill[worker as usize];
        if state.busy {
            return;
        }
        if let Some(load) = state.start(pool) {
            let factor = if state.finishes_one_below(self.load.concurrency) { pool.burst } else { 1.0 };
            let interval = pool.cost.interval(load) * factor;
            state.drain_s = (pool.cost.iteration(load) * factor - interval).max(0.0);
            self.at(now + interval, Event::PrefillDone { worker });
        }
    }

    fn finish_prefill(&mut self, now: f64, worker: u32) {
        let transfer = self.deployment.transfer;
        for request in self.prefill[worker as usize].finish() {
            let bytes = f64::from(self.requests[request as usize].isl) * transfer.bytes_per_token;
            let state = &mut self.prefill[worker as usize];
            state.link_free = state.link_free.max(now + state.drain_s) + bytes / transfer.bandwidth;
            let arrived = state.link_free + transfer.latency_s;
            self.at(arrived, Event::KvArrived { request });
        }
        self.at(now, Event::PrefillStart { worker });
    }

    fn route_to_decode(&mut self, now: f64, request: u32) {
        let worker = match self.deployment.decode.routing {
            WorkerChoice::LeastLoaded => least(&self.decode, DecodeWorker::outstanding),
            WorkerChoice::RoundRobin => index(self.routed % self.decode.len()),
            WorkerChoice::Random => index(self.rng.random_range(0..self.decode.len())),
        };
        self.routed += 1;
        let times = self.requests[request as usize];
        let candidate = Candidate { request, isl: times.isl, osl: times.osl };
        let state = &mut self.decode[worker as usize];
        if let Some(end) = state.arrive(now, candidate, &self.deployment.decode) {
            let version = state.version;
            self.at(end, Event::SegmentEnd { worker, version });
        }
    }

    fn end_segment(&mut self, now: f64, worker: u32, version: u32) {
        let state = &mut self.decode[worker as usize];
        if state.version != version {
            return;
        }
        let (ended, next) = state.advance(now, &self.deployment.decode);
        let (step_s, version) = (state.step_s, state.version);
        for request in ended.admitted {
            self.requests[request as usize].first = now + step_s;
        }
        if let Some(end) = next {
            self.at(end, Event::SegmentEnd { worker, version });
        }
        for request in ended.finished {
            self.requests[request as usize].end = now;
            self.send(now);
        }
    }
}

/// Index of the worker with the smallest key, the first of several.
fn least<W, K: Ord>(workers: &[W], key: impl Fn(&W) -> K) -> u32 {
    index((0..workers.len()).min_by_key(|&i| key(&workers[i])).expect("a pool has workers"))
}

fn index(worker: usize) -> u32 {
    u32::try_from(worker).expect("workers are counted by a u32")
}
