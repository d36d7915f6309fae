//! The multi-token-prediction layer: drafts the token after the next.
//!
//! At position `t` it sees the main model's state after its final norm and the token at
//! `t + 1`: `eh_proj([enorm(embed(token t+1)) ; hnorm(state t)])`, one decoder block with a KV
//! cache of its own (one layer more in the engine's cache), `shared_head.norm`, and the main
//! output projection, whose logits are for `t + 2`.
//!
//! Not here: verifying drafts. [`Engine::step`](crate::Engine::step) does not draft yet.

use std::time::Instant;

use super::attention::Span;
use super::batch;
use super::forward::Live;
use super::gemm::{Job, run_jobs};
use super::packed::{Packed, padded};
use super::profile::Op;
use super::rows::sized;
use super::sampling::argmax;
use super::weights::Loader;
use super::{CpuEngine, Scratch};
use crate::engine::EngineError;

/// What the layer has beside its decoder block.
pub(super) struct Mtp {
    embed_norm: Vec<f32>,
    hidden_norm: Vec<f32>,
    projection: Packed,
    pub(super) head_norm: Vec<f32>,
}

impl Mtp {
    pub(super) fn load(loader: &Loader<'_>) -> Result<Self, EngineError> {
        let (hidden, prefix) = (loader.shape.hidden, format!("model.layers.{}.", loader.config.num_hidden_layers));
        Ok(Self {
            embed_norm: loader.vector(&format!("{prefix}enorm.weight"), hidden)?,
            hidden_norm: loader.vector(&format!("{prefix}hnorm.weight"), hidden)?,
            projection: loader.matrix(&format!("{prefix}eh_proj.weight"), hidden, 2 * hidden)?,
            head_norm: loader.vector(&format!("{prefix}shared_head.norm.weight"), hidden)?,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.projection.bytes()
    }
}

/// Consecutive positions of one sequence for the MTP layer.
#[derive(Debug, Clone, Copy)]
pub struct DraftEntry<'a> {
    /// The main model's state after its final norm at each position, `[positions][hidden]`.
    pub hidden: &'a [f32],
    /// The token after each position.
    pub next: &'a [u32],
    /// The first position; the layer's cache holds those before it.
    pub start: u32,
    /// Block table of the sequence (the main model's: the layer's cache is paged alike).
    pub blocks: &'a [u32],
}

impl CpuEngine {
    /// Runs the MTP layer over `entry`, writing its KV cache; returns the most likely token after `next` for each
    /// position.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] without an MTP layer ([`CpuOptions::mtp`](super::CpuOptions::mtp));
    /// [`EngineError::Batch`] when lengths, tokens or blocks do not fit.
    pub fn draft(&mut self, entry: &DraftEntry<'_>) -> Result<Vec<u32>, EngineError> {
        self.check_draft(entry)?;
        let m = entry.next.len();
        let span = Span { rows: 0..m, first: entry.start as usize, blocks: entry.blocks, decode: m == 1 };
        let live = Live { rows: (0..m).collect(), spans: vec![span] };
        self.draft_input(entry);
        let index = self.shape.n_layers;
        self.project(index, &live);
        self.attend(index, &live);
        self.feed_forward(index, m);
        self.head(m, true);
        let rows = self.scratch.logits.chunks_exact(self.weights.head.n_padded()).take(m);
        Ok(rows.map(|row| u32::try_from(argmax(&row[..self.shape.vocab])).expect("a vocabulary has fewer than 2^32 tokens")).collect())
    }

    fn check_draft(&self, entry: &DraftEntry<'_>) -> Result<(), EngineError> {
        if self.weights.mtp.is_none() {
            return Err(EngineError::Unsupported { engine: "cpu", reason: "the engine was built without an MTP layer".into() });
        }
        let invalid = |reason: String| Err(EngineError::Batch(format!("draft: {reason}")));
        if entry.next.is_empty() || entry.hidden.len() != entry.next.len() * self.shape.hidden {
            return invalid(format!("{} state values for {} tokens of {}", entry.hidden.len(), entry.next.len(), self.shape.hidden));
        }
        if let Some(token) = entry.next.iter().find(|t| **t as usize >= self.shape.vocab) {
            return invalid(format!("token {token} is outside the vocabulary of {}", self.shape.vocab));
        }
        batch::check_blocks(&self.info, entry.blocks, entry.start as usize + entry.next.len())
    }

    /// The layer's input as the residual stream, and its rotation angles.
    fn draft_input(&mut self, entry: &DraftEntry<'_>) {
        let since = Instant::now();
        let mtp = self.weights.mtp.as_ref().expect("checked by the caller");
        let (hidden, m) = (self.shape.hidden, entry.next.len());
        let Scratch { x, normed, cos, sin, .. } = &mut self.scratch;
        cos.clear();
        sin.clear();
        let mut embedding = vec![0.0; hidden];
        let both = sized(normed, m * 2 * hidden);
        for (i, row) in both.chunks_exact_mut(2 * hidden).enumerate() {
            let (left, right) = row.split_at_mut(hidden);
            self.weights.embed(entry.next[i], &mut embedding);
            self.isa.rms_norm(&embedding, &mtp.embed_norm, self.shape.eps, left);
            self.isa.rms_norm(&entry.hidden[i * hidden..(i + 1) * hidden], &mtp.hidden_norm, self.shape.eps, right);
            self.rope.angles(entry.start as usize + i, cos, sin);
        }
        let ld = padded(hidden);
        let x = sized(x, m * ld);
        let flops = run_jobs(&self.pool, self.isa, &[Job::new(&mtp.projection, both, 2 * hidden, m, x, ld)]);
        self.profile.add(Op::Embed, since, flops);
    }
}
