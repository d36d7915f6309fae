//! Weight matrices in the order the kernels read them, in their stored number format.
//!
//! A matrix `[n, k]` becomes panels of [`NR`] output columns, each `[k][NR]`, zero-padded. FP8
//! stays one byte a weight: panels are widened a few kilobytes at a time, in cache, right
//! before use, so decoding reads as little memory as the checkpoint holds and prefill widens
//! once per many rows. Block scales become runs along `k` for each panel.

use super::simd::{Isa, NR};
use crate::checkpoint::{Tensor, TensorData};

/// `n` rounded up to whole panels.
pub(crate) const fn padded(n: usize) -> usize {
    n.next_multiple_of(NR)
}

/// A part of a stored tensor seen as a matrix `[n, k]`: element (`i`, `p`) is at `base + i * stride_n + p * stride_k`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece<'a> {
    tensor: &'a Tensor,
    base: usize,
    n: usize,
    k: usize,
    stride_n: usize,
    stride_k: usize,
}

impl<'a> Piece<'a> {
    /// The whole tensor: output `i` is row `i`.
    pub(crate) fn whole(tensor: &'a Tensor) -> Self {
        Self::rows(tensor, 0, tensor.rows)
    }

    /// `n` rows from `first` on.
    pub(crate) fn rows(tensor: &'a Tensor, first: usize, n: usize) -> Self {
        Self { tensor, base: first * tensor.cols, n, k: tensor.cols, stride_n: tensor.cols, stride_k: 1 }
    }

    /// The transpose of `k` rows from `first` on: output `i` is column `i`.
    pub(crate) fn transposed_rows(tensor: &'a Tensor, first: usize, k: usize) -> Self {
        Self { tensor, base: first * tensor.cols, n: tensor.cols, k, stride_n: 1, stride_k: tensor.cols }
    }

    fn index(&self, i: usize, p: usize) -> usize {
        self.base + i * self.stride_n + p * self.stride_k
    }

    /// The scale that columns `i0..i1` share at `p`, if they share one.
    fn common_scale(&self, i0: usize, i1: usize, p: usize) -> Option<f32> {
        let TensorData::Fp8 { block, .. } = &self.tensor.data else { return Some(1.0) };
        let at = |i: usize| {
            let index = self.index(i, p);
            (index / self.tensor.cols, index % self.tensor.cols)
        };
        let (first, last) = (at(i0), at(i1 - 1));
        let same = first.0 / block[0] == last.0 / block[0] && first.1 / block[1] == last.1 / block[1];
        same.then(|| self.tensor.scale(first.0, first.1))
    }
}

/// Weights `k < end` of a panel have this scale.
#[derive(Debug, Clone, Copy)]
struct Run {
    end: usize,
    scale: f32,
}

#[derive(Debug)]
enum Data {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    /// Codes; the runs of all panels; where each panel's runs begin.
    Fp8(Vec<u8>, Vec<Run>, Vec<usize>),
}

/// A weight matrix in panel order.
#[derive(Debug)]
pub(crate) struct Packed {
    /// Outputs that mean something.
    n: usize,
    k: usize,
    n_panels: usize,
    data: Data,
}

impl Packed {
    /// Packs `pieces` one below the other; each starts a new panel, so piece `i`'s outputs begin at the
    /// sum of the padded widths before it.
    pub(crate) fn new(pieces: &[Piece<'_>]) -> Self {
        let k = pieces.first().map_or(0, |p| p.k);
        assert!(pieces.iter().all(|p| p.k == k), "pieces share their inner dimension");
        let n = pieces.iter().map(|p| p.n).sum();
        let n_panels = pieces.iter().map(|p| p.n.div_ceil(NR)).sum();
        let data = Self::pack_same_format(pieces, n_panels, k).unwrap_or_else(|| {
            let mut out = vec![0.0; n_panels * k * NR];
            fill(pieces, k, &mut out, &|piece| piece.tensor.to_f32());
            Data::F32(out)
        });
        Self { n, k, n_panels, data }
    }

    /// Keeps the stored format when all pieces have the same one and their scales fit panels.
    fn pack_same_format(pieces: &[Piece<'_>], n_panels: usize, k: usize) -> Option<Data> {
        if pieces.iter().all(|p| matches!(p.tensor.data, TensorData::Bf16(_))) {
            let mut out = vec![0u16; n_panels * k * NR];
            fill(pieces, k, &mut out, &|piece| match &piece.tensor.data {
                TensorData::Bf16(v) => v.clone(),
                _ => Vec::new(),
            });
            return Some(Data::Bf16(out));
        }
        if !pieces.iter().all(|p| matches!(p.tensor.data, TensorData::Fp8 { .. })) {
            return None;
        }
        let (mut runs, mut first_run): (Vec<Run>, Vec<usize>) = (Vec::new(), Vec::new());
        for piece in pieces {
            for i0 in (0..piece.n).step_by(NR) {
                let start = runs.len();
                first_run.push(start);
                for p in 0..k {
                    let scale = piece.common_scale(i0, (i0 + NR).min(piece.n), p)?;
                    match runs[start..].last_mut() {
                        Some(run) if run.scale.to_bits() == scale.to_bits() => run.end = p + 1,
                        _ => runs.push(Run { end: p + 1, scale }),
                    }
                }
            }
        }
        first_run.push(runs.len());
        let mut out = vec![0u8; n_panels * k * NR];
        fill(pieces, k, &mut out, &|piece| match &piece.tensor.data {
            TensorData::Fp8 { q, .. } => q.clone(),
            _ => Vec::new(),
        });
        Some(Data::Fp8(out, runs, first_run))
    }

    /// Outputs that mean something (padding not counted).
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// Columns of the output, padding included.
    pub(crate) fn n_padded(&self) -> usize {
        self.n_panels * NR
    }

    /// Inner dimension.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// Panels.
    pub(crate) fn n_panels(&self) -> usize {
        self.n_panels
    }

    /// Bytes of the weights.
    pub(crate) fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(v) => v.len() * 4,
            Data::Bf16(v) => v.len() * 2,
            Data::Fp8(q, runs, first) => q.len() + runs.len() * size_of::<Run>() + first.len() * size_of::<usize>(),
        }
    }

    /// Rows `k0..k1` of panel `panel` as f32 `[k1 - k0][NR]`, widened into `scratch` unless stored so.
    pub(crate) fn chunk<'a>(&'a self, isa: Isa, panel: usize, k0: usize, k1: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        let base = panel * self.k;
        let range = (base + k0) * NR..(base + k1) * NR;
        let scratch = match &self.data {
            Data::F32(v) => return &v[range],
            Data::Bf16(_) | Data::Fp8(..) => &mut scratch[..(k1 - k0) * NR],
        };
        match &self.data {
            Data::F32(_) => unreachable!("returned above"),
            Data::Bf16(v) => isa.widen_bf16(&v[range], scratch),
            Data::Fp8(q, runs, first) => {
                let mut from = k0;
                for run in &runs[first[panel]..first[panel + 1]] {
                    let to = run.end.min(k1);
                    if to > from {
                        let codes = &q[(base + from) * NR..(base + to) * NR];
                        isa.widen_fp8(codes, run.scale, &mut scratch[(from - k0) * NR..(to - k0) * NR]);
                        from = to;
                    }
                }
            }
        }
        scratch
    }
}

impl Packed {
    /// The runs of FP8 panel `panel` as (first inner row, scale, codes); `None` for other formats.
    pub(crate) fn fp8_runs(&self, panel: usize) -> Option<impl Iterator<Item = (usize, f32, &[u8])>> {
        let Data::Fp8(q, runs, first) = &self.data else { return None };
        let base = panel * self.k;
        let mut from = 0;
        Some(runs[first[panel]..first[panel + 1]].iter().map(move |run| {
            let start = std::mem::replace(&mut from, run.end);
            (start, run.scale, &q[(base + start) * NR..(base + run.end) * NR])
        }))
    }
}

fn fill<T: Copy>(pieces: &[Piece<'_>], k: usize, out: &mut [T], values: &dyn Fn(&Piece<'_>) -> Vec<T>) {
    let mut panel = 0;
    for piece in pieces {
        let source = values(piece);
        for i0 in (0..piece.n).step_by(NR) {
            let width = NR.min(piece.n - i0);
            let target = &mut out[panel * k * NR..(panel + 1) * k * NR];
            for (p, row) in target.chunks_exact_mut(NR).enumerate() {
                for (j, value) in row[..width].iter_mut().enumerate() {
                    *value = source[piece.index(i0 + j, p)];
                }
            }
            panel += 1;
        }
    }
}
