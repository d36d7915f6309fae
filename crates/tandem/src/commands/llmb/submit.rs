//! Which jobs a request means, whether all of them can run, and the submission of each.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;

use tandem_launch::slurm::Slurm;
use tandem_llmb::flags::{env_args, slurm_args};
use tandem_llmb::lines::{error_lines, job_line, list};
use tandem_llmb::{Compat, LlmbError, Options, SlurmFlags, Task, generate, refine, text_tasks, validate, warning, yaml_tasks};

use super::installation::{Installation, invalid, read};
use super::{recipe, script};
use crate::cli_jobs::{SlurmCalls, SubmitArgs};
use crate::cli_llmb::{CompatArg, LauncherArg, LlmbSubmitArgs, WorkloadArgs};
use crate::commands::progress::say;
use crate::commands::status;
use crate::exit::{Exit, Failure, OrExit};

/// What was asked for, by either command line.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) workload: WorkloadArgs,
    pub(crate) flags: SlurmFlags,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) dry_run: bool,
    pub(crate) wait: bool,
    pub(crate) calls: SlurmCalls,
    /// The command line of `tandem submit` that jobs of Tandem's recipes start from; more is added for each task.
    pub(crate) words: Vec<String>,
    /// Variables of the shell.
    pub(crate) shell: BTreeMap<String, String>,
    /// Options of `tandem submit` that a script's `sbatch` gets as well.
    pub(crate) for_scripts: Vec<(String, Option<String>)>,
    /// An option that a script knows nothing of, if one is given.
    pub(crate) not_for_scripts: Option<&'static str>,
}

/// Slurm's options as `llmb-run` knows them; first the node list, the excluded nodes and the reservation.
fn slurm_flags(named: [&Option<String>; 3], segment: Option<u32>, workload: &WorkloadArgs) -> Result<SlurmFlags, Failure> {
    let [nodelist, exclude, reservation] = named.map(Clone::clone);
    let passthrough = slurm_args(&workload.slurm_arg).map_err(usage)?;
    Ok(SlurmFlags { nodelist, exclude, reservation, segment, nice: workload.nice, passthrough })
}

impl Request {
    /// `tandem submit -w …`.
    pub(crate) fn of_tandem(args: &SubmitArgs) -> Result<Self, Failure> {
        let flags = slurm_flags([&args.nodelist, &args.exclude, &args.reservation], args.segment, &args.workload)?;
        let shell = shell();
        // Here a bare name means the shell's value.
        let whole = |text: &String| match text.contains('=') {
            true => text.clone(),
            false => shell.get(text).map_or_else(|| text.clone(), |value| format!("{text}={value}")),
        };
        let env: Vec<String> = args.env.iter().map(whole).collect();
        Ok(Request {
            workload: args.workload.clone(),
            flags,
            env: env_args(&env).map_err(usage)?,
            dry_run: args.dry_run,
            wait: args.wait,
            calls: args.calls.clone(),
            words: std::env::args().collect(),
            for_scripts: for_scripts(args, &shell),
            shell,
            not_for_scripts: not_for_scripts(args),
        })
    }

    /// `llmb-run submit …`.
    pub(crate) fn of_llmb(args: &LlmbSubmitArgs) -> Result<Self, Failure> {
        let flags = slurm_flags([&args.nodelist, &args.exclude, &args.reservation], args.segment, &args.workload)?;
        let named = [
            ("nodelist", &flags.nodelist),
            ("exclude", &flags.exclude),
            ("reservation", &flags.reservation),
            ("segment", &flags.segment.map(|n| n.to_string())),
        ];
        let mut words: Vec<String> = ["tandem", "submit"].map(str::to_owned).to_vec();
        words.extend(named.into_iter().filter_map(|(name, value)| value.as_ref().map(|value| format!("--{name}={value}"))));
        words.extend(args.again.then(|| "--again".to_owned()));
        Ok(Request {
            workload: args.workload.clone(),
            flags,
            env: env_args(&args.env).map_err(usage)?,
            dry_run: args.dry_run,
            wait: args.wait,
            calls: args.calls.clone(),
            words,
            shell: shell(),
            for_scripts: Vec::new(),
            not_for_scripts: None,
        })
    }

    pub(crate) fn compat(&self) -> Compat {
        match self.workload.compat {
            Some(CompatArg::Dgxc2602) => Compat::Dgxc26_02,
            None => Compat::Corrected,
        }
    }

    /// The variable `GPUS_PER_NODE`.
    pub(crate) fn gpus_per_node(&self) -> Option<u32> {
        self.shell.get("GPUS_PER_NODE").and_then(|value| value.trim().parse().ok())
    }

    fn options(&self) -> Options {
        let w = &self.workload;
        Options {
            workloads: w.workloads.clone(),
            size: w.model_size.clone(),
            dtypes: w.dtypes.clone(),
            scales: w.scales.clone(),
            max_scale: w.max_scale,
            min_scale: w.min_scale,
            exact_scales: w.exact_scales,
            repeats: w.repeats,
            profile: w.profile,
            proxy: w.proxy,
            force: w.force,
        }
    }
}

fn for_scripts(args: &SubmitArgs, shell: &BTreeMap<String, String>) -> Vec<(String, Option<String>)> {
    // What comes from a variable of the shell is in the job's environment, where it has its place among the others.
    let typed = |value: &Option<String>, variable: &str| value.clone().filter(|value| shell.get(variable) != Some(value));
    let named = [
        ("partition", args.partition.clone()),
        ("account", args.account.clone()),
        ("time", args.time.clone()),
        ("qos", typed(&args.qos, "SBATCH_QOS")),
        ("constraint", typed(&args.constraint, "SBATCH_CONSTRAINT")),
        ("mem", typed(&args.mem, "SBATCH_MEM_PER_NODE")),
    ];
    let named = named.into_iter().filter_map(|(name, value)| value.map(|value| (name.to_owned(), Some(value))));
    let others = args.option.iter().map(|option| match option.split_once('=') {
        Some((name, value)) => (name.trim_start_matches('-').to_owned(), Some(value.to_owned())),
        None => (option.trim_start_matches('-').to_owned(), None),
    });
    named.chain(others).collect()
}

fn not_for_scripts(args: &SubmitArgs) -> Option<&'static str> {
    let given = [
        (!args.run.recipe.sets.is_empty(), "--set"),
        (args.run.out.is_some(), "--out"),
        (args.container.is_some(), "--container"),
        (args.image.is_some(), "--image"),
        (!args.mount.is_empty(), "--mount"),
        (args.mpi.is_some(), "--mpi"),
        (!args.srun_arg.is_empty(), "--srun-arg"),
        (args.gpu_request.is_some(), "--gpu-request"),
        (args.exclusive.is_some(), "--exclusive"),
    ];
    given.into_iter().find(|(is_given, _)| *is_given).map(|(_, name)| name)
}

/// What is readable of the environment.
fn shell() -> BTreeMap<String, String> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

/// Options that contradict each other.
fn usage(error: LlmbError) -> Failure {
    Failure::new(Exit::Usage, error)
}

pub(crate) fn submit(request: &Request) -> Result<(), Failure> {
    refuse_inside_a_job(request)?;
    let site = Installation::load()?;
    let (tasks, unmatched) = tasks(request, &site)?;
    submit_tasks(request, &site, tasks, unmatched)
}

/// The variables of a job would reach the jobs that are submitted from it.
pub(crate) fn refuse_inside_a_job(request: &Request) -> Result<(), Failure> {
    match request.shell.get("SLURM_JOB_ID") {
        Some(id) => Err(Failure::message(Exit::Usage, format!("this shell runs inside Slurm job {id} (SLURM_JOB_ID is set)"))
            .with_hint("submit from a login node")),
        None => Ok(()),
    }
}

fn tasks(request: &Request, site: &Installation) -> Result<(Vec<Task>, Vec<String>), Failure> {
    let options = request.options();
    let Some(file) = &request.workload.file else {
        let generated = generate(&options, &site.workloads, &site.cluster.gpu_type).map_err(|error| {
            if error.0.starts_with("No matching") {
                // What would match is what the user wants to see next.
                let named =
                    |w: &&tandem_llmb::Workload| options.workloads.is_empty() || options.workloads.iter().any(|n| n.starts_with(&w.key));
                let named: Vec<_> = site.workloads.iter().filter(named).collect();
                say(list(&named, &site.cluster.installed, &site.cluster.gpu_type).trim_end());
            }
            site.notes.iter().for_each(|note| say(&format!("warning: {note}")));
            usage(error)
        })?;
        return Ok((generated.tasks, generated.unmatched));
    };
    let w = &request.workload;
    if !w.workloads.is_empty() || w.model_size.is_some() || w.max_scale.is_some() || w.min_scale {
        return Err(Failure::message(Exit::Usage, "Cannot mix --file with workload specifications"));
    }
    let (name, text) = (file.display().to_string(), read(file)?);
    let is_yaml = file.extension().is_some_and(|end| end == "yaml" || end == "yml");
    let tasks = if is_yaml { yaml_tasks(&name, &text) } else { text_tasks(&name, &text) }.map_err(invalid)?;
    match request.compat() {
        Compat::Corrected => Ok((refine(tasks, &options).map_err(usage)?, Vec::new())),
        Compat::Dgxc26_02 => Ok((tasks, Vec::new())),
    }
}

/// Checks all tasks, then submits them; a batch that is partly wrong is not submitted unless that is wanted.
pub(crate) fn submit_tasks(request: &Request, site: &Installation, tasks: Vec<Task>, unmatched: Vec<String>) -> Result<(), Failure> {
    let gpu = &site.cluster.gpu_type;
    let n_all = tasks.len();
    let (mut good, mut wrong) = (Vec::new(), Vec::new());
    for mut task in tasks {
        match validate(&task, &site.workloads, &site.cluster.installed, gpu, request.workload.force) {
            Some(error) => wrong.push((task, error)),
            None => {
                for (name, value) in &request.env {
                    task.env.retain(|(known, _)| known != name);
                    task.env.push((name.clone(), value.clone()));
                }
                good.push(task);
            }
        }
    }
    error_lines(&wrong).iter().for_each(|line| say(line));
    unmatched.iter().for_each(|line| say(&format!("ERROR:   ❌ {line}")));
    if good.is_empty() {
        return Err(Failure::message(Exit::Usage, "❌ No valid tasks found. Aborting submit submission."));
    }
    if !wrong.is_empty() || !unmatched.is_empty() {
        if !request.workload.allow_partial && request.compat() == Compat::Corrected {
            let n_wrong = wrong.len() + unmatched.len();
            let text = format!("{n_wrong} of what was asked for cannot run (above); nothing was submitted");
            return Err(Failure::message(Exit::Usage, text).with_hint("--allow-partial submits the rest"));
        }
        say(&format!("⚠️  Proceeding with {} valid tasks out of {n_all} total.", good.len()));
    }
    let mut warned: Vec<String> = good.iter().filter_map(|task| warning(task, &site.workloads, gpu)).collect();
    warned.dedup();
    warned.iter().for_each(|text| say(&format!("warning: {text}")));
    launch_all(request, site, &good)
}

fn launch_all(request: &Request, site: &Installation, tasks: &[Task]) -> Result<(), Failure> {
    let lines: String = tasks.iter().map(|task| format!("{}\n", job_line(task))).collect();
    print(&format!("Jobs ({}):\n{lines}", tasks.len()))?;
    let launcher = Launcher { request, site, slurm: request.calls.slurm() };
    if request.dry_run {
        print("Dry run enabled. Jobs will not be submitted.\n")?;
        return tasks.iter().enumerate().try_for_each(|(index, task)| launcher.launch(task, index, tasks).map(drop));
    }
    let (mut folders, mut n_failed, mut first) = (Vec::new(), 0, None);
    for (index, task) in tasks.iter().enumerate() {
        match launcher.launch(task, index, tasks) {
            Ok(launched) => folders.extend(launched),
            Err(failure) => {
                let causes: Vec<String> = failure.error.chain().map(ToString::to_string).collect();
                say(&format!("ERROR: {} error={}", job_line(task).trim_start_matches("  - "), causes.join(": ")));
                if let Some(hint) = &failure.hint {
                    say(&format!("hint: {hint}"));
                }
                n_failed += 1;
                first = first.or(Some(failure.exit));
            }
        }
    }
    let ended = if request.wait { status::wait_for_all(&folders, &launcher.slurm) } else { Ok(()) };
    match first {
        Some(exit) => Err(Failure::message(exit, format!("Failed to launch {n_failed} out of {} tasks.", tasks.len()))),
        None => ended,
    }
}

/// Everything that the launch of one task needs.
pub(crate) struct Launcher<'a> {
    pub(crate) request: &'a Request,
    pub(crate) site: &'a Installation,
    pub(crate) slurm: Slurm,
}

impl Launcher<'_> {
    /// Submits (or shows) a task; the folders of its jobs.
    fn launch(&self, task: &Task, index: usize, all: &[Task]) -> Result<Vec<PathBuf>, Failure> {
        let own = recipe::of_workload(&task.workload);
        match (self.request.workload.launcher, own) {
            (None | Some(LauncherArg::Tandem), Some(name)) => {
                // A repetition that was asked for is no mistake.
                let is_repeat = all[..index].contains(task);
                recipe::launch(self, task, name, is_repeat)
            }
            (Some(LauncherArg::Tandem), None) => {
                Err(Failure::message(Exit::Usage, format!("Tandem has no recipe of its own for {}", task.workload))
                    .with_hint("leave --launcher away: its script is submitted"))
            }
            (Some(LauncherArg::Script), _) | (None, None) => script::launch(self, task, index),
        }
    }
}

pub(crate) fn print(text: &str) -> Result<(), Failure> {
    std::io::stdout().write_all(text.as_bytes()).or_exit(Exit::Artifact)
}
