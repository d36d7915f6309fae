//! From the records of requests to metrics, a summary and the artifacts of a run.
//!
//! Pure: records in, figures, strings and bytes out. Who produced the records (the load generator or the
//! simulator) and where the bytes go is not known here. No clock, no file, no environment.
//!
//! Reading order: `record` (the facts of one request), `stats` (of a sample), `metrics` (one file each),
//! `summary` (all of them), `analysis` (windows, slices, intervals),
//! `telemetry` (what devices did meanwhile), `validity` (whether they can be trusted), `artifacts` (the files).

pub mod analysis;
pub mod artifacts;
pub mod metrics;
pub mod record;
pub mod stats;
pub mod summary;
pub mod telemetry;
pub mod validity;

pub use analysis::Analysis;
pub use artifacts::raw_export::Exchange;
pub use artifacts::{InputConfig, PointArtifacts, PointContext, RunContext, RunKind, Stimulus, Telemetry, render_point, render_run};
pub use metrics::goodput::{Slo, SloError};
pub use metrics::{Load, Metric};
pub use record::{Chunk, ChunkKind, ChunkLog, FailureKind, LoadPhase, Outcome, RequestRecord, RunClock, TextTokens, TokenCount};
pub use stats::Stats;
pub use summary::{Figure, Summary};
pub use telemetry::PointTelemetry;
pub use validity::{Reason, Validity, Verdict};
