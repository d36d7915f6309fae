//! What the operators of a model take on this GPU.
//!
//! Reading order: `operator` (what is measured), `sizes` (which sizes of which operators a model has), `timer` (how), `products`, `experts`,
//! `attention` (one operator each: data, check, time), `routing` (tokens over experts), `table` (results as CSV).
//!
//! Every time is that of many launches in one CUDA graph over changing data larger than the L2 cache, as a step of a model has them: no
//! launch from this machine is in it, and weights come from memory. Every result is compared with FP64 arithmetic here before it is timed.

mod attention;
mod check;
mod experts;
mod operator;
mod products;
mod routing;
mod sizes;
pub mod table;
mod timer;

use thiserror::Error;

pub use operator::{ExpertsShape, Format, Kind, Measurement, Operator, Rate, Spread};
pub use sizes::operators_of;

use crate::blas::Blas;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::{Decode, Experts, Fill, Prefill};
use timer::Timer;

/// Why an operator has no time.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The GPU or a library refused.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// A kernel's result is not that of the arithmetic here.
    #[error("{operator}: {what} is off by {error:.2e} (relative; at most {limit:.0e} is rounding)")]
    Wrong {
        /// The operator.
        operator: String,
        /// Which of its results.
        what: &'static str,
        /// ‖result − reference‖ / ‖reference‖ of a sample.
        error: f64,
        /// What rounding explains.
        limit: f64,
    },
    /// Sizes that the kernels are not made for.
    #[error("{operator}: {reason}")]
    Unsupported {
        /// The operator.
        operator: String,
        /// Why.
        reason: String,
    },
    /// The data is larger than the GPU's free memory.
    #[error("{operator}: needs {needed} bytes of GPU memory, {free} are free")]
    Memory {
        /// The operator.
        operator: String,
        /// Bytes.
        needed: usize,
        /// Bytes.
        free: usize,
    },
}

/// Versions of what measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions {
    /// CUDA version of the driver, e.g. 13000.
    pub driver_cuda: i32,
    /// cuBLASLt, e.g. 130100.
    pub cublaslt: usize,
    /// NVRTC.
    pub nvrtc: (i32, i32),
}

/// Measures operators, one after the other.
#[derive(Debug)]
pub struct Bench {
    gpu: Gpu,
    blas: Blas,
    fill: Fill,
    experts: Experts,
    decode: Decode,
    prefill: Prefill,
    timer: Timer,
    products: products::Cache,
    pool: experts::Cache,
    cache: attention::Cache,
    nvrtc: (i32, i32),
}

impl Bench {
    /// Opens the libraries and compiles the kernels; `repeats` graphs are timed for each figure.
    ///
    /// # Errors
    /// Which library or GPU is missing, or [`CudaError::NotHopper`].
    pub fn new(gpu: &Gpu, repeats: usize) -> Result<Self, CudaError> {
        gpu.require_hopper()?;
        Ok(Bench {
            blas: Blas::new(gpu)?,
            fill: Fill::new(gpu)?,
            experts: Experts::new(gpu)?,
            decode: Decode::new(gpu)?,
            prefill: Prefill::new(gpu)?,
            timer: Timer::new(gpu, repeats)?,
            products: products::Cache::default(),
            pool: experts::Cache::default(),
            cache: attention::Cache::default(),
            nvrtc: crate::program::nvrtc_version()?,
            gpu: gpu.clone(),
        })
    }

    /// Versions of driver and libraries.
    #[must_use]
    pub fn versions(&self) -> Versions {
        Versions { driver_cuda: self.gpu.facts().driver_cuda, cublaslt: self.blas.version(), nvrtc: self.nvrtc }
    }

    /// Checks and times one operator. Neighbours in [`operators_of`] share data, so its order is the fastest.
    ///
    /// # Errors
    /// [`BenchError`]; after [`BenchError::Cuda`] of a failed kernel the GPU's context is of no use any more.
    pub fn measure(&mut self, operator: &Operator) -> Result<Measurement, BenchError> {
        match *operator {
            Operator::Gemm { .. } | Operator::Absorbed { .. } => {
                self.pool.clear();
                self.cache.clear();
                self.product(operator)
            }
            Operator::Experts(shape) => {
                self.products.clear();
                self.cache.clear();
                self.routed_experts(&shape)
            }
            Operator::Generation { heads, batch, length } => {
                self.products.clear();
                self.pool.clear();
                self.generation(heads, batch, length)
            }
            Operator::Context { heads, batch, length } => {
                self.products.clear();
                self.pool.clear();
                self.context(heads, batch, length)
            }
        }
    }

    /// Nothing when `needed` bytes, and some more, are free.
    fn room(&self, operator: &Operator, needed: usize) -> Result<(), BenchError> {
        let (free, _) = self.gpu.memory()?;
        if needed + (512 << 20) <= free { Ok(()) } else { Err(BenchError::Memory { operator: operator.to_string(), needed, free }) }
    }

    /// The measurement of an operator that takes `timing`.
    fn measured(
        &self,
        operator: Operator,
        kernel: String,
        timing: timer::Timing,
        error: f64,
        bytes: f64,
        flops: f64,
    ) -> Result<Measurement, BenchError> {
        let clock = self.fill.clock()?;
        Ok(Measurement {
            operator,
            kernel,
            seconds: timing.seconds,
            spread: timing.spread,
            launches: timing.launches,
            error,
            bytes,
            flops,
            clock,
        })
    }
}

/// A size as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
pub(crate) const fn real(n: usize) -> f64 {
    n as f64
}
