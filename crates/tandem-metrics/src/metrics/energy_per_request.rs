//! Energy per request: what a kept request costs at the GPUs.
//!
//! Formula: `GPU energy / kept requests`.
//! Kind: derived. Unit: J/request. Undefined without telemetry.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "energy_per_request",
    title: "Energy per request",
    unit: Unit::JoulesPerRequest,
    better: Better::Lower,
    streaming_only: false,
    kind: Kind::Derived(of),
};

/// Joules a request.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    (!sample.kept.is_empty()).then_some(sample.energy_j? / sample.kept.len() as f64)
}
