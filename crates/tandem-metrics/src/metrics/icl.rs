//! Inter-chunk latency: each gap between successive output chunks, many per request.
//!
//! Formula: `chunk i - chunk i-1`. Differs from `itl` when a chunk holds several tokens (stream interval, MTP).
//! Kind: pooled over all requests. Unit: nanoseconds, shown as milliseconds. Streaming only.
//! AIPerf artifacts call this `inter_chunk_latency`; other tools call it ITL.

use crate::metrics::{Better, Kind, Metric, Unit};
use crate::record::RequestRecord;

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "icl",
    title: "Inter-chunk latency",
    unit: Unit::Milliseconds,
    better: Better::Lower,
    streaming_only: true,
    kind: Kind::Pooled(of),
};

/// Appends (gap in ns, 1).
pub fn of(record: &RequestRecord, values: &mut Vec<(f64, u64)>) {
    values.extend(record.chunks.gaps().map(|(gap_ns, _)| (gap_ns as f64, 1)));
}
