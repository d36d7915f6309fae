//! `tandem status` and `tandem watch`: where jobs are.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;
use tandem_launch::job;
use tandem_launch::slurm::{JobState, Observed, Slurm, observe};

use super::history;
use super::progress::say;
use super::submit::LOOK_EVERY;
use crate::cli_jobs::{StatusArgs, WatchArgs};
use crate::exit::{Exit, Failure, OrExit};

pub(crate) fn status(args: &StatusArgs) -> Result<(), Failure> {
    let slurm = args.calls.slurm();
    let folders =
        if args.jobs.is_empty() { history::newest(10).into_iter().map(|entry| entry.folder).collect() } else { args.jobs.clone() };
    let mut out = std::io::stdout();
    for folder in folders {
        let seen = observe(&folder, &slurm);
        let line = if args.json { to_json(&folder, &seen) } else { to_line(&folder, &seen) };
        writeln!(out, "{line}").or_exit(Exit::Artifact)?;
    }
    Ok(())
}

fn to_json(folder: &Path, seen: &Observed) -> String {
    json!({
        "folder": folder.display().to_string(), "job_id": seen.job_id, "state": seen.state.word(),
        "detail": seen.state.detail(), "source": seen.source,
    })
    .to_string()
}

fn to_line(folder: &Path, seen: &Observed) -> String {
    let id = seen.job_id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let detail = seen.state.detail().lines().next().unwrap_or_default();
    format!("{id:>8}  {:<14} {}  {detail} [{}]", seen.state.word(), folder.display(), seen.source).trim_end().to_owned()
}

pub(crate) fn watch(args: &WatchArgs) -> Result<(), Failure> {
    wait_for_all(std::slice::from_ref(&args.job), &args.calls.slurm())
}

/// Waits until all have ended, says what changes, and fails as the first that failed. Ctrl-C ends the waiting, not the jobs.
pub(crate) fn wait_for_all(folders: &[PathBuf], slurm: &Slurm) -> Result<(), Failure> {
    let mut outcome = Ok(());
    for folder in folders {
        let ended = wait_for(folder, slurm);
        outcome = outcome.and(ended);
    }
    outcome
}

fn wait_for(folder: &Path, slurm: &Slurm) -> Result<(), Failure> {
    let mut last = None;
    loop {
        let seen = observe(folder, slurm);
        if seen.state == JobState::NotSubmitted {
            return Err(Failure::message(Exit::Usage, format!("{} was not submitted", folder.display())));
        }
        if last.as_ref() != Some(&seen.state) {
            say(&to_line(folder, &seen));
        }
        match &seen.state {
            JobState::Ended { exit_code: 0, .. } => return Ok(()),
            JobState::Ended { exit_code, message } => {
                let failure = Failure::message(Exit::of(*exit_code), message.clone());
                let hint = job::result(folder).and_then(|result| result["hint"].as_str().map(str::to_owned));
                return Err(match hint {
                    Some(hint) => failure.with_hint(hint),
                    None => failure,
                });
            }
            JobState::Lost(word) => {
                return Err(Failure::message(Exit::Died, format!("Slurm ended the job before it could say how it went: {word}"))
                    .with_hint(format!("`tandem logs {} slurm` shows what the job script printed", folder.display())));
            }
            _ => {}
        }
        last = Some(seen.state);
        std::thread::sleep(LOOK_EVERY);
    }
}
