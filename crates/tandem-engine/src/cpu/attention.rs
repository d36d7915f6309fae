//! Multi-head latent attention over the paged latent cache, in two forms with equal results.
//!
//! *Expanded* (prefill): keys and values of all heads are computed from cached latents, 512
//! tokens at a time, and attended with a running softmax; memory does not grow with the square
//! of the prompt. *Absorbed* (decode): queries are mapped into the latent space once and
//! attend the latents themselves, so the cache is read once for all heads.
//!
//! Reading order: [`attend`] picks the form, `expanded` and `absorbed` compute it.

use std::ops::Range;
use std::time::Instant;

use super::cache::Cache;
use super::moe::Compute;
use super::profile::{Op, Profile};
use super::shape::Shape;
use super::weights::Attention;

mod absorbed;
mod expanded;

/// Which form attends a prompt chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttentionForm {
    /// Decode steps absorbed; prompt chunks whichever needs fewer operations.
    #[default]
    Auto,
    /// Always expanded.
    Expanded,
    /// Always absorbed.
    Absorbed,
}

/// Query rows of one sequence at consecutive positions.
#[derive(Debug, Clone)]
pub(crate) struct Span<'a> {
    /// Rows of the query and output buffers.
    pub(crate) rows: Range<usize>,
    /// Position of the first row.
    pub(crate) first: usize,
    /// Block table of the sequence.
    pub(crate) blocks: &'a [u32],
    /// Whether this is a step of decoding.
    pub(crate) decode: bool,
}

impl Span<'_> {
    /// Keys that the last row sees.
    fn n_keys(&self) -> usize {
        self.first + self.rows.len()
    }

    /// Pairs of a row and a key that it sees.
    fn pairs(&self) -> usize {
        self.rows.clone().enumerate().map(|(i, _)| self.first + i + 1).sum()
    }

    fn is_absorbed(&self, form: AttentionForm, s: &Shape) -> bool {
        match form {
            AttentionForm::Expanded => false,
            AttentionForm::Absorbed => true,
            AttentionForm::Auto if self.decode => true,
            AttentionForm::Auto => {
                let projection = s.latent * (s.nope + s.v);
                let absorbed = self.pairs() * (2 * s.latent + s.rope) + self.rows.len() * projection;
                let expanded = self.pairs() * (s.head() + s.v) + self.n_keys() * projection;
                absorbed < expanded
            }
        }
    }
}

/// Buffers of attention.
#[derive(Debug, Default)]
pub(crate) struct AttentionScratch {
    expanded: expanded::Scratch,
    absorbed: absorbed::Scratch,
}

/// One layer's attention.
pub(crate) struct Layer<'a> {
    pub(crate) compute: Compute<'a>,
    pub(crate) shape: &'a Shape,
    pub(crate) weights: &'a Attention,
    pub(crate) cache: &'a Cache,
    pub(crate) index: usize,
    pub(crate) form: AttentionForm,
}

/// Query rows `[heads][nope + rope]`, rotated and scaled, and where the heads' outputs `[heads][v]` go.
pub(crate) struct Rows<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) ldq: usize,
    pub(crate) out: &'a mut [f32],
    pub(crate) ldo: usize,
}

/// Attends all spans; the keys of their own rows are in the cache already.
pub(crate) fn attend(layer: &Layer<'_>, spans: &[Span<'_>], rows: &mut Rows<'_>, scratch: &mut AttentionScratch, profile: &mut Profile) {
    let (absorbed, expanded): (Vec<_>, Vec<_>) = spans.iter().partition(|s| s.is_absorbed(layer.form, layer.shape));
    for span in expanded {
        expanded::attend(layer, span, rows, &mut scratch.expanded, profile);
    }
    if !absorbed.is_empty() {
        let since = Instant::now();
        let flops = absorbed::attend(layer, &absorbed, rows, &mut scratch.absorbed);
        profile.add(Op::AttentionAbsorbed, since, flops);
    }
}
