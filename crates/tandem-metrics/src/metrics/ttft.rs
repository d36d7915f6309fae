//! Time to first token: from the send to the first non-empty output chunk, per request.
//!
//! Formula: `first chunk - start`; reasoning counts as output (see `ttfo` for the answer alone).
//! Kind: record. Unit: nanoseconds, shown as milliseconds. Streaming only.
//! GenAI-Perf and AIPerf artifacts call this `time_to_first_token`; GenAI-Perf itself ignores reasoning.

use crate::metrics::{Better, Kind, Metric, Unit, span_ns};
use crate::record::RequestRecord;

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "ttft",
    title: "Time to first token",
    unit: Unit::Milliseconds,
    better: Better::Lower,
    streaming_only: true,
    kind: Kind::Record(of),
};

/// Nanoseconds.
#[must_use]
pub fn of(record: &RequestRecord) -> Option<f64> {
    record.chunks.first().map(|chunk| span_ns(record.start_ns, chunk.at_ns))
}
