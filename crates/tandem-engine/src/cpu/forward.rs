//! One step through the layers: rows of all entries go through the matrices together.
//!
//! A layer's keys are in the cache before its attention runs; the observer is told at that
//! point, so a transfer overlaps the rest of the step. The last layer computes only rows
//! that sample: the others have left what they had to leave, their keys.

use std::ops::Range;
use std::time::Instant;

use super::attention::{self, AttentionScratch, Span};
use super::cache::Cache;
use super::moe::{self, Compute, MlpScratch};
use super::packed::padded;
use super::profile::Op;
use super::rope::rotate;
use super::rows::{for_rows, sized};
use super::shape::{LORA_EPS, Shape};
use super::weights::{Attention, Mlp};
use super::{CpuEngine, gemm};
use crate::engine::{Batch, StepObserver};

/// Buffers that steps reuse.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) x: Vec<f32>,
    pub(super) normed: Vec<f32>,
    projected: Vec<f32>,
    q: Vec<f32>,
    attended: Vec<f32>,
    partial: Vec<f32>,
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
    attention: AttentionScratch,
    mlp: MlpScratch,
    /// Logits of the rows that the last forward pass wanted, padded to whole panels.
    pub(super) logits: Vec<f32>,
}

/// What every row and layer of one step produced.
#[derive(Debug, Clone, Default)]
pub struct StepTrace {
    /// Logits of every row.
    pub logits: Vec<Vec<f32>>,
    /// For each layer the residual stream after it, rows one after the other.
    pub layer_outputs: Vec<Vec<f32>>,
    /// For each layer the chosen experts (`[rows][top_k]`, ascending); empty for a dense layer.
    pub expert_ids: Vec<Vec<u32>>,
    /// Weights of the chosen experts.
    pub expert_weights: Vec<Vec<f32>>,
    /// The residual stream after the final norm.
    pub final_norm: Vec<f32>,
}

/// What a forward pass is for.
pub(super) enum Want<'a> {
    /// The rows that sample.
    Sampled,
    /// Every row, with intermediate results.
    Trace(&'a mut StepTrace),
}

/// Rows still being computed: which batch rows they are, and the spans they form.
pub(super) struct Live<'a> {
    pub(super) rows: Vec<usize>,
    pub(super) spans: Vec<Span<'a>>,
}

impl<'a> Live<'a> {
    fn all(batch: &'a Batch) -> Self {
        let mut next = 0;
        let spans = batch.entries.iter().map(|entry| {
            let rows = next..next + entry.tokens.len();
            next = rows.end;
            Span { rows, first: entry.start as usize, blocks: &entry.blocks, decode: entry.decode }
        });
        let spans = spans.collect();
        Self { rows: (0..next).collect(), spans }
    }

    /// Keeps the last row of each entry that samples.
    fn sampled(&self, batch: &Batch) -> Self {
        let kept = self.spans.iter().zip(&batch.entries).filter(|(_, entry)| entry.sampling.is_some()).map(|(span, _)| span);
        let (mut rows, mut spans) = (Vec::new(), Vec::new());
        for span in kept {
            let at = rows.len();
            rows.push(span.rows.end - 1);
            spans.push(Span { rows: at..at + 1, first: span.first + span.rows.len() - 1, ..span.clone() });
        }
        Self { rows, spans }
    }

    /// The rows that sample, and where each entry's are among them: all of a decode, the last of a prompt.
    fn rows_to_sample(&self, sampling: impl Iterator<Item = bool>) -> (Vec<usize>, Vec<Range<usize>>) {
        let mut rows = Vec::new();
        let ranges = self.spans.iter().zip(sampling).map(|(span, samples)| {
            let first = rows.len();
            match (samples, span.decode) {
                (false, _) => {}
                (true, true) => rows.extend(span.rows.clone()),
                (true, false) => rows.push(span.rows.end - 1),
            }
            first..rows.len()
        });
        let ranges = ranges.collect();
        (rows, ranges)
    }
}

/// [`Live::rows_to_sample`] when only sampling rows are left, one for each sampling entry.
fn pruned_rows(sampling: impl Iterator<Item = bool>) -> (Vec<usize>, Vec<Range<usize>>) {
    let mut n = 0;
    let ranges = sampling.map(|samples| {
        let first = n;
        n += usize::from(samples);
        first..n
    });
    let ranges = ranges.collect();
    ((0..n).collect(), ranges)
}

impl CpuEngine {
    /// Computes a checked batch up to the logits (left in `scratch.logits`, one row for each row that samples: all
    /// rows of a decode, the last of a prompt); returns where each entry's rows are there. The states after the
    /// final norm are left in `scratch.normed`: of all rows when the engine drafts or traces.
    pub(super) fn forward(&mut self, batch: &Batch, observer: &mut dyn StepObserver, mut want: Want<'_>) -> Vec<Range<usize>> {
        let mut live = Live::all(batch);
        self.embed(batch);
        let all_rows = matches!(want, Want::Trace(_)) || self.drafts > 0;
        for index in 0..self.shape.n_layers {
            let last = index + 1 == self.shape.n_layers;
            let keep = (last && !all_rows).then(|| live.sampled(batch));
            self.project(index, &live);
            let since = Instant::now();
            observer.layer_done(index, &self.cache);
            self.profile.add(Op::Observer, since, 0);
            if let Some(keep) = keep {
                self.compact(index, &keep.rows);
                live = keep;
            }
            if live.rows.is_empty() {
                break;
            }
            self.attend(index, &live);
            self.feed_forward(index, live.rows.len());
            if let Want::Trace(trace) = &mut want {
                self.trace_layer(index, live.rows.len(), trace);
            }
        }
        let m = live.rows.len();
        self.final_norm(m, false);
        if let Want::Trace(trace) = &mut want {
            self.logits(&(0..m).collect::<Vec<_>>());
            let (hidden, ld) = (self.shape.hidden, self.weights.head.n_padded());
            trace.logits = self.scratch.logits[..m * ld].chunks(ld).map(|row| row[..self.shape.vocab].to_vec()).collect();
            trace.final_norm = unpad(&self.scratch.normed, padded(hidden), hidden, m);
            return Vec::new();
        }
        let sampling = batch.entries.iter().map(|entry| entry.sampling.is_some());
        let (rows, ranges) = if all_rows { live.rows_to_sample(sampling) } else { pruned_rows(sampling) };
        self.logits(&rows);
        ranges
    }

    /// Residual stream and rotation angles of all rows.
    fn embed(&mut self, batch: &Batch) {
        let since = Instant::now();
        let ld = padded(self.shape.hidden);
        let n: usize = batch.entries.iter().map(|e| e.tokens.len()).sum();
        let Scratch { x, cos, sin, .. } = &mut self.scratch;
        cos.clear();
        sin.clear();
        let mut rows = sized(x, n * ld).chunks_exact_mut(ld);
        for entry in &batch.entries {
            for (i, &token) in entry.tokens.iter().enumerate() {
                let row = rows.next().expect("one row for each token");
                self.weights.embed(token, &mut row[..self.shape.hidden]);
                row[self.shape.hidden..].fill(0.0);
                self.rope.angles(entry.start as usize + i, cos, sin);
            }
        }
        self.profile.add(Op::Embed, since, 0);
    }

    /// Query input and latent of all rows; the latents go into the cache.
    pub(super) fn project(&mut self, index: usize, live: &Live<'_>) {
        let layer = &self.weights.layers[index];
        let (m, ld, input) = (live.rows.len(), padded(self.shape.hidden), &layer.attention.input);
        let (compute, shape, pairs) = (Compute { pool: &self.pool, isa: self.isa }, &self.shape, self.rope.pairs());
        let Scratch { x, normed, projected, cos, sin, .. } = &mut self.scratch;
        let since = Instant::now();
        let normed = sized(normed, m * ld);
        norm_rows(compute, x, &layer.input_norm, shape.eps, normed, shape.hidden, m);
        let since = self.profile.add(Op::Norm, since, 0);
        let ld_in = input.n_padded();
        let projected = sized(projected, m * ld_in);
        let flops = gemm::run_jobs(compute.pool, compute.isa, &[gemm::Job::new(input, normed, ld, m, projected, ld_in)]);
        let latent_at = ld_in - padded(shape.kv_values());
        for_rows(compute.pool, projected, ld_in, m, 16, |first, rows| {
            let mut scratch = vec![0.0; shape.latent.max(shape.rope)];
            for (i, row) in rows.chunks_exact_mut(ld_in).enumerate() {
                let angles = (first + i) * pairs..(first + i + 1) * pairs;
                let (latent, key) = row[latent_at..latent_at + shape.kv_values()].split_at_mut(shape.latent);
                scratch[..shape.latent].copy_from_slice(latent);
                compute.isa.rms_norm(&scratch[..shape.latent], &layer.attention.kv_norm, LORA_EPS, latent);
                rotate(key, &cos[angles.clone()], &sin[angles], 1.0, &mut scratch);
            }
        });
        write_cache(&mut self.cache, index, live, projected, ld_in, latent_at..latent_at + shape.kv_values());
        self.profile.add(Op::QkvProj, since, flops);
    }

    /// Keeps only `rows` of the residual stream and of the projected queries.
    fn compact(&mut self, index: usize, rows: &[usize]) {
        let (ld, ld_in, pairs) = (padded(self.shape.hidden), self.weights.layers[index].attention.input.n_padded(), self.rope.pairs());
        let Scratch { x, projected, cos, sin, .. } = &mut self.scratch;
        for (to, &from) in rows.iter().enumerate() {
            for (buffer, ld) in [(&mut *x, ld), (&mut *projected, ld_in), (&mut *cos, pairs), (&mut *sin, pairs)] {
                buffer.copy_within(from * ld..(from + 1) * ld, to * ld);
            }
        }
    }

    /// Queries, attention, output projection, residual.
    pub(super) fn attend(&mut self, index: usize, live: &Live<'_>) {
        let (m, shape, weights) = (live.rows.len(), &self.shape, &self.weights.layers[index].attention);
        let compute = Compute { pool: &self.pool, isa: self.isa };
        let Scratch { x, projected, q, attended, partial, cos, sin, attention: scratch, .. } = &mut self.scratch;
        let since = Instant::now();
        let (q, ld_q, flops) = queries(compute, shape, weights, projected, m, q);
        rotate_queries(compute, shape, q, ld_q, m, (cos, sin));
        self.profile.add(Op::QkvProj, since, flops);

        let ld_o = shape.heads * shape.v;
        let attended = sized(attended, m * ld_o);
        let mut rows = attention::Rows { q, ldq: ld_q, out: attended, ldo: ld_o };
        let layer = attention::Layer { compute, shape, weights, cache: &self.cache, index, form: self.form };
        attention::attend(&layer, &live.spans, &mut rows, scratch, &mut self.profile);

        let since = Instant::now();
        let ld = padded(shape.hidden);
        let partial = sized(partial, m * ld);
        let flops = gemm::run_jobs(compute.pool, compute.isa, &[gemm::Job::new(&weights.output, attended, ld_o, m, partial, ld)]);
        self.comm.all_reduce_sum(partial);
        compute.isa.add(&mut x[..m * ld], partial);
        self.profile.add(Op::OutputProj, since, flops);
    }

    /// Norm, feed-forward, residual.
    pub(super) fn feed_forward(&mut self, index: usize, m: usize) {
        let (shape, layer) = (&self.shape, &self.weights.layers[index]);
        let compute = Compute { pool: &self.pool, isa: self.isa };
        let Scratch { x, normed, partial, mlp, .. } = &mut self.scratch;
        let ld = padded(shape.hidden);
        let since = Instant::now();
        let (normed, partial) = (sized(normed, m * ld), sized(partial, m * ld));
        norm_rows(compute, x, &layer.post_norm, shape.eps, normed, shape.hidden, m);
        let since = self.profile.add(Op::Norm, since, 0);
        let since = match (&layer.mlp, &shape.router) {
            (Mlp::Moe(moe), Some(router)) => {
                let flops = moe::route(compute, router, moe, normed, ld, m, mlp);
                let since = self.profile.add(Op::Router, since, flops);
                let flops = moe::experts(compute, router.top_k, moe, normed, m, mlp, partial);
                self.profile.add(Op::Experts, since, flops)
            }
            (Mlp::Dense(ff), _) => {
                let flops = moe::dense(compute, ff, normed, ld, m, mlp, partial);
                self.profile.add(Op::DenseMlp, since, flops)
            }
            (Mlp::Moe(_), None) => unreachable!("experts are loaded only when the model has a router"),
        };
        self.comm.all_reduce_sum(partial);
        compute.isa.add(&mut x[..m * ld], partial);
        self.profile.add(Op::Norm, since, 0);
    }

    /// Final norm (the main model's or the MTP layer's) of `m` rows, into `scratch.normed`.
    pub(super) fn final_norm(&mut self, m: usize, of_mtp: bool) {
        let norm = self.weights.mtp.as_ref().filter(|_| of_mtp).map_or(&self.weights.norm, |mtp| &mtp.head_norm);
        let compute = Compute { pool: &self.pool, isa: self.isa };
        let since = Instant::now();
        let normed = sized(&mut self.scratch.normed, m * padded(self.shape.hidden));
        norm_rows(compute, &self.scratch.x, norm, self.shape.eps, normed, self.shape.hidden, m);
        self.profile.add(Op::Norm, since, 0);
    }

    /// Logits of `rows` of `scratch.normed`, in that order.
    pub(super) fn logits(&mut self, rows: &[usize]) {
        let (head, m) = (&self.weights.head, rows.len());
        let (ld, ld_out) = (padded(self.shape.hidden), head.n_padded());
        let Scratch { normed, partial, logits, .. } = &mut self.scratch;
        let since = Instant::now();
        let gathered = sized(partial, m * ld);
        for (to, &from) in gathered.chunks_exact_mut(ld).zip(rows) {
            to.copy_from_slice(&normed[from * ld..(from + 1) * ld]);
        }
        let logits = sized(logits, m * ld_out);
        let flops = gemm::run_jobs(&self.pool, self.isa, &[gemm::Job::new(head, gathered, ld, m, logits, ld_out)]);
        self.profile.add(Op::Head, since, flops);
    }

    fn trace_layer(&self, index: usize, m: usize, trace: &mut StepTrace) {
        let hidden = self.shape.hidden;
        trace.layer_outputs.push(unpad(&self.scratch.x, padded(hidden), hidden, m));
        let routing = &self.scratch.mlp.routing;
        let is_moe = matches!(self.weights.layers[index].mlp, Mlp::Moe(_));
        trace.expert_ids.push(if is_moe { routing.ids.clone() } else { Vec::new() });
        trace.expert_weights.push(if is_moe { routing.weights.clone() } else { Vec::new() });
    }
}

fn unpad(buffer: &[f32], ld: usize, width: usize, m: usize) -> Vec<f32> {
    buffer[..m * ld].chunks_exact(ld).flat_map(|row| row[..width].iter().copied()).collect()
}

/// `out = rms_norm(x)` for `m` rows of `width` values, both padded alike.
fn norm_rows(c: Compute<'_>, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], width: usize, m: usize) {
    let ld = padded(width);
    for_rows(c.pool, out, ld, m, 64, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(ld).enumerate() {
            let start = (first + i) * ld;
            c.isa.rms_norm(&x[start..start + width], weight, eps, &mut row[..width]);
        }
    });
}

/// Rounds the latents and rotated keys of all rows into the cache.
fn write_cache(cache: &mut Cache, layer: usize, live: &Live<'_>, rows: &[f32], ld: usize, columns: Range<usize>) {
    for span in &live.spans {
        for (i, row) in span.rows.clone().enumerate() {
            cache.write(layer, span.blocks, span.first + i, &rows[row * ld + columns.start..row * ld + columns.end]);
        }
    }
}

/// Queries of `m` rows, not yet rotated: (`[m][heads][nope + rope]`, row length, floating-point operations).
fn queries<'a>(
    c: Compute<'_>,
    s: &Shape,
    w: &Attention,
    projected: &mut [f32],
    m: usize,
    q: &'a mut Vec<f32>,
) -> (&'a mut [f32], usize, u64) {
    let ld_in = w.input.n_padded();
    let Some((norm, q_b)) = &w.query else {
        let ld = s.heads * s.head();
        let q = sized(q, m * ld);
        for (to, from) in q.chunks_exact_mut(ld).zip(projected.chunks_exact(ld_in)) {
            to.copy_from_slice(&from[..ld]);
        }
        return (q, ld, 0);
    };
    for_rows(c.pool, projected, ld_in, m, 64, |_, rows| {
        let mut scratch = vec![0.0; norm.len()];
        for row in rows.chunks_exact_mut(ld_in) {
            scratch.copy_from_slice(&row[..norm.len()]);
            c.isa.rms_norm(&scratch, norm, LORA_EPS, &mut row[..norm.len()]);
        }
    });
    let ld = q_b.n_padded();
    let q = sized(q, m * ld);
    let flops = gemm::run_jobs(c.pool, c.isa, &[gemm::Job::new(q_b, projected, ld_in, m, q, ld)]);
    (q, ld, flops)
}

/// Rotates the last `rope` values of every head and applies the softmax scale to the whole head.
fn rotate_queries(c: Compute<'_>, s: &Shape, q: &mut [f32], ld: usize, m: usize, (cos, sin): (&[f32], &[f32])) {
    let pairs = s.rope / 2;
    for_rows(c.pool, q, ld, m, 16, |first, rows| {
        let mut scratch = vec![0.0; s.rope];
        for (i, row) in rows.chunks_exact_mut(ld).enumerate() {
            let angles = (first + i) * pairs..(first + i + 1) * pairs;
            for head in row[..s.heads * s.head()].chunks_exact_mut(s.head()) {
                let (plain, rotated) = head.split_at_mut(s.nope);
                c.isa.scale(plain, s.softmax_scale);
                rotate(rotated, &cos[angles.clone()], &sin[angles.clone()], s.softmax_scale, &mut scratch);
            }
        }
    });
}
