//! Prefill throughput per user: how fast the prompt was taken in, queueing included, per request.
//!
//! Formula: `isl / ttft`, with `ttft` in seconds.
//! Kind: record. Unit: tokens/s/user. Streaming only.

use crate::metrics::{Better, Kind, Metric, Unit, ttft};
use crate::record::RequestRecord;

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "prefill_throughput_per_user",
    title: "Prefill throughput per user",
    unit: Unit::TokensPerSecondPerUser,
    better: Better::Higher,
    streaming_only: true,
    kind: Kind::Record(of),
};

/// Tokens a second.
#[must_use]
pub fn of(record: &RequestRecord) -> Option<f64> {
    let ttft_s = ttft::of(record)? / 1e9;
    (ttft_s > 0.0).then(|| record.isl_tokens().map(|isl| f64::from(isl) / ttft_s)).flatten()
}
