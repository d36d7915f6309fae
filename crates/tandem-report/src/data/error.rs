//! Why a run cannot be reported.

use thiserror::Error;

/// Why a run cannot be reported.
#[derive(Debug, Error)]
pub enum ReportError {
    /// `result.json` is not JSON of the expected form.
    #[error("result.json cannot be understood")]
    Json(#[source] serde_json::Error),
    /// It was written by a program with another idea of it.
    #[error("result.json has schema version {found}, this program reads {expected}")]
    SchemaVersion {
        /// What the file says.
        found: u64,
        /// What this program reads.
        expected: u32,
    },
}
