//! Good fraction: share of the measured requests that meet every SLO; a failed one meets none.
//!
//! Formula: `100 × good requests / profiling requests`; undefined without SLOs.
//! Kind: aggregate. Unit: percent.

use crate::metrics::{Better, Kind, Metric, Sample, Unit, goodput};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "good_fraction",
    title: "Good requests",
    unit: Unit::Percent,
    better: Better::Higher,
    streaming_only: false,
    kind: Kind::Aggregate(of),
};

/// Percent.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    let n = sample.profiling.len();
    (n > 0).then(|| goodput::good_requests(sample).map(|good| 100.0 * good as f64 / n as f64)).flatten()
}
