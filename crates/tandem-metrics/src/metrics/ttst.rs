//! Time to second token: the gap between the first two output chunks, per request.
//!
//! Formula: `second chunk - first chunk`; undefined with fewer chunks. It shows what the hand-over from prefill to decode costs.
//! Kind: record. Unit: nanoseconds, shown as milliseconds. Streaming only.

use crate::metrics::{Better, Kind, Metric, Unit};
use crate::record::RequestRecord;

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "ttst",
    title: "Time to second token",
    unit: Unit::Milliseconds,
    better: Better::Lower,
    streaming_only: true,
    kind: Kind::Record(of),
};

/// Nanoseconds.
#[must_use]
pub fn of(record: &RequestRecord) -> Option<f64> {
    record.chunks.gaps().next().map(|(gap_ns, _)| gap_ns as f64)
}
