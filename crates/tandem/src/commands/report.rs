//! `tandem report`: run folders as one page, as Markdown, or as JSON.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tandem_report::{Comparison, Run, compare, html, json, markdown};

use super::run_folder::write_whole;
use super::{prediction, run_reader};
use crate::cli::ReportArgs;
use crate::exit::{Exit, Failure, OrExit};

/// What stands for standard output.
const STDOUT: &str = "-";

pub(crate) fn report(args: &ReportArgs) -> Result<(), Failure> {
    let to_stdout = [&args.markdown, &args.json, &args.html].into_iter().flatten().filter(|path| is_stdout(path)).count();
    if to_stdout > 1 {
        return Err(Failure::message(Exit::Usage, "only one of --html, --markdown and --json can go to standard output"));
    }
    let mut runs = run_reader::read_all(&args.runs)?;
    prediction::add(&mut runs, &args.model, args.calibration.as_deref())?;
    let comparisons: Vec<Comparison> = runs.iter().skip(1).map(|run| compare(&runs[0], run)).collect();
    if let Some(path) = &args.html {
        put(path, html(&runs, &comparisons, &command_line()).as_bytes())?;
    }
    if let Some(path) = &args.json {
        put(path, pretty(&json(&runs, &comparisons))?.as_bytes())?;
    }
    if let Some(path) = &args.markdown {
        put(path, markdown(&runs, &comparisons).as_bytes())?;
    }
    if args.html.is_none() && args.json.is_none() && args.markdown.is_none() {
        put(Path::new(STDOUT), markdown(&runs, &comparisons).as_bytes())?;
    }
    Ok(())
}

/// JSON as a file or a pipe gets it.
pub(super) fn pretty(value: &serde_json::Value) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").or_exit(Exit::Bug)
}

/// Writes a file whole, or to standard output.
pub(super) fn put(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    if !is_stdout(path) {
        return write_whole(path, bytes);
    }
    match std::io::stdout().write_all(bytes) {
        // A reader that has gone has seen enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output").or_exit(Exit::Artifact)
        }
        _ => Ok(()),
    }
}

fn is_stdout(path: &Path) -> bool {
    path == Path::new(STDOUT)
}

/// How this page came about, for who reads it later.
pub(super) fn command_line() -> String {
    let words = std::env::args_os().enumerate().map(|(i, word)| match i {
        0 => PathBuf::from(word).file_name().unwrap_or_default().to_string_lossy().into_owned(),
        _ => word.to_string_lossy().into_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The names of `runs`, for messages.
pub(super) fn names(runs: &[Run]) -> String {
    runs.iter().map(|run| run.name.as_str()).collect::<Vec<_>>().join(", ")
}
