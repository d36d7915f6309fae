//! Input token throughput: prompt tokens of all users together a second.
//!
//! Formula: `sum of isl over kept requests / benchmark duration`; undefined if a kept request has no token count.
//! Kind: derived. Unit: tokens/s.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "input_throughput",
    title: "Input token throughput",
    unit: Unit::TokensPerSecond,
    better: Better::Higher,
    streaming_only: false,
    kind: Kind::Derived(of),
};

/// Tokens a second.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    Some(sample.input_tokens()? as f64 / sample.duration_s()?)
}
