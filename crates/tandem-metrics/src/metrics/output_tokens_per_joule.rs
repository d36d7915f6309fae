//! Output tokens per joule, which is the output token throughput per watt.
//!
//! Formula: `output tokens of kept requests / GPU energy`. Tokens a second divided by mean watts over the same window is the same number.
//! Kind: derived. Unit: tokens/J (tokens/s/W). Undefined without telemetry.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "output_tokens_per_joule",
    title: "Output tokens per joule",
    unit: Unit::TokensPerJoule,
    better: Better::Higher,
    streaming_only: false,
    kind: Kind::Derived(of),
};

/// Tokens a joule.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    let tokens = sample.output_tokens()?;
    sample.energy_j.filter(|joules| *joules > 0.0).map(|joules| tokens as f64 / joules)
}
