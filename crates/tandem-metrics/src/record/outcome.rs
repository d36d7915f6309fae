//! How a request ended: well, or in one of a closed set of ways that a report can count.

use std::fmt;

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Outcome {
    /// The whole response arrived.
    #[default]
    Ok,
    /// It did not.
    Failed {
        /// In which way.
        kind: FailureKind,
        /// What exactly was seen, for people.
        message: Box<str>,
    },
}

impl Outcome {
    /// A failure of `kind`.
    pub fn failed(kind: FailureKind, message: impl Into<String>) -> Self {
        Outcome::Failed { kind, message: message.into().into_boxed_str() }
    }

    /// Whether the whole response arrived.
    #[must_use]
    pub const fn is_ok(&self) -> bool {
        matches!(self, Outcome::Ok)
    }

    /// The way it failed, if it did.
    #[must_use]
    pub const fn failure(&self) -> Option<FailureKind> {
        match self {
            Outcome::Ok => None,
            Outcome::Failed { kind, .. } => Some(*kind),
        }
    }

    /// The name in files: `ok` or the failure's.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Failed { kind, .. } => kind.as_str(),
        }
    }
}

/// The ways a request can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailureKind {
    /// No connection.
    ConnectError,
    /// The connection broke while the request was being sent.
    SendError,
    /// A status other than 200.
    HttpStatus,
    /// An error event inside the stream.
    SseError,
    /// The response ended before its end marker.
    Truncated,
    /// The request's deadline passed.
    Timeout,
    /// Nothing arrived for longer than the watchdog allows.
    NoProgress,
    /// The client gave up: interrupted, or the run ended.
    Cancelled,
    /// A complete response that makes no sense: invalid JSON, no choices, no output.
    BadResponse,
}

impl FailureKind {
    /// All of them, in the order of a request's life.
    pub const ALL: [FailureKind; 9] = [
        FailureKind::ConnectError,
        FailureKind::SendError,
        FailureKind::HttpStatus,
        FailureKind::SseError,
        FailureKind::Truncated,
        FailureKind::Timeout,
        FailureKind::NoProgress,
        FailureKind::Cancelled,
        FailureKind::BadResponse,
    ];

    /// The name in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            FailureKind::ConnectError => "connect_error",
            FailureKind::SendError => "send_error",
            FailureKind::HttpStatus => "http_status",
            FailureKind::SseError => "sse_error",
            FailureKind::Truncated => "truncated",
            FailureKind::Timeout => "timeout",
            FailureKind::NoProgress => "no_progress",
            FailureKind::Cancelled => "cancelled",
            FailureKind::BadResponse => "bad_response",
        }
    }

    /// The kind with that name in files.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_kind_is_found_by_its_name() {
        for kind in FailureKind::ALL {
            assert_eq!(FailureKind::from_name(kind.as_str()), Some(kind));
        }
        assert_eq!(FailureKind::from_name("ok"), None);
    }
}
