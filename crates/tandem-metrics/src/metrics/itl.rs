//! Inter-token latency: each gap between successive tokens, many per request.
//!
//! A gap between two chunks is spread evenly over the tokens of the later one: a chunk of n tokens that arrives t after
//! its predecessor counts n times t/n. Where the tokens of a chunk are unknown, a request counts only if it has as many
//! chunks as output tokens; nothing is guessed.
//! Kind: pooled over all requests. Unit: nanoseconds, shown as milliseconds. Streaming only.

use crate::metrics::{Better, Kind, Metric, Unit};
use crate::record::RequestRecord;

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "itl",
    title: "Inter-token latency",
    unit: Unit::Milliseconds,
    better: Better::Lower,
    streaming_only: true,
    kind: Kind::Pooled(of),
};

/// Appends (gap a token in ns, tokens).
pub fn of(record: &RequestRecord, values: &mut Vec<(f64, u64)>) {
    let all_known = record.chunks.iter().all(|chunk| chunk.n_tokens.is_some());
    let one_each = || record.osl_tokens().is_some_and(|osl| osl as usize == record.chunks.len());
    if all_known || one_each() {
        let gaps = record.chunks.gaps().map(|(gap_ns, n_tokens)| (gap_ns, if all_known { n_tokens.unwrap_or(1) } else { 1 }));
        values.extend(gaps.map(|(gap_ns, n)| (gap_ns as f64 / f64::from(n), u64::from(n))));
    }
}
