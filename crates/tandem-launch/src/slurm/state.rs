//! Where a job is: what it wrote itself comes first, then what Slurm says, and "unknown" is an answer.

use std::path::Path;

use serde_json::Value;

use super::client::{Slurm, SlurmError};
use super::text;
use crate::job;

/// Where a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// The folder exists, nothing was submitted.
    NotSubmitted,
    /// Waiting in the queue; the scheduler's reason.
    Pending(String),
    /// Running; what it does (its last event).
    Running(String),
    /// Ended by itself with this exit code and message.
    Ended {
        /// Exit code of the run: 0 is success.
        exit_code: u8,
        /// What it said.
        message: String,
    },
    /// Slurm ended it, or it vanished, before it could say how it went: Slurm's word for it.
    Lost(String),
    /// Nobody answers.
    Unknown(String),
}

impl JobState {
    /// Whether nothing will change any more.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, JobState::Ended { .. } | JobState::Lost(_))
    }

    /// One word for tables.
    #[must_use]
    pub fn word(&self) -> String {
        match self {
            JobState::NotSubmitted => "not-submitted".into(),
            JobState::Pending(_) => "pending".into(),
            JobState::Running(_) => "running".into(),
            JobState::Ended { exit_code: 0, .. } => "succeeded".into(),
            JobState::Ended { .. } => "failed".into(),
            JobState::Lost(word) => word.to_lowercase(),
            JobState::Unknown(_) => "unknown".into(),
        }
    }

    /// The rest of what is known.
    #[must_use]
    pub fn detail(&self) -> &str {
        match self {
            JobState::NotSubmitted => "",
            JobState::Ended { message, .. } => message,
            JobState::Pending(text) | JobState::Running(text) | JobState::Lost(text) | JobState::Unknown(text) => text,
        }
    }
}

/// A state and who said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The state.
    pub state: JobState,
    /// `result`, `squeue`, `scontrol`, `sacct` or `folder`.
    pub source: &'static str,
    /// The job, if one was submitted.
    pub job_id: Option<u64>,
}

/// What Slurm calls states in which a job has not ended.
fn is_alive(word: &str) -> bool {
    !["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL", "DEADLINE"].contains(&word)
}

/// Finds out where the job of `folder` is. Blocking.
#[must_use]
pub fn observe(folder: &Path, slurm: &Slurm) -> Observed {
    let job_id = job::receipt(folder).and_then(|receipt| receipt["job_id"].as_u64());
    let said = |state, source| Observed { state, source, job_id };
    if let Some(state) = ended(folder) {
        return said(state, "result");
    }
    let id = match (job_id, job::receipt(folder)) {
        (Some(id), _) => id,
        (None, None) => return said(JobState::NotSubmitted, "folder"),
        // Submitted, but the answer was lost: the job carries the token of the submission.
        (None, Some(receipt)) => match find_by_token(slurm, receipt["token"].as_str().unwrap_or_default()) {
            Ok(Some(id)) => id,
            Ok(None) => return said(JobState::Unknown("submitted without an answer, and no such job is in the queue".into()), "squeue"),
            Err(error) => return said(JobState::Unknown(error.to_string()), "squeue"),
        },
    };
    let said = |state, source| Observed { state, source, job_id: Some(id) };
    let mut silence = Vec::new();
    for (source, ask) in [("squeue", squeue as Ask), ("scontrol", scontrol), ("sacct", sacct)] {
        match ask(slurm, id) {
            Ok(Some((word, reason))) => {
                // It may have ended by itself while Slurm was asked.
                let state = ended(folder).unwrap_or_else(|| state_of(folder, &word, &reason));
                return said(state, source);
            }
            Ok(None) => {}
            Err(error) => silence.push(error.to_string()),
        }
    }
    let last = job::last_event(folder).map_or_else(String::new, |event| format!("; its last event is {}", event_text(&event)));
    said(JobState::Unknown(format!("{}{last}", silence.join("; "))), "folder")
}

type Ask = fn(&Slurm, u64) -> Result<Option<(String, String)>, SlurmError>;

fn state_of(folder: &Path, word: &str, reason: &str) -> JobState {
    match word {
        "PENDING" | "CONFIGURING" | "REQUEUED" => JobState::Pending(reason.to_owned()),
        // A script that is not ours writes no result; Slurm's word is its result.
        "COMPLETED" if !job::job_path(folder).exists() => JobState::Ended { exit_code: 0, message: String::new() },
        // It has ended, and wrote no result: what Slurm says is all there is.
        word if !is_alive(word) => JobState::Lost(word.to_owned()),
        _ => JobState::Running(job::last_event(folder).map_or_else(|| "starting".to_owned(), |event| event_text(&event))),
    }
}

fn ended(folder: &Path) -> Option<JobState> {
    let result = job::result(folder)?;
    let exit_code = u8::try_from(result["exit_code"].as_u64()?).ok()?;
    Some(JobState::Ended { exit_code, message: result["message"].as_str().unwrap_or_default().to_owned() })
}

fn event_text(event: &Value) -> String {
    let name = event["event"].as_str().unwrap_or("?");
    let of = ["name", "concurrency"].iter().find_map(|key| event.get(key)).map(|value| match value {
        Value::String(text) => format!(" ({text})"),
        other => format!(" ({other})"),
    });
    format!("{name}{}", of.unwrap_or_default())
}

/// The job that carries `token` as its comment.
///
/// # Errors
/// When `squeue` gives no answer.
pub fn find_by_token(slurm: &Slurm, token: &str) -> Result<Option<u64>, SlurmError> {
    let jobs = slurm.call("squeue", &["-h", "-t", "all", "-o", "%i|%k"])?;
    Ok(jobs.lines().find_map(|line| id_with_comment(line, token)))
}

/// The job of a line `ID|COMMENT`; a component of a heterogeneous job is `ID+N`.
fn id_with_comment(line: &str, token: &str) -> Option<u64> {
    let (id, comment) = line.split_once('|')?;
    (comment.trim() == token).then(|| id.split('+').next()?.trim().parse().ok())?
}

fn squeue(slurm: &Slurm, id: u64) -> Result<Option<(String, String)>, SlurmError> {
    let known = |text: String| {
        let (word, reason) = text.lines().next()?.split_once('|')?;
        Some((text::state_word(word), reason.trim().to_owned()))
    };
    absent_is_none(slurm.call("squeue", &["-h", "-j", &id.to_string(), "-o", "%T|%r"])).map(|text| text.and_then(known))
}

fn scontrol(slurm: &Slurm, id: u64) -> Result<Option<(String, String)>, SlurmError> {
    let known = |text: String| {
        let job = text::fields(text.lines().next()?);
        Some((text::state_word(job.get("JobState")?), job.get("Reason").cloned().unwrap_or_default()))
    };
    absent_is_none(slurm.call("scontrol", &["-o", "show", "job", &id.to_string()])).map(|text| text.and_then(known))
}

/// The accounting database, then the text file that Slurm writes where there is no database.
fn sacct(slurm: &Slurm, id: u64) -> Result<Option<(String, String)>, SlurmError> {
    let id = id.to_string();
    let known = |text: String| text.lines().next().map(text::state_word).filter(|word| !word.is_empty()).map(|word| (word, String::new()));
    let database = slurm.call("sacct", &["-X", "-n", "-P", "-j", &id, "-o", "State"]);
    match database {
        Ok(text) if !text.trim().is_empty() => Ok(known(text)),
        _ => slurm.call("sacct", &["-c", "-n", "-P", "-j", &id, "-o", "State"]).map(known),
    }
}

/// "Invalid job id specified" means that this source has forgotten the job.
fn absent_is_none(answer: Result<String, SlurmError>) -> Result<Option<String>, SlurmError> {
    match answer {
        Err(SlurmError::Refused { message, .. }) if message.contains("Invalid job id") => Ok(None),
        answer => answer.map(Some),
    }
}
