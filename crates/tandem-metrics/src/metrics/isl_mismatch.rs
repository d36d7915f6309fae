//! ISL mismatch: kept requests whose input length is not the one asked for.
//!
//! The server's usage is compared where it is known, else the client's count. Undefined if no length was asked for or none is known.
//! Kind: aggregate. Unit: requests.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "isl_mismatch",
    title: "Requests of another input length",
    unit: Unit::Requests,
    better: Better::Lower,
    streaming_only: false,
    kind: Kind::Aggregate(of),
};

/// Requests.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    let asked = sample.load.isl?;
    let lengths: Vec<u32> = sample.kept.iter().filter_map(|record| record.isl.server.or(record.isl.client)).collect();
    (!lengths.is_empty()).then(|| lengths.iter().filter(|&&isl| isl != asked).count() as f64)
}
