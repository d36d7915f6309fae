//! Exit codes, and the failures that carry them.
//!
//! Scripts rely on the numbers: docs/reference/exit-codes.md. A failure prints its chain of
//! causes on standard error, then its hint, if it has one.

use std::fmt;
use std::process::ExitCode;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// A bug, or something nobody foresaw.
    Bug = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The recipe is invalid.
    Recipe = 3,
    /// No plan can satisfy the recipe.
    Infeasible = 4,
    /// The deployment was not ready in time.
    NotReady = 5,
    /// The deployment died.
    Died = 6,
    /// Too many requests failed, or fewer were sent than asked.
    Incomplete = 7,
    /// Results are valid, a check on them failed.
    CheckFailed = 8,
    /// An artifact is unreadable or incompatible.
    Artifact = 9,
    /// Interrupted; everything was torn down.
    Interrupted = 130,
}

impl Exit {
    /// The exit whose number is `code`, as a job wrote it into its result.
    pub(crate) fn of(code: u8) -> Self {
        let all = [
            Exit::Usage,
            Exit::Recipe,
            Exit::Infeasible,
            Exit::NotReady,
            Exit::Died,
            Exit::Incomplete,
            Exit::CheckFailed,
            Exit::Artifact,
            Exit::Interrupted,
        ];
        all.into_iter().find(|exit| *exit as u8 == code).unwrap_or(Exit::Bug)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// An error, the exit code that it means, and advice.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) error: anyhow::Error,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Failure { exit, error: error.into(), hint: None }
    }

    pub(crate) fn message(exit: Exit, message: impl fmt::Display + fmt::Debug + Send + Sync + 'static) -> Self {
        Failure { exit, error: anyhow::Error::msg(message), hint: None }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.error)?;
        for cause in self.error.chain().skip(1) {
            write!(f, "\n  caused by: {cause}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

/// Gives an error the exit code it means.
pub(crate) trait OrExit<T> {
    /// `self`, or a [`Failure`] with this exit code.
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(exit, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_prints_its_causes_and_then_its_hint() {
        let error = anyhow::anyhow!("no such file").context("cannot read recipe.yaml");
        let text = Failure::new(Exit::Recipe, error).with_hint("look here").to_string();
        assert_eq!(text, "error: cannot read recipe.yaml\n  caused by: no such file\nhint: look here");
    }
}
