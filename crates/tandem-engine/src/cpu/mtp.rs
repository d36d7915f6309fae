//! The multi-token-prediction layer: drafts the token after the next.
//!
//! At position `t` it sees the main model's state after its final norm and the token at
//! `t + 1`: `eh_proj([enorm(embed(token t+1)) ; hnorm(state t)])`, one decoder block with a KV
//! cache of its own (one layer more in the engine's cache), `shared_head.norm`, and the main
//! output projection, whose logits are for `t + 2`.
//!
//! Not here: when it runs and how drafts are verified (`speculate`).

use std::ops::Range;
use std::time::Instant;

use super::attention::Span;
use super::forward::Live;
use super::gemm::{Job, run_jobs};
use super::packed::{Packed, padded};
use super::profile::Op;
use super::rows::sized;
use super::sampling::argmax;
use super::weights::Loader;
use super::{CpuEngine, Scratch};
use crate::engine::{EngineError, StepObserver};

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

/// Rows of one sequence for the MTP layer, at consecutive positions.
#[derive(Debug, Clone)]
pub(super) struct DraftSpan<'a> {
    /// Rows of the inputs.
    pub(super) rows: Range<usize>,
    /// Position of the first.
    pub(super) first: usize,
    /// Block table of the sequence: the layer's cache is paged as the main model's.
    pub(super) blocks: &'a [u32],
}

impl CpuEngine {
    /// Runs the MTP layer: row `i` holds the main model's state after its final norm (`hidden`, rows of the padded
    /// width) and the token after it. Writes the layer's KV cache and leaves its own normed states in
    /// `scratch.normed`; `observer` is told once the cache is written.
    pub(super) fn run_mtp(&mut self, hidden: &[f32], next: &[u32], spans: &[DraftSpan<'_>], observer: &mut dyn StepObserver) {
        let index = self.shape.n_layers;
        let m = next.len();
        let mut live = Live { rows: (0..m).collect(), spans: Vec::new() };
        for s in spans {
            live.spans.push(Span { rows: s.rows.clone(), first: s.first, blocks: s.blocks, decode: s.rows.len() == 1 });
        }
        self.draft_input(hidden, next, spans);
        self.project(index, &live);
        observer.layer_done(index, &self.cache);
        self.attend(index, &live);
        self.feed_forward(index, m);
        self.final_norm(m, true);
    }

    /// Most likely token after `next` for each of `rows` of the last [`CpuEngine::run_mtp`].
    pub(super) fn drafted(&mut self, rows: &[usize]) -> Vec<u32> {
        self.logits(rows);
        let logits = self.scratch.logits.chunks_exact(self.weights.head.n_padded()).take(rows.len());
        logits.map(|row| u32::try_from(argmax(&row[..self.shape.vocab])).expect("a vocabulary has fewer than 2^32 tokens")).collect()
    }

    /// The layer's input as the residual stream, and its rotation angles.
    fn draft_input(&mut self, hidden: &[f32], next: &[u32], spans: &[DraftSpan<'_>]) {
        let since = Instant::now();
        let mtp = self.weights.mtp.as_ref().expect("an engine that drafts has loaded the layer");
        let (width, m, ld) = (self.shape.hidden, next.len(), padded(self.shape.hidden));
        let Scratch { x, normed, cos, sin, .. } = &mut self.scratch;
        cos.clear();
        sin.clear();
        for position in spans.iter().flat_map(|s| s.first..s.first + s.rows.len()) {
            self.rope.angles(position, cos, sin);
        }
        let mut embedding = vec![0.0; width];
        let both = sized(normed, m * 2 * width);
        for (i, row) in both.chunks_exact_mut(2 * width).enumerate() {
            let (left, right) = row.split_at_mut(width);
            self.weights.embed(next[i], &mut embedding);
            self.isa.rms_norm(&embedding, &mtp.embed_norm, self.shape.eps, left);
            self.isa.rms_norm(&hidden[i * ld..i * ld + width], &mtp.hidden_norm, self.shape.eps, right);
        }
        let x = sized(x, m * ld);
        let flops = run_jobs(&self.pool, self.isa, &[Job::new(&mtp.projection, both, 2 * width, m, x, ld)]);
        self.profile.add(Op::Embed, since, flops);
    }
}
