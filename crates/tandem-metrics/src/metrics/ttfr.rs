//! Time to first reasoning token: from the send to the first chunk of reasoning, per request.
//!
//! Formula: `first reasoning chunk - start`; undefined for models that do not reason.
//! Kind: record. Unit: nanoseconds, shown as milliseconds. Streaming only.

use crate::metrics::{Better, Kind, Metric, Unit, span_ns};
use crate::record::{ChunkKind, RequestRecord};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "ttfr",
    title: "Time to first reasoning token",
    unit: Unit::Milliseconds,
    better: Better::Lower,
    streaming_only: true,
    kind: Kind::Record(of),
};

/// Nanoseconds.
#[must_use]
pub fn of(record: &RequestRecord) -> Option<f64> {
    record.chunks.first_of(ChunkKind::Reasoning).map(|chunk| span_ns(record.start_ns, chunk.at_ns))
}
