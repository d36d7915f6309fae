//! Tests that could not run, said where somebody sees it.

use std::fs::OpenOptions;
use std::io::Write;

/// Says that `what` was not run and why: on standard error, and in the file that `TANDEM_NOT_RUN_FILE` names, because a test
/// runner hides what a passing test prints. `cargo xtask ci` shows that file at its end.
#[allow(clippy::print_stderr, reason = "a test that is not run says so")]
pub fn not_run(what: &str, reason: impl std::fmt::Display) {
    let line = format!("not run: {what}: {reason}");
    eprintln!("{line}");
    let Some(path) = std::env::var_os("TANDEM_NOT_RUN_FILE") else { return };
    let written = OpenOptions::new().create(true).append(true).open(path).and_then(|mut file| writeln!(file, "{line}"));
    if let Err(error) = written {
        eprintln!("cannot note it: {error}");
    }
}
