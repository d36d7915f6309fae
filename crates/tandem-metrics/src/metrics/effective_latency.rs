//! Effective latency: from when the request was due to its last output chunk, per request.
//!
//! Formula: `last chunk - scheduled`. Unlike `request_latency` it contains the client's own delay, so that a stalled client
//! cannot hide a stalled server (coordinated omission).
//! Kind: record. Unit: nanoseconds, shown as milliseconds.

use crate::metrics::{Better, Kind, Metric, Unit, span_ns};
use crate::record::RequestRecord;

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "effective_latency",
    title: "Latency from schedule",
    unit: Unit::Milliseconds,
    better: Better::Lower,
    streaming_only: false,
    kind: Kind::Record(of),
};

/// Nanoseconds.
#[must_use]
pub fn of(record: &RequestRecord) -> Option<f64> {
    record.chunks.last().map(|chunk| span_ns(record.scheduled_ns, chunk.at_ns))
}
