//! Samples GPUs, hosts and servers while a load runs.
//!
//! Each source has a thread of its own, so that a server that does not answer delays nothing else, and none of them is a
//! thread that measures requests. Every sample goes to `telemetry.jsonl` at once; in memory each subject keeps a bounded
//! series, of which a load point takes its window. What the samples mean (units, energy, statistics) is in
//! `tandem_metrics::telemetry`.
//!
//! What is not there (no driver, no exporter, a server without metrics) is a note in the results, never a failed run.
//!
//! Reading order: `source` (what a source is), `session` (threads and file), `nvml`, `dcgm`, `prometheus`, `servers`, `host`.

mod dcgm;
mod error;
mod host;
mod http;
mod nvml;
mod prometheus;
mod servers;
mod session;
mod source;

pub use error::TelemetryError;
pub use session::{GpuSource, Roles, Session, TelemetryConfig};
