//! Request count: the requests that statistics are taken over.
//!
//! Formula: number of kept requests of the profiling phase.
//! Kind: aggregate. Unit: requests.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "request_count",
    title: "Request count",
    unit: Unit::Requests,
    better: Better::Neither,
    streaming_only: false,
    kind: Kind::Aggregate(of),
};

/// Requests.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    Some(sample.kept.len() as f64)
}
