//! `tandem history`: the jobs that were submitted from this installation.
//!
//! One JSON object a line, appended with one write: it needs no database and no lock, and a line that a crash cut short is skipped.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};
use tandem_launch::job;

use crate::cli_jobs::HistoryArgs;
use crate::exit::{Exit, Failure, OrExit};

/// One submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) folder: PathBuf,
    pub(crate) job_id: Option<u64>,
    pub(crate) recipe: String,
    pub(crate) plan_hash: String,
    pub(crate) submitted_ns: u64,
}

/// `$TANDEM_HOME`, else below `$LLMB_INSTALL`, else the user's state folder.
fn path() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = var("TANDEM_HOME")
        .or_else(|| var("LLMB_INSTALL").map(|dir| dir.join(".tandem")))
        .or_else(|| var("XDG_STATE_HOME").map(|dir| dir.join("tandem")))
        .or_else(|| var("HOME").map(|dir| dir.join(".local/state/tandem")))?;
    Some(home.join("history.jsonl"))
}

/// Notes a submission. A history that cannot be written must not undo it.
pub(crate) fn append(entry: &Entry) {
    let Some(path) = path() else { return };
    let line = json!({
        "folder": entry.folder.display().to_string(), "job_id": entry.job_id, "recipe": entry.recipe,
        "plan_hash": entry.plan_hash, "submitted_ns": entry.submitted_ns,
    });
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        OpenOptions::new().create(true).append(true).open(&path)?.write_all(format!("{line}\n").as_bytes())
    };
    if let Err(error) = write() {
        tracing::warn!(%error, path = %path.display(), "the history cannot be written");
    }
}

/// The newest `n`, newest first.
pub(crate) fn newest(n: usize) -> Vec<Entry> {
    let text = path().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    text.lines().rev().filter_map(parse).take(n).collect()
}

fn parse(line: &str) -> Option<Entry> {
    let value: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    Some(Entry {
        folder: PathBuf::from(text("folder")?),
        job_id: value["job_id"].as_u64(),
        recipe: text("recipe")?,
        plan_hash: text("plan_hash")?,
        submitted_ns: value["submitted_ns"].as_u64()?,
    })
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
        let seconds = i64::try_from(entry.submitted_ns / 1_000_000_000).unwrap_or(0);
        let time = jiff::Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_short_is_no_entry() {
        let line = r#"{"folder":"/r","job_id":7,"recipe":"nano","plan_hash":"ab","submitted_ns":5}"#;
        assert_eq!(parse(line).unwrap().job_id, Some(7));
        assert_eq!(parse(&line[..40]), None);
    }
}
