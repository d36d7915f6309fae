//! The `Engine` trait: one step over a batch of sequences with a paged KV cache.

use std::ops::Range;

use tandem_plan::KvDtype;
use thiserror::Error;

/// What a worker must know about its engine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineInfo {
    /// `cpu`, `modeled`, …
    pub name: &'static str,
    /// Layers that have a KV cache (MTP layers included when they run).
    pub n_kv_layers: usize,
    /// Values the cache holds per token and layer.
    pub kv_values_per_token: usize,
    /// Stored number format of the cache.
    pub kv_dtype: KvDtype,
    /// Tokens of one block.
    pub block_size: usize,
    /// Blocks of the cache.
    pub n_blocks: usize,
    /// Rows of the output projection.
    pub vocab_size: usize,
}

impl EngineInfo {
    /// Bytes of one token in one layer, as [`KvRead::kv_read`] packs them.
    #[must_use]
    pub fn kv_bytes_per_token_layer(&self) -> usize {
        self.kv_values_per_token * usize::try_from(self.kv_dtype.bytes()).expect("a dtype has at most 4 bytes")
    }
}

/// How the next token of one sequence is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 = greedy.
    pub temperature: f32,
    /// Nucleus; 1 = off.
    pub top_p: f32,
    /// Candidates; 0 = all.
    pub top_k: u32,
    /// Seed of the request's random choices.
    pub seed: u64,
    /// Index of the token to choose within the output: with the seed it fixes the random choice,
    /// so the result does not depend on batching or on which worker chooses.
    pub output_index: u32,
    /// Tokens that may not be chosen (end of sequence before `min_tokens`).
    pub banned: Vec<u32>,
}

impl Sampling {
    /// The most likely token.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0, output_index: 0, banned: Vec::new() };
}

/// One sequence's share of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchEntry {
    /// Tokens computed in this step: a chunk of the prompt, or the last token when decoding.
    pub tokens: Vec<u32>,
    /// Tokens of the sequence that the cache already holds; the position of `tokens[0]`.
    pub start: u32,
    /// Block table: token `t` of the sequence is in `blocks[t / block_size]`. Covers `start + tokens.len()`.
    pub blocks: Vec<u32>,
    /// Choose a token after the last of `tokens`; `None` for a chunk that is not the prompt's last.
    pub sampling: Option<Sampling>,
    /// Whether this is a step of decoding (one token, absorbed attention).
    pub decode: bool,
}

/// What one step computes. No two entries share a block that either writes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// The sequences.
    pub entries: Vec<BatchEntry>,
}

/// What one step yields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepOutput {
    /// For each entry of the batch the chosen tokens: empty without `sampling`, one token, or up to `1 + mtp` for a
    /// decode of an engine that drafts: the cache then holds all of them but the last.
    pub tokens: Vec<Vec<u32>>,
}

/// Why a step could not be computed, or an engine not be built.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The checkpoint lacks something or contradicts its config.
    #[error("checkpoint {path}: {reason}")]
    Checkpoint {
        /// File or directory.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The plan asks for what this engine cannot do.
    #[error("the {engine} engine cannot run this plan: {reason}")]
    Unsupported {
        /// Engine name.
        engine: &'static str,
        /// What is not supported.
        reason: String,
    },
    /// A batch breaks a rule (block out of range, token outside the vocabulary).
    #[error("invalid batch: {0}")]
    Batch(String),
}

/// Read access to the KV cache, for transfers.
pub trait KvRead {
    /// Appends the cache of `tokens` of one sequence in one layer to `out`: token-major, packed,
    /// [`EngineInfo::kv_bytes_per_token_layer`] bytes a token (the latent, then the rotated key in
    /// half order), little endian in the cache's own dtype.
    ///
    /// # Panics
    /// When `layer` or a block is out of range.
    fn kv_read(&self, layer: usize, blocks: &[u32], tokens: Range<usize>, out: &mut Vec<u8>);
}

/// Told about the progress of a step, so that KV can be sent while later layers are computed.
pub trait StepObserver {
    /// Layer `layer` of every entry is in the cache.
    fn layer_done(&mut self, layer: usize, cache: &dyn KvRead);
}

/// An observer that does nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl StepObserver for NoObserver {
    fn layer_done(&mut self, _layer: usize, _cache: &dyn KvRead) {}
}

/// Computes steps. One engine is one rank's view of a worker; it is driven by one thread.
pub trait Engine: KvRead + Send {
    /// Constant facts.
    fn info(&self) -> &EngineInfo;

    /// Computes one step and writes the cache of its tokens.
    ///
    /// # Errors
    /// [`EngineError::Batch`] when the batch breaks a rule; the cache of other sequences is untouched.
    fn step(&mut self, batch: &Batch, observer: &mut dyn StepObserver) -> Result<StepOutput, EngineError>;

    /// Writes what [`KvRead::kv_read`] of an engine with the same model and dtype produced.
    ///
    /// # Errors
    /// [`EngineError::Batch`] when the length does not match or a block is out of range.
    fn kv_write(&mut self, layer: usize, blocks: &[u32], tokens: Range<usize>, bytes: &[u8]) -> Result<(), EngineError>;
}
