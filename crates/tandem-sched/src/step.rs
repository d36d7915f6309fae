//! What the scheduler hands out and takes back: steps, their outcomes, statistics.

use tandem_plan::Phase;

use crate::sequence::SeqId;
use crate::slab::Key;

/// One sequence's share of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepEntry {
    /// The sequence.
    pub id: SeqId,
    /// A chunk of its prompt, or one step of decoding.
    pub phase: Phase,
    /// Attention-DP rank that computes it; 0 with a single rank.
    pub rank: u32,
    /// Tokens that the cache already holds.
    pub start: u32,
    /// Tokens to compute.
    pub n_tokens: u32,
    /// Whether it yields tokens (a chunk that is not the prompt's last does not).
    pub emits: bool,
    pub(crate) key: Key,
}

/// What to compute next: decoding sequences first, then chunks of prompts, each in order of arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The sequences, at most `max_batch_size`, `max_num_tokens` tokens in all.
    pub entries: Vec<StepEntry>,
    /// Entries that are chunks of prompts.
    pub n_ctx_requests: u32,
    /// Their tokens.
    pub n_ctx_tokens: u32,
    /// Tokens of decoding entries.
    pub n_gen_tokens: u32,
}

impl Step {
    /// Pairs of a query token and a token at or before it, over all entries: what attention looks at in this step.
    #[must_use]
    pub fn n_attended(&self) -> u64 {
        let pairs = |e: &StepEntry| {
            let (start, n) = (u64::from(e.start), u64::from(e.n_tokens));
            n * start + n * (n + 1) / 2
        };
        self.entries.iter().map(pairs).sum()
    }
}

/// What one entry of a step yielded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Tokens chosen; 0 for an entry that does not emit.
    pub n_new: u32,
    /// Whether the text ended with them. At `max_new` tokens a sequence ends anyway.
    pub stop: bool,
}

/// Occupancy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedStats {
    /// Sequences that wait for blocks or for a place in the batch.
    pub n_waiting: u32,
    /// Sequences in the running batch.
    pub n_running: u32,
    /// Sequences that hold blocks for a transfer: reserved and not committed, or computed and not acknowledged.
    pub n_transferring: u32,
    /// Blocks held.
    pub blocks_used: u32,
    /// Blocks in all.
    pub blocks_total: u32,
}
