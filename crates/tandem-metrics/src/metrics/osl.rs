//! Output sequence length: tokens of the response, reasoning included, per request.
//!
//! The server's usage, else the client's own count.
//! Kind: record. Unit: tokens.

use crate::metrics::{Better, Kind, Metric, Unit};
use crate::record::RequestRecord;

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "osl",
    title: "Output sequence length",
    unit: Unit::Tokens,
    better: Better::Neither,
    streaming_only: false,
    kind: Kind::Record(of),
};

/// Tokens.
#[must_use]
pub fn of(record: &RequestRecord) -> Option<f64> {
    record.osl_tokens().map(f64::from)
}
