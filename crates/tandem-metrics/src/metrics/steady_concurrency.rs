//! Steady concurrency: how many requests were in flight on average while there were still requests to send.
//!
//! Formula: as `effective_concurrency`, from the first to the last start of the profiling phase. A client that keeps up holds it at the
//! nominal concurrency. Undefined unless there are at least two requests for each slot: before that, every start is part of the ramp.
//! Kind: aggregate. Unit: requests.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "steady_concurrency",
    title: "Steady concurrency",
    unit: Unit::Requests,
    better: Better::Neither,
    streaming_only: false,
    kind: Kind::Aggregate(of),
};

/// Requests.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    let concurrency = u64::from(sample.load.concurrency?);
    if (sample.profiling.len() as u64) < 2 * concurrency {
        return None;
    }
    let from_ns = sample.profiling.iter().map(|record| record.start_ns).min()?;
    let to_ns = sample.profiling.iter().map(|record| record.start_ns).max()?;
    sample.mean_in_flight(from_ns, to_ns)
}
