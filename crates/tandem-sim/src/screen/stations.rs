//! The stations of the closed network: how long a request is at each when a given rate passes.

use crate::cost::{DecodeCost, DecodeLoad, PrefillCost, PrefillLoad};
use crate::des::{DecodePool, Deployment, Load};

/// The decode pool: sequences in it, and the rate at which they end.
#[derive(Debug, Clone)]
pub(super) struct Decode {
    cost: DecodeCost,
    workers: f64,
    ranks: f64,
    context: f64,
    /// Steps that a sequence takes.
    pub(super) steps: f64,
    /// Sequences that all ranks can hold.
    pub(super) slots: f64,
    /// Whether the KV cache holds fewer sequences than the batch limit allows.
    pub(super) kv_binds: bool,
}

impl Decode {
    pub(super) fn new(pool: &DecodePool, load: &Load) -> Self {
        let (isl, osl) = (load.isl.mean(), load.osl.mean());
        #[expect(clippy::cast_precision_loss, reason = "tokens of one device")]
        let held = (pool.kv_tokens as f64 / (isl + osl)).floor().max(1.0);
        let batch = f64::from(pool.max_batch.max(1));
        let (workers, ranks) = (f64::from(pool.workers.max(1)), f64::from(pool.ranks.max(1)));
        Decode {
            cost: pool.cost.clone(),
            workers,
            ranks,
            context: isl + osl / 2.0,
            steps: 1.0 + ((osl - 1.0).max(0.0) / pool.cost.tokens_per_step()).ceil(),
            slots: workers * ranks * batch.min(held),
            kv_binds: held < batch,
        }
    }

    /// Seconds of a step when `n` sequences are in all workers.
    pub(super) fn step(&self, n: f64) -> f64 {
        let sequences = (n / self.workers).max(1.0);
        // Sequences are whole: the fullest rank has somewhat more than the mean.
        let fullest = (sequences / self.ranks).max(1.0);
        self.cost.step(DecodeLoad { rank_sequences: fullest, rank_context: fullest * self.context, sequences })
    }

    /// Requests per second that end.
    pub(super) fn rate(&self, n: f64) -> f64 {
        n / (self.steps * self.step(n))
    }

    /// Seconds between the arrival of a KV cache and the step that it joins.
    pub(super) fn entry(&self, n: f64) -> f64 {
        // Where nothing runs, a step begins at once.
        0.5 * self.step(n) * (n / self.workers).min(1.0)
    }
}

/// The prefill pool and its links.
#[derive(Debug, Clone)]
pub(super) struct Prefill {
    cost: PrefillCost,
    workers: f64,
    ranks: f64,
    isl: f64,
    /// Iterations that a prompt takes.
    chunks: f64,
    /// Prompts that a rank completes in an iteration, at most.
    per_rank: f64,
    /// Seconds of one KV cache on its link.
    transfer_s: f64,
    /// Seconds that do not depend on the load.
    fixed_s: f64,
    /// Requests per second, at most.
    pub(super) capacity: f64,
    /// Requests per second that the links can take.
    pub(super) link_capacity: f64,
}

impl Prefill {
    pub(super) fn new(deployment: &Deployment, load: &Load) -> Self {
        let pool = &deployment.prefill;
        let isl = load.isl.mean();
        let (tokens, batch) = (f64::from(pool.max_tokens.max(1)), f64::from(pool.max_batch.max(1)));
        // A prompt longer than an iteration takes several of its own; shorter ones share it, cut or whole.
        let chunks = (isl / tokens).ceil().max(1.0);
        let shared = if pool.chunked { tokens / isl } else { (tokens / isl).floor() };
        let per_rank = if chunks > 1.0 { if batch > 1.0 { tokens / isl } else { 1.0 / chunks } } else { shared.clamp(1.0, batch) };
        let workers = f64::from(pool.workers.max(1));
        let transfer = &deployment.transfer;
        let transfer_s = isl * transfer.bytes_per_token / transfer.bandwidth;
        let mut prefill = Prefill {
            cost: pool.cost.clone(),
            workers,
            ranks: f64::from(pool.ranks.max(1)),
            isl,
            chunks,
            per_rank,
            transfer_s,
            fixed_s: transfer.latency_s + deployment.request_s,
            capacity: 0.0,
            link_capacity: workers / transfer_s,
        };
        let full = prefill.ranks * per_rank;
        prefill.capacity = workers * full / prefill.iteration(full).0;
        prefill
    }

    /// Seconds between the starts of two iterations that complete `k` prompts each, and seconds from start to end of one.
    fn iteration(&self, k: f64) -> (f64, f64) {
        let in_rank = (k / self.ranks).max(self.per_rank.min(1.0));
        let rank_tokens = in_rank * self.isl;
        let load = PrefillLoad {
            rank_tokens,
            // Each prompt's own triangle; chunks of one prompt share it.
            rank_pairs: in_rank * self.isl * self.isl / 2.0,
            tokens: (k * self.isl).max(rank_tokens),
        };
        (self.cost.interval(load), self.cost.iteration(load))
    }

    /// Seconds from sending a request until its KV cache is with the decode workers, when `rate` requests pass per second.
    pub(super) fn seconds(&self, rate: f64) -> f64 {
        let full = self.ranks * self.per_rank;
        let used = rate / self.capacity;
        let linked = rate / self.link_capacity;
        if used >= 1.0 || linked >= 1.0 {
            return f64::INFINITY;
        }
        let per_worker = rate / self.workers;
        // Prompts that arrive during an iteration make the next one; below one each, workers are idle in between.
        let alone = self.ranks.min(1.0) * self.per_rank.min(1.0);
        let mut k = alone;
        for _ in 0..3 {
            k = (per_worker * self.iteration(k).0).clamp(alone, full);
        }
        let (interval, whole) = self.iteration(k);
        let busy = (per_worker * interval / k).min(1.0);
        // The rest of the iteration under way, and the queue of a server with constant service.
        let residual = 0.5 * interval * busy.powf(self.workers);
        let queue = interval / self.workers * used.powf(2.0 * self.workers.sqrt()) / (2.0 * (1.0 - used));
        let chunks = (self.chunks - 1.0) * interval;
        let link = self.transfer_s * (1.0 + 0.5 * (k - 1.0).max(0.0) + linked / (2.0 * (1.0 - linked)));
        residual + queue + chunks + whole + link + self.fixed_s
    }
}
