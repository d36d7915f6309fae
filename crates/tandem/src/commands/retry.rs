//! `tandem retry` and `tandem rerun`: the same plan once more, in a folder of its own.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tandem_launch::slurm::{JobState, observe};

use super::manifest;
use super::orchestrate::{description, submit_args};
use super::recipe::read_plan;
use super::run::run_plan;
use super::run_folder::RunFolder;
use super::status::wait_for_all;
use super::submit::Job;
use crate::cli_jobs::{RerunArgs, RetryArgs};
use crate::exit::{Exit, Failure};

pub(crate) fn retry(args: &RetryArgs) -> Result<(), Failure> {
    let slurm = args.calls.slurm();
    let seen = observe(&args.job, &slurm);
    let refusal = match seen.state {
        JobState::Ended { exit_code: 0, .. } => Some("it succeeded"),
        ref state if state.is_final() || *state == JobState::NotSubmitted => None,
        JobState::Unknown(_) => Some("nobody knows whether it has ended"),
        _ => Some("it has not ended"),
    };
    if let Some(reason) = refusal.filter(|_| !args.force) {
        return Err(Failure::message(Exit::Usage, format!("{} is not retried: {reason}", args.job.display()))
            .with_hint("--force retries it all the same"));
    }
    let out = args.out.clone().unwrap_or_else(|| beside(&args.job, "retry"));
    let folder = submit_again(&args.job, &out, args.force)?;
    if args.wait { wait_for_all(&[folder], &slurm) } else { Ok(()) }
}

/// Submits the plan of a job folder with the options that it was submitted with.
fn submit_again(from: &Path, out: &Path, again: bool) -> Result<PathBuf, Failure> {
    let description = description(from)?;
    let mut submitted = submit_args(&description)?;
    submitted.again |= again;
    if description["cases"].as_array().is_some_and(|cases| !cases.is_empty()) {
        return Err(Failure::message(Exit::Usage, format!("{} is the job of a sweep", from.display()))
            .with_hint("submit the sweep again with --resume: it measures what is missing"));
    }
    let argv = description["argv"].as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect();
    let plan = read_plan(&from.join("plan.json"))?;
    Job::new(&submitted, plan)?.submit(out, argv, Some(from))
}

pub(crate) fn rerun(args: &RerunArgs) -> Result<(), Failure> {
    let out = args.out.clone().unwrap_or_else(|| beside(&args.run, "rerun"));
    if tandem_launch::job::job_path(&args.run).exists() {
        return submit_again(&args.run, &out, true).map(drop);
    }
    let plan = read_plan(&args.run.join("plan.json"))?;
    let run_args = manifest::run_args(&args.run)?;
    run_plan(&run_args, plan, RunFolder::create(&out)?)
}

/// The first of `NAME-KIND-1`, `-2` … that does not exist.
fn beside(folder: &Path, kind: &str) -> PathBuf {
    let folder = folder.canonicalize().context("").unwrap_or_else(|_| folder.to_owned());
    (1..).map(|n| PathBuf::from(format!("{}-{kind}-{n}", folder.display()))).find(|path| !path.exists()).unwrap_or(folder)
}
