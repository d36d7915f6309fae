//! Where the time of steps goes, by operator.

use std::time::{Duration, Instant};

/// The operators of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Embedding rows and rotation angles.
    Embed,
    /// RMS norms and residual additions.
    Norm,
    /// Query and latent projections, with norm, rotation and the cache write.
    QkvProj,
    /// The observer's time: KV handed to a transfer.
    Observer,
    /// Latent to keys and values (expanded attention).
    KvExpand,
    /// Scores, softmax and weighted sum (expanded attention).
    AttentionExpanded,
    /// Absorbed attention with its per-head projections.
    AttentionAbsorbed,
    /// Attention output projection.
    OutputProj,
    /// Expert choice.
    Router,
    /// Dense feed-forward.
    DenseMlp,
    /// Routed and shared experts with gathering and combining.
    Experts,
    /// Output projection to the vocabulary.
    Head,
    /// Choosing tokens.
    Sample,
}

impl Op {
    /// All operators in the order of a step.
    pub const ALL: [Op; 13] = [
        Op::Embed,
        Op::Norm,
        Op::QkvProj,
        Op::Observer,
        Op::KvExpand,
        Op::AttentionExpanded,
        Op::AttentionAbsorbed,
        Op::OutputProj,
        Op::Router,
        Op::DenseMlp,
        Op::Experts,
        Op::Head,
        Op::Sample,
    ];

    /// Name for reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Op::Embed => "embed",
            Op::Norm => "norm+residual",
            Op::QkvProj => "qkv proj+rope",
            Op::Observer => "observer",
            Op::KvExpand => "kv expand",
            Op::AttentionExpanded => "attention (expanded)",
            Op::AttentionAbsorbed => "attention (absorbed)",
            Op::OutputProj => "o proj",
            Op::Router => "router",
            Op::DenseMlp => "dense mlp",
            Op::Experts => "experts",
            Op::Head => "lm head",
            Op::Sample => "sample",
        }
    }
}

/// Time and arithmetic of one operator.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct OpCost {
    /// Wall time.
    pub time: Duration,
    /// Floating-point operations that were needed (a multiply-add counts two; padding and masked scores do not count).
    pub flops: u64,
}

/// Costs since the last reset.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    costs: [OpCost; Op::ALL.len()],
}

impl Profile {
    /// The cost of `op`.
    #[must_use]
    pub fn cost(&self, op: Op) -> OpCost {
        self.costs[op as usize]
    }

    /// All operators together.
    #[must_use]
    pub fn total(&self) -> OpCost {
        self.costs.iter().fold(OpCost::default(), |a, b| OpCost { time: a.time + b.time, flops: a.flops + b.flops })
    }

    /// Adds the time since `since` and `flops` to `op`; returns now, where the next operator begins.
    pub(crate) fn add(&mut self, op: Op, since: Instant, flops: u64) -> Instant {
        let now = Instant::now();
        let cost = &mut self.costs[op as usize];
        cost.time += now - since;
        cost.flops += flops;
        now
    }
}
