//! Client, frontend and workers of one load point, in virtual time.

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use tandem_metrics::{Chunk, FailureKind, Outcome as Ending, RequestRecord, TokenCount};
use tandem_plan::{Nanos, Phase};
use tandem_sched::iteration::IterationLine;
use tandem_sched::pacing::{Arrivals, Load, Pacer, Turn};
use tandem_sched::router::{Candidate, Router};
use tandem_sched::{Outcome, Step};

use super::events::{Event, Events, Message, Note, Try, span};
use super::faults::{Fault, FaultError};
use super::late::Late;
use super::setup::{Drive, Flow, Setup, SetupError};
use super::worker::{Answer, State, Worker};

/// Tries of one request, the first included, as in the frontend.
const MAX_TRIES: u32 = 3;

/// Steps of one worker.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerLog {
    /// The worker.
    pub name: String,
    /// Its phase.
    pub phase: Phase,
    /// A line for each step and rank.
    pub lines: Vec<IterationLine>,
}

/// What a simulated load point yields.
#[derive(Debug, Clone, PartialEq)]
pub struct Simulated {
    /// One record a request, in order of issue, as the load generator would have made them.
    pub records: Vec<RequestRecord>,
    /// What each worker did.
    pub logs: Vec<WorkerLog>,
}

/// Runs one load point. Equal inputs give equal results to the last bit.
///
/// # Errors
/// [`SetupError`] for a phase without workers, a limit of 0, or a fault of a worker that is not there.
pub fn simulate(setup: &Setup, drive: &Drive) -> Result<Simulated, SetupError> {
    let mut run = Run::new(setup, drive)?;
    run.events.at(Nanos::ZERO, Event::Due);
    while let Some((now, event)) = run.events.pop() {
        run.handle(now, event);
        if run.is_over {
            break;
        }
    }
    let logs = run.workers.into_iter().map(|w| WorkerLog { name: w.setup.name, phase: w.setup.phase, lines: w.lines }).collect();
    Ok(Simulated { records: run.requests.into_iter().map(|r| r.record).collect(), logs })
}

#[derive(Debug)]
struct Request {
    record: RequestRecord,
    number: u32,
    is_done: bool,
    /// Indices of the workers of this try.
    prefill: Option<usize>,
    decode: Option<usize>,
    /// Whether the prompt counts as load of the prefill worker.
    prompt_leased: bool,
    /// Workers that failed it.
    avoid: Vec<usize>,
    /// Tokens that the client has.
    n_delivered: u32,
    /// Tokens that exist, the first included, and those of them that no event has carried.
    n_output: u32,
    n_pending: u32,
    /// When its first token reaches the client: none of the others is seen before.
    first_seen: Nanos,
}

#[derive(Debug)]
struct Run<'a> {
    setup: &'a Setup,
    drive: &'a Drive,
    rng: Xoshiro256PlusPlus,
    pacer: Pacer,
    routers: [Router; 2],
    workers: Vec<Worker>,
    requests: Vec<Request>,
    n_in_flight: usize,
    link_factor: f64,
    /// When the frontend may hand out the next request.
    dispatch_free: Nanos,
    events: Events,
    is_over: bool,
}

impl<'a> Run<'a> {
    fn new(setup: &'a Setup, drive: &'a Drive) -> Result<Self, SetupError> {
        let mut workers = setup.workers.iter().map(Worker::new).collect::<Result<Vec<_>, _>>()?;
        for phase in [Phase::Prefill, Phase::Decode] {
            if workers.iter().all(|w| w.setup.phase != phase) {
                return Err(SetupError::NoWorker(phase));
            }
        }
        let is_closed = drive.arrivals == Arrivals::ClosedLoop;
        let cap = is_closed.then_some(drive.point.concurrency.max(1) as usize);
        let load = Load::new(drive.arrivals.clone(), cap, drive.point.n_warmup, drive.point.n_requests);
        let (mut events, mut link_factor) = (Events::default(), 1.0);
        for fault in &setup.faults {
            let find = |name: &str| setup.workers.iter().position(|w| w.name == name).ok_or_else(|| FaultError::Worker(name.to_owned()));
            match fault {
                Fault::WorkerLost { worker, at_s } => events.at(span(*at_s), Event::Lost { worker: find(worker)? }),
                Fault::SlowRank { worker, factor } => workers[find(worker)?].slow *= factor,
                Fault::SlowLink { factor } => link_factor *= factor,
            }
        }
        Ok(Run {
            rng: Xoshiro256PlusPlus::seed_from_u64(drive.seed),
            pacer: Pacer::new(&load, Nanos::ZERO, drive.seed),
            routers: [Router::new(setup.routing), Router::new(setup.routing)],
            requests: Vec::new(),
            n_in_flight: 0,
            is_over: false,
            dispatch_free: Nanos::ZERO,
            workers,
            events,
            link_factor,
            setup,
            drive,
        })
    }

    fn handle(&mut self, now: Nanos, event: Event) {
        match event {
            Event::Due => self.send(now),
            Event::Frontend(note) => self.note(now, note),
            Event::Inbox { worker, message } => self.deliver(now, worker, message),
            Event::Wake { worker } => self.wake(now, worker),
            Event::StepEnd { worker, version } => self.end_step(now, worker, version),
            Event::Lost { worker } => self.lose(now, worker),
            Event::Deadline { request } => {
                if !self.requests[request as usize].is_done {
                    self.fail(now, request, FailureKind::Timeout, "the request timed out");
                }
            }
        }
    }

    // The client.

    fn send(&mut self, now: Nanos) {
        loop {
            match self.pacer.next(now, self.n_in_flight) {
                Turn::Send(ticket) => {
                    let request = u32::try_from(self.requests.len()).unwrap_or(u32::MAX);
                    let scheduled = ticket.scheduled.unwrap_or(now);
                    let name = format!("sim-{}-{}", ticket.phase.as_str(), ticket.index);
                    let mut record = RequestRecord::issued(u64::from(ticket.index), name, 0, ticket.phase, scheduled.0);
                    record.start_ns = now.0;
                    record.isl.client = Some(self.drive.isl);
                    self.requests.push(Request {
                        record,
                        number: 0,
                        is_done: false,
                        prefill: None,
                        decode: None,
                        prompt_leased: false,
                        avoid: Vec::new(),
                        n_delivered: 0,
                        n_output: 0,
                        n_pending: 0,
                        first_seen: Nanos::ZERO,
                    });
                    self.n_in_flight += 1;
                    let arrives = now + span(self.setup.overheads.request_s);
                    if self.n_in_flight > self.setup.max_inflight as usize {
                        self.requests[request as usize].record.http_status = Some(429);
                        self.fail(arrives, request, FailureKind::HttpStatus, "429: too many requests in flight");
                        continue;
                    }
                    self.events.at(arrives, Event::Frontend(Note::New(Try { request, number: 0 })));
                    self.events.at(now + span(self.drive.request_timeout_s), Event::Deadline { request });
                }
                Turn::WaitUntil(time) => return self.events.at(time, Event::Due),
                Turn::WaitForEnd => return,
                Turn::Done => {
                    self.is_over = self.n_in_flight == 0;
                    return;
                }
            }
        }
    }

    // The frontend.

    fn note(&mut self, now: Nanos, note: Note) {
        let (Note::New(of)
        | Note::Reserved(of)
        | Note::Computed { of, .. }
        | Note::Tokens { of, .. }
        | Note::Impossible(of)
        | Note::Broken(of)) = note;
        if self.is_stale(of) {
            return;
        }
        match note {
            Note::New(_) => self.begin(now, of),
            Note::Reserved(_) => self.ask_prefill(now, of),
            Note::Computed { .. } => {
                self.unlease_prompt(of.request);
                self.ask_decode(now, of);
            }
            Note::Tokens { n, last, .. } => self.tokens(now, of, n, last),
            Note::Impossible(_) => self.fail(now, of.request, FailureKind::HttpStatus, "the request can never run"),
            Note::Broken(_) => self.retry_or_fail(now, of.request, "the transfer of the KV cache broke"),
        }
    }

    fn begin(&mut self, now: Nanos, of: Try) {
        if self.setup.flow == Flow::ReserveFirst && self.drive.osl > 1 { self.ask_decode(now, of) } else { self.ask_prefill(now, of) }
    }

    fn ask_decode(&mut self, now: Nanos, of: Try) {
        let Some(worker) = self.pick(Phase::Decode, of.request, 1) else {
            return self.fail(now, of.request, FailureKind::HttpStatus, "no decode worker is there");
        };
        self.requests[of.request as usize].decode = Some(worker);
        self.tell(now, worker, Message::Reserve(of));
    }

    fn ask_prefill(&mut self, now: Nanos, of: Try) {
        let Some(worker) = self.pick(Phase::Prefill, of.request, u64::from(self.drive.isl)) else {
            return self.fail(now, of.request, FailureKind::HttpStatus, "no prefill worker is there");
        };
        let request = &mut self.requests[of.request as usize];
        request.prefill = Some(worker);
        request.prompt_leased = true;
        self.tell(now, worker, Message::Prefill(of));
    }

    fn pick(&mut self, phase: Phase, request: u32, amount: u64) -> Option<usize> {
        let avoid = &self.requests[request as usize].avoid;
        let able: Vec<usize> =
            (0..self.workers.len()).filter(|&w| self.workers[w].setup.phase == phase && self.workers[w].state != State::Lost).collect();
        let candidate =
            |&w: &usize| Candidate { index: self.workers[w].setup.index, load: self.workers[w].load, avoid: avoid.contains(&w) };
        let candidates: Vec<Candidate> = able.iter().map(candidate).collect();
        let worker = able[self.routers[usize::from(phase == Phase::Decode)].pick(&candidates)?];
        self.workers[worker].load += amount;
        Some(worker)
    }

    fn tell(&mut self, now: Nanos, worker: usize, message: Message) {
        let mut leaves = now;
        if matches!(message, Message::Prefill(_) | Message::Reserve(_)) {
            leaves = now.max(self.dispatch_free);
            self.dispatch_free = leaves + span(self.setup.overheads.dispatch_s);
        }
        self.events.at(leaves + span(self.setup.overheads.hop_s), Event::Inbox { worker, message });
    }

    fn tokens(&mut self, now: Nanos, of: Try, n: u32, last: bool) {
        self.unlease_prompt(of.request);
        let request = &mut self.requests[of.request as usize];
        if request.n_delivered == 0 && self.drive.streaming {
            request.record.ack_ns = Some(now.0);
        }
        request.n_delivered += n;
        if self.drive.streaming {
            request.record.chunks.push(Chunk { n_tokens: Some(n), ..Chunk::content(now.0) });
        }
        if !last {
            return;
        }
        let record = &mut request.record;
        if !self.drive.streaming {
            record.ack_ns = Some(now.0);
            record.chunks.push(Chunk { n_tokens: Some(request.n_delivered), ..Chunk::content(now.0) });
        }
        record.isl = TokenCount { client: Some(self.drive.isl), server: Some(self.drive.isl) };
        record.osl = TokenCount { client: Some(request.n_delivered), server: Some(request.n_delivered) };
        record.finish_reason = Some("length".to_owned());
        record.http_status = Some(200);
        self.end(now, of.request);
    }

    fn unlease_prompt(&mut self, request: u32) {
        let request = &mut self.requests[request as usize];
        if let (true, Some(worker)) = (std::mem::take(&mut request.prompt_leased), request.prefill) {
            self.workers[worker].load -= u64::from(self.drive.isl);
        }
    }

    /// Takes the request away from its workers.
    fn unlease(&mut self, request: u32) {
        self.unlease_prompt(request);
        if let Some(worker) = self.requests[request as usize].decode {
            self.workers[worker].load -= 1;
        }
    }

    fn end(&mut self, now: Nanos, request: u32) {
        self.unlease(request);
        let request = &mut self.requests[request as usize];
        request.is_done = true;
        request.record.end_ns = now.0;
        self.n_in_flight -= 1;
        self.events.at(now, Event::Due);
    }

    fn fail(&mut self, now: Nanos, request: u32, kind: FailureKind, message: &str) {
        self.cancel(now, request);
        self.requests[request as usize].record.outcome = Ending::failed(kind, message);
        self.end(now, request);
    }

    fn cancel(&mut self, now: Nanos, request: u32) {
        let r = &self.requests[request as usize];
        let of = Try { request, number: r.number };
        for worker in [r.decode, r.prefill].into_iter().flatten() {
            self.tell(now, worker, Message::Cancel(of));
        }
    }

    /// Another try elsewhere, unless the client has seen tokens of this one or there were too many.
    fn retry_or_fail(&mut self, now: Nanos, request: u32, message: &str) {
        let r = &self.requests[request as usize];
        if (self.drive.streaming && r.n_delivered > 0) || r.number + 1 >= MAX_TRIES {
            return self.fail(now, request, FailureKind::SseError, message);
        }
        self.cancel(now, request);
        self.unlease(request);
        let r = &mut self.requests[request as usize];
        r.avoid = [r.decode.take(), r.prefill.take()].into_iter().flatten().collect();
        r.number += 1;
        (r.n_delivered, r.n_output, r.n_pending) = (0, 0, 0);
        let of = Try { request, number: r.number };
        self.begin(now, of);
    }

    // The workers.

    fn deliver(&mut self, now: Nanos, worker: usize, message: Message) {
        let state = &mut self.workers[worker];
        match state.state {
            State::Lost => {}
            State::Busy => state.inbox.push(message),
            State::Idle => {
                state.inbox.push(message);
                state.state = State::Busy;
                self.events.at(now, Event::Wake { worker });
            }
        }
    }

    /// Handles what is in the inbox, grants blocks, begins a step: one turn of the engine loop.
    fn wake(&mut self, now: Nanos, worker: usize) {
        if self.workers[worker].state == State::Lost || self.workers[worker].computes() {
            return;
        }
        for message in std::mem::take(&mut self.workers[worker].inbox) {
            self.message(now, worker, message);
        }
        for of in self.workers[worker].granted() {
            match (self.setup.flow, self.requests[of.request as usize].prefill) {
                (Flow::PrefillFirst, Some(from)) => self.transfer(now, of, from, worker),
                _ => self.say(now, Note::Reserved(of)),
            }
        }
        if let Some(begin) = self.workers[worker].waits_until(now) {
            // Until then it hears messages at once.
            self.workers[worker].state = State::Idle;
            return self.events.at(begin, Event::Wake { worker });
        }
        self.progress(now);
        if self.workers[worker].begin_step(now, self.drive.point.concurrency) {
            self.workers[worker].state = State::Busy;
            self.retime(now, Some(worker));
        } else {
            self.workers[worker].state = State::Idle;
        }
    }

    fn n_computing(&self) -> usize {
        self.workers.iter().filter(|w| w.computes()).count()
    }

    /// Steps under way advance to `now`, at the speed that they have had: to be called before a worker begins or ends one.
    fn progress(&mut self, now: Nanos) {
        let others = self.n_computing().saturating_sub(1);
        for worker in self.workers.iter_mut().filter(|w| w.computes()) {
            let passed = std::time::Duration::from_nanos(now.0 - worker.since.0).as_secs_f64();
            worker.left_s -= passed / worker.slowdown(others);
            worker.since = now;
        }
    }

    /// Works out again when steps end, since the number of workers that compute has changed; `begun` has just begun one.
    fn retime(&mut self, now: Nanos, begun: Option<usize>) {
        let others = self.n_computing().saturating_sub(1);
        for (index, worker) in self.workers.iter_mut().enumerate() {
            if worker.computes() && (begun == Some(index) || worker.slowdown(1) > 1.0) {
                worker.version += 1;
                let end = now + span(worker.left_s * worker.slowdown(others));
                self.events.at(end, Event::StepEnd { worker: index, version: worker.version });
            }
        }
    }

    fn message(&mut self, now: Nanos, worker: usize, message: Message) {
        if let Message::Commit { of, from } = message
            && self.workers[from].state == State::Lost
        {
            // Its prefill worker died under the transfer.
            return self.say(now, Note::Broken(of));
        }
        match self.workers[worker].handle(message, self.drive.isl, self.drive.osl) {
            Answer::Nothing => {}
            Answer::Impossible(of) => self.say(now, Note::Impossible(of)),
            Answer::Ack { of, to } => self.tell(now, to, Message::Acked(of)),
        }
    }

    fn say(&mut self, now: Nanos, note: Note) {
        let mut heard = now + span(self.setup.overheads.hop_s);
        if let Note::Tokens { of, .. } = note {
            heard = heard.max(self.requests[of.request as usize].first_seen);
        }
        self.events.at(heard, Event::Frontend(note));
    }

    fn end_step(&mut self, now: Nanos, worker: usize, version: u32) {
        if self.workers[worker].state == State::Lost || self.workers[worker].version != version {
            return;
        }
        self.progress(now);
        self.workers[worker].time_step(now);
        let steps = std::mem::take(&mut self.workers[worker].steps);
        self.retime(now, None);
        let next = now + span(self.gap(worker, &steps));
        let known = now + span(self.workers[worker].drain_s);
        let outcomes: Vec<Vec<Outcome>> =
            steps.iter().map(|s| s.as_ref().map_or_else(Vec::new, |s| self.outcomes(known, worker, s))).collect();
        self.workers[worker].end_step(&steps, &outcomes);
        self.events.at(next, Event::Wake { worker });
    }

    /// Seconds from the end of `steps` until the worker may begin the next.
    fn gap(&self, worker: usize, steps: &[Option<Step>]) -> f64 {
        let gap = match self.workers[worker].setup.phase {
            Phase::Prefill => self.setup.overheads.prefill_gap,
            Phase::Decode => self.setup.overheads.decode_gap,
        };
        let n = steps.iter().flatten().map(|s| u32::try_from(s.entries.len()).unwrap_or(u32::MAX)).max().unwrap_or(0);
        gap.step_s + gap.request_s * f64::from(n)
    }

    fn outcomes(&mut self, known: Nanos, worker: usize, step: &Step) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(step.entries.len());
        let ended = step.entries.iter().filter(|e| e.phase == Phase::Prefill && e.emits).count() as u64;
        let goes_on = self.workers[worker].load > ended * u64::from(self.drive.isl);
        let late = if goes_on { self.setup.overheads.late } else { Late::default() };
        for entry in &step.entries {
            let of = Try::of(entry.id);
            let n_new = match entry.phase {
                _ if !entry.emits => 0,
                Phase::Prefill => self.first_token(known, late, of, worker),
                Phase::Decode => self.next_tokens(known, of, worker),
            };
            let ends = entry.phase == Phase::Prefill && self.drive.osl <= 1;
            outcomes.push(Outcome { n_new, stop: n_new > 0 && ends });
        }
        outcomes
    }

    /// Whether a try is over while a worker still computes for it.
    fn is_stale(&self, of: Try) -> bool {
        let request = &self.requests[of.request as usize];
        request.is_done || request.number != of.number
    }

    fn first_token(&mut self, known: Nanos, late: Late, of: Try, worker: usize) -> u32 {
        if self.is_stale(of) {
            return 1;
        }
        let request = &mut self.requests[of.request as usize];
        request.n_output = 1;
        if self.setup.flow == Flow::ReserveFirst || self.drive.osl <= 1 {
            request.first_seen = known + span(self.setup.overheads.hop_s + late.token_s);
        }
        if self.drive.osl <= 1 {
            self.say(known, Note::Tokens { of, n: 1, last: true });
        } else if self.setup.flow == Flow::PrefillFirst {
            request.n_pending = 1;
            self.say(known, Note::Computed { of, by: worker });
        } else if let Some(to) = request.decode {
            self.say(known, Note::Tokens { of, n: 1, last: false });
            let late_s = if self.workers[to].computes() { 0.0 } else { late.commit_s };
            self.transfer(known + span(late_s), of, worker, to);
        }
        1
    }

    fn next_tokens(&mut self, known: Nanos, of: Try, worker: usize) -> u32 {
        if self.is_stale(of) {
            return 1;
        }
        let n_drafts = self.workers[worker].setup.sched.n_drafts;
        let accepted = (0..n_drafts).take_while(|_| self.rng.random::<f64>() < self.setup.acceptance.0).count();
        let setup = &self.workers[worker].setup;
        let request = &mut self.requests[of.request as usize];
        let n_new = (1 + u32::try_from(accepted).unwrap_or(0)).min(self.drive.osl - request.n_output);
        request.n_output += n_new;
        request.n_pending += n_new;
        let last = request.n_output >= self.drive.osl;
        let is_first = self.setup.flow == Flow::PrefillFirst && request.n_pending == request.n_output;
        if last || is_first || request.n_pending >= setup.stream_interval.max(1) {
            let n = std::mem::take(&mut request.n_pending);
            self.say(known, Note::Tokens { of, n, last });
        }
        n_new
    }

    /// Moves the KV cache of a request: both ends carry one transfer at a time.
    fn transfer(&mut self, now: Nanos, of: Try, from: usize, to: usize) {
        let link = &self.setup.link;
        let bytes = f64::from(self.drive.isl) * link.bytes_per_token * (1.0 - link.overlap);
        let begin = now.max(self.workers[from].link_free).max(self.workers[to].link_free);
        let end = begin + span(bytes / link.bandwidth * self.link_factor);
        self.workers[from].link_free = end;
        self.workers[to].link_free = end;
        let message = Message::Commit { of, from };
        self.events.at(end + span(link.latency_s * self.link_factor), Event::Inbox { worker: to, message });
    }

    /// A worker dies: requests that need it are tried elsewhere, or fail.
    fn lose(&mut self, now: Nanos, worker: usize) {
        self.progress(now);
        self.workers[worker].state = State::Lost;
        self.workers[worker].steps.clear();
        self.retime(now, None);
        let hit: Vec<u32> = (0_u32..)
            .zip(&self.requests)
            .filter(|(_, r)| !r.is_done && (r.decode == Some(worker) || (r.prefill == Some(worker) && r.n_delivered == 0)))
            .map(|(i, _)| i)
            .collect();
        let name = self.workers[worker].setup.name.clone();
        for request in hit {
            self.retry_or_fail(now, request, &format!("{name} is gone"));
        }
    }
}
