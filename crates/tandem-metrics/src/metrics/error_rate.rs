//! Error rate: share of the measured requests that failed.
//!
//! Formula: `100 × error count / profiling requests`.
//! Kind: derived. Unit: percent.

use crate::metrics::{Better, Kind, Metric, Sample, Unit, error_count};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "error_rate",
    title: "Error rate",
    unit: Unit::Percent,
    better: Better::Lower,
    streaming_only: false,
    kind: Kind::Derived(of),
};

/// Percent.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    let n = sample.profiling.len();
    (n > 0).then(|| error_count::of(sample).map(|errors| 100.0 * errors / n as f64)).flatten()
}
