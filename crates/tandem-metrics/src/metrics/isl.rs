//! Input sequence length: tokens of the prompt, per request.
//!
//! The client's own count (the message contents, without the chat template, as GenAI-Perf counts), else the server's usage.
//! Kind: record. Unit: tokens.

use crate::metrics::{Better, Kind, Metric, Unit};
use crate::record::RequestRecord;

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "isl",
    title: "Input sequence length",
    unit: Unit::Tokens,
    better: Better::Neither,
    streaming_only: false,
    kind: Kind::Record(of),
};

/// Tokens.
#[must_use]
pub fn of(record: &RequestRecord) -> Option<f64> {
    record.isl_tokens().map(f64::from)
}
