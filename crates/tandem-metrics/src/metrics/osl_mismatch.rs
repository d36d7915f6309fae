//! OSL mismatch: kept requests whose output length is not the one asked for.
//!
//! Undefined if no length was asked for or none is known.
//! Kind: aggregate. Unit: requests.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "osl_mismatch",
    title: "Requests of another output length",
    unit: Unit::Requests,
    better: Better::Lower,
    streaming_only: false,
    kind: Kind::Aggregate(of),
};

/// Requests.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    let asked = sample.load.osl?;
    let lengths: Vec<u32> = sample.kept.iter().filter_map(|record| record.osl_tokens()).collect();
    (!lengths.is_empty()).then(|| lengths.iter().filter(|&&osl| osl != asked).count() as f64)
}
