//! Request latency: from the send to the last output chunk, per request.
//!
//! Formula: `last chunk - start`. The usage event and `[DONE]` after it do not count.
//! Kind: record. Unit: nanoseconds, shown as milliseconds.

use crate::metrics::{Better, Kind, Metric, Unit, span_ns};
use crate::record::RequestRecord;

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "request_latency",
    title: "Request latency",
    unit: Unit::Milliseconds,
    better: Better::Lower,
    streaming_only: false,
    kind: Kind::Record(of),
};

/// Nanoseconds.
#[must_use]
pub fn of(record: &RequestRecord) -> Option<f64> {
    record.chunks.last().map(|chunk| span_ns(record.start_ns, chunk.at_ns))
}
