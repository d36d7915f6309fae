//! Effective TTFT: from when the request was due to its first output chunk, per request.
//!
//! Formula: `first chunk - scheduled`. Unlike `ttft` it contains the wait before sending, so that a load that falls behind its schedule
//! cannot hide what a user would have waited (coordinated omission).
//! Kind: record. Unit: nanoseconds, shown as milliseconds.

use crate::metrics::{Better, Kind, Metric, Unit, span_ns};
use crate::record::RequestRecord;

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "effective_ttft",
    title: "TTFT from schedule",
    unit: Unit::Milliseconds,
    better: Better::Lower,
    streaming_only: true,
    kind: Kind::Record(of),
};

/// Nanoseconds.
#[must_use]
pub fn of(record: &RequestRecord) -> Option<f64> {
    record.chunks.first().map(|chunk| span_ns(record.scheduled_ns, chunk.at_ns))
}
