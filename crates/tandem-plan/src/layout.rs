//! How one worker is spread over ranks: tensor, pipeline, expert and attention-data parallelism.

use serde::{Deserialize, Serialize};

/// Parallel degrees of one worker. `world = tp * pp`; EP and attention DP divide the same ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ParallelLayout {
    /// Tensor-parallel degree (also the attention-DP degree when that is on).
    pub tp: u32,
    /// Pipeline-parallel degree.
    pub pp: u32,
    /// Expert-parallel degree; divides `tp`.
    pub ep: u32,
    /// Whether attention is data parallel over the `tp` ranks instead of split by head.
    pub attention_dp: bool,
}

impl ParallelLayout {
    /// One rank that does everything.
    pub const SINGLE: ParallelLayout = ParallelLayout { tp: 1, pp: 1, ep: 1, attention_dp: false };

    /// Ranks of the worker.
    #[must_use]
    pub const fn world_size(&self) -> u32 {
        self.tp * self.pp
    }

    /// Independent attention groups, each with its own KV cache and batch limits.
    #[must_use]
    pub const fn attention_dp_size(&self) -> u32 {
        if self.attention_dp { self.tp } else { 1 }
    }

    /// The decoder layers of pipeline stage `stage`: contiguous, the first stages take one more when they do not divide evenly.
    #[must_use]
    pub const fn stage_layers(&self, n_layers: u32, stage: u32) -> std::ops::Range<u32> {
        let (each, extra) = (n_layers / self.pp, n_layers % self.pp);
        let start = stage * each + if stage < extra { stage } else { extra };
        start..start + each + if stage < extra { 1 } else { 0 }
    }
}
