//! `tandem orchestrate`: the job script's only command. Binds the plan to the allocation, runs it, says how it ended.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use serde_json::Value;
use tandem_launch::slurm::{Allocation, Slurm, StepSettings, ports};
use tandem_launch::{EventLog, job};
use tandem_plan::Plan;

use super::recipe::read_plan;
use super::run::Run;
use super::run_folder::RunFolder;
use super::submit::{own_env, server_env_inside};
use super::sweep::{self, Case};
use crate::cli::{Cli, Command};
use crate::cli_jobs::{OrchestrateArgs, SubmitArgs, TryPortsArgs};
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
    let settings = StepSettings::from_json(&description["settings"])
        .ok_or_else(|| Failure::message(Exit::Artifact, "job.json has no readable settings"))?;
    let own = own_env(&description);
    let numbers = description["cases"].as_array().into_iter().flatten().filter_map(|n| usize::try_from(n.as_u64()?).ok());
    let numbers: Vec<usize> = numbers.collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Bug)?;
    runtime.block_on(async {
        let mut interrupts = Interrupts::install()?;
        let env = server_env_inside(&own);
        let bind = |plan: &Plan| {
            Allocation::bind(plan, settings.clone(), env.clone(), Slurm::new(SLURM_TIMEOUT)).map(Some).or_exit(Exit::Infeasible)
        };
        if numbers.is_empty() {
            let plan = read_plan(&folder.path("plan.json"))?;
            let allocation = bind(&plan)?;
            return Run::begin(&submitted.run, plan, folder, allocation)?.drive(&mut interrupts).await;
        }
        let case = |number| Ok(Case { number, plan: read_plan(&folder.path(&sweep::plan_name(number)))? });
        let cases = numbers.into_iter().map(case).collect::<Result<Vec<_>, Failure>>()?;
        let events = EventLog::create(&folder.path("events.jsonl")).or_exit(Exit::Artifact)?;
        let base = folder.root().parent().unwrap_or(folder.root());
        sweep::drive(&submitted.run, base, cases, &mut interrupts, Some(&events), bind).await
    })
}

/// Says which ports of a job's block are taken on the node that runs this.
pub(crate) fn try_ports(args: &TryPortsArgs) -> Result<(), Failure> {
    let node = std::env::var("SLURMD_NODENAME").context("SLURMD_NODENAME is not set: this is no step of a job").or_exit(Exit::Usage)?;
    let addresses = args.nodes.iter().filter_map(|pair| pair.split_once('='));
    let address = addresses.into_iter().find(|(name, _)| *name == node).map(|(_, address)| address);
    let address = address.ok_or_else(|| Failure::message(Exit::Usage, format!("no address of {node}")))?;
    let busy: Vec<String> = ports::busy(address, args.first).iter().map(ToString::to_string).collect();
    // One write: lines of other nodes must not come between.
    std::io::stdout().write_all(format!("{node} busy {}\n", busy.join(" ")).as_bytes()).or_exit(Exit::Artifact)
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
