//! A job of Tandem's own recipe for a workload: the task as a command line of `tandem submit`, which does the rest.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Parser;
use tandem_launch::job;
use tandem_launch::slurm::request::quote;
use tandem_llmb::lines::job_line;
use tandem_llmb::submission::is_secret;
use tandem_llmb::{Compat, Launch, Task, llmb_config};
use tandem_plan::{EngineKind, Plan};
use tandem_recipe::KNOBS;

use super::installation::invalid;
use super::submit::{Launcher, print};
use crate::cli::{Cli, Command};
use crate::cli_jobs::{ContainerArg, SubmitArgs};
use crate::commands::history::WorkloadJob;
use crate::commands::install::cluster_name;
use crate::commands::progress::say;
use crate::commands::recipe::{load, plans_of};
use crate::commands::run_folder::RunFolder;
use crate::commands::submit::for_each_job;
use crate::exit::{Exit, Failure, OrExit};

/// What `tandem submit` takes from the `slurm` mapping of a site file, besides the knobs.
const READ_OF_SITE: [&str; 12] = [
    "SBATCH_QOS",
    "SBATCH_RESERVATION",
    "SBATCH_NODELIST",
    "SBATCH_EXCLUDE",
    "SBATCH_CONSTRAINT",
    "SBATCH_MEM",
    "SBATCH_SEGMENT",
    "SBATCH_EXCLUSIVE",
    "SBATCH_GPU_REQUEST",
    "SBATCH_CONTAINER",
    "SBATCH_IMAGE",
    "SBATCH_MPI",
];

/// The built-in recipe that is this workload.
pub(super) fn of_workload(key: &str) -> Option<&'static str> {
    (key == "inference_deepseek-r1-dynamo").then_some("deepseek-r1")
}

/// Submits a task as jobs of the recipe `name`, or shows what would be submitted.
pub(super) fn launch(launcher: &Launcher<'_>, task: &Task, name: &str, is_repeat: bool) -> Result<Vec<PathBuf>, Failure> {
    let Launcher { request, site, slurm } = launcher;
    if task.profile {
        return Err(Failure::message(Exit::Usage, "Tandem's recipes have no profiling")
            .with_hint("--launcher script runs the workload's own script with ENABLE_PROFILE=true"));
    }
    let mut words = request.words.clone();
    words.extend(command_line(launcher, task, name));
    let mut args = parse(&words)?;
    let plans = plans_of(&load(&args.run.recipe)?)?;
    let is_engine_of_image = |plan: &Plan| !matches!(plan.engine, EngineKind::Cpu | EngineKind::Modeled | EngineKind::External);
    if args.container.is_none() && plans.iter().any(is_engine_of_image) && !states_container(&site.config) {
        // The workload's engine is in its image, and the tools know pyxis only.
        words.push("--container=pyxis".to_owned());
        args.container = Some(ContainerArg::Pyxis);
    }
    args.again |= is_repeat;
    plans.iter().try_for_each(|plan| check_scale(task, plan))?;
    let Some(first) = plans.first() else { return Ok(Vec::new()) };
    let base = match &args.run.out {
        Some(out) if is_repeat => RunFolder::free(out),
        Some(out) => out.clone(),
        None => RunFolder::default_below(&site.workload_dir(&task.workload), first.load.isl, first.load.osl),
    };
    let name = job_line(task);
    let name = name.trim_start_matches("  - ");
    if request.dry_run {
        let equal: Vec<String> = words.iter().skip(1).map(|word| quote(word)).collect();
        print(&format!("\n# {name}\n# the same as\n# tandem {}\n", equal.join(" ")))?;
    }
    let mut folders = Vec::new();
    for_each_job(&args, plans, &base, |mut job, out| {
        if request.dry_run {
            return job.show(&std::path::absolute(out).or_exit(Exit::Artifact)?, slurm);
        }
        job.set_workload(WorkloadJob {
            key: task.workload.clone(),
            model_size: task.size.clone(),
            dtype: task.dtype.clone(),
            scale: task.scale,
            proxy: task.proxy,
            launcher: "tandem".to_owned(),
            ..WorkloadJob::default()
        });
        let folder = job.submit(out, words.clone(), None)?;
        if let Some(id) = job::receipt(&folder).and_then(|receipt| receipt["job_id"].as_u64()) {
            write_config(launcher, task, id, &folder)?;
            print(&format!("SUBMITTED: {name} jobid={id} workdir={}\n", folder.display()))?;
        }
        folders.push(folder);
        Ok(())
    })?;
    Ok(folders)
}

/// What the task adds to the command line.
fn command_line(launcher: &Launcher<'_>, task: &Task, name: &str) -> Vec<String> {
    let Launcher { request, site, .. } = launcher;
    let cluster = &site.cluster;
    let is_old = request.compat() == Compat::Dgxc26_02;
    let mut words = vec![name.to_owned(), format!("--gpu-type={}", cluster.gpu_type)];
    if !request.words.iter().any(|word| word.starts_with("--site")) && !request.shell.contains_key("TANDEM_SITE") {
        // A layer below the shell, so that what is typed wins.
        words.push(format!("--site={}", site.config.display()));
    }
    let mut stated: Vec<(String, String)> = vec![("LLMB_INSTALL".to_owned(), cluster.llmb_install.clone())];
    if !request.shell.contains_key("LLMB_WORKLOAD") {
        stated.push(("LLMB_WORKLOAD".to_owned(), site.workload_dir(&task.workload).display().to_string()));
    }
    let of_cluster = cluster.slurm_gpu.iter().chain(&cluster.environment);
    for (name, value) in of_cluster {
        let said = request.shell.get(name).filter(|said| *said != value);
        let is_knob = knob(name).is_some();
        match (said, is_old) {
            (Some(said), false) => {
                say(&format!("note: {name}={said}, not {value}: the shell wins over {}", site.config.display()));
                // Knobs are read from the shell; for the rest the servers get what it says.
                stated.extend((!is_knob).then(|| (name.clone(), said.clone())));
            }
            (Some(said), true) => {
                say(&format!("note: {name}={value}, not {said}: {} wins over the shell", site.config.display()));
                stated.push((name.clone(), value.clone()));
            }
            // The site's layer has the knobs, and `tandem submit` reads these itself; the rest is for sbatch and servers.
            (None, _) => stated.extend((!is_knob && !READ_OF_SITE.contains(&name.as_str())).then(|| (name.clone(), value.clone()))),
        }
    }
    stated.extend(task.env.iter().cloned());
    stated.extend(task.params.iter().map(|(name, value)| (name.to_ascii_uppercase(), value.clone())));
    if is_old {
        stated.push(("MULTI_ROUND".to_owned(), "10".to_owned()));
    }
    let mut last: Vec<(String, String)> = Vec::new();
    for (name, value) in stated {
        last.retain(|(known, _)| *known != name);
        last.push((name, value));
    }
    for (name, value) in last {
        match knob(&name) {
            // Several values are apart by spaces in the environment, by commas here.
            Some(knob) => words.push(format!("--set={knob}={}", value.split_whitespace().collect::<Vec<_>>().join(","))),
            // The command line is written into the job's folder.
            None if is_secret(&name) => say(&format!("note: {name} is not passed on: it looks like a secret")),
            None if request.env.iter().any(|(known, _)| *known == name) && request.words.iter().any(|word| word.starts_with("--env")) => {}
            None => words.push(format!("--env={name}={value}")),
        }
    }
    words.extend(request.flags.nice.map(|nice| format!("--option=nice={nice}")));
    words.extend(request.flags.passthrough.iter().map(|(name, value)| match value {
        Some(value) => format!("--option={name}={value}"),
        None => format!("--option={name}"),
    }));
    words
}

/// The knob of that name or environment name.
fn knob(name: &str) -> Option<&'static str> {
    KNOBS.iter().find(|knob| knob.env_name() == name || knob.name == name).map(|knob| knob.name)
}

fn parse(words: &[String]) -> Result<SubmitArgs, Failure> {
    match Cli::try_parse_from(words).context("the task cannot be expressed as a command line").or_exit(Exit::Usage)?.command {
        Command::Submit(args) => Ok(*args),
        _ => Err(Failure::message(Exit::Bug, "the command line is no `tandem submit`")),
    }
}

/// Whether the cluster's file says how containers are started.
fn states_container(config: &Path) -> bool {
    let text = fs::read_to_string(config).unwrap_or_default();
    let file = tandem_recipe::TextFile { path: config.display().to_string(), text };
    tandem_recipe::slurm_facts(&file).is_ok_and(|facts| facts.contains_key("container"))
}

/// The old recipe ran on exactly the nodes that `--scale` gives, and divided by their GPUs; so must this.
fn check_scale(task: &Task, plan: &Plan) -> Result<(), Failure> {
    let n_devices = plan.n_devices();
    if n_devices == task.scale {
        return Ok(());
    }
    let text = format!("--scale {} does not match the servers, which take {n_devices} GPUs", task.scale);
    Err(Failure::message(Exit::Infeasible, text)
        .with_hint("GPUs = NCTX x CTX_WORLD_SIZE + NGEN x GEN_WORLD_SIZE; change these, or with --force the scale"))
}

/// Writes `llmb-config_<JOBID>.yaml`.
pub(super) fn write_config(launcher: &Launcher<'_>, task: &Task, job_id: u64, dir: &Path) -> Result<PathBuf, Failure> {
    let Launcher { request, site, slurm } = launcher;
    let (workload, _) = site.workload(&task.workload)?;
    let mut cluster = site.cluster.clone();
    if cluster.cluster_name.is_none() {
        // The file may leave it out; Slurm knows it.
        cluster.cluster_name = cluster_name(slurm);
    }
    let time = jiff::Zoned::now().strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string();
    let is_true = |value: &String| ["true", "1", "yes"].contains(&value.to_ascii_lowercase().as_str());
    let launch = Launch {
        job_id,
        launch_time: &time,
        release: site.release.as_deref(),
        gpus_per_node: request.gpus_per_node(),
        strong_scaling: request.shell.get("STRONG_SCALING").is_some_and(is_true),
    };
    let text = llmb_config(task, workload, &cluster, &launch).map_err(invalid)?;
    let path = dir.join(format!("llmb-config_{job_id}.yaml"));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display())).or_exit(Exit::Artifact)?;
    Ok(path)
}
