//! Flags of `tandem bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use tandem_cuda::bench::Kind;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) what: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Time the operators of a model on this machine's Hopper GPU, as tables for --tables
    Operators(OperatorsArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Needs an H100 or H200 with its driver, and cuBLASLt (12.9 or later) and NVRTC, which are in the CUDA toolkit and in PyTorch's packages
(LD_LIBRARY_PATH says where). Every result is checked against FP64 arithmetic before it is timed.

Examples:
  tandem bench operators --out tables
  tandem plan deepseek-r1 --gpu-type h100 --tables tables
  tandem bench operators --out tables --only moe,generation_mla --quick")]
pub(crate) struct OperatorsArgs {
    /// Folder for the tables: DIR/GPU/OPERATOR/OPERATOR_perf.csv, and DIR/GPU/bench.json about the run
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// A model that ships, or a config.json (or a directory with one)
    #[arg(long, value_name = "MODEL", default_value = "deepseek-r1")]
    pub(crate) model: String,
    /// Only these operators
    #[arg(long, value_enum, value_delimiter = ',', value_name = "OPERATOR")]
    pub(crate) only: Vec<OperatorKind>,
    /// Every third size only, for one rank and eight
    #[arg(long)]
    pub(crate) quick: bool,
    /// Times each figure is taken; the median counts
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) repeats: u16,
    /// Which of the GPUs that the driver shows
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) gpu: u16,
    /// Print every size, not three of each series
    #[arg(long)]
    pub(crate) all: bool,
}

/// An operator, by the name of its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum OperatorKind {
    /// Dense products: BF16, and FP8 with block scales
    Gemm,
    /// The two products of absorbed attention
    MlaBmm,
    /// Routed experts, FP8 with block scales
    Moe,
    /// Absorbed attention of one token a sequence, BF16 cache
    GenerationMla,
    /// Causal attention over whole prompts
    ContextMla,
}

impl From<OperatorKind> for Kind {
    fn from(kind: OperatorKind) -> Self {
        match kind {
            OperatorKind::Gemm => Kind::Gemm,
            OperatorKind::MlaBmm => Kind::MlaBmm,
            OperatorKind::Moe => Kind::Moe,
            OperatorKind::GenerationMla => Kind::GenerationMla,
            OperatorKind::ContextMla => Kind::ContextMla,
        }
    }
}
