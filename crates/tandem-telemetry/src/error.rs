//! Why telemetry that was asked for by name cannot be had.

use std::path::PathBuf;

use thiserror::Error;

/// What went wrong before the first sample.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// NVML was asked for, and its library cannot be loaded.
    #[error("NVML: cannot load {library}")]
    Library {
        /// The library.
        library: String,
        /// What the loader says.
        #[source]
        source: libloading::Error,
    },
    /// NVML answered with an error.
    #[error("NVML: {call}: {message}")]
    Nvml {
        /// The function.
        call: &'static str,
        /// NVML's own words.
        message: String,
    },
    /// No GPU.
    #[error("NVML: no GPU on this host")]
    NoGpu,
    /// An endpoint that was named does not answer with metrics.
    #[error("{url}: {reason}")]
    Endpoint {
        /// The endpoint.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The file of samples cannot be written.
    #[error("cannot write {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The system refuses a thread.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// `--telemetry` has a value that is none of auto, nvml, dcgm:URL, none.
    #[error("telemetry '{0}': expected auto, nvml, dcgm:URL or none")]
    Unknown(String),
}
