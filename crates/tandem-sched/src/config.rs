//! Limits of one scheduler, and why limits or requests are refused.

use tandem_plan::{EngineLimits, KvPlan};
use thiserror::Error;

use crate::sequence::SeqId;

/// Limits of one scheduler (one attention-DP rank).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedConfig {
    /// Sequences in one step.
    pub max_batch_size: u32,
    /// Tokens in one step.
    pub max_num_tokens: u32,
    /// Longest sequence, prompt and output together, tokens.
    pub max_seq_len: u32,
    /// Whether a prompt may be computed in several steps.
    pub chunked_prefill: bool,
    /// Tokens of one KV block.
    pub block_size: u32,
    /// KV blocks in all.
    pub n_blocks: u32,
    /// Tokens that the engine drafts and verifies beside each decoding sequence's own (MTP); 0 = off.
    pub n_drafts: u32,
}

/// A limit that no scheduler can work with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{field} must not be 0")]
pub struct ConfigError {
    /// The field of [`SchedConfig`].
    pub field: &'static str,
}

/// Why a request is refused at once: it could never run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// There is nothing to compute.
    #[error("the prompt or the output is empty")]
    Empty,
    /// Longer than any sequence may be.
    #[error("{n_tokens} tokens are over max_seq_len {max_seq_len}")]
    TooLong {
        /// Tokens of prompt and output.
        n_tokens: u64,
        /// The limit.
        max_seq_len: u32,
    },
    /// Needs more blocks than there are.
    #[error("{n_needed} KV blocks are needed and the cache has {n_blocks}")]
    TooManyBlocks {
        /// Blocks of the whole sequence.
        n_needed: u32,
        /// Blocks of the cache.
        n_blocks: u32,
    },
    /// The prompt must be computed in one step (no chunked prefill) and does not fit in one.
    #[error("a prompt of {n_prompt} tokens is over max_num_tokens {max_num_tokens} and chunked prefill is off")]
    PromptOverStep {
        /// Tokens of the prompt.
        n_prompt: u32,
        /// The limit.
        max_num_tokens: u32,
    },
    /// A sequence of this name is already here.
    #[error("sequence {0} is already scheduled")]
    Duplicate(SeqId),
}

impl SchedConfig {
    /// The limits of one rank of a worker plan.
    #[must_use]
    pub const fn new(limits: &EngineLimits, kv: &KvPlan, n_drafts: u32) -> Self {
        Self {
            max_batch_size: limits.max_batch_size,
            max_num_tokens: limits.max_num_tokens,
            max_seq_len: limits.max_seq_len,
            chunked_prefill: limits.chunked_prefill,
            block_size: kv.block_size,
            n_blocks: kv.n_blocks,
            n_drafts,
        }
    }

    /// Tokens that a decoding sequence takes of a step's `max_num_tokens`.
    #[must_use]
    pub(crate) const fn decode_tokens(&self) -> u32 {
        1 + self.n_drafts
    }

    /// Sequences that can be in the running batch: each of them needs room for its decode tokens in a step.
    #[must_use]
    pub(crate) fn batch_limit(&self) -> usize {
        self.max_batch_size.min(self.max_num_tokens / self.decode_tokens()) as usize
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("max_batch_size", self.max_batch_size),
            ("max_num_tokens / (1 + n_drafts)", self.max_num_tokens / self.decode_tokens()),
            ("max_seq_len", self.max_seq_len),
            ("block_size", self.block_size),
            ("n_blocks", self.n_blocks),
        ] {
            if value == 0 {
                return Err(ConfigError { field });
            }
        }
        Ok(())
    }

    /// Whether a sequence of `n_prompt + n_output` tokens can ever run.
    pub(crate) fn fits(&self, n_prompt: u32, n_output: u32) -> Result<(), SubmitError> {
        let n_tokens = u64::from(n_prompt) + u64::from(n_output);
        if n_prompt == 0 {
            return Err(SubmitError::Empty);
        }
        if n_tokens > u64::from(self.max_seq_len) {
            return Err(SubmitError::TooLong { n_tokens, max_seq_len: self.max_seq_len });
        }
        let n_needed = (n_prompt + n_output).div_ceil(self.block_size);
        if n_needed > self.n_blocks {
            return Err(SubmitError::TooManyBlocks { n_needed, n_blocks: self.n_blocks });
        }
        Ok(())
    }

    /// As [`Self::fits`], for a prompt that is computed here.
    pub(crate) fn fits_prefill(&self, n_prompt: u32, n_output: u32) -> Result<(), SubmitError> {
        self.fits(n_prompt, n_output)?;
        if !self.chunked_prefill && n_prompt > self.max_num_tokens {
            return Err(SubmitError::PromptOverStep { n_prompt, max_num_tokens: self.max_num_tokens });
        }
        Ok(())
    }
}
