//! One decode worker: ranks, their batches, and segments of steps with an unchanged batch.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::deployment::DecodePool;
use crate::cost::DecodeLoad;

/// A request that waits for a place in a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) request: u32,
    pub(super) isl: u32,
    pub(super) osl: u32,
}

/// The batch of one attention rank.
#[derive(Debug, Clone, Copy, Default)]
struct Rank {
    sequences: u32,
    reserved: u64,
    /// Context of all sequences is `base + sequences × steps × tokens per step`.
    base: f64,
}

/// A running sequence, ordered by the step after which it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Running {
    last_step: u64,
    request: u32,
    rank: u32,
    entered: u64,
    isl: u32,
    reserved: u32,
}

/// What a segment's end brings.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// Requests that have all their tokens.
    pub(super) finished: Vec<u32>,
    /// Requests that joined the batch at this moment.
    pub(super) admitted: Vec<u32>,
}

/// State of one decode worker.
#[derive(Debug)]
pub(super) struct DecodeWorker {
    ranks: Vec<Rank>,
    running: BinaryHeap<Reverse<Running>>,
    waiting: VecDeque<Candidate>,
    /// Steps done when the segment began, and when that was.
    step: u64,
    begun: f64,
    /// Seconds of each step of the segment.
    pub(super) step_s: f64,
    /// Step at which the segment ends.
    until: u64,
    /// Incremented with every new segment, so that events of abandoned ones are recognised.
    pub(super) version: u32,
}

impl DecodeWorker {
    pub(super) fn new(pool: &DecodePool) -> Self {
        DecodeWorker {
            ranks: vec![Rank::default(); pool.ranks.max(1) as usize],
            running: BinaryHeap::new(),
            waiting: VecDeque::new(),
            step: 0,
            begun: 0.0,
            step_s: 0.0,
            until: 0,
            version: 0,
        }
    }

    /// Sequences that run or wait.
    pub(super) fn outstanding(&self) -> usize {
        self.running.len() + self.waiting.len()
    }

    /// A request arrives; returns when the segment now ends, if that has changed.
    pub(super) fn arrive(&mut self, now: f64, candidate: Candidate, pool: &DecodePool) -> Option<f64> {
        self.waiting.push_back(candidate);
        if self.running.is_empty() {
            // An idle worker begins at once; one that is about to begin takes the newcomer along.
            if self.waiting.len() > 1 {
                return None;
            }
            self.until = self.step;
            self.begun = now;
            self.version += 1;
            return Some(now);
        }
        if self.waiting.len() > 1 || self.free_rank(&candidate, pool).is_none() {
            return None;
        }
        // It joins at the next step boundary.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of steps since the segment began")]
        let boundary = self.step + (((now - self.begun) / self.step_s).ceil().max(0.0) as u64);
        if boundary >= self.until {
            return None;
        }
        self.until = boundary;
        self.version += 1;
        Some(self.end())
    }

    /// When the current segment ends.
    fn end(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "steps of one segment are few")]
        let steps = (self.until - self.step) as f64;
        self.begun + steps * self.step_s
    }

    /// Ends the segment at `now`: sequences leave, others join. Returns them and the end of the next segment, if there is one.
    pub(super) fn advance(&mut self, now: f64, pool: &DecodePool) -> (Ended, Option<f64>) {
        let mut ended = Ended::default();
        self.step = self.until;
        self.begun = now;
        while self.running.peek().is_some_and(|r| r.0.last_step <= self.step) {
            let Some(Reverse(gone)) = self.running.pop() else { break };
            self.leave(gone, pool);
            ended.finished.push(gone.request);
        }
        while let Some(&candidate) = self.waiting.front() {
            let Some(rank) = self.free_rank(&candidate, pool) else { break };
            self.waiting.pop_front();
            self.enter(candidate, rank, pool);
            ended.admitted.push(candidate.request);
        }
        let Some(Reverse(next)) = self.running.peek() else { return (ended, None) };
        self.until = next.last_step.max(self.step + 1);
        self.step_s = pool.cost.step(self.load(pool));
        self.version += 1;
        (ended, Some(self.end()))
    }

    fn leave(&mut self, gone: Running, pool: &DecodePool) {
        let rank = &mut self.ranks[gone.rank as usize];
        rank.sequences -= 1;
        rank.reserved -= u64::from(gone.reserved);
        rank.base -= f64::from(gone.isl) - count(gone.entered) * pool.cost.tokens_per_step();
    }

    fn enter(&mut self, candidate: Candidate, index: usize, pool: &DecodePool) {
        let per_step = pool.cost.tokens_per_step();
        let reserved = candidate.isl + candidate.osl;
        let rank = &mut self.ranks[index];
        rank.sequences += 1;
        rank.reserved += u64::from(reserved);
        rank.base += f64::from(candidate.isl) - count(self.step) * per_step;
        // The first step gives the first token, the others what is left.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most the output length")]
        let steps = 1 + (f64::from(candidate.osl.saturating_sub(1)) / per_step).ceil() as u64;
        let rank = u32::try_from(index).expect("ranks are counted by a u32");
        let last_step = self.step + steps;
        self.running.push(Reverse(Running {
            last_step,
            request: candidate.request,
            rank,
            entered: self.step,
            isl: candidate.isl,
            reserved,
        }));
    }

    /// The emptiest rank that can take the candidate; an empty rank takes anything, or nothing ever would.
    fn free_rank(&self, candidate: &Candidate, pool: &DecodePool) -> Option<usize> {
        let needed = u64::from(candidate.isl + candidate.osl);
        let fits = |r: &Rank| r.sequences == 0 || (r.sequences < pool.max_batch && r.reserved + needed <= pool.kv_tokens);
        let free = self.ranks.iter().enumerate().filter(|(_, r)| fits(r));
        free.min_by_key(|(_, r)| (r.sequences, r.reserved)).map(|(i, _)| i)
    }

    /// The load of the segment's middle step.
    fn load(&self, pool: &DecodePool) -> DecodeLoad {
        let middle = f64::midpoint(count(self.step), count(self.until)) * pool.cost.tokens_per_step();
        let (mut most, mut context, mut all) = (0, 0.0_f64, 0);
        for rank in &self.ranks {
            most = most.max(rank.sequences);
            context = context.max(rank.base + f64::from(rank.sequences) * middle);
            all += rank.sequences;
        }
        let padded = pool.graph_batches.iter().find(|b| **b >= most).copied().unwrap_or(most);
        DecodeLoad { rank_sequences: f64::from(padded), rank_context: context, sequences: f64::from(all) }
    }
}

fn count(steps: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a run has fewer than 2^52 steps")]
    let steps = steps as f64;
    steps
}
