//! One sequence and the states that it goes through.
//!
//! ```text
//! prefill     Waiting ─▶ Prefilling ─▶ Transferring ─▶ (released)
//! decode      Waiting ─▶ Reserved ─▶ Ready ─▶ Decoding ─▶ (released)
//! aggregated  Waiting ─▶ Prefilling ─▶ Decoding ─▶ (released)
//! ```
//! Blocks are held from `Prefilling` or `Reserved` on, all that the sequence can ever need.

use std::fmt;

use crate::blocks::BlockTable;

/// The caller's name of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

impl fmt::Display for SeqId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What a sequence is waiting for or doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeqState {
    /// For blocks (and, where the prompt is computed here, for a place in the batch).
    Waiting,
    /// Holds blocks and waits for its KV to arrive.
    Reserved,
    /// Has its KV and waits for a place in the batch.
    Ready,
    /// Chunks of its prompt are computed.
    Prefilling,
    /// One step a token.
    Decoding,
    /// The prompt is computed; holds blocks until the other side has them.
    Transferring,
}

/// Which parts of a request are computed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Prefill,
    Decode,
    Aggregated,
}

/// One sequence.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SeqId,
    pub(crate) kind: Kind,
    pub(crate) state: SeqState,
    /// Tokens of the prompt.
    pub(crate) n_prompt: u32,
    /// Tokens of the output at most, the first included.
    pub(crate) max_new: u32,
    /// Tokens whose KV is in the cache.
    pub(crate) n_cached: u32,
    /// Tokens generated so far, the first included.
    pub(crate) n_output: u32,
    pub(crate) table: BlockTable,
    /// Part of a step that has not been completed.
    pub(crate) in_step: bool,
    /// Released while in a step: gone when the step completes.
    pub(crate) released: bool,
}

impl Sequence {
    pub(crate) fn new(id: SeqId, kind: Kind, n_prompt: u32, max_new: u32) -> Self {
        Self {
            id,
            kind,
            state: SeqState::Waiting,
            n_prompt,
            max_new,
            n_cached: 0,
            n_output: 0,
            table: BlockTable::default(),
            in_step: false,
            released: false,
        }
    }

    /// Tokens that it may ever have in the cache of this worker.
    pub(crate) fn n_tokens_max(&self) -> u32 {
        match self.kind {
            Kind::Prefill => self.n_prompt,
            Kind::Decode | Kind::Aggregated => self.n_prompt + self.max_new,
        }
    }

    /// Whether it has a place in the running batch.
    pub(crate) fn in_batch(&self) -> bool {
        matches!(self.state, SeqState::Prefilling | SeqState::Decoding)
    }
}
