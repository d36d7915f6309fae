//! How failures of requests look to clients and in the metrics.

use tandem_wire::openai::ApiError;

use crate::lifecycle::Failure;
use crate::metrics::Outcome;

/// The error of a response that failed, as a status or as an event.
pub(crate) fn api_error(failure: &Failure) -> ApiError {
    match failure {
        Failure::NoWorker(phase) => ApiError::unavailable("no_worker", format!("no {phase} worker is available")),
        Failure::WorkerLost(phase) => {
            ApiError::unavailable("worker_lost", format!("the connection to the {phase} worker was lost while it served this request"))
        }
        Failure::Overloaded(phase) => ApiError::unavailable("overloaded", format!("too much waits for the {phase} worker")),
        Failure::Impossible(message) => {
            ApiError::bare(400, "invalid_request_error", Some("request_impossible"), format!("the request can never run: {message}"))
        }
        Failure::Worker { phase, message } => {
            ApiError::bare(500, "server_error", Some("worker_failed"), format!("the {phase} worker failed: {message}"))
        }
        Failure::Timeout => ApiError::bare(504, "timeout_error", Some("request_timeout"), "the request was not done before its deadline"),
    }
}

/// The outcome that a failure counts as.
pub(crate) fn outcome(failure: &Failure) -> Outcome {
    match failure {
        Failure::NoWorker(_) | Failure::Overloaded(_) => Outcome::Unavailable,
        Failure::WorkerLost(_) | Failure::Worker { .. } => Outcome::Failed,
        Failure::Impossible(_) => Outcome::Invalid,
        Failure::Timeout => Outcome::Timeout,
    }
}
