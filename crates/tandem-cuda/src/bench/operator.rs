//! What is measured: an operator with its sizes, and the result.

use std::fmt;

/// Number format of an operator's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// BF16.
    Bf16,
    /// e4m3 with one scale.
    Fp8,
    /// e4m3 with DeepSeek's scales: 1 × 128 for activations, 128 × 128 for weights.
    Fp8Block,
}

impl Format {
    /// Its name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Format::Bf16 => "bfloat16",
            Format::Fp8 => "fp8",
            Format::Fp8Block => "fp8_block",
        }
    }

    /// Bytes of a value.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Format::Bf16 => 2,
            Format::Fp8 | Format::Fp8Block => 1,
        }
    }
}

/// How tokens are spread over experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Spread {
    /// As evenly as whole numbers allow.
    Balanced,
    /// Shares of experts are drawn from a power law with exponent 1.01.
    PowerLaw,
}

impl Spread {
    /// Its name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Spread::Balanced => "balanced",
            Spread::PowerLaw => "power_law_1.01",
        }
    }
}

/// Sizes of the routed experts of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExpertsShape {
    /// Tokens of all ranks.
    pub tokens: usize,
    /// Width of the model.
    pub hidden: usize,
    /// Width of an expert, before it is split.
    pub inter: usize,
    /// Experts of a token.
    pub topk: usize,
    /// Experts.
    pub experts: usize,
    /// Ranks that share each expert.
    pub tp: usize,
    /// Ranks over which experts are spread.
    pub ep: usize,
    /// How tokens are spread.
    pub spread: Spread,
}

/// An operator with its sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// `[m][k]` · `[n][k]`ᵀ.
    Gemm {
        /// Format of both operands.
        format: Format,
        /// Rows.
        m: usize,
        /// Rows of the weights.
        n: usize,
        /// Columns.
        k: usize,
    },
    /// One of the products that absorbed attention has in place of the latent's up-projection: for each head `[tokens][k]` · `[n][k]`ᵀ.
    Absorbed {
        /// Queries into the latent (before), or averages out of it.
        before: bool,
        /// Format of both operands.
        format: Format,
        /// Tokens.
        tokens: usize,
        /// Heads of the rank.
        heads: usize,
        /// Rows of a head's weights.
        n: usize,
        /// Their columns.
        k: usize,
    },
    /// Routed experts of one layer on the fullest rank.
    Experts(ExpertsShape),
    /// Absorbed attention, one token a sequence.
    Generation {
        /// Heads of the rank.
        heads: usize,
        /// Sequences.
        batch: usize,
        /// Cached tokens of each.
        length: usize,
    },
    /// Causal attention over whole prompts.
    Context {
        /// Heads of the rank.
        heads: usize,
        /// Prompts.
        batch: usize,
        /// Tokens of each.
        length: usize,
    },
}

/// What kind of operator; the name of its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `gemm_perf`.
    Gemm,
    /// `moe_perf`.
    Moe,
    /// `mla_bmm_perf`.
    MlaBmm,
    /// `generation_mla_perf`.
    GenerationMla,
    /// `context_mla_perf`.
    ContextMla,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] = [Kind::Gemm, Kind::MlaBmm, Kind::Moe, Kind::GenerationMla, Kind::ContextMla];

    /// Its name, which is that of its folder; its table is this and `_perf`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Gemm => "gemm",
            Kind::Moe => "moe",
            Kind::MlaBmm => "mla_bmm",
            Kind::GenerationMla => "generation_mla",
            Kind::ContextMla => "context_mla",
        }
    }
}

/// Which peak bounds an operator's arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// BF16.
    Bf16,
    /// FP8.
    Fp8,
}

impl Operator {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Operator::Gemm { .. } => Kind::Gemm,
            Operator::Absorbed { .. } => Kind::MlaBmm,
            Operator::Experts(_) => Kind::Moe,
            Operator::Generation { .. } => Kind::GenerationMla,
            Operator::Context { .. } => Kind::ContextMla,
        }
    }

    /// The peak that its arithmetic counts against.
    #[must_use]
    pub const fn rate(&self) -> Rate {
        match self {
            Operator::Gemm { format: Format::Bf16, .. }
            | Operator::Absorbed { format: Format::Bf16, .. }
            | Operator::Generation { .. }
            | Operator::Context { .. } => Rate::Bf16,
            _ => Rate::Fp8,
        }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operator::Gemm { format, m, n, k } => write!(f, "gemm {} {m} x {n} x {k}", format.name()),
            Operator::Absorbed { before, format, tokens, heads, .. } => {
                write!(f, "mla_bmm {} {} {tokens} tokens, {heads} heads", if *before { "pre" } else { "post" }, format.name())
            }
            Operator::Experts(s) => {
                write!(f, "moe fp8_block {} tokens, TP {} EP {}, {}", s.tokens, s.tp, s.ep, s.spread.name())
            }
            Operator::Generation { heads, batch, length } => write!(f, "generation_mla {heads} heads, {batch} x {length}"),
            Operator::Context { heads, batch, length } => write!(f, "context_mla {heads} heads, {batch} x {length}"),
        }
    }
}

/// How long an operator takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// The operator.
    pub operator: Operator,
    /// What computed it.
    pub kernel: String,
    /// Median of the repeats, s.
    pub seconds: f64,
    /// Interquartile range of the repeats, as a share of the median.
    pub spread: f64,
    /// Launches of the operator in each repeat.
    pub launches: usize,
    /// ‖result − reference‖ / ‖reference‖ of the sampled results; the largest of an operator of several kernels.
    pub error: f64,
    /// The least bytes that go through memory: each operand once.
    pub bytes: f64,
    /// Floating-point operations.
    pub flops: f64,
    /// Clock of the multiprocessors right after the last repeat, Hz.
    pub clock: f64,
}

impl Measurement {
    /// The bound, s, at these peaks (bytes/s; FLOP/s in BF16 and FP8).
    #[must_use]
    pub fn bound(&self, memory: f64, bf16: f64, fp8: f64) -> f64 {
        let rate = match self.operator.rate() {
            Rate::Bf16 => bf16,
            Rate::Fp8 => fp8,
        };
        (self.bytes / memory).max(self.flops / rate)
    }
}
