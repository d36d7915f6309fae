//! A job of a workload's own script: the tools' `sbatch` command, in the script's folder, with an environment that can be seen.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tandem_launch::job;
use tandem_launch::slurm::request::quote;
use tandem_launch::slurm::{SlurmError, text};
use tandem_llmb::lines::job_line;
use tandem_llmb::submission::{experiment_name, shown};
use tandem_llmb::{Circumstances, Submission, Task, submission};

use super::installation::invalid;
use super::recipe::write_config;
use super::submit::{Launcher, print};
use crate::commands::history::{self, Entry, WorkloadJob};
use crate::commands::measure::wall_ns;
use crate::commands::progress::say;
use crate::exit::{Exit, Failure, OrExit};

/// Submits a task, or shows what would be submitted.
pub(super) fn launch(launcher: &Launcher<'_>, task: &Task, index: usize) -> Result<Vec<PathBuf>, Failure> {
    let Launcher { request, site, .. } = launcher;
    let (workload, directory) = site.workload(&task.workload)?;
    if let Some(flag) = request.not_for_scripts {
        return Err(Failure::message(Exit::Usage, format!("{flag} is about Tandem's recipes, and {} runs its own script", task.workload))
            .with_hint("a script is told by variables: --env NAME=VALUE"));
    }
    let mut flags = request.flags.clone();
    flags.passthrough.extend(request.for_scripts.iter().cloned());
    let is_configured = workload.launcher_type.as_deref() == Some("configured_sbatch");
    let base = site.workload_dir(&task.workload);
    let experiments = base.join("experiments").join(experiment_name(task));
    let experiment = match (is_configured, request.dry_run) {
        (false, _) => None,
        (true, true) => Some(experiments.join("UNIX_SECONDS")),
        (true, false) => Some(make_experiment(&experiments)?),
    };
    let shown = experiment.as_ref().map(|path| path.display().to_string());
    let around = Circumstances {
        gpus_per_node: request.gpus_per_node(),
        compat: request.compat(),
        shell: &request.shell,
        flags: &flags,
        experiment: shown.as_deref(),
    };
    let job = submission(task, workload, &site.cluster, &around).map_err(invalid)?;
    job.notes.iter().for_each(|note| say(&format!("note: {note}")));
    if request.dry_run || request.workload.dump_env {
        print(&show(task, &job, directory, request.workload.dump_env))?;
    }
    if request.dry_run {
        return Ok(Vec::new());
    }
    if !job.withheld.is_empty() {
        tracing::info!(names = job.withheld.join(", "), "variables of the shell that the job does not get");
    }
    // Slurm creates no folders for its log.
    fs::create_dir_all(&base).with_context(|| format!("cannot create {}", base.display())).or_exit(Exit::Artifact)?;
    let folder = match &experiment {
        Some(folder) => folder.clone(),
        None => receipt_folder(index)?,
    };
    let job_id = send(launcher, &job, directory, &folder)?;
    let config_dir = experiment.as_ref().unwrap_or(&base);
    let config = match job_id {
        Some(id) => Some(write_config(launcher, task, id, config_dir)?),
        None => None,
    };
    history::append(&Entry {
        folder: folder.clone(),
        job_id,
        recipe: task.workload.clone(),
        plan_hash: String::new(),
        submitted_ns: wall_ns(),
        workload: Some(WorkloadJob {
            key: task.workload.clone(),
            model_size: task.size.clone(),
            dtype: task.dtype.clone(),
            scale: task.scale,
            profile: task.profile,
            proxy: task.proxy,
            launcher: workload.launcher_type.clone().unwrap_or_default(),
            log_dir: config_dir.clone(),
            config,
        }),
    });
    let line = job_line(task);
    let workdir = experiment.map_or_else(String::new, |folder| format!(" workdir={}", folder.display()));
    match job_id {
        Some(id) => print(&format!("SUBMITTED: {} jobid={id}{workdir}\n", line.trim_start_matches("  - ")))?,
        None => say(&format!("UNKNOWN: {}: sbatch did not answer; `squeue` shows whether the job is there", line.trim())),
    }
    Ok(vec![folder])
}

/// Everything that would happen, for people.
fn show(task: &Task, job: &Submission, directory: &Path, whole: bool) -> String {
    let words: Vec<String> = job.argv.iter().map(|word| quote(word)).collect();
    let line = |(name, value): &(String, String)| format!("  {name}={}\n", quote(shown(name, value)));
    let mut text = format!(
        "\n# {}\n# {} nodes x {} tasks; directory {}\n{}\n# environment of the job, over that of the shell\n",
        job_line(task).trim_start_matches("  - "),
        job.n_nodes,
        job.n_tasks_per_node,
        directory.display(),
        words.join(" "),
    );
    job.env.iter().for_each(|pair| text.push_str(&line(pair)));
    job.notes.iter().for_each(|note| text.push_str(&format!("# {note}\n")));
    if whole {
        text.push_str("# kept of the shell\n");
        job.inherited.iter().for_each(|pair| text.push_str(&line(pair)));
    } else {
        text.push_str(&format!("# {} more variables are kept of the shell (--dump-env lists them)\n", job.inherited.len()));
    }
    if !job.withheld.is_empty() {
        text.push_str(&format!("# not passed on (--env NAME=VALUE passes one): {}\n", job.withheld.join(", ")));
    }
    text
}

/// Calls `sbatch` in the script's folder. Without an answer nothing is known: the job may be there.
fn send(launcher: &Launcher<'_>, job: &Submission, directory: &Path, folder: &Path) -> Result<Option<u64>, Failure> {
    let token = format!("llmb-{:x}-{}", wall_ns(), std::process::id());
    let in_folder = |what: &str| format!("cannot write the {what} in {}", folder.display());
    fs::create_dir_all(folder.join("job")).with_context(|| in_folder("receipt")).or_exit(Exit::Artifact)?;
    let names: Vec<&String> = job.env.iter().map(|(name, _)| name).collect();
    let description = json!({"argv": job.argv, "directory": directory.display().to_string(), "variables": names});
    fs::write(folder.join("job/submission.json"), format!("{description:#}\n"))
        .with_context(|| in_folder("submission"))
        .or_exit(Exit::Artifact)?;
    job::begin_submission(folder, &token).with_context(|| in_folder("receipt")).or_exit(Exit::Artifact)?;
    // The client's calls have no directory of their own, and LC_ALL is the client's, not the job's.
    let unset = if launcher.request.shell.contains_key("LC_ALL") { "" } else { "unset LC_ALL; " };
    let mut words = vec!["-c".to_owned(), format!("{unset}cd \"$0\" && exec \"$@\""), directory.display().to_string()];
    words.extend(job.argv.iter().cloned());
    let env: Vec<(String, String)> = job.inherited.iter().chain(&job.env).cloned().collect();
    match launcher.slurm.call_with("sh", &words, &env) {
        Ok(answer) => {
            let id =
                text::job_id(&answer).ok_or(SlurmError::Unreadable { program: "sbatch".into(), text: answer }).or_exit(Exit::NotReady)?;
            job::complete_submission(folder, &token, id).with_context(|| in_folder("receipt")).or_exit(Exit::Artifact)?;
            Ok(Some(id))
        }
        Err(SlurmError::NoAnswer { .. }) => Ok(None),
        Err(error) => {
            job::withdraw_submission(folder);
            let said = match &error {
                SlurmError::Refused { message, .. } => message.clone(),
                other => other.to_string(),
            };
            Err(Failure::message(Exit::NotReady, said))
        }
    }
}

/// `experiments/NAME/<unix seconds>`; the next second when that is taken, as the tools do.
fn make_experiment(parent: &Path) -> Result<PathBuf, Failure> {
    let create = || -> std::io::Result<PathBuf> {
        fs::create_dir_all(parent)?;
        for _ in 0..20 {
            let path = parent.join((wall_ns() / 1_000_000_000).to_string());
            match fs::create_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => std::thread::sleep(Duration::from_millis(250)),
                made => return made.map(|()| path),
            }
        }
        Err(std::io::ErrorKind::AlreadyExists.into())
    };
    create().with_context(|| format!("cannot create a folder in {}", parent.display())).or_exit(Exit::Artifact)
}

/// A script that has no folder of its own gets one for its receipt beside the history.
fn receipt_folder(index: usize) -> Result<PathBuf, Failure> {
    let home = history::home().ok_or_else(|| Failure::message(Exit::Artifact, "there is no TANDEM_HOME, LLMB_INSTALL or HOME"))?;
    Ok(home.join("jobs").join(format!("{}-{}-{index}", wall_ns(), std::process::id())))
}

/// What was recorded of a script's submission.
pub(super) fn description(folder: &Path) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(folder.join("job/submission.json")).ok()?).ok()
}
