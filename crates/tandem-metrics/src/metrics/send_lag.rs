//! Send lag: how late the client sent a request, per request.
//!
//! Formula: `start - scheduled`. In a closed loop the schedule is the moment at which a slot became free.
//! Kind: record. Unit: nanoseconds, shown as milliseconds.

use crate::metrics::{Better, Kind, Metric, Unit, span_ns};
use crate::record::RequestRecord;

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "send_lag",
    title: "Send lag",
    unit: Unit::Milliseconds,
    better: Better::Lower,
    streaming_only: false,
    kind: Kind::Record(of),
};

/// Nanoseconds.
#[must_use]
pub fn of(record: &RequestRecord) -> Option<f64> {
    Some(span_ns(record.scheduled_ns, record.start_ns))
}
