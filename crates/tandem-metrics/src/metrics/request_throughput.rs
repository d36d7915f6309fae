//! Request throughput: kept requests a second.
//!
//! Formula: `kept requests / benchmark duration`. GenAI-Perf also counts responses without output; we do not.
//! Kind: derived. Unit: requests/s.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "request_throughput",
    title: "Request throughput",
    unit: Unit::RequestsPerSecond,
    better: Better::Higher,
    streaming_only: false,
    kind: Kind::Derived(of),
};

/// Requests a second.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    Some(sample.kept.len() as f64 / sample.duration_s()?)
}
