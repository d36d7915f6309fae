//! Attention: decode over a paged cache of latents, prefill over whole prompts.

use half::bf16;

use super::check::{Distance, attention};
use super::operator::{Measurement, Operator};
use super::timer::copies_beyond;
use super::{Bench, BenchError, real};
use crate::error::{CudaError, fits};
use crate::gpu::Buffer;
use crate::kernels::{Attention, DecodeCall};
use crate::program::TensorMap;

/// Page tables, at most.
const MOST_COPIES: usize = 64;
/// Rounding of probabilities and results to BF16.
const LIMIT: f64 = 1e-2;
/// 1 / √192: the softmax scale of both forms (that of long contexts is larger, which changes no time).
const SCALE: f32 = 0.072_168_78;
/// Pages of the cache: 2.4 GB, more than the longest batch needs.
const POOL: usize = 1 << 15;
/// A step without a common divisor with the pool's size: pages of a sequence are nowhere near each other.
const STEP: usize = 12_289;

/// The cache, which all sizes share.
#[derive(Debug, Default)]
pub(super) struct Cache(Option<Buffer<bf16>>);

impl Cache {
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }
}

impl Bench {
    pub(super) fn generation(&mut self, heads: usize, batch: usize, length: usize) -> Result<Measurement, BenchError> {
        let operator = Operator::Generation { heads, batch, length };
        let (qk, v, page) = (Attention::LATENT_QK, Attention::LATENT_V, Attention::PAGE);
        let n_pages = length.div_ceil(page);
        if batch * n_pages > POOL {
            return Err(BenchError::Unsupported { operator: operator.to_string(), reason: format!("the cache has {POOL} pages") });
        }
        if self.cache.0.is_none() {
            self.room(&operator, POOL * page * qk * 2)?;
            self.cache.0 = Some(self.fill.bf16(POOL * page * qk, 1.0, 41)?);
        }
        let pool = self.cache.0.as_ref().expect("made above");
        let rows = batch * heads;
        let splits = self.decode.splits_for(batch, heads, n_pages);
        let q = self.fill.bf16(rows * qk, 1.0, 42)?;
        let partial = self.gpu.alloc::<f32>(splits * rows * v)?;
        let lse = self.gpu.alloc::<f32>(splits * rows)?;
        let out = self.gpu.alloc::<bf16>(rows * v)?;
        out.set_bytes(0xff)?;
        let lengths = self.gpu.upload(&vec![fits::<i32>("tokens", length)?; batch])?;
        let q_map = TensorMap::of(&self.gpu, &q, qk, rows, [64, 64])?;
        let pages = TensorMap::of(&self.gpu, pool, qk, POOL * page, [64, 64])?;
        let copies = copies_beyond(self.gpu.facts().l2_bytes, batch * n_pages * page * qk * 2, MOST_COPIES);
        let page_of = |copy: usize, sequence: usize, i: usize| ((copy * batch + sequence) * n_pages + i) * STEP % POOL;
        let table_of = |copy: usize| {
            let all = (0..batch).flat_map(|b| (0..n_pages).map(move |i| (b, i)));
            let table: Result<Vec<i32>, CudaError> = all.map(|(b, i)| fits("page", page_of(copy, b, i))).collect();
            self.gpu.upload(&table?)
        };
        let tables: Vec<Buffer<i32>> = (0..copies).map(table_of).collect::<Result<_, _>>()?;
        let launch = |copy: usize| {
            self.decode.launch(&DecodeCall {
                q: &q_map,
                pages: &pages,
                table: &tables[copy],
                lengths: &lengths,
                partial: &partial,
                lse: &lse,
                out: &out,
                heads,
                max_pages: n_pages,
                splits,
                scale: SCALE,
            })
        };
        launch(0)?;
        let mut distance = Distance::default();
        for (sequence, head) in [(batch - 1, heads - 1), (batch / 2, heads / 3)] {
            let latents: Result<Vec<Vec<bf16>>, CudaError> =
                (0..n_pages).map(|i| pool.read(page_of(0, sequence, i) * page * qk, page * qk)).collect();
            let latents = latents?;
            let row = sequence * heads + head;
            let query: Vec<f64> = q.read(row * qk, qk)?.iter().map(|x| x.to_f64()).collect();
            let value = |t: usize, d: usize| latents[t / page][t % page * qk + d].to_f64();
            let reference = attention(&query, value, value, length, v, f64::from(SCALE));
            for (got, reference) in out.read(row * v, v)?.iter().zip(reference) {
                distance.add(got.to_f64(), reference);
            }
        }
        let error = checked(&operator, &distance)?;
        let timing = self.timer.time(copies, launch)?;
        let bytes = real(batch) * (real(length * qk * 2) + real(heads * (qk + v) * 2));
        let flops = 2.0 * real(rows) * real(length) * real(qk + v);
        self.measured(operator, format!("own wgmma, {splits} splits"), timing, error, bytes, flops)
    }

    pub(super) fn context(&mut self, heads: usize, batch: usize, length: usize) -> Result<Measurement, BenchError> {
        let operator = Operator::Context { heads, batch, length };
        let (qk, v) = (Attention::QK, Attention::V);
        let rows = batch * length;
        self.cache.clear();
        self.room(&operator, rows * heads * 4 * (qk + v))?;
        let tensor = |width: usize, seed: u64| self.fill.bf16(rows * heads * width, 1.0, seed);
        let (q, k, values) = (tensor(qk, 51)?, tensor(qk, 52)?, tensor(v, 53)?);
        let out = self.gpu.alloc::<bf16>(rows * heads * v)?;
        out.set_bytes(0xff)?;
        let attend = self.prefill.prepare(&self.gpu, [&q, &k, &values, &out], (heads, batch, length), SCALE)?;
        attend()?;
        let mut distance = Distance::default();
        // The last token sees the most, one in the first tile has keys masked.
        for (prompt, token, head) in [(batch - 1, length - 1, heads - 1), (0, length / 3, heads / 2), (batch / 2, (length - 1).min(70), 0)]
        {
            let row = prompt * length + token;
            let at = |matrix: &Buffer<bf16>, row: usize, width: usize| matrix.read((row * heads + head) * width, width);
            let query: Vec<f64> = at(&q, row, qk)?.iter().map(|x| x.to_f64()).collect();
            let all = |matrix: &Buffer<bf16>, width: usize| {
                (0..=token).map(|t| at(matrix, prompt * length + t, width)).collect::<Result<Vec<_>, _>>()
            };
            let (keys, values) = (all(&k, qk)?, all(&values, v)?);
            let reference = attention(&query, |t, d| keys[t][d].to_f64(), |t, d| values[t][d].to_f64(), token + 1, v, f64::from(SCALE));
            for (got, reference) in at(&out, row, v)?.iter().zip(reference) {
                distance.add(got.to_f64(), reference);
            }
        }
        let error = checked(&operator, &distance)?;
        let timing = self.timer.time(1, |_| attend())?;
        let bytes = real(rows * heads) * real(2 * (2 * qk + 2 * v));
        let flops = real(batch * heads) * real(length) * real(length + 1) * real(qk + v);
        self.measured(operator, "own wgmma".to_owned(), timing, error, bytes, flops)
    }
}

fn checked(operator: &Operator, distance: &Distance) -> Result<f64, BenchError> {
    let error = distance.relative();
    if error <= LIMIT {
        Ok(error)
    } else {
        Err(BenchError::Wrong { operator: operator.to_string(), what: "the attention", error, limit: LIMIT })
    }
}
