//! What can go wrong on a GPU, with the words of whoever refused.

use thiserror::Error;

/// Why something cannot be done on a GPU.
#[derive(Debug, Error)]
pub enum CudaError {
    /// A library is not on this machine.
    #[error("no {what} here: none of {tried} could be opened")]
    Missing {
        /// What the library is.
        what: &'static str,
        /// The names that were tried.
        tried: String,
        /// What the last one said.
        #[source]
        source: libloading::Error,
    },
    /// A library is too old, or not what its name says.
    #[error("the {what} here has no function `{symbol}`: it is too old")]
    Symbol {
        /// What the library is.
        what: &'static str,
        /// The function.
        symbol: &'static str,
    },
    /// A call failed.
    #[error("{call}: {message} ({code})")]
    Call {
        /// The function.
        call: &'static str,
        /// Its status.
        code: i32,
        /// The library's words for that.
        message: String,
    },
    /// A kernel was not compiled.
    #[error("NVRTC cannot compile {name}:\n{log}")]
    Compile {
        /// The program.
        name: String,
        /// What the compiler said.
        log: String,
    },
    /// No GPU at all, or none of that number.
    #[error("GPU {ordinal} was asked for, and the driver has {count}")]
    NoDevice {
        /// The number that was asked for.
        ordinal: i32,
        /// How many there are.
        count: i32,
    },
    /// The kernels are for Hopper.
    #[error("{name} has compute capability {major}.{minor}; the kernels here are for 9.0 (H100, H200)")]
    NotHopper {
        /// The GPU.
        name: String,
        /// Compute capability.
        major: i32,
        /// Its second number.
        minor: i32,
    },
    /// cuBLASLt has no algorithm for a product.
    #[error("cuBLASLt {version} has no algorithm for {product}")]
    NoAlgorithm {
        /// The library's version.
        version: usize,
        /// The product.
        product: String,
    },
    /// A size is larger than what a kernel or an interface takes.
    #[error("{what} of {value} is more than fits")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How much.
        value: usize,
    },
}

/// A size as an interface wants it.
pub(crate) fn fits<T: TryFrom<usize>>(what: &'static str, value: usize) -> Result<T, CudaError> {
    T::try_from(value).map_err(|_| CudaError::TooLarge { what, value })
}
