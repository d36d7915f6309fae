//! Why a deployment could not be started, or ended before it was told to.

use std::path::PathBuf;

use thiserror::Error;

use crate::process::Exited;

/// Failures of a deployment.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// A file of the run folder cannot be written or read.
    #[error("cannot access {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A process cannot be started at all.
    #[error("cannot start {name}")]
    Spawn {
        /// Process name.
        name: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A process ended although nobody asked it to.
    #[error("{0}")]
    Died(Box<Exited>),
    /// The deployment was not ready in time.
    #[error("the deployment was not ready within {seconds} s: {state}")]
    NotReady {
        /// The deadline.
        seconds: u64,
        /// What was missing at the end.
        state: String,
    },
    /// A canary request did not come back as it must.
    #[error("the canary request through {prefill} and {decode} failed: {reason}")]
    Canary {
        /// Prefill worker.
        prefill: String,
        /// Decode worker.
        decode: String,
        /// What was wrong.
        reason: String,
    },
    /// The Slurm job is not what the plan needs.
    #[error("the allocation does not fit: {0}")]
    Allocation(String),
    /// The plan needs another backend than this machine.
    #[error("this plan cannot run on this machine: {0}")]
    Unsupported(String),
}
