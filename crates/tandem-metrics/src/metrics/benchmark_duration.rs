//! Benchmark duration: what every rate is divided by.
//!
//! Formula: `last output chunk - first start` over kept requests, as GenAI-Perf defines it.
//! Kind: aggregate. Unit: seconds.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "benchmark_duration",
    title: "Benchmark duration",
    unit: Unit::Seconds,
    better: Better::Neither,
    streaming_only: false,
    kind: Kind::Aggregate(of),
};

/// Seconds.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    sample.duration_s()
}
