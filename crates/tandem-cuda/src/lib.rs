//! NVIDIA GPUs from Rust, without CUDA at build time: driver, NVRTC and cuBLASLt are opened at run time, own kernels are compiled there.
//!
//! Reading order: `gpu` (a device, its memory, its stream), `program` (kernels), `blas` (dense products), `kernels` (own kernels and how
//! they are called), `bench` (what operators of a model take). `ffi` has the C functions.
//!
//! Not here: what is done with the times (`tandem_sim::tables`), and anything that serves requests.

pub mod bench;
mod blas;
mod error;
mod ffi;
mod gpu;
mod kernels;
mod program;

pub use blas::{Blas, Dtype, Product, Scales, Shape};
pub use error::CudaError;
pub use gpu::{Buffer, Element, Event, Facts, Gpu, Graph};
pub use kernels::{Attention, Decode, DecodeCall, Experts, Fill, GroupedProduct, Groups, Prefill, Tile};
pub use program::{Arg, Kernel, Launch, Program, TensorMap, compile};
