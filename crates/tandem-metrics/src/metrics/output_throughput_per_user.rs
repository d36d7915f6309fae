//! Output token throughput per user: how fast one user sees tokens, per request. Its mean is the interactivity axis.
//!
//! Formula: `1 / tpot`, with `tpot` in seconds as rounded there; undefined where `tpot` is, or is zero.
//! Kind: record. Unit: tokens/s/user. Streaming only.

use crate::metrics::{Better, Kind, Metric, Unit, tpot};
use crate::record::RequestRecord;

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "output_throughput_per_user",
    title: "Output token throughput per user",
    unit: Unit::TokensPerSecondPerUser,
    better: Better::Higher,
    streaming_only: true,
    kind: Kind::Record(of),
};

/// Tokens a second.
#[must_use]
pub fn of(record: &RequestRecord) -> Option<f64> {
    let tpot_s = tpot::of(record)? / 1e9;
    (tpot_s > 0.0).then(|| 1.0 / tpot_s)
}
