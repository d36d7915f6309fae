//! `tandem history`, and the record of what was submitted from this installation.

pub(crate) mod foreign;
pub(crate) mod store;

use std::io::Write;
use std::path::PathBuf;

use serde_json::json;
use tandem_launch::job;

pub(crate) use store::{Entry, Seen, Store, WorkloadJob};

use crate::cli_jobs::HistoryArgs;
use crate::exit::{Exit, Failure, OrExit};

/// `$TANDEM_HOME`, else below `$LLMB_INSTALL`, else the user's state folder.
pub(crate) fn home() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("TANDEM_HOME")
        .or_else(|| var("LLMB_INSTALL").map(|dir| dir.join(".tandem")))
        .or_else(|| var("XDG_STATE_HOME").map(|dir| dir.join("tandem")))
        .or_else(|| var("HOME").map(|dir| dir.join(".local/state/tandem")))
}

/// The history, if there is a place for it.
pub(crate) fn open() -> Result<Store, String> {
    let home = home().ok_or("there is no TANDEM_HOME, LLMB_INSTALL or HOME")?;
    Store::open(&home.join("history.sqlite3"))
}

/// Notes a submission. A history that cannot be written must not undo it.
pub(crate) fn append(entry: &Entry) {
    if let Err(error) = open().and_then(|mut store| store.add(entry)) {
        tracing::warn!(error, "the history cannot be written");
    }
}

/// The newest `n`, newest first; none when there is no history, which is said.
pub(crate) fn newest(n: usize) -> Vec<Entry> {
    match open().and_then(|store| store.newest(n)) {
        Ok(entries) => entries.into_iter().map(|(entry, _)| entry).collect(),
        Err(error) => {
            tracing::warn!(error, "the history cannot be read");
            Vec::new()
        }
    }
}

/// A time for tables.
pub(crate) fn time_text(ns: u64) -> String {
    let seconds = i64::try_from(ns / 1_000_000_000).unwrap_or(0);
    jiff::Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_default()
}

/// Lists them with what their folders say; Slurm is not asked (`tandem status` does).
pub(crate) fn history(args: &HistoryArgs) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    for entry in newest(args.last) {
        let result = job::result(&entry.folder);
        let state = match result.as_ref().map(|result| result["exit_code"].as_u64()) {
            Some(Some(0)) => "succeeded".to_owned(),
            Some(Some(code)) => format!("failed ({code})"),
            _ if !entry.folder.exists() => "folder gone".to_owned(),
            _ => "no result".to_owned(),
        };
        let time = time_text(entry.submitted_ns);
        let id = entry.job_id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let line = if args.json {
            json!({"submitted": time, "job_id": entry.job_id, "state": state, "recipe": entry.recipe, "plan_hash": entry.plan_hash,
                   "folder": entry.folder.display().to_string()})
            .to_string()
        } else {
            format!("{time}  {id:>8}  {state:<12} {:<14} {}", entry.recipe, entry.folder.display())
        };
        writeln!(out, "{line}").or_exit(Exit::Artifact)?;
    }
    Ok(())
}
