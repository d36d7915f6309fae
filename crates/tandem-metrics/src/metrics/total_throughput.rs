//! Total token throughput: prompt and output tokens a second.
//!
//! Formula: `(sum of isl + sum of osl) / benchmark duration`, which equals output throughput × (ISL + OSL) / OSL with mean lengths.
//! Kind: derived. Unit: tokens/s.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "total_throughput",
    title: "Total token throughput",
    unit: Unit::TokensPerSecond,
    better: Better::Higher,
    streaming_only: false,
    kind: Kind::Derived(of),
};

/// Tokens a second.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    let tokens = sample.input_tokens()? + sample.output_tokens()?;
    Some(tokens as f64 / sample.duration_s()?)
}
