//! `tandem orchestrate`: the job script's only command. Binds the plan to the allocation, runs it, says how it ended.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use serde_json::Value;
use tandem_launch::job;
use tandem_launch::slurm::{Allocation, Slurm, StepSettings};

use super::recipe::read_plan;
use super::run::Run;
use super::run_folder::RunFolder;
use super::submit::server_env_inside;
use crate::cli::{Cli, Command};
use crate::cli_jobs::{OrchestrateArgs, SubmitArgs};
use crate::exit::{Exit, Failure, OrExit};
use crate::signals::Interrupts;

/// Deadline of Slurm's programs inside the job; between SIGTERM and SIGKILL there may be no more than 30 s.
const SLURM_TIMEOUT: Duration = Duration::from_secs(8);

pub(crate) fn orchestrate(args: &OrchestrateArgs) -> Result<(), Failure> {
    let outcome = drive(&args.job);
    // The result is the last that is written: whoever sees it sees everything else.
    let written = match &outcome {
        Ok(()) => job::write_result(&args.job, 0, "", None),
        Err(failure) => job::write_result(&args.job, failure.exit as u8, &format!("{:#}", failure.error), failure.hint.as_deref()),
    };
    written.with_context(|| format!("cannot write the result in {}", args.job.display())).or_exit(Exit::Artifact)?;
    outcome
}

fn drive(path: &Path) -> Result<(), Failure> {
    let folder = RunFolder::open(path)?;
    let description = description(path)?;
    let submitted = submit_args(&description)?;
    let plan = read_plan(&folder.path("plan.json"))?;
    let settings = StepSettings::from_json(&description["settings"])
        .ok_or_else(|| Failure::message(Exit::Artifact, "job.json has no readable settings"))?;
    let own = description["env"].as_object().into_iter().flatten();
    let own: Vec<(String, String)> = own.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Bug)?;
    runtime.block_on(async {
        let mut interrupts = Interrupts::install()?;
        let env = server_env_inside(&own);
        let allocation = Allocation::bind(&plan, settings, env, Slurm::new(SLURM_TIMEOUT)).or_exit(Exit::Infeasible)?;
        Run::begin(&submitted.run, plan, folder, Some(allocation))?.drive(&mut interrupts).await
    })
}

/// `job.json` of a job folder.
pub(crate) fn description(folder: &Path) -> Result<Value, Failure> {
    let path = job::job_path(folder);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Artifact)?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display())).or_exit(Exit::Artifact)
}

/// The command line that submitted a job.
pub(crate) fn submit_args(description: &Value) -> Result<SubmitArgs, Failure> {
    let words = description["argv"].as_array().into_iter().flatten().filter_map(Value::as_str);
    match Cli::try_parse_from(words).context("the job was submitted by another version of this program").or_exit(Exit::Artifact)?.command {
        Command::Submit(args) => Ok(*args),
        _ => Err(Failure::message(Exit::Artifact, "job.json holds no `tandem submit`")),
    }
}
