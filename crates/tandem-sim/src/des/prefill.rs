//! One prefill worker: queues of its ranks, and the iteration that all of them share.

use std::collections::VecDeque;

use super::deployment::PrefillPool;
use crate::cost::PrefillLoad;

/// A prompt in the queue of a rank.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    request: u32,
    /// Tokens computed so far.
    done: u32,
    length: u32,
}

/// State of one prefill worker.
#[derive(Debug)]
pub(super) struct PrefillWorker {
    queues: Vec<VecDeque<Waiting>>,
    queued_tokens: Vec<u64>,
    /// Prompts whose last chunk is in the iteration under way.
    finishing: Vec<u32>,
    pub(super) busy: bool,
    /// Seconds between the moment when the first stage is free again and the end of the last one.
    pub(super) drain_s: f64,
    /// When the KV link is free again.
    pub(super) link_free: f64,
}

impl PrefillWorker {
    pub(super) fn new(pool: &PrefillPool) -> Self {
        let ranks = pool.ranks.max(1) as usize;
        PrefillWorker {
            queues: vec![VecDeque::new(); ranks],
            queued_tokens: vec![0; ranks],
            finishing: Vec::new(),
            busy: false,
            drain_s: 0.0,
            link_free: 0.0,
        }
    }

    /// Tokens that are not computed yet.
    pub(super) fn outstanding(&self) -> u64 {
        self.queued_tokens.iter().sum()
    }

    /// The rank with the least work.
    pub(super) fn least_loaded(&self) -> usize {
        (0..self.queues.len()).min_by_key(|&r| self.queued_tokens[r]).expect("a worker has ranks")
    }

    /// Number of ranks.
    pub(super) fn n_ranks(&self) -> usize {
        self.queues.len()
    }

    /// Queues a prompt at `rank`.
    pub(super) fn push(&mut self, rank: usize, request: u32, length: u32) {
        self.queues[rank].push_back(Waiting { request, done: 0, length });
        self.queued_tokens[rank] += u64::from(length);
    }

    /// Whether the iteration under way completes a request below `first`.
    pub(super) fn finishes_one_below(&self, first: u32) -> bool {
        self.finishing.iter().any(|&r| r < first)
    }

    /// Forms the next iteration; none when nothing waits.
    pub(super) fn start(&mut self, pool: &PrefillPool) -> Option<PrefillLoad> {
        let mut load = PrefillLoad { rank_tokens: 0.0, rank_pairs: 0.0, tokens: 0.0 };
        for rank in 0..self.queues.len() {
            let (tokens, pairs) = self.fill(rank, pool);
            load.rank_tokens = load.rank_tokens.max(tokens);
            load.rank_pairs = load.rank_pairs.max(pairs);
            load.tokens += tokens;
        }
        self.busy = load.tokens > 0.0;
        self.busy.then_some(load)
    }

    /// Requests whose prompt the iteration that just ended has completed.
    pub(super) fn finish(&mut self) -> Vec<u32> {
        self.busy = false;
        std::mem::take(&mut self.finishing)
    }

    /// Takes prompts, or chunks of them, up to the limits of one rank; returns tokens and query-key pairs.
    fn fill(&mut self, rank: usize, pool: &PrefillPool) -> (f64, f64) {
        let mut room = pool.max_tokens.max(1);
        let (mut tokens, mut pairs) = (0.0, 0.0);
        let queue = &mut self.queues[rank];
        for taken in 0..pool.max_batch.max(1) {
            let Some(first) = queue.front_mut() else { break };
            let left = first.length - first.done;
            let whole_or_nothing = !pool.chunked && left <= pool.max_tokens;
            if room == 0 || (whole_or_nothing && left > room && taken > 0) {
                break;
            }
            let chunk = left.min(room);
            let (q, before) = (f64::from(chunk), f64::from(first.done));
            tokens += q;
            pairs += q * (before + q / 2.0);
            room -= chunk;
            first.done += chunk;
            self.queued_tokens[rank] -= u64::from(chunk);
            if first.done < first.length {
                break;
            }
            self.finishing.push(first.request);
            queue.pop_front();
        }
        (tokens, pairs)
    }
}
