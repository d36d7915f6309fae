//! Dense products: cuBLASLt, the fastest of the algorithms that it proposes.

#![expect(unsafe_code, reason = "products are launched")]

use half::bf16;

use super::check::{Distance, dot, e4m3, places};
use super::operator::{Format, Measurement, Operator};
use super::timer::copies_beyond;
use super::{Bench, BenchError, real};
use crate::blas::{Dtype, Product, Scales, Shape};
use crate::error::CudaError;
use crate::gpu::Buffer;
use crate::kernels::Fill;

/// Copies of weights, at most.
const MOST_COPIES: usize = 160;
/// Results that are compared.
const SAMPLES: usize = 24;
/// Rounding of BF16 results (2⁻⁹ each), and of sums inside the tensor cores, whose FP8 products keep about 14 bits.
const LIMIT: f64 = 2e-2;

/// A matrix in the format that is measured.
#[derive(Debug)]
enum Matrix {
    Bf16(Buffer<bf16>),
    E4m3(Buffer<u8>),
}

impl Matrix {
    fn new(fill: &Fill, format: Format, n: usize, seed: u64) -> Result<Self, CudaError> {
        Ok(if format == Format::Bf16 { Matrix::Bf16(fill.bf16(n, 1.0, seed)?) } else { Matrix::E4m3(fill.e4m3(n, 1.0, seed)?) })
    }

    fn at(&self, i: usize) -> u64 {
        match self {
            Matrix::Bf16(b) => b.at(i),
            Matrix::E4m3(b) => b.at(i),
        }
    }

    fn read(&self, from: usize, n: usize) -> Result<Vec<f64>, CudaError> {
        Ok(match self {
            Matrix::Bf16(b) => b.read(from, n)?.iter().map(|v| v.to_f64()).collect(),
            Matrix::E4m3(b) => b.read(from, n)?.iter().map(|v| e4m3(*v)).collect(),
        })
    }
}

/// Weights of one shape, which all numbers of rows share.
#[derive(Debug)]
struct Weights {
    key: (Format, usize, usize, usize),
    matrix: Matrix,
    /// `[copies][n/128][k/128 padded to 4]`.
    scales: Buffer<f32>,
    scales_each: usize,
    copies: usize,
}

#[derive(Debug, Default)]
pub(super) struct Cache(Option<Weights>);

impl Cache {
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }
}

impl Bench {
    pub(super) fn product(&mut self, operator: &Operator) -> Result<Measurement, BenchError> {
        let (format, rows, n, k, batch) = match *operator {
            Operator::Gemm { format, m, n, k } => (format, m, n, k, 1),
            Operator::Absorbed { format, tokens, heads, n, k, .. } => (format, tokens, n, k, heads),
            _ => unreachable!("a dense product"),
        };
        let blocks = format == Format::Fp8Block;
        if blocks && !(n.is_multiple_of(4) && k.is_multiple_of(16)) {
            return Err(BenchError::Unsupported {
                operator: operator.to_string(),
                reason: format!("block scales need n = {n} in fours and k = {k} in sixteens"),
            });
        }
        // Block scales come in fours of rows; an engine pads too.
        let m = if blocks { rows.next_multiple_of(4) } else { rows };
        let key = (format, n, k, batch);
        if self.products.0.as_ref().is_none_or(|w| w.key != key) {
            self.products.clear();
            let bytes = batch * n * k * format.bytes();
            let copies = copies_beyond(self.gpu.facts().l2_bytes, bytes, MOST_COPIES);
            self.room(operator, copies * bytes)?;
            let scales_each = if blocks { n.div_ceil(128) * k.div_ceil(128).next_multiple_of(4) } else { 1 };
            let matrix = Matrix::new(&self.fill, format, copies * batch * n * k, 11)?;
            let scales = self.fill.f32(copies * scales_each, 0.5, 1.5, 12)?;
            self.products.0 = Some(Weights { key, matrix, scales, scales_each, copies });
        }
        self.room(operator, m * batch * (k * format.bytes() + 2 * n))?;
        let x = Matrix::new(&self.fill, format, m * batch * k + m * batch * k % 2, 13)?;
        let x_scales = self.fill.f32(k.div_ceil(128) * m, 0.5, 1.5, 14)?;
        let out = self.gpu.alloc::<bf16>(m * batch * n)?;
        out.set_bytes(0xff)?;
        let dtype = if format == Format::Bf16 { Dtype::Bf16 } else { Dtype::E4m3 };
        let product = self.blas.product(dtype, if blocks { Scales::Blocks } else { Scales::One }, Shape { m, n, k, batch })?;
        let weights = self.products.0.as_ref().expect("made above");
        let launch = |product: &Product, algorithm: usize, copy: usize| {
            let scales = blocks.then(|| (weights.scales.at(copy * weights.scales_each), x_scales.pointer()));
            // SAFETY: buffers are of the product's sizes and outlive it; copies are multiples of 16 bytes apart.
            unsafe { product.launch(algorithm, weights.matrix.at(copy * batch * n * k), x.at(0), out.pointer(), scales) }
        };
        let mut best = (0, f64::INFINITY);
        for algorithm in 0..product.n_algorithms() {
            // One that cannot run after all is passed over.
            let Ok(seconds) = self.timer.once(weights.copies, |copy| launch(&product, algorithm, copy)) else { continue };
            if seconds < best.1 {
                best = (algorithm, seconds);
            }
        }
        out.set_bytes(0xff)?;
        launch(&product, best.0, 0)?;
        let mut distance = Distance::default();
        for place in places(rows * batch * n, SAMPLES) {
            let (row, head, column) = (place / (batch * n), place / n % batch, place % n);
            let (a, b) = (x.read((row * batch + head) * k, k)?, weights.matrix.read((head * n + column) * k, k)?);
            let reference = if blocks {
                let sx = x_scales.read(0, x_scales.len())?;
                let sw = weights.scales.read(0, weights.scales_each)?;
                let of = |kb: usize| f64::from(sx[kb * m + row]) * f64::from(sw[column / 128 * k.div_ceil(128).next_multiple_of(4) + kb]);
                a.chunks(128).zip(b.chunks(128)).enumerate().map(|(kb, (a, b))| of(kb) * dot(a.iter().copied(), b.iter().copied())).sum()
            } else {
                dot(a, b)
            };
            distance.add(out.read((row * batch + head) * n + column, 1)?[0].to_f64(), reference);
        }
        let error = distance.relative();
        if error.is_nan() || error > LIMIT {
            return Err(BenchError::Wrong { operator: operator.to_string(), what: "the product", error, limit: LIMIT });
        }
        let timing = self.timer.time(weights.copies, |copy| launch(&product, best.0, copy))?;
        let kernel = format!("cuBLASLt algorithm {} of {}", best.0 + 1, product.n_algorithms());
        let bytes = real(batch * n * k * format.bytes() + rows * batch * (k * format.bytes() + 2 * n));
        self.measured(*operator, kernel, timing, error, bytes, 2.0 * real(rows * batch) * real(n) * real(k))
    }
}
