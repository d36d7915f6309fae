//! Time to first answer token: from the send to the first chunk that is not reasoning, per request.
//!
//! Formula: `first content chunk - start`; undefined when there is none.
//! Kind: record. Unit: nanoseconds, shown as milliseconds. Streaming only.

use crate::metrics::{Better, Kind, Metric, Unit, span_ns};
use crate::record::{ChunkKind, RequestRecord};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "ttfo",
    title: "Time to first output token",
    unit: Unit::Milliseconds,
    better: Better::Lower,
    streaming_only: true,
    kind: Kind::Record(of),
};

/// Nanoseconds.
#[must_use]
pub fn of(record: &RequestRecord) -> Option<f64> {
    record.chunks.first_of(ChunkKind::Content).map(|chunk| span_ns(record.start_ns, chunk.at_ns))
}
