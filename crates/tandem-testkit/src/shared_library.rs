//! Shared libraries that stand for those of a driver.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::not_run;

/// The C file `source`, compiled into a shared library in `dir`. Where there is no compiler, `what` is noted as not run.
///
/// # Panics
/// When it does not compile.
#[must_use]
pub fn shared_library(source: &str, dir: &Path, what: &str) -> Option<PathBuf> {
    let library = dir.join("libfake.so");
    match Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).output() {
        Ok(done) => {
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            Some(library)
        }
        Err(error) => {
            not_run(what, format!("cc: {error}"));
            None
        }
    }
}
