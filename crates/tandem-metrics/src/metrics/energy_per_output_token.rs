//! Energy per output token: what a token costs at the GPUs.
//!
//! Formula: `GPU energy / output tokens of kept requests`; prefill and decode together (the roles apart are under `telemetry`).
//! Kind: derived. Unit: J/token. Undefined without telemetry.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "energy_per_output_token",
    title: "Energy per output token",
    unit: Unit::JoulesPerToken,
    better: Better::Lower,
    streaming_only: false,
    kind: Kind::Derived(of),
};

/// Joules a token.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    let tokens = sample.output_tokens().filter(|n| *n > 0)?;
    Some(sample.energy_j? / tokens as f64)
}
