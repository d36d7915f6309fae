//! Expanded attention: keys and values of every head, a block of cached tokens at a time.
#![expect(unsafe_code, reason = "kernels take raw pointers; tasks write disjoint rows")]

use std::ops::Range;
use std::time::Instant;

use super::super::gemm::{Job, run_jobs};
use super::super::packed::padded;
use super::super::profile::{Op, Profile};
use super::super::rows::{SharedMut, for_rows, sized};
use super::super::simd::{NR, PanelArgs};
use super::{Layer, Rows, Span};

/// Cached tokens whose keys and values are computed together.
const KEY_BLOCK: usize = 512;
/// Keys whose scores are held at once; with `QUERY_TILE` rows they stay in the first-level cache.
const KEY_TILE: usize = 128;
/// Query rows that are attended together.
const QUERY_TILE: usize = 48;

#[derive(Debug, Default)]
pub(super) struct Scratch {
    latents: Vec<f32>,
    keys_values: Vec<f32>,
    /// `[heads][rows][v, padded]`, not yet normalised.
    outputs: Vec<f32>,
    /// `[heads][rows]` of (running maximum, running sum).
    softmax: Vec<(f32, f32)>,
}

/// Attends all rows of `span`.
pub(super) fn attend(layer: &Layer<'_>, span: &Span<'_>, rows: &mut Rows<'_>, scratch: &mut Scratch, profile: &mut Profile) {
    let (s, c) = (layer.shape, layer.compute);
    let (n, ld_v) = (span.rows.len(), padded(s.v));
    let Scratch { latents, keys_values, outputs, softmax } = scratch;
    let outputs = sized(outputs, s.heads * n * ld_v);
    outputs.fill(0.0);
    softmax.clear();
    softmax.resize(s.heads * n, (f32::NEG_INFINITY, 0.0));

    let splits = (2 * c.pool.threads()).div_ceil(s.heads).min(n.div_ceil(QUERY_TILE)).max(1);
    let per_split = n.div_ceil(splits);
    let ld_latent = padded(s.kv_values());
    let ld_kv = layer.weights.kv_b.n_padded();
    let mut since = Instant::now();
    for start in (0..span.n_keys()).step_by(KEY_BLOCK) {
        let keys = start..(start + KEY_BLOCK).min(span.n_keys());
        let latents = sized(latents, keys.len() * ld_latent);
        for_rows(c.pool, latents, ld_latent, keys.len(), 64, |first, part| {
            let tokens = keys.start + first..keys.start + first + part.len() / ld_latent;
            layer.cache.load(layer.index, span.blocks, tokens, part, ld_latent);
        });
        let keys_values = sized(keys_values, keys.len() * ld_kv);
        let flops = run_jobs(c.pool, c.isa, &[Job::new(&layer.weights.kv_b, latents, ld_latent, keys.len(), keys_values, ld_kv)]);
        since = profile.add(Op::KvExpand, since, flops);

        let block = Block { layer, span, q: rows.q, ldq: rows.ldq, latents, keys_values, keys: keys.clone() };
        let (shared_out, shared_softmax) = (SharedMut::new(outputs), SharedMut::new(softmax));
        c.pool.run(s.heads * splits, |task| {
            let (head, first) = (task / splits, (task % splits * per_split).min(n));
            let mine = first..(first + per_split).min(n);
            let at = |row: usize| head * n + row;
            // SAFETY: tasks differ in the head or in the rows.
            let (out, softmax) =
                unsafe { (shared_out.part(at(mine.start) * ld_v..at(mine.end) * ld_v), shared_softmax.part(at(mine.start)..at(mine.end))) };
            block.attend_head(head, mine, out, softmax);
        });
        since = profile.add(Op::AttentionExpanded, since, 0);
    }

    for (h, (of_head, sums)) in outputs.chunks_exact(n * ld_v).zip(softmax.chunks_exact(n)).enumerate() {
        for (row, (values, (_, sum))) in span.rows.clone().zip(of_head.chunks_exact(ld_v).zip(sums)) {
            let out = &mut rows.out[row * rows.ldo + h * s.v..row * rows.ldo + (h + 1) * s.v];
            out.iter_mut().zip(values).for_each(|(o, v)| *o = v / sum);
        }
    }
    profile.add(Op::AttentionExpanded, since, 2 * (span.pairs() * s.heads * (s.head() + s.v)) as u64);
}

/// Keys and values of one block of cached tokens.
struct Block<'a> {
    layer: &'a Layer<'a>,
    span: &'a Span<'a>,
    q: &'a [f32],
    ldq: usize,
    latents: &'a [f32],
    keys_values: &'a [f32],
    keys: Range<usize>,
}

impl Block<'_> {
    /// Adds this block's keys to the running attention of one head for rows `rows` of the span.
    fn attend_head(&self, head: usize, rows: Range<usize>, out: &mut [f32], softmax: &mut [(f32, f32)]) {
        let last_position = self.span.first + rows.end;
        if rows.is_empty() || self.keys.start >= last_position {
            return;
        }
        let n_keys = self.keys.end.min(last_position) - self.keys.start;
        let (keys, values) = self.gather_head(head, n_keys);
        let (dim, ld_v) = (self.layer.shape.head(), padded(self.layer.shape.v));
        // The head's queries side by side: rows of all heads would be a stride apart that maps to few cache sets.
        let mut queries = vec![0.0f32; QUERY_TILE * dim];
        let mut scores = vec![0.0f32; QUERY_TILE * KEY_TILE];
        for tile in (0..rows.len()).step_by(QUERY_TILE) {
            let tile = tile..(tile + QUERY_TILE).min(rows.len());
            let first = rows.start + tile.start;
            let out = &mut out[tile.start * ld_v..tile.end * ld_v];
            for (row, query) in (self.span.rows.start + first..).zip(queries.chunks_exact_mut(dim)).take(tile.len()) {
                query.copy_from_slice(&self.q[row * self.ldq + head * dim..row * self.ldq + (head + 1) * dim]);
            }
            self.attend_tile(&queries, first, n_keys, (&keys, &values), &mut scores, out, &mut softmax[tile]);
        }
    }

    /// One head's keys as panels `[panel][dim][NR]` and its values `[key][v, padded]`.
    fn gather_head(&self, head: usize, n_keys: usize) -> (Vec<f32>, Vec<f32>) {
        let (s, isa) = (self.layer.shape, self.layer.compute.isa);
        let (dim, ld_v) = (s.head(), padded(s.v));
        let (ld_kv, ld_latent) = (self.layer.weights.kv_b.n_padded(), padded(s.kv_values()));
        let column = head * (s.nope + s.v);
        let mut keys = vec![0.0f32; n_keys.div_ceil(NR) * dim * NR];
        for (p, panel) in keys.chunks_exact_mut(dim * NR).enumerate() {
            let (first, n) = (p * NR, NR.min(n_keys - p * NR));
            isa.transpose(&self.keys_values[first * ld_kv + column..], ld_kv, n, s.nope, panel, NR);
            isa.transpose(&self.latents[first * ld_latent + s.latent..], ld_latent, n, s.rope, &mut panel[s.nope * NR..], NR);
        }
        let mut values = vec![0.0f32; n_keys * ld_v];
        for (key, row) in values.chunks_exact_mut(ld_v).enumerate() {
            let start = key * ld_kv + column + s.nope;
            row[..s.v].copy_from_slice(&self.keys_values[start..start + s.v]);
        }
        (keys, values)
    }

    /// Attends query rows `first..` of the span (as many as `softmax` has) to the first `n_keys` keys of the block.
    #[expect(clippy::too_many_arguments, reason = "the innermost loop; a struct would only rename them")]
    fn attend_tile(
        &self,
        q: &[f32],
        first: usize,
        n_keys: usize,
        kv: (&[f32], &[f32]),
        scores: &mut [f32],
        out: &mut [f32],
        softmax: &mut [(f32, f32)],
    ) {
        let (s, isa) = (self.layer.shape, self.layer.compute.isa);
        let (dim, ld_v, m) = (s.head(), padded(s.v), softmax.len());
        let seen_by = |row: usize, start: usize| (self.span.first + first + row + 1).saturating_sub(self.keys.start + start);
        for start in (0..n_keys).step_by(KEY_TILE) {
            let n = KEY_TILE.min(n_keys - start).min(seen_by(m - 1, start));
            if n == 0 {
                return;
            }
            for panel in 0..n.div_ceil(NR) {
                let b = kv.0[(start / NR + panel) * dim * NR..].as_ptr();
                let c = scores[panel * NR..].as_mut_ptr();
                let args = PanelArgs { x: q.as_ptr(), ldx: dim, m, k: dim, b, ldb: NR, c, ldc: KEY_TILE, accumulate: false };
                // SAFETY: m query rows of this head, one whole key panel, and m score rows of KEY_TILE columns.
                unsafe { isa.panel(args) };
            }
            let per_row = scores.chunks_exact_mut(KEY_TILE).zip(out.chunks_exact_mut(ld_v)).zip(softmax.iter_mut());
            for (row, ((scores, out), (max, sum))) in per_row.enumerate() {
                let seen = seen_by(row, start).min(n);
                scores[seen..n].fill(0.0);
                let largest = isa.max(&scores[..seen]).max(*max);
                if largest > *max {
                    let shrink = (*max - largest).exp();
                    isa.scale(out, shrink);
                    *sum *= shrink;
                    *max = largest;
                }
                if seen > 0 {
                    *sum += isa.exp_sum(&mut scores[..seen], *max);
                }
            }
            for column in (0..ld_v).step_by(NR) {
                let b = kv.1[start * ld_v + column..].as_ptr();
                let c = out[column..].as_mut_ptr();
                let args = PanelArgs { x: scores.as_ptr(), ldx: KEY_TILE, m, k: n, b, ldb: ld_v, c, ldc: ld_v, accumulate: true };
                // SAFETY: m score rows, n value rows from `start` on, and m output rows of `ld_v` columns.
                unsafe { isa.panel(args) };
            }
        }
    }
}
