//! One breach of a rule, and where it is.

use std::fmt;

/// One breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Finding {
    /// Path relative to the root.
    pub(super) path: String,
    /// Line, from 1; 0 when it is about the whole file.
    pub(super) line: usize,
    /// What is wrong, and what would be right.
    pub(super) message: String,
}

impl Finding {
    /// About a whole file.
    pub(super) fn file(path: &str, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line: 0, message: message.into() }
    }

    /// About the line with index `index`, counted from 0.
    pub(super) fn line(path: &str, index: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line: index + 1, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            n => write!(f, "{}:{n}: {}", self.path, self.message),
        }
    }
}
