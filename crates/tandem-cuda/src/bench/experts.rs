//! Routed experts of one layer: rows gathered by expert, gate and up, silu and quantisation, down, weighted sum.

use half::bf16;

use super::check::{Distance, dot, e4m3, places};
use super::operator::{ExpertsShape, Measurement, Operator};
use super::routing::{Share, fullest};
use super::timer::copies_beyond;
use super::{Bench, BenchError, real};
use crate::error::{CudaError, fits};
use crate::gpu::{Buffer, Gpu};
use crate::kernels::{Fill, GroupedProduct, Groups, Tile};

/// Copies of the groups' places, at most.
const MOST_COPIES: usize = 16;
const SAMPLES: usize = 24;
/// As of dense products.
const LIMIT: f64 = 2e-2;
/// Half a step of e4m3's three bits of mantissa, with the BF16 rounding of what was quantised.
const QUANTISED: f64 = 5e-2;

/// Weights of all experts of a layer, of which a rank uses some.
#[derive(Debug)]
struct Pool {
    key: (usize, usize, usize),
    gate_up: Buffer<u8>,
    gate_up_scales: Buffer<f32>,
    down: Buffer<u8>,
    down_scales: Buffer<f32>,
}

#[derive(Debug, Default)]
pub(super) struct Cache(Option<Pool>);

impl Cache {
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }
}

impl Pool {
    fn new(fill: &Fill, experts: usize, hidden: usize, inter: usize) -> Result<Self, CudaError> {
        let blocks = hidden / 128 * (inter / 128);
        // Scales keep activations near 1, so that silu has something to bend.
        let scale = |columns: usize| (1.0 / real(columns)).sqrt();
        #[expect(clippy::cast_possible_truncation, reason = "a factor near one hundredth")]
        let between = |columns: usize| (0.5 * scale(columns) as f32, 1.5 * scale(columns) as f32);
        let ((low1, high1), (low2, high2)) = (between(hidden), between(inter));
        Ok(Pool {
            key: (experts, hidden, inter),
            gate_up: fill.e4m3(experts * 2 * inter * hidden, 1.0, 21)?,
            gate_up_scales: fill.f32(experts * 2 * blocks, low1, high1, 22)?,
            down: fill.e4m3(experts * hidden * inter, 1.0, 23)?,
            down_scales: fill.f32(experts * blocks, low2, high2, 24)?,
        })
    }
}

/// What a rank holds of one routing.
struct Rank {
    share: Share,
    row_stride: usize,
    x: Buffer<u8>,
    x_scales: Buffer<f32>,
    source: Buffer<i32>,
    rows_of: Buffer<i32>,
    weights: Buffer<f32>,
    gathered: Buffer<u8>,
    gathered_scales: Buffer<f32>,
    gate_up: Buffer<bf16>,
    act: Buffer<u8>,
    act_scales: Buffer<f32>,
    rows: Buffer<bf16>,
    out: Buffer<bf16>,
}

impl Rank {
    fn bytes(share: &Share, hidden: usize, inter: usize) -> usize {
        share.source.len() * (hidden * 3 + inter * 5) + share.rows_of.len() * hidden * 3
    }

    fn new(gpu: &Gpu, fill: &Fill, share: Share, topk: usize, hidden: usize, inter: usize) -> Result<Self, CudaError> {
        let (rows, tokens) = (share.source.len(), share.rows_of.len());
        let row_stride = (rows + 128).next_multiple_of(4);
        let index = |i: Option<&usize>| i.map_or(Ok(-1), |i| fits("row", *i));
        let source: Vec<i32> = share.source.iter().map(|t| index(t.as_ref())).collect::<Result<_, _>>()?;
        let rows_of: Vec<i32> = share.rows_of.iter().flat_map(|rows| (0..topk).map(|j| index(rows.get(j)))).collect::<Result<_, _>>()?;
        Ok(Rank {
            row_stride,
            x: fill.e4m3(tokens * hidden, 1.0, 31)?,
            x_scales: fill.f32(tokens * (hidden / 128), 0.5, 1.5, 32)?,
            source: gpu.upload(&source)?,
            rows_of: gpu.upload(&rows_of)?,
            weights: fill.f32(tokens * topk, 0.05, 0.2, 33)?,
            gathered: gpu.alloc(rows * hidden)?,
            gathered_scales: gpu.alloc(hidden / 128 * row_stride)?,
            gate_up: gpu.alloc(rows * 2 * inter)?,
            act: gpu.alloc(rows * inter)?,
            act_scales: gpu.alloc(inter / 128 * row_stride)?,
            rows: gpu.alloc(rows * hidden)?,
            out: gpu.alloc(tokens * hidden)?,
            share,
        })
    }
}

impl Bench {
    pub(super) fn routed_experts(&mut self, s: &ExpertsShape) -> Result<Measurement, BenchError> {
        let operator = Operator::Experts(*s);
        let (hidden, inter) = (s.hidden, s.inter / s.tp);
        if !(hidden.is_multiple_of(128) && inter.is_multiple_of(128) && inter > 0 && s.experts.is_multiple_of(s.ep)) {
            return Err(BenchError::Unsupported {
                operator: operator.to_string(),
                reason: format!("widths {hidden} and {inter} must be multiples of 128, {} experts one of {} ranks", s.experts, s.ep),
            });
        }
        if self.pool.0.as_ref().is_none_or(|p| p.key != (s.experts, hidden, inter)) {
            self.pool.clear();
            self.room(&operator, s.experts * 3 * hidden * inter)?;
            self.pool.0 = Some(Pool::new(&self.fill, s.experts, hidden, inter)?);
        }
        let share = fullest(s);
        self.room(&operator, Rank::bytes(&share, hidden, inter))?;
        let r = Rank::new(&self.gpu, &self.fill, share, s.topk, hidden, inter)?;
        let pool = self.pool.0.as_ref().expect("made above");
        let touched = r.share.n_touched();
        // Each copy uses other experts of the pool, as the next layer would.
        let copies = copies_beyond(self.gpu.facts().l2_bytes, touched * 3 * hidden * inter, MOST_COPIES);
        let groups_of = |copy: usize| {
            let group = |(i, (first, rows)): (usize, &(usize, usize))| {
                Ok((fits("row", *first)?, fits("rows", *rows)?, fits("slot", (i + copy * (touched + 5)) % s.experts)?))
            };
            Groups::new(&self.gpu, &r.share.groups.iter().enumerate().map(group).collect::<Result<Vec<_>, CudaError>>()?)
        };
        let groups: Vec<Groups> = (0..copies).map(groups_of).collect::<Result<_, _>>()?;
        let product = |weights, weight_scales, tokens, token_scales, out, n, k, tile| {
            let p = GroupedProduct { weights, weight_scales, tokens, token_scales, out, n, k, row_stride: r.row_stride, tile };
            self.experts.product(&self.gpu, &p)
        };
        let gate_up =
            |tile| product(&pool.gate_up, &pool.gate_up_scales, &r.gathered, &r.gathered_scales, &r.gate_up, 2 * inter, hidden, tile);
        let down = |tile| product(&pool.down, &pool.down_scales, &r.act, &r.act_scales, &r.rows, hidden, inter, tile);
        let gather = || self.experts.gather((&r.x, &r.x_scales), &r.source, (&r.gathered, &r.gathered_scales), hidden, r.row_stride);
        let silu = || self.experts.silu(&r.gate_up, &r.source, (&r.act, &r.act_scales), inter, r.row_stride);
        // Activations for the choice of a tile: the products write nothing that the other reads.
        gather()?;
        gate_up(Tile::ALL[0])?(&groups[0])?;
        silu()?;
        let tiles = [self.fastest_tile(&groups, 2 * inter, gate_up)?, self.fastest_tile(&groups, hidden, down)?];
        let (gate_up, down) = (gate_up(tiles[0])?, down(tiles[1])?);
        let launch = |copy: usize| {
            gather()?;
            gate_up(&groups[copy])?;
            silu()?;
            down(&groups[copy])?;
            self.experts.combine(&r.rows, &r.rows_of, &r.weights, &r.out, s.topk, hidden)
        };
        for buffer in [&r.gate_up, &r.rows, &r.out] {
            buffer.set_bytes(0xff)?;
        }
        launch(0)?;
        let error = self.check_experts(&operator, pool, &r, s.topk, hidden, inter)?;
        let timing = self.timer.time(copies, launch)?;
        let (rows, tokens) = (r.share.n_rows(), r.share.rows_of.len());
        let bytes = real(touched) * real(3 * hidden * inter) + real(tokens) * real(hidden * 3);
        let flops = 2.0 * real(rows) * real(3 * hidden) * real(inter);
        self.measured(operator, format!("own wgmma, tiles {} and {}", tiles[0], tiles[1]), timing, error, bytes, flops)
    }

    /// The tile with which a grouped product of `n` rows of weights is fastest; each of `groups` has other weights.
    fn fastest_tile<F: Fn(&Groups) -> Result<(), CudaError>>(
        &self,
        groups: &[Groups],
        n: usize,
        of: impl Fn(Tile) -> Result<F, CudaError>,
    ) -> Result<Tile, CudaError> {
        let mut best = (Tile::ALL[0], f64::INFINITY);
        for tile in Tile::ALL.into_iter().filter(|tile| n.is_multiple_of(tile.rows)) {
            let launch = of(tile)?;
            let seconds = self.timer.once(groups.len(), |copy| launch(&groups[copy]))?;
            if seconds < best.1 {
                best = (tile, seconds);
            }
        }
        Ok(best.0)
    }

    /// Each of the five kernels against FP64, from what the one before it wrote.
    fn check_experts(
        &self,
        operator: &Operator,
        pool: &Pool,
        r: &Rank,
        topk: usize,
        hidden: usize,
        inter: usize,
    ) -> Result<f64, BenchError> {
        let real_rows: Vec<(usize, usize)> =
            r.share.groups.iter().enumerate().flat_map(|(g, (first, n))| (*first..first + n).map(move |row| (g, row))).collect();
        let scales_of = |scales: &Buffer<f32>, row: usize, blocks: usize| -> Result<Vec<f64>, CudaError> {
            (0..blocks).map(|kb| Ok(f64::from(scales.read(kb * r.row_stride + row, 1)?[0]))).collect()
        };
        let values = |bytes: Vec<u8>| bytes.into_iter().map(e4m3).collect::<Vec<f64>>();
        // A row of a quantised matrix.
        let row_of = |matrix: &Buffer<u8>, scales: &Buffer<f32>, row: usize, k: usize| -> Result<Vec<f64>, CudaError> {
            let (bytes, scales) = (values(matrix.read(row * k, k)?), scales_of(scales, row, k / 128)?);
            Ok(bytes.iter().enumerate().map(|(i, v)| v * scales[i / 128]).collect())
        };
        let weight_row =
            |matrix: &Buffer<u8>, scales: &Buffer<f32>, slot: usize, n: usize, k: usize, column: usize| -> Result<Vec<f64>, CudaError> {
                let bytes = values(matrix.read((slot * n + column) * k, k)?);
                let scales = scales.read((slot * (n / 128) + column / 128) * (k / 128), k / 128)?;
                Ok(bytes.iter().enumerate().map(|(i, v)| v * f64::from(scales[i / 128])).collect())
            };
        let mut distances = [Distance::default(); 5];
        for (i, place) in places(real_rows.len(), SAMPLES).enumerate() {
            let (slot, row) = real_rows[place];
            let token = r.share.source[row].expect("a row of a group");
            let gathered = row_of(&r.gathered, &r.gathered_scales, row, hidden)?;
            let x = values(r.x.read(token * hidden, hidden)?);
            let x_scales = r.x_scales.read(token * (hidden / 128), hidden / 128)?;
            for (j, v) in x.iter().enumerate() {
                distances[0].add(gathered[j], v * f64::from(x_scales[j / 128]));
            }
            let n = 2 * inter;
            let column = (place * 7919 + i * 131) % n;
            let weights = weight_row(&pool.gate_up, &pool.gate_up_scales, slot, n, hidden, column)?;
            let got: Vec<f64> = r.gate_up.read(row * n, n)?.iter().map(|v| v.to_f64()).collect();
            distances[1].add(got[column], dot(gathered, weights));
            let act = row_of(&r.act, &r.act_scales, row, inter)?;
            for (j, v) in act.iter().enumerate() {
                distances[2].add(*v, got[j] / (1.0 + (-got[j]).exp()) * got[j + inter]);
            }
            let column = (place * 7919 + i * 131) % hidden;
            let weights = weight_row(&pool.down, &pool.down_scales, slot, hidden, inter, column)?;
            distances[3].add(r.rows.read(row * hidden + column, 1)?[0].to_f64(), dot(act, weights));
            let of_token = &r.share.rows_of[token];
            let factors = r.weights.read(token * topk, topk)?;
            let sum: Result<f64, CudaError> =
                of_token.iter().zip(factors).map(|(row, w)| Ok(f64::from(w) * r.rows.read(row * hidden + column, 1)?[0].to_f64())).sum();
            distances[4].add(r.out.read(token * hidden + column, 1)?[0].to_f64(), sum?);
        }
        let names = ["rows by expert", "gate and up", "silu, quantised", "down", "the weighted sum"];
        let limits = [1e-6, LIMIT, QUANTISED, LIMIT, LIMIT];
        for ((distance, what), limit) in distances.iter().zip(names).zip(limits) {
            let error = distance.relative();
            if error.is_nan() || error > limit {
                return Err(BenchError::Wrong { operator: operator.to_string(), what, error, limit });
            }
        }
        Ok(distances[1].relative().max(distances[3].relative()))
    }
}
