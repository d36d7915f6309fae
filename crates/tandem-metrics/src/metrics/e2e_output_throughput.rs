//! End-to-end output throughput per user: output over the whole latency, per request. Also defined without streaming.
//!
//! Formula: `osl / request latency`, in seconds.
//! Kind: record. Unit: tokens/s/user.

use crate::metrics::{Better, Kind, Metric, Unit, request_latency};
use crate::record::RequestRecord;

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "e2e_output_throughput",
    title: "End-to-end output throughput per user",
    unit: Unit::TokensPerSecondPerUser,
    better: Better::Higher,
    streaming_only: false,
    kind: Kind::Record(of),
};

/// Tokens a second.
#[must_use]
pub fn of(record: &RequestRecord) -> Option<f64> {
    let latency_s = request_latency::of(record)? / 1e9;
    (latency_s > 0.0).then(|| record.osl_tokens().map(|osl| f64::from(osl) / latency_s)).flatten()
}
