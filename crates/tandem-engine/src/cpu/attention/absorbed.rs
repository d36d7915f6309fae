//! Absorbed attention: multi-query attention over the latents themselves.
//!
//! `scores = (q_nope W_UK) . latent + q_rope . k_rope`, `out = (softmax(scores) . latents) W_UV`.
#![expect(unsafe_code, reason = "kernels take raw pointers; tasks write disjoint rows")]

use super::super::gemm::{Job, run_jobs};
use super::super::packed::padded;
use super::super::rows::{SharedMut, sized};
use super::super::simd::{DotArgs, NR, PanelArgs};
use super::{Layer, Rows, Span};

/// Cached tokens that are attended together.
const TILE: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Query rows side by side `[rows][heads * head]`.
    queries: Vec<f32>,
    /// `[heads][rows][latent + rope, padded]`.
    absorbed: Vec<f32>,
    /// `[heads][rows][latent, padded]`.
    latents: Vec<f32>,
    /// `[heads][rows][v, padded]`.
    values: Vec<f32>,
}

/// One query row.
struct Query<'a> {
    row: usize,
    blocks: &'a [u32],
    n_keys: usize,
}

/// Attends all rows of `spans`; returns floating-point operations.
pub(super) fn attend(layer: &Layer<'_>, spans: &[&Span<'_>], rows: &mut Rows<'_>, scratch: &mut Scratch) -> u64 {
    let s = layer.shape;
    let queries: Vec<Query<'_>> = spans
        .iter()
        .flat_map(|span| span.rows.clone().enumerate().map(|(i, row)| Query { row, blocks: span.blocks, n_keys: span.first + i + 1 }))
        .collect();
    let (n, ld_q) = (queries.len(), s.heads * s.head());
    let (ld_key, ld_latent, ld_v) = (padded(s.kv_values()), padded(s.latent), padded(s.v));
    let q = sized(&mut scratch.queries, n * ld_q);
    for (target, query) in q.chunks_exact_mut(ld_q).zip(&queries) {
        target.copy_from_slice(&rows.q[query.row * rows.ldq..query.row * rows.ldq + ld_q]);
    }
    let absorbed = sized(&mut scratch.absorbed, s.heads * n * ld_key);
    let mut flops = absorb_queries(layer, q, n, absorbed, ld_key);

    let latents = sized(&mut scratch.latents, s.heads * n * ld_latent);
    let groups = if n >= 2 * layer.compute.pool.threads() { 1 } else { layer.compute.pool.threads().min(s.heads) };
    let heads_per_group = s.heads.div_ceil(groups);
    let shared = SharedMut::new(latents);
    let absorbed = &*absorbed;
    layer.compute.pool.run(n * groups, |task| {
        let (i, first) = (task / groups, task % groups * heads_per_group);
        let heads = first..(first + heads_per_group).min(s.heads);
        if !heads.is_empty() {
            attend_query(layer, &queries[i], absorbed, &shared, heads, i, n);
        }
    });

    let values = sized(&mut scratch.values, s.heads * n * ld_v);
    let jobs: Vec<Job<'_>> = (layer.weights.absorb_v.iter().zip(latents.chunks_exact(n * ld_latent)))
        .zip(values.chunks_exact_mut(n * ld_v))
        .map(|((w, latents), values)| Job::new(w, latents, ld_latent, n, values, ld_v))
        .collect();
    flops += run_jobs(layer.compute.pool, layer.compute.isa, &jobs);
    drop(jobs);
    for (h, of_head) in values.chunks_exact(n * ld_v).enumerate() {
        for (query, value) in queries.iter().zip(of_head.chunks_exact(ld_v)) {
            let start = query.row * rows.ldo + h * s.v;
            rows.out[start..start + s.v].copy_from_slice(&value[..s.v]);
        }
    }
    let pairs: usize = queries.iter().map(|q| q.n_keys).sum();
    flops + 2 * (pairs * s.heads * (2 * s.latent + s.rope)) as u64
}

/// `out[head][row] = [q_nope W_UK | q_rope | 0...]`.
fn absorb_queries(layer: &Layer<'_>, q: &[f32], n: usize, out: &mut [f32], ld: usize) -> u64 {
    let s = layer.shape;
    let ld_q = s.heads * s.head();
    let jobs: Vec<Job<'_>> = (layer.weights.absorb_k.iter().enumerate().zip(out.chunks_exact_mut(n * ld)))
        .map(|((h, w), out)| Job::new(w, &q[h * s.head()..], ld_q, n, out, ld))
        .collect();
    let flops = run_jobs(layer.compute.pool, layer.compute.isa, &jobs);
    drop(jobs);
    for (h, of_head) in out.chunks_exact_mut(n * ld).enumerate() {
        for (i, row) in of_head.chunks_exact_mut(ld).enumerate() {
            let rotated = i * ld_q + h * s.head() + s.nope;
            row[s.latent..s.kv_values()].copy_from_slice(&q[rotated..rotated + s.rope]);
            row[s.kv_values()..].fill(0.0);
        }
    }
    flops
}

/// Weighted sum of latents for `heads` of query `i` of `n`, with a running softmax over tiles of cached tokens.
fn attend_query(
    layer: &Layer<'_>,
    query: &Query<'_>,
    absorbed: &[f32],
    latents: &SharedMut<'_, f32>,
    heads: std::ops::Range<usize>,
    i: usize,
    n: usize,
) {
    let (s, isa) = (layer.shape, layer.compute.isa);
    let (ld_key, ld_latent) = (padded(s.kv_values()), padded(s.latent));
    // SAFETY: tasks differ in the query or in the heads, and so in these rows.
    let mut out: Vec<&mut [f32]> =
        heads.clone().map(|h| unsafe { latents.part((h * n + i) * ld_latent..(h * n + i + 1) * ld_latent) }).collect();
    out.iter_mut().for_each(|row| row.fill(0.0));
    let mut tile = vec![0.0f32; TILE * ld_key];
    let mut scores = vec![0.0f32; heads.len() * TILE];
    let mut softmax = vec![(f32::NEG_INFINITY, 0.0f32); heads.len()];
    for start in (0..query.n_keys).step_by(TILE) {
        let keys = TILE.min(query.n_keys - start);
        layer.cache.load(layer.index, query.blocks, start..start + keys, &mut tile, ld_key);
        let dots = DotArgs {
            x: absorbed[(heads.start * n + i) * ld_key..].as_ptr(),
            ldx: n * ld_key,
            n_x: heads.len(),
            y: tile.as_ptr(),
            ldy: ld_key,
            n_y: keys,
            k: ld_key,
            out: scores.as_mut_ptr(),
            ldo: TILE,
        };
        // SAFETY: one absorbed row per head, `keys` tile rows, and a score for each pair; padding is zero in both.
        unsafe { isa.dots(dots) };
        for ((row, score), (max, sum)) in out.iter_mut().zip(scores.chunks_exact_mut(TILE)).zip(&mut softmax) {
            let score = &mut score[..keys];
            let largest = isa.max(score).max(*max);
            if largest > *max {
                let shrink = (*max - largest).exp();
                isa.scale(row, shrink);
                *sum *= shrink;
                *max = largest;
            }
            *sum += isa.exp_sum(score, *max);
        }
        let ldc = n * ld_latent;
        for column in (0..ld_latent).step_by(NR) {
            let args = PanelArgs {
                x: scores.as_ptr(),
                ldx: TILE,
                m: heads.len(),
                k: keys,
                b: tile[column..].as_ptr(),
                ldb: ld_key,
                c: out[0][column..].as_mut_ptr(),
                ldc,
                accumulate: true,
            };
            // SAFETY: the tile has `keys` rows of at least `ld_latent` columns; the heads' output rows are this
            // task's own and lie `ldc` apart in the buffer that `latents` borrows.
            unsafe { isa.panel(args) };
        }
    }
    for (row, (_, sum)) in out.iter_mut().zip(&softmax) {
        isa.scale(row, 1.0 / sum);
    }
}
