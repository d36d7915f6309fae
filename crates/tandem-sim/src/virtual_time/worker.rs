//! One worker: the schedulers of its ranks, its inbox, and the step that it computes.

use std::collections::HashMap;
use std::time::Duration;

use tandem_plan::{Nanos, Phase};
use tandem_sched::iteration::IterationLine;
use tandem_sched::{Outcome, Scheduler, SeqId, Step};

use super::costs::{self, ReplayedStep, StepCosts};
use super::events::{Message, Try};
use super::setup::{SetupError, WorkerSetup};

/// Bits of a [`SeqId`] that hold the number of the try.
const TRY_BITS: u32 = 8;

/// A worker that had nothing to compute for longer has rested; what a calibration takes for a wait as well.
pub(super) const REST: Nanos = Nanos(500_000);

impl Try {
    pub(super) fn seq(self) -> SeqId {
        SeqId((u64::from(self.request) << TRY_BITS) | u64::from(self.number))
    }

    pub(super) fn of(id: SeqId) -> Self {
        let narrow = |n: u64| u32::try_from(n).expect("made by `seq`");
        Try { request: narrow(id.0 >> TRY_BITS), number: narrow(id.0 & ((1 << TRY_BITS) - 1)) }
    }
}

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It waits for a message.
    Idle,
    /// It computes, or is between two steps: messages stay in the inbox until it wakes.
    Busy,
    /// It is dead.
    Lost,
}

/// What handling a message yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Nothing,
    Impossible(Try),
    /// The KV cache was taken (or is not wanted any more): worker `to` may free its copy.
    Ack {
        of: Try,
        to: usize,
    },
}

/// State of one worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) setup: WorkerSetup,
    pub(super) state: State,
    pub(super) inbox: Vec<Message>,
    /// The step under way, one a rank.
    pub(super) steps: Vec<Option<Step>>,
    /// Since when it has had nothing to compute.
    pub(super) rests_since: Option<Nanos>,
    /// What is left of the step, seconds of a worker alone, at the moment `since`.
    pub(super) left_s: f64,
    pub(super) since: Nanos,
    /// Counts the times at which the end of a step was worked out.
    pub(super) version: u32,
    /// Seconds between the end of the step and its results.
    pub(super) drain_s: f64,
    /// Until when its link is taken.
    pub(super) link_free: Nanos,
    /// Factor on step times.
    pub(super) slow: f64,
    /// What the frontend has outstanding there: prompt tokens, or sequences.
    pub(super) load: u64,
    ranks: Vec<Scheduler>,
    rank_of: HashMap<SeqId, usize>,
    n_steps: u64,
    /// Which of the replayed steps is next.
    next_replayed: usize,
    pub(super) lines: Vec<IterationLine>,
}

impl Worker {
    pub(super) fn new(setup: &WorkerSetup) -> Result<Self, SetupError> {
        let scheduler = || Scheduler::new(setup.sched).map_err(|source| SetupError::Limits { name: setup.name.clone(), source });
        Ok(Worker {
            ranks: (0..setup.n_ranks.max(1)).map(|_| scheduler()).collect::<Result<_, _>>()?,
            setup: setup.clone(),
            state: State::Idle,
            inbox: Vec::new(),
            steps: Vec::new(),
            rests_since: None,
            left_s: 0.0,
            since: Nanos::ZERO,
            version: 0,
            drain_s: 0.0,
            link_free: Nanos::ZERO,
            slow: 1.0,
            load: 0,
            rank_of: HashMap::new(),
            n_steps: 0,
            next_replayed: 0,
            lines: Vec::new(),
        })
    }

    /// Whether it computes a step right now.
    pub(super) fn computes(&self) -> bool {
        self.state == State::Busy && !self.steps.is_empty()
    }

    pub(super) fn handle(&mut self, message: Message, isl: u32, osl: u32) -> Answer {
        match message {
            Message::Prefill(of) | Message::Reserve(of) => {
                let id = of.seq();
                // Fewest sequences: prompts of a run are alike.
                let rank = (0..self.ranks.len()).min_by_key(|&r| self.ranks[r].len()).expect("a worker has ranks");
                let scheduler = &mut self.ranks[rank];
                let taken = match message {
                    Message::Prefill(_) => scheduler.submit_prefill(id, isl),
                    _ => scheduler.reserve(id, isl, osl),
                };
                if taken.is_err() {
                    return Answer::Impossible(of);
                }
                self.rank_of.insert(id, rank);
                Answer::Nothing
            }
            Message::Acked(of) | Message::Cancel(of) => {
                self.release(of.seq());
                Answer::Nothing
            }
            Message::Commit { of, from } => {
                if let Some(&rank) = self.rank_of.get(&of.seq()) {
                    self.ranks[rank].commit(of.seq());
                }
                Answer::Ack { of, to: from }
            }
        }
    }

    fn release(&mut self, id: SeqId) {
        if let Some(rank) = self.rank_of.remove(&id) {
            self.ranks[rank].release(id);
        }
    }

    /// Reservations that get their blocks now.
    pub(super) fn granted(&mut self) -> Vec<Try> {
        let mut granted = Vec::new();
        for rank in &mut self.ranks {
            granted.extend(std::iter::from_fn(|| rank.take_reserved()).map(Try::of));
        }
        granted
    }

    /// Of a worker that replays a log: until when its next step waits for the begin that the log has. Steps that are over are skipped:
    /// nothing could run then.
    pub(super) fn waits_until(&mut self, now: Nanos) -> Option<Nanos> {
        let StepCosts::Replayed(steps) = &self.setup.costs else { return None };
        let is_over = |s: &ReplayedStep| s.end <= now;
        self.next_replayed += steps[self.next_replayed..].iter().take_while(|s| is_over(s)).count();
        steps.get(self.next_replayed).map(|s| s.begin).filter(|begin| *begin > now)
    }

    /// The replayed step that begins now: its number and what is left of it, seconds. After the last of the log none is known, and
    /// further ones take no time.
    fn replayed(&mut self, now: Nanos) -> Option<(u64, f64)> {
        let StepCosts::Replayed(steps) = &self.setup.costs else { return None };
        let step = steps.get(self.next_replayed)?;
        self.next_replayed += 1;
        Some((step.iter, Duration::from_nanos(step.end.0.saturating_sub(now.0)).as_secs_f64()))
    }

    /// Forms the next step of all ranks; false when nothing can run.
    pub(super) fn begin_step(&mut self, now: Nanos, burst_below: u32) -> bool {
        self.steps = self.ranks.iter_mut().map(Scheduler::next_step).collect();
        if self.steps.iter().all(Option::is_none) {
            self.steps.clear();
            self.rests_since.get_or_insert(now);
            return false;
        }
        let ends_early = |s: &Step| s.entries.iter().any(|e| e.phase == Phase::Prefill && e.emits && Try::of(e.id).request < burst_below);
        let is_burst = self.steps.iter().flatten().any(ends_early);
        let costs::Duration { busy_s, drain_s } = self.setup.costs.duration(&self.steps, is_burst);
        let has_rested = self.rests_since.take().is_some_and(|since| now.0 - since.0 > REST.0);
        let cold_s = if has_rested { self.setup.costs.cold_s() } else { 0.0 };
        let (busy_s, drain_s) = ((busy_s + cold_s) * self.slow, drain_s * self.slow);
        self.drain_s = drain_s;
        (self.left_s, self.since) = (busy_s, now);
        self.n_steps += 1;
        if let Some((iter, left_s)) = self.replayed(now) {
            (self.n_steps, self.left_s, self.drain_s) = (iter, left_s, 0.0);
        }
        let took = Duration::try_from_secs_f64(self.left_s).unwrap_or_default();
        for (rank, (step, scheduler)) in (0_u32..).zip(self.steps.iter().zip(&self.ranks)) {
            if let Some(step) = step {
                let begin = Duration::from_nanos(now.0);
                self.lines.push(IterationLine::new(self.n_steps, rank, step, &scheduler.stats(), begin, took));
            }
        }
        true
    }

    /// Seconds of real time for one of a worker alone, while `others` compute as well.
    pub(super) fn slowdown(&self, others: usize) -> f64 {
        let others = u32::try_from(others).unwrap_or(u32::MAX);
        1.0 + self.setup.costs.contention() * f64::from(others)
    }

    /// Writes into the lines of the step that ends `now` how long it took.
    pub(super) fn time_step(&mut self, now: Nanos) {
        let n_steps = self.n_steps;
        for line in self.lines.iter_mut().rev().take_while(|l| l.iter == n_steps) {
            line.took = Duration::from_nanos(now.0).saturating_sub(line.begin);
        }
    }

    /// Ends the step with the outcomes of each rank; sequences that have ended are forgotten.
    pub(super) fn end_step(&mut self, steps: &[Option<Step>], outcomes: &[Vec<Outcome>]) {
        for ((scheduler, step), outcomes) in self.ranks.iter_mut().zip(steps).zip(outcomes) {
            let Some(step) = step else { continue };
            scheduler.complete_step(step, outcomes);
            for entry in step.entries.iter().filter(|e| e.emits) {
                if scheduler.state(entry.id).is_none() {
                    self.rank_of.remove(&entry.id);
                }
            }
        }
    }
}
