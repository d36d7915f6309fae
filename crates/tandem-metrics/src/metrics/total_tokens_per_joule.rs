//! Input and output tokens per joule.
//!
//! Formula: `(input + output tokens of kept requests) / GPU energy`.
//! Kind: derived. Unit: tokens/J (tokens/s/W). Undefined without telemetry.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "total_tokens_per_joule",
    title: "Total tokens per joule",
    unit: Unit::TokensPerJoule,
    better: Better::Higher,
    streaming_only: false,
    kind: Kind::Derived(of),
};

/// Tokens a joule.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    let tokens = sample.input_tokens()? + sample.output_tokens()?;
    sample.energy_j.filter(|joules| *joules > 0.0).map(|joules| tokens as f64 / joules)
}
