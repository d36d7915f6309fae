//! Effective concurrency: how many requests were in flight on average over the whole measured phase.
//!
//! Formula: time-weighted mean of requests in flight (start to end, failed ones and warm-up stragglers included) from the
//! first start to the last end of the profiling phase. The tail, when no request is left to send, lowers it; see `steady_concurrency`.
//! Kind: aggregate. Unit: requests.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "effective_concurrency",
    title: "Effective concurrency",
    unit: Unit::Requests,
    better: Better::Neither,
    streaming_only: false,
    kind: Kind::Aggregate(of),
};

/// Requests.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    let from_ns = sample.profiling.iter().map(|record| record.start_ns).min()?;
    let to_ns = sample.profiling.iter().map(|record| record.end_ns).max()?;
    sample.mean_in_flight(from_ns, to_ns)
}
