//! Time per output token: the mean gap after the first token, per request.
//!
//! Formula: `(latency - ttft) / (osl - 1)`, rounded to a nanosecond, ties to even; undefined when `osl < 2` or there is one chunk.
//! Kind: record. Unit: nanoseconds, shown as milliseconds. Streaming only.
//! GenAI-Perf and AIPerf artifacts call this `inter_token_latency`. It is too low by the share of the first chunk when that
//! holds several tokens; see `itl` for the gaps themselves and `icl` for gaps between chunks.

use crate::metrics::{Better, Kind, Metric, Unit, request_latency, ttft};
use crate::record::RequestRecord;

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "tpot",
    title: "Time per output token",
    unit: Unit::Milliseconds,
    better: Better::Lower,
    streaming_only: true,
    kind: Kind::Record(of),
};

/// Nanoseconds.
#[must_use]
pub fn of(record: &RequestRecord) -> Option<f64> {
    let osl = record.osl_tokens().filter(|&osl| osl > 1)?;
    if record.chunks.len() < 2 {
        return None;
    }
    let decode_ns = request_latency::of(record)? - ttft::of(record)?;
    Some((decode_ns / f64::from(osl - 1)).round_ties_even())
}
