//! Multiplies activation rows by packed weights: one product or many, spread over the pool.
//!
//! The same code serves one row (decode) and thousands (prefill): a chunk of a panel is
//! widened once and used for all rows of a block while it is in the first-level cache.
#![expect(unsafe_code, reason = "panels of one product write interleaved columns of its output")]

use std::marker::PhantomData;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::packed::{Packed, Piece};
use super::pool::Pool;
use super::simd::{Isa, NR, PanelArgs};
use crate::checkpoint::{Tensor, TensorData};

/// Inner rows of a chunk: 32 KiB of widened weights.
const K_CHUNK: usize = 256;
/// Rows that share a widened chunk; their slice of the inner dimension stays in the second-level cache.
const ROW_BLOCK: usize = 768;
/// Units of work a thread should get, so that a slow thread does not hold up the others.
const UNITS_PER_THREAD: usize = 4;
/// Multiply-adds below which handing a unit to another thread costs more than it saves.
const MIN_UNIT: usize = 1 << 16;

/// One product `c[m][n] = x[m][k] * w[n][k]^T`; `c` gets the padding columns of `w` too.
pub(crate) struct Job<'a> {
    weights: &'a Packed,
    x: *const f32,
    ldx: usize,
    m: usize,
    c: *mut f32,
    ldc: usize,
    borrows: PhantomData<(&'a [f32], &'a mut [f32])>,
}

// SAFETY: a job is a shared borrow of x and an exclusive borrow of c; threads write disjoint parts of c.
unsafe impl Sync for Job<'_> {}

struct Unit {
    job: usize,
    panels: Range<usize>,
    rows: Range<usize>,
}

impl<'a> Job<'a> {
    /// A product of `m` rows of `x`, `ldx` apart, into rows of `c`, `ldc` apart.
    ///
    /// # Panics
    /// When a slice is too short.
    pub(crate) fn new(weights: &'a Packed, x: &'a [f32], ldx: usize, m: usize, c: &'a mut [f32], ldc: usize) -> Self {
        if m > 0 {
            assert!((m - 1) * ldx + weights.k() <= x.len(), "input rows are in bounds");
            assert!((m - 1) * ldc + weights.n_padded() <= c.len(), "output rows are in bounds");
            assert!(ldc >= weights.n_padded(), "output rows do not overlap");
        }
        Self { weights, x: x.as_ptr(), ldx, m, c: c.as_mut_ptr(), ldc, borrows: PhantomData }
    }

    fn units(&self, job: usize, threads: usize, target: usize, out: &mut Vec<Unit>) {
        let few_panels = self.weights.n_panels() < 2 * threads;
        let row_block = if few_panels && threads > 1 { self.m.div_ceil(2 * threads).clamp(48, ROW_BLOCK) } else { ROW_BLOCK };
        for row in (0..self.m).step_by(row_block) {
            let rows = row..(row + row_block).min(self.m);
            let cost = rows.len() * self.weights.k() * NR;
            let panels = (target / cost.max(1)).clamp(1, self.weights.n_panels().max(1));
            for panel in (0..self.weights.n_panels()).step_by(panels) {
                out.push(Unit { job, panels: panel..(panel + panels).min(self.weights.n_panels()), rows: rows.clone() });
            }
        }
    }

    /// Operands of rows `rows` and inner rows `k0..k1` of one panel; `b` is left to fill in.
    fn args(&self, panel: usize, rows: &Range<usize>, k0: usize, k1: usize) -> PanelArgs {
        PanelArgs {
            x: self.x.wrapping_add(rows.start * self.ldx + k0),
            ldx: self.ldx,
            m: rows.len(),
            k: k1 - k0,
            b: std::ptr::null(),
            ldb: NR,
            c: self.c.wrapping_add(rows.start * self.ldc + panel * NR),
            ldc: self.ldc,
            accumulate: k0 > 0,
        }
    }

    fn run(&self, isa: Isa, unit: &Unit) {
        // Either all panels have a kernel for few rows or none has: it depends on format and instruction set.
        if unit.rows.len() <= Isa::FEW_ROWS && unit.panels.clone().all(|panel| self.run_few_rows(isa, panel, &unit.rows)) {
            return;
        }
        let mut scratch = Scratch([0.0; K_CHUNK * NR]);
        for panel in unit.panels.clone() {
            self.run_panel(isa, panel, &unit.rows, &mut scratch);
        }
    }

    fn run_panel(&self, isa: Isa, panel: usize, rows: &Range<usize>, scratch: &mut Scratch) {
        let k = self.weights.k();
        // Few rows: a small chunk is read back from the first-level cache right after it was widened.
        let step = if rows.len() <= Isa::FEW_ROWS { K_CHUNK / 4 } else { K_CHUNK };
        for k0 in (0..k).step_by(step) {
            let k1 = (k0 + step).min(k);
            let chunk = self.weights.chunk(isa, panel, k0, k1, &mut scratch.0);
            let args = PanelArgs { b: chunk.as_ptr(), ..self.args(panel, rows, k0, k1) };
            // SAFETY: `new` checked the bounds of x and c; units are disjoint in (rows, panels).
            unsafe { isa.panel(args) };
        }
    }

    /// Multiplies few rows by an FP8 panel without storing widened weights, if there is a kernel for that.
    fn run_few_rows(&self, isa: Isa, panel: usize, rows: &Range<usize>) -> bool {
        let Some(runs) = self.weights.fp8_runs(panel) else { return false };
        for (start, scale, codes) in runs {
            let args = self.args(panel, rows, start, start + codes.len() / NR);
            // SAFETY: as in `run_panel`; `codes` has k rows of NR.
            if !unsafe { isa.few_rows_fp8(args, codes, scale) } {
                return false;
            }
        }
        true
    }
}

/// Widened weights, aligned to cache lines.
#[repr(align(64))]
struct Scratch([f32; K_CHUNK * NR]);

/// Computes all jobs; returns their floating-point operations (padding not counted).
pub(crate) fn run_jobs(pool: &Pool, isa: Isa, jobs: &[Job<'_>]) -> u64 {
    let macs = |f: &dyn Fn(&Job<'_>) -> usize| jobs.iter().map(|j| j.m * j.weights.k() * f(j)).sum::<usize>();
    let target = (macs(&|j| j.weights.n_padded()) / (pool.threads() * UNITS_PER_THREAD)).max(MIN_UNIT);
    let mut units = Vec::new();
    for (i, job) in jobs.iter().enumerate() {
        job.units(i, pool.threads(), target, &mut units);
    }
    pool.run(units.len(), |u| jobs[units[u].job].run(isa, &units[u]));
    2 * macs(&|j| j.weights.n()) as u64
}

/// Wall time of one product of `m` rows by f32 weights `[n, k]` with the engine's own kernels: the best of
/// `repeats`. For benchmarks, beside other libraries' rates.
///
/// # Errors
/// When the system refuses a thread.
pub fn time_gemm(m: usize, n: usize, k: usize, threads: usize, repeats: usize) -> std::io::Result<Duration> {
    let tensor = Tensor { rows: n, cols: k, data: TensorData::F32(vec![0.5; n * k]) };
    let weights = Packed::new(&[Piece::whole(&tensor)]);
    let (pool, isa) = (Pool::new(threads)?, Isa::detect());
    let (x, mut c) = (vec![0.25; m * k], vec![0.0; m * weights.n_padded()]);
    let mut best = Duration::MAX;
    for _ in 0..repeats {
        let since = Instant::now();
        run_jobs(&pool, isa, &[Job::new(&weights, &x, k, m, &mut c, weights.n_padded())]);
        best = best.min(since.elapsed());
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::super::packed::padded;
    use super::*;
    use crate::checkpoint::{DummySource, TensorSource};

    fn expected(x: &[f32], ldx: usize, m: usize, w: &[f32], n: usize, k: usize) -> Vec<f64> {
        let mut out = Vec::new();
        for i in 0..m {
            for j in 0..n {
                out.push((0..k).map(|p| f64::from(x[i * ldx + p]) * f64::from(w[j * k + p])).sum());
            }
        }
        out
    }

    fn check(tensor: &Tensor, m: usize, threads: usize) {
        let (n, k) = (tensor.rows, tensor.cols);
        let packed = Packed::new(&[Piece::whole(tensor)]);
        let ldx = k + 3;
        let x = DummySource::new(3, None).tensor("x.weight", &[m, ldx]).unwrap().to_f32();
        let want = expected(&x, ldx, m, &tensor.to_f32(), n, k);
        for isa in Isa::available() {
            let mut c = vec![f32::NAN; m * padded(n)];
            let flops = run_jobs(&Pool::new(threads).unwrap(), isa, &[Job::new(&packed, &x, ldx, m, &mut c, padded(n))]);
            assert_eq!(flops, 2 * (m * n * k) as u64);
            for i in 0..m {
                for j in 0..padded(n) {
                    let want = if j < n { want[i * n + j] } else { 0.0 };
                    let got = f64::from(c[i * padded(n) + j]);
                    assert!((got - want).abs() < 1e-4, "{} m {m} n {n} k {k} at {i},{j}: {got} against {want}", isa.name());
                }
            }
        }
    }

    #[test]
    fn products_are_right_for_odd_sizes_formats_and_threads() {
        for (n, k) in [(1, 1), (33, 7), (80, 300), (144, 256), (200, 513)] {
            for block in [None, Some([128, 128]), Some([48, 40]), Some([32, 64])] {
                let tensor = DummySource::new(1, block).tensor("a.down_proj.weight", &[n, k]).unwrap();
                let f32s = Tensor { data: TensorData::F32(tensor.to_f32()), ..tensor.clone() };
                for (m, threads) in [(1, 1), (5, 2), (61, 3)] {
                    check(&tensor, m, threads);
                    check(&f32s, m, threads);
                }
            }
        }
    }

    #[test]
    fn block_scales_survive_packing_in_both_orientations() {
        let (rows, cols) = (150usize, 70usize);
        let q: Vec<u8> = (0..rows * cols).map(|i| crate::checkpoint::f32_to_e4m3(((i * 37) % 19) as f32 - 9.0)).collect();
        for block in [[64, 32], [50, 33], [7, 5]] {
            let n_scales = rows.div_ceil(block[0]) * cols.div_ceil(block[1]);
            let scales = (0..n_scales).map(|i| 0.25 + i as f32).collect();
            let tensor = Tensor { rows, cols, data: TensorData::Fp8 { q: Vec::clone(&q), scales, block } };
            let dense = tensor.to_f32();
            let mut scratch = vec![0.0; 200 * NR];
            let isa = Isa::detect();
            let straight = Packed::new(&[Piece::rows(&tensor, 10, 100)]);
            for (i, p) in [(0, 0), (99, 69), (40, 33)] {
                assert_eq!(straight.chunk(isa, i / NR, 0, cols, &mut scratch)[p * NR + i % NR], dense[(10 + i) * cols + p]);
            }
            let turned = Packed::new(&[Piece::transposed_rows(&tensor, 20, 90)]);
            for (i, p) in [(0, 0), (69, 89), (33, 40)] {
                assert_eq!(turned.chunk(isa, i / NR, 0, 90, &mut scratch)[p * NR + i % NR], dense[(20 + p) * cols + i]);
            }
        }
    }
}
