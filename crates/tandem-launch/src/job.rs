//! The folder of a job beside what a run writes: the job as submitted, its receipt, its result.
//!
//! `job/job.json` is what the orchestrator starts from, `job/receipt.json` says that (and as which job) it was submitted,
//! `job/result.json` how it ended. The last is written by the job itself, so nobody needs Slurm to know it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The job as it was submitted.
#[must_use]
pub fn job_path(folder: &Path) -> PathBuf {
    folder.join("job/job.json")
}

/// The job script.
#[must_use]
pub fn script_path(folder: &Path) -> PathBuf {
    folder.join("job/job.sbatch")
}

fn receipt_path(folder: &Path) -> PathBuf {
    folder.join("job/receipt.json")
}

fn result_path(folder: &Path) -> PathBuf {
    folder.join("job/result.json")
}

/// Notes that a submission begins. This fails when one has begun before, whoever began it: nothing is submitted twice.
///
/// # Errors
/// `AlreadyExists` when the folder was submitted before.
pub fn begin_submission(folder: &Path, token: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(receipt_path(folder))?;
    writeln!(file, "{}", json!({"token": token}))?;
    file.sync_all()
}

/// Notes the answer.
///
/// # Errors
/// When the receipt cannot be written.
pub fn complete_submission(folder: &Path, token: &str, job_id: u64) -> io::Result<()> {
    write_whole(&receipt_path(folder), &json!({"token": token, "job_id": job_id}))
}

/// Takes back a submission that Slurm refused, so that it can be tried again.
pub fn withdraw_submission(folder: &Path) {
    let _ = fs::remove_file(receipt_path(folder));
}

/// Writes how the job ended.
///
/// # Errors
/// When it cannot be written.
pub fn write_result(folder: &Path, exit_code: u8, message: &str, hint: Option<&str>) -> io::Result<()> {
    write_whole(&result_path(folder), &json!({"exit_code": exit_code, "message": message, "hint": hint}))
}

/// The receipt, if there is one.
#[must_use]
pub fn receipt(folder: &Path) -> Option<Value> {
    read(&receipt_path(folder))
}

/// How the job ended, if it has.
#[must_use]
pub fn result(folder: &Path) -> Option<Value> {
    read(&result_path(folder))
}

/// The last event that the run wrote.
#[must_use]
pub fn last_event(folder: &Path) -> Option<Value> {
    // A line that is being written does not parse; the one before it does.
    crate::logs::tail(&folder.join("events.jsonl"), 2).iter().rev().find_map(|line| serde_json::from_str(line).ok())
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

fn write_whole(path: &Path, value: &Value) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    let mut file = File::create(&beside)?;
    writeln!(file, "{value:#}")?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_submitted_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("job")).unwrap();
        begin_submission(dir.path(), "t1").unwrap();
        assert_eq!(begin_submission(dir.path(), "t2").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(receipt(dir.path()).unwrap(), json!({"token": "t1"}));
        complete_submission(dir.path(), "t1", 42).unwrap();
        assert_eq!(receipt(dir.path()).unwrap()["job_id"], 42);
        withdraw_submission(dir.path());
        begin_submission(dir.path(), "t2").unwrap();
        assert!(result(dir.path()).is_none());
        write_result(dir.path(), 6, "decode-0 ended", None).unwrap();
        assert_eq!(result(dir.path()).unwrap()["exit_code"], 6);
    }
}
