//! Feed-forward layers: dense SwiGLU, and a mixture of experts batched by expert.
//!
//! Token-expert pairs are sorted by expert, so each expert multiplies all its tokens at once;
//! shared experts join the same parallel region. Outputs are added per token in the order of
//! expert ids, whatever the order in which they were computed.

use super::gemm::{Job, run_jobs};
use super::packed::padded;
use super::pool::Pool;
use super::router::{RouterScratch, choose_experts};
use super::rows::{for_rows, sized};
use super::shape::RouterShape;
use super::simd::Isa;
use super::weights::{FeedForward, Moe};

/// Buffers of the feed-forward layers.
#[derive(Debug, Default)]
pub(crate) struct MlpScratch {
    gate_up: Vec<f32>,
    shared_gate_up: Vec<f32>,
    logits: Vec<f32>,
    gathered: Vec<f32>,
    outputs: Vec<f32>,
    pub(crate) routing: Routing,
}

/// The experts of each token.
#[derive(Debug, Default, Clone)]
pub(crate) struct Routing {
    /// `[tokens][top_k]`, ascending within a token.
    pub(crate) ids: Vec<u32>,
    /// Weights of the experts' outputs.
    pub(crate) weights: Vec<f32>,
    /// Row of each pair in expert order.
    slots: Vec<usize>,
    /// First row of each expert; one more entry ends the last.
    first: Vec<usize>,
}

/// What every kernel call needs.
#[derive(Clone, Copy)]
pub(crate) struct Compute<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) isa: Isa,
}

/// `out[m][padded(hidden)] = down(silu(gate x) * up x)`; returns floating-point operations.
pub(crate) fn dense(c: Compute<'_>, ff: &FeedForward, x: &[f32], ldx: usize, m: usize, scratch: &mut MlpScratch, out: &mut [f32]) -> u64 {
    let ld = ff.gate_up.n_padded();
    let gate_up = sized(&mut scratch.gate_up, m * ld);
    let flops = run_jobs(c.pool, c.isa, &[Job::new(&ff.gate_up, x, ldx, m, gate_up, ld)]);
    activate(c, gate_up, ld, m, ff.width);
    flops + run_jobs(c.pool, c.isa, &[Job::new(&ff.down, gate_up, ld, m, out, ff.down.n_padded())])
}

fn activate(c: Compute<'_>, gate_up: &mut [f32], ld: usize, m: usize, width: usize) {
    for_rows(c.pool, gate_up, ld, m, 16, |_, rows| {
        for row in rows.chunks_exact_mut(ld) {
            let (gate, up) = row.split_at_mut(padded(width));
            c.isa.silu_mul(&mut gate[..width], &up[..width]);
        }
    });
}

/// Chooses the experts of `m` rows into `scratch.routing`; returns floating-point operations.
pub(crate) fn route(c: Compute<'_>, shape: &RouterShape, moe: &Moe, x: &[f32], ldx: usize, m: usize, scratch: &mut MlpScratch) -> u64 {
    let ld = moe.router.n_padded();
    let logits = sized(&mut scratch.logits, m * ld);
    let flops = run_jobs(c.pool, c.isa, &[Job::new(&moe.router, x, ldx, m, logits, ld)]);
    let routing = &mut scratch.routing;
    routing.ids.resize(m * shape.top_k, 0);
    routing.weights.resize(m * shape.top_k, 0.0);
    let mut router_scratch = RouterScratch::default();
    let (ids, weights) = (routing.ids.chunks_exact_mut(shape.top_k), routing.weights.chunks_exact_mut(shape.top_k));
    for ((row, ids), weights) in logits.chunks_exact_mut(ld).zip(ids).zip(weights) {
        choose_experts(shape, &mut row[..shape.n_experts], &moe.bias, &mut router_scratch, ids, weights);
    }
    routing.sort(shape.n_experts);
    flops
}

impl Routing {
    /// Places the pairs in expert order (stable in token order).
    fn sort(&mut self, n_experts: usize) {
        self.first.clear();
        self.first.resize(n_experts + 1, 0);
        for &id in &self.ids {
            self.first[id as usize + 1] += 1;
        }
        for e in 0..n_experts {
            self.first[e + 1] += self.first[e];
        }
        let mut next = self.first.clone();
        self.slots.clear();
        self.slots.extend(self.ids.iter().map(|&id| {
            next[id as usize] += 1;
            next[id as usize] - 1
        }));
    }
}

/// Cuts `buffer` (`ld` values a row) at the experts' first rows.
fn by_expert<'a>(mut buffer: &'a mut [f32], ld: usize, first: &[usize]) -> Vec<&'a mut [f32]> {
    first
        .windows(2)
        .map(|w| {
            let (mine, rest) = std::mem::take(&mut buffer).split_at_mut((w[1] - w[0]) * ld);
            buffer = rest;
            mine
        })
        .collect()
}

/// `out[m][padded(hidden)]` = weighted sum of the chosen experts + shared experts of rows `x[m][padded(hidden)]`,
/// after [`route`]; returns floating-point operations.
pub(crate) fn experts(c: Compute<'_>, top_k: usize, moe: &Moe, x: &[f32], m: usize, scratch: &mut MlpScratch, out: &mut [f32]) -> u64 {
    let MlpScratch { gate_up, shared_gate_up, gathered, outputs, routing, .. } = scratch;
    let expert = &moe.experts[0];
    let (hidden, pairs) = (expert.gate_up.k(), m * top_k);
    let ldx = padded(hidden);
    let (ld, ld_out) = (expert.gate_up.n_padded(), expert.down.n_padded());
    let gathered = sized(gathered, pairs * hidden);
    for (pair, &slot) in routing.slots.iter().enumerate() {
        let row = pair / top_k * ldx;
        gathered[slot * hidden..(slot + 1) * hidden].copy_from_slice(&x[row..row + hidden]);
    }
    let gate_up = sized(gate_up, pairs * ld);
    let ld_shared = moe.shared.as_ref().map_or(0, |s| s.gate_up.n_padded());
    let shared_gate_up = sized(shared_gate_up, m * ld_shared);

    let mut jobs = Vec::new();
    if let Some(shared) = &moe.shared {
        jobs.push(Job::new(&shared.gate_up, x, ldx, m, shared_gate_up, ld_shared));
    }
    for (e, rows) in by_expert(gate_up, ld, &routing.first).into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        jobs.push(Job::new(&moe.experts[e].gate_up, &gathered[routing.first[e] * hidden..], hidden, rows.len() / ld, rows, ld));
    }
    let mut flops = run_jobs(c.pool, c.isa, &jobs);
    drop(jobs);

    activate(c, gate_up, ld, pairs, expert.width);
    let outputs = sized(outputs, pairs * ld_out);
    let mut jobs = Vec::new();
    match &moe.shared {
        Some(shared) => {
            activate(c, shared_gate_up, ld_shared, m, shared.width);
            jobs.push(Job::new(&shared.down, shared_gate_up, ld_shared, m, out, ld_out));
        }
        None => out[..m * ld_out].fill(0.0),
    }
    for (e, rows) in by_expert(outputs, ld_out, &routing.first).into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        jobs.push(Job::new(&moe.experts[e].down, &gate_up[routing.first[e] * ld..], ld, rows.len() / ld_out, rows, ld_out));
    }
    flops += run_jobs(c.pool, c.isa, &jobs);
    drop(jobs);

    for_rows(c.pool, out, ld_out, m, 16, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(ld_out).enumerate() {
            let pairs = (first + i) * top_k..(first + i + 1) * top_k;
            for (&slot, &weight) in routing.slots[pairs.clone()].iter().zip(&routing.weights[pairs]) {
                c.isa.axpy(row, weight, &outputs[slot * ld_out..(slot + 1) * ld_out]);
            }
        }
    });
    flops + 2 * (pairs * hidden) as u64
}
