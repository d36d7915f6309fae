//! Error count: requests that failed, or ended well without any output.
//!
//! Formula: `profiling requests - kept requests`.
//! Kind: aggregate. Unit: requests.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "error_count",
    title: "Failed requests",
    unit: Unit::Requests,
    better: Better::Lower,
    streaming_only: false,
    kind: Kind::Aggregate(of),
};

/// Requests.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    Some((sample.profiling.len() - sample.kept.len()) as f64)
}
