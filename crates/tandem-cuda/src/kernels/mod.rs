//! Own kernels for Hopper and how they are called. The sources are the `.cu` files beside this one; NVRTC compiles them when they are loaded.

#![expect(unsafe_code, reason = "kernels are launched")]

use std::ffi::CString;

use half::bf16;

use crate::error::{CudaError, fits};
use crate::gpu::{Buffer, Gpu};
use crate::program::{Arg, Kernel, Launch, Program, TensorMap, compile};

const COMMON: &str = include_str!("common.cuh");
/// Names and sources of all programs.
pub(crate) const SOURCES: [(&str, &str); 4] = [
    ("fill.cu", include_str!("fill.cu")),
    ("experts.cu", include_str!("experts.cu")),
    ("mla_decode.cu", include_str!("mla_decode.cu")),
    ("mla_prefill.cu", include_str!("mla_prefill.cu")),
];

/// The whole text of a program.
pub(crate) fn source(name: &str) -> String {
    let (_, text) = SOURCES.iter().find(|(n, _)| *n == name).expect("a program of the list");
    format!("{COMMON}\n{text}")
}

fn load(gpu: &Gpu, name: &str) -> Result<Program, CudaError> {
    Program::load(gpu, &compile(name, &source(name))?)
}

/// A kernel whose dynamic shared memory the program states in `<name>_bytes`.
fn with_shared(program: &Program, name: &str) -> Result<Kernel, CudaError> {
    let text = |s: String| CString::new(s).expect("names have no zero");
    let bytes = program.global(&text(format!("{name}_bytes")))?;
    program.kernel(&text(name.to_owned()), bytes.unsigned_abs())
}

const fn flat(blocks: u32, threads: u32) -> Launch {
    Launch { grid: [blocks, 1, 1], threads }
}

/// Data from a seed, and the clock.
#[derive(Debug)]
pub struct Fill {
    gpu: Gpu,
    bf16: Kernel,
    e4m3: Kernel,
    f32: Kernel,
    clock: Kernel,
    _program: Program,
}

impl Fill {
    /// Loads the kernels.
    ///
    /// # Errors
    /// What NVRTC or the driver says.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let program = load(gpu, "fill.cu")?;
        let [bf16, e4m3, f32, clock] = [c"fill_bf16", c"fill_e4m3", c"fill_f32", c"read_clock"].map(|name| program.kernel(name, 0));
        Ok(Fill { gpu: gpu.clone(), bf16: bf16?, e4m3: e4m3?, f32: f32?, clock: clock?, _program: program })
    }

    /// About normal with standard deviation `scale`; an even number of values.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// On an odd number.
    pub fn bf16(&self, n: usize, scale: f32, seed: u64) -> Result<Buffer<bf16>, CudaError> {
        assert!(n.is_multiple_of(2), "{n} values are no pairs");
        let to = self.gpu.alloc(n)?;
        let args = [Arg::Pointer(to.pointer()), Arg::U64(n as u64 / 2), Arg::F32(scale), Arg::U64(seed)];
        // SAFETY: `fill_bf16(u32*, u64, float, u64)`; the buffer has that many pairs.
        unsafe { self.bf16.launch(flat(1024, 256), &args) }?;
        Ok(to)
    }

    /// The same in e4m3.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// On an odd number.
    pub fn e4m3(&self, n: usize, scale: f32, seed: u64) -> Result<Buffer<u8>, CudaError> {
        assert!(n.is_multiple_of(2), "{n} values are no pairs");
        let to = self.gpu.alloc(n)?;
        let args = [Arg::Pointer(to.pointer()), Arg::U64(n as u64 / 2), Arg::F32(scale), Arg::U64(seed)];
        // SAFETY: `fill_e4m3(u16*, u64, float, u64)`; the buffer has that many pairs.
        unsafe { self.e4m3.launch(flat(1024, 256), &args) }?;
        Ok(to)
    }

    /// Even between `low` and `high`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn f32(&self, n: usize, low: f32, high: f32, seed: u64) -> Result<Buffer<f32>, CudaError> {
        let to = self.gpu.alloc(n)?;
        let args = [Arg::Pointer(to.pointer()), Arg::U64(n as u64), Arg::F32(low), Arg::F32(high), Arg::U64(seed)];
        // SAFETY: `fill_f32(float*, u64, float, float, u64)`; the buffer has that many values.
        unsafe { self.f32.launch(flat(1024, 256), &args) }?;
        Ok(to)
    }

    /// The multiprocessors' clock in hertz at this moment of the stream, over about 0.1 ms.
    ///
    /// # Errors
    /// What the driver says.
    pub fn clock(&self) -> Result<f64, CudaError> {
        let to = self.gpu.alloc::<u64>(2)?;
        // SAFETY: `read_clock(u64*, u64)` writes two values.
        unsafe { self.clock.launch(flat(1, 1), &[Arg::Pointer(to.pointer()), Arg::U64(200_000)]) }?;
        let read = to.read(0, 2)?;
        #[expect(clippy::cast_precision_loss, reason = "both are far below 2^52")]
        Ok(read[0] as f64 / read[1] as f64 * 1e9)
    }
}

/// Which rows of a matrix belong to which expert.
#[derive(Debug)]
pub struct Groups {
    start: Buffer<i32>,
    rows: Buffer<i32>,
    slot: Buffer<i32>,
    n: i32,
}

impl Groups {
    /// Groups of (first row, rows, place of the weights); first rows are multiples of 4.
    ///
    /// # Errors
    /// What the driver says, or more than 512 groups.
    pub fn new(gpu: &Gpu, groups: &[(i32, i32, i32)]) -> Result<Self, CudaError> {
        if groups.len() > 512 {
            return Err(CudaError::TooLarge { what: "experts of a rank", value: groups.len() });
        }
        let column = |of: fn(&(i32, i32, i32)) -> i32| gpu.upload(&groups.iter().map(of).collect::<Vec<_>>());
        Ok(Groups { start: column(|g| g.0)?, rows: column(|g| g.1)?, slot: column(|g| g.2)?, n: fits("groups", groups.len())? })
    }
}

/// A tile of a grouped product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Rows of weights.
    pub rows: usize,
    /// Tokens.
    pub tokens: usize,
}

impl Tile {
    /// Those that there are kernels for: weights are read once for each tile of tokens, and unused tokens of a tile cost time.
    pub const ALL: [Tile; 5] = [
        Tile { rows: 128, tokens: 16 },
        Tile { rows: 128, tokens: 32 },
        Tile { rows: 128, tokens: 64 },
        Tile { rows: 128, tokens: 128 },
        Tile { rows: 256, tokens: 128 },
    ];
}

impl std::fmt::Display for Tile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.rows, self.tokens)
    }
}

/// The kernels of routed experts.
#[derive(Debug)]
pub struct Experts {
    grouped: Vec<(Tile, Kernel)>,
    gather: Kernel,
    silu: Kernel,
    combine: Kernel,
    multiprocessors: u32,
    _program: Program,
}

/// Operands of a grouped product; sizes as in `experts.cu`.
#[derive(Debug)]
pub struct GroupedProduct<'a> {
    /// `[slots · n][k]` e4m3.
    pub weights: &'a Buffer<u8>,
    /// `[slots][n/128][k/128]`.
    pub weight_scales: &'a Buffer<f32>,
    /// `[rows][k]` e4m3.
    pub tokens: &'a Buffer<u8>,
    /// `[k/128][row_stride]`.
    pub token_scales: &'a Buffer<f32>,
    /// `[rows][n]`.
    pub out: &'a Buffer<bf16>,
    /// Rows of the weights of one expert.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// Columns of the tokens' scales: at least rows + 128, a multiple of 4.
    pub row_stride: usize,
    /// One of [`Tile::ALL`] whose rows divide n.
    pub tile: Tile,
}

impl Experts {
    /// Loads the kernels.
    ///
    /// # Errors
    /// What NVRTC or the driver says.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let program = load(gpu, "experts.cu")?;
        let grouped = |tile: Tile| Ok::<_, CudaError>((tile, with_shared(&program, &format!("grouped_{tile}"))?));
        Ok(Experts {
            grouped: Tile::ALL.into_iter().map(grouped).collect::<Result<_, _>>()?,
            gather: program.kernel(c"gather_rows", 0)?,
            silu: program.kernel(c"silu_quantise", 0)?,
            combine: program.kernel(c"combine_rows", 0)?,
            multiprocessors: gpu.facts().multiprocessors,
            _program: program,
        })
    }

    /// Prepares a grouped product: a closure that puts it on the stream for some groups.
    ///
    /// # Errors
    /// What the driver says of the sizes.
    ///
    /// # Panics
    /// When sizes are no multiples of the tile's or 128, a buffer is too small, or there is no such tile.
    pub fn product<'a>(
        &'a self,
        gpu: &Gpu,
        p: &GroupedProduct<'a>,
    ) -> Result<impl Fn(&Groups) -> Result<(), CudaError> + use<'a>, CudaError> {
        let (n, k, rows) = (p.n, p.k, p.tokens.len() / p.k);
        assert!(n.is_multiple_of(p.tile.rows) && k.is_multiple_of(128), "{n} x {k} in tiles of {}", p.tile);
        assert!(p.row_stride >= rows + 128 && p.row_stride.is_multiple_of(4), "{} columns of scales for {rows} rows", p.row_stride);
        assert!(p.out.len() >= rows * n && p.token_scales.len() >= k / 128 * p.row_stride, "buffers of {rows} rows");
        assert!(p.weight_scales.len() * 128 * 128 >= p.weights.len(), "scales of all weights");
        let (_, kernel) = self.grouped.iter().find(|(tile, _)| *tile == p.tile).expect("a tile of the list");
        let weights = TensorMap::of(gpu, p.weights, k, p.weights.len() / k, [128, fits("tile", p.tile.rows)?])?;
        let tokens = TensorMap::of(gpu, p.tokens, k, rows, [128, fits("tile", p.tile.tokens)?])?;
        let launch = Launch { grid: [self.multiprocessors, 1, 1], threads: 384 };
        let (weight_scales, token_scales, out) = (p.weight_scales.pointer(), p.token_scales.pointer(), p.out.pointer());
        let sizes: [i32; 3] = [fits("n", n)?, fits("k", k)?, fits("row stride", p.row_stride)?];
        Ok(move |groups: &Groups| {
            let args = [
                Arg::Map(&weights),
                Arg::Map(&tokens),
                Arg::Pointer(weight_scales),
                Arg::Pointer(token_scales),
                Arg::Pointer(out),
                Arg::Pointer(groups.start.pointer()),
                Arg::Pointer(groups.rows.pointer()),
                Arg::Pointer(groups.slot.pointer()),
                Arg::I32(groups.n),
                Arg::I32(sizes[0]),
                Arg::I32(sizes[1]),
                Arg::I32(sizes[2]),
            ];
            // SAFETY: the types of `grouped_<tile>`; sizes were checked above, and groups of rows beyond the matrix are the caller's bug.
            unsafe { kernel.launch(launch, &args) }
        })
    }

    /// Rows of tokens into the order of experts, with scales transposed; −1 in `source` leaves a row.
    ///
    /// # Errors
    /// What the driver says.
    pub fn gather(
        &self,
        x: (&Buffer<u8>, &Buffer<f32>),
        source: &Buffer<i32>,
        to: (&Buffer<u8>, &Buffer<f32>),
        k: usize,
        row_stride: usize,
    ) -> Result<(), CudaError> {
        assert!(to.0.len() >= source.len() * k && to.1.len() >= k / 128 * row_stride, "buffers of {} rows", source.len());
        let pointers = [x.0.pointer(), x.1.pointer(), source.pointer(), to.0.pointer(), to.1.pointer()].map(Arg::Pointer);
        let args = [&pointers[..], &[Arg::I32(fits("k", k)?), Arg::I32(fits("row stride", row_stride)?)]].concat();
        // SAFETY: the types of `gather_rows`; sizes were checked.
        unsafe { self.gather.launch(flat(fits("rows", source.len())?, 128), &args) }
    }

    /// silu(gate) · up, quantised by 128 columns.
    ///
    /// # Errors
    /// What the driver says.
    pub fn silu(
        &self,
        gate_up: &Buffer<bf16>,
        source: &Buffer<i32>,
        to: (&Buffer<u8>, &Buffer<f32>),
        inter: usize,
        row_stride: usize,
    ) -> Result<(), CudaError> {
        let rows = source.len();
        assert!(
            gate_up.len() >= rows * 2 * inter && to.0.len() >= rows * inter && to.1.len() >= inter / 128 * row_stride,
            "buffers of {rows} rows"
        );
        let pointers = [gate_up.pointer(), source.pointer(), to.0.pointer(), to.1.pointer()].map(Arg::Pointer);
        let args = [&pointers[..], &[Arg::I32(fits("inter", inter)?), Arg::I32(fits("row stride", row_stride)?)]].concat();
        // SAFETY: the types of `silu_quantise`; sizes were checked.
        unsafe { self.silu.launch(flat(fits("rows", rows)?, 256), &args) }
    }

    /// The weighted sum of each token's rows: `rows_of` and `weights` are `[tokens][topk]`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn combine(
        &self,
        rows: &Buffer<bf16>,
        rows_of: &Buffer<i32>,
        weights: &Buffer<f32>,
        to: &Buffer<bf16>,
        topk: usize,
        n: usize,
    ) -> Result<(), CudaError> {
        let tokens = rows_of.len() / topk;
        assert!(weights.len() >= tokens * topk && to.len() >= tokens * n, "buffers of {tokens} tokens");
        let pointers = [rows.pointer(), rows_of.pointer(), weights.pointer(), to.pointer()].map(Arg::Pointer);
        let args = [&pointers[..], &[Arg::I32(fits("topk", topk)?), Arg::I32(fits("n", n)?)]].concat();
        // SAFETY: the types of `combine_rows`; sizes were checked.
        unsafe { self.combine.launch(flat(fits("tokens", tokens)?, 256), &args) }
    }
}

/// Widths of latent attention's heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention;

impl Attention {
    /// Values of a cached token (latent and rotated part), of which queries in absorbed form have as many.
    pub const LATENT_QK: usize = 576;
    /// Those that are averaged.
    pub const LATENT_V: usize = 512;
    /// Values of an expanded query or key.
    pub const QK: usize = 192;
    /// Values of an expanded value.
    pub const V: usize = 128;
    /// Tokens of a page.
    pub const PAGE: usize = 64;
}

/// Absorbed attention of one token a sequence.
#[derive(Debug)]
pub struct Decode {
    kernel: Kernel,
    combine: Kernel,
    multiprocessors: usize,
    _program: Program,
}

/// Operands of [`Decode::launch`]; sizes as in `mla_decode.cu`.
#[derive(Debug)]
pub struct DecodeCall<'a> {
    /// Of `[batch · heads][576]`, in tiles of 64 × 64.
    pub q: &'a TensorMap,
    /// Of `[pages · 64][576]`, in tiles of 64 × 64.
    pub pages: &'a TensorMap,
    /// `[batch][max_pages]`.
    pub table: &'a Buffer<i32>,
    /// `[batch]`.
    pub lengths: &'a Buffer<i32>,
    /// `[splits][batch · heads][512]`.
    pub partial: &'a Buffer<f32>,
    /// `[splits][batch · heads]`.
    pub lse: &'a Buffer<f32>,
    /// `[batch · heads][512]`.
    pub out: &'a Buffer<bf16>,
    /// Heads.
    pub heads: usize,
    /// Pages of a row of the table.
    pub max_pages: usize,
    /// Shares of a sequence.
    pub splits: usize,
    /// Softmax scale.
    pub scale: f32,
}

impl Decode {
    /// Loads the kernels.
    ///
    /// # Errors
    /// What NVRTC or the driver says.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let program = load(gpu, "mla_decode.cu")?;
        let multiprocessors = usize::try_from(gpu.facts().multiprocessors).unwrap_or(1);
        Ok(Decode {
            kernel: with_shared(&program, "mla_decode")?,
            combine: program.kernel(c"mla_combine", 0)?,
            multiprocessors,
            _program: program,
        })
    }

    /// Shares of a sequence of so many pages that end soonest: whole waves of blocks, and not too many partial sums.
    #[must_use]
    pub fn splits_for(&self, batch: usize, heads: usize, n_pages: usize) -> usize {
        let blocks = batch * heads.div_ceil(64);
        // A page of work for the start of a block and for each share that is put together.
        let cost = |splits: usize| (blocks * splits).div_ceil(self.multiprocessors) * (n_pages.div_ceil(splits) + 2) + splits / 8;
        (1..=n_pages.clamp(1, 64)).min_by_key(|splits| (cost(*splits), *splits)).unwrap_or(1)
    }

    /// Puts the attention on the stream.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// When a buffer is too small.
    pub fn launch(&self, c: &DecodeCall<'_>) -> Result<(), CudaError> {
        let batch = c.lengths.len();
        let rows = batch * c.heads;
        assert!(c.table.len() >= batch * c.max_pages && c.out.len() >= rows * 512, "buffers of {batch} sequences");
        assert!(
            c.splits == 1 || (c.partial.len() >= c.splits * rows * 512 && c.lse.len() >= c.splits * rows),
            "partial sums of {} splits",
            c.splits
        );
        let grid = [fits("heads", c.heads.div_ceil(64))?, fits("splits", c.splits)?, fits("batch", batch)?];
        let args = [
            Arg::Map(c.q),
            Arg::Map(c.pages),
            Arg::Pointer(c.table.pointer()),
            Arg::Pointer(c.lengths.pointer()),
            Arg::Pointer(c.partial.pointer()),
            Arg::Pointer(c.lse.pointer()),
            Arg::Pointer(c.out.pointer()),
            Arg::I32(fits("heads", c.heads)?),
            Arg::I32(fits("pages", c.max_pages)?),
            Arg::F32(c.scale * std::f32::consts::LOG2_E),
        ];
        // SAFETY: the types of `mla_decode`; sizes were checked. Pages of the table beyond the cache read as zeros.
        unsafe { self.kernel.launch(Launch { grid, threads: 384 }, &args) }?;
        if c.splits > 1 {
            let pointers = [c.partial.pointer(), c.lse.pointer(), c.out.pointer()].map(Arg::Pointer);
            let args = [&pointers[..], &[Arg::I32(fits("splits", c.splits)?), Arg::I32(fits("rows", rows)?)]].concat();
            // SAFETY: the types of `mla_combine`; sizes were checked.
            unsafe { self.combine.launch(flat(fits("rows", rows)?, 128), &args) }?;
        }
        Ok(())
    }
}

/// Causal attention over whole prompts.
#[derive(Debug)]
pub struct Prefill {
    kernel: Kernel,
    _program: Program,
}

impl Prefill {
    /// Loads the kernel.
    ///
    /// # Errors
    /// What NVRTC or the driver says.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let program = load(gpu, "mla_prefill.cu")?;
        Ok(Prefill { kernel: with_shared(&program, "mla_prefill")?, _program: program })
    }

    /// Prepares the attention of `batch` prompts of `length` tokens: q and k are `[batch · length][heads · 192]`, v and out
    /// `[batch · length][heads · 128]`. A closure that puts it on the stream.
    ///
    /// # Errors
    /// What the driver says of the sizes.
    ///
    /// # Panics
    /// When a buffer is too small.
    pub fn prepare<'a>(
        &'a self,
        gpu: &Gpu,
        [q, k, v, out]: [&'a Buffer<bf16>; 4],
        (heads, batch, length): (usize, usize, usize),
        scale: f32,
    ) -> Result<impl Fn() -> Result<(), CudaError> + use<'a>, CudaError> {
        let rows = batch * length;
        assert!(out.len() >= rows * heads * Attention::V, "an output of {rows} rows");
        let map = |matrix, width| TensorMap::of(gpu, matrix, heads * width, rows, [64, 128]);
        let maps = [map(q, Attention::QK)?, map(k, Attention::QK)?, map(v, Attention::V)?];
        let launch = Launch { grid: [fits("tokens", length.div_ceil(128))?, fits("heads", heads)?, fits("batch", batch)?], threads: 384 };
        let (out, heads, length) = (out.pointer(), fits("heads", heads)?, fits("tokens", length)?);
        Ok(move || {
            let [q, k, v] = &maps;
            let args = [
                Arg::Map(q),
                Arg::Map(k),
                Arg::Map(v),
                Arg::Pointer(out),
                Arg::I32(heads),
                Arg::I32(length),
                Arg::F32(scale * std::f32::consts::LOG2_E),
            ];
            // SAFETY: the types of `mla_prefill`; sizes were checked, and tiles beyond the matrices read as zeros.
            unsafe { self.kernel.launch(launch, &args) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_compiles_for_hopper() {
        for (name, _) in SOURCES {
            match compile(name, &source(name)) {
                Ok(cubin) => assert_eq!(&cubin[..4], b"\x7fELF", "{name}"),
                Err(CudaError::Missing { .. }) => {
                    return tandem_testkit::not_run("NVRTC compiles the kernels", "no libnvrtc on this machine");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}
