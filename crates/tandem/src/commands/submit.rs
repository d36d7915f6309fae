//! `tandem submit`: a complete job folder, and the submission of it, once.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tandem_launch::job;
use tandem_launch::slurm::request::quote;
use tandem_launch::slurm::{Container, GpuRequest, Head, JobRequest, Slurm, SlurmError, StepSettings, observe, text};
use tandem_llmb::submission::{is_secret, shown};
use tandem_plan::{GpuType, Plan};
use tandem_recipe::{Cluster, TextFile, render_configs, slurm_facts};

use super::history::{self, Entry, WorkloadJob};
use super::llmb;
use super::measure::wall_ns;
use super::progress::say;
use super::recipe::{load, plans_of, recipe_failure};
use super::run_folder::RunFolder;
use super::status;
use super::sweep::{self, Case};
use crate::cli_jobs::{ContainerArg, GpuRequestArg, JobsArg, SubmitArgs};
use crate::exit::{Exit, Failure, OrExit};

/// Variables of the shell that jobs get: where programs are, and what the program itself reads. The key of an endpoint travels in
/// the environment only; it is in no file of the job.
const KEPT: [&str; 7] = ["PATH", "HOME", "USER", "LANG", "TANDEM_LOG", "TANDEM_API_KEY", "LD_LIBRARY_PATH"];

pub(crate) fn submit(args: &SubmitArgs) -> Result<(), Failure> {
    if args.workload.is_asked() {
        return llmb::submit::submit(&llmb::submit::Request::of_tandem(args)?);
    }
    if let Some(flag) = args.workload.stray() {
        return Err(Failure::message(Exit::Usage, format!("{flag} is about workloads of an llmb installation"))
            .with_hint("name one with -w KEY, or a task file with -f FILE"));
    }
    let recipe = load(&args.run.recipe)?;
    let plans = plans_of(&recipe)?;
    let Some(first) = plans.first() else { return Ok(()) };
    let base = args.run.out.clone().unwrap_or_else(|| RunFolder::default_path(first.load.isl, first.load.osl));
    let mut folders = Vec::new();
    for_each_job(args, plans, &base, |job, out| {
        if args.dry_run {
            return job.show(&std::path::absolute(out).or_exit(Exit::Artifact)?, &args.calls.slurm());
        }
        folders.push(job.submit(out, std::env::args().collect(), None)?);
        Ok(())
    })?;
    if args.wait { status::wait_for_all(&folders, &args.calls.slurm()) } else { Ok(()) }
}

/// The jobs of `plans`, one after the other, each with its folder: `base`, or one of a sweep below it.
pub(crate) fn for_each_job(
    args: &SubmitArgs,
    plans: Vec<Plan>,
    base: &Path,
    mut act: impl FnMut(Job<'_>, &Path) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let is_sweep = sweep::is_sweep(&args.run, plans.len());
    let cases = sweep::cases(&args.run, plans, base);
    let groups: Vec<Vec<Case>> = match args.jobs {
        JobsArg::One => Some(cases).filter(|cases| !cases.is_empty()).into_iter().collect(),
        JobsArg::Each => cases.into_iter().map(|case| vec![case]).collect(),
    };
    for cases in groups {
        // The runs of a sweep lie side by side, and the folders of its jobs beside them.
        let out = if is_sweep { sweep::fresh_job(base) } else { base.to_owned() };
        let job = if is_sweep { Job::of_sweep(args, cases)? } else { Job::of_cases(args, cases)? };
        act(job, &out)?;
    }
    Ok(())
}

/// A plan and everything that its job needs to know.
pub(crate) struct Job<'a> {
    args: &'a SubmitArgs,
    plan: Plan,
    request: JobRequest,
    settings: StepSettings,
    /// For the servers.
    env: Vec<(String, String)>,
    program: PathBuf,
    /// What llmb's tools would call it.
    workload: Option<WorkloadJob>,
    /// What it runs one after another, in folders beside its own; empty when it runs `plan` in its own.
    cases: Vec<Case>,
}

impl<'a> Job<'a> {
    pub(crate) fn new(args: &'a SubmitArgs, mut plan: Plan) -> Result<Self, Failure> {
        plan.frontend.http.port = args.run.port.unwrap_or(plan.frontend.http.port);
        let program = std::env::current_exe().or_exit(Exit::Bug)?;
        let options = Options::resolve(args, &plan)?;
        let env = server_env(&args.env)?;
        Ok(Job {
            request: options.request(args, &plan)?,
            settings: options.settings(args, &plan, &program)?,
            args,
            plan,
            env,
            program,
            cases: Vec::new(),
            workload: None,
        })
    }

    /// Says which workload of an llmb installation this is, for the history.
    pub(crate) fn set_workload(&mut self, workload: WorkloadJob) {
        self.workload = Some(workload);
    }

    /// A job whose folder is that of its run.
    fn of_cases(args: &'a SubmitArgs, cases: Vec<Case>) -> Result<Self, Failure> {
        let plan = cases.into_iter().next().map(|case| case.plan).ok_or_else(|| Failure::message(Exit::Recipe, "no deployment"))?;
        Job::new(args, plan)
    }

    /// A job that runs `cases` one after another; it asks for what the one with the most nodes needs.
    fn of_sweep(args: &'a SubmitArgs, cases: Vec<Case>) -> Result<Self, Failure> {
        if args.head_partition.is_some() && cases.iter().any(|case| n_head(&case.plan) != n_head(&cases[0].plan)) {
            return Err(Failure::message(Exit::Usage, "--head-partition: the deployments differ in their nodes without servers")
                .with_hint("--jobs each gives each its own job"));
        }
        let largest = cases.iter().max_by_key(|case| case.plan.n_nodes).map(|case| case.plan.clone());
        let job = Job::new(args, largest.ok_or_else(|| Failure::message(Exit::Recipe, "no deployment"))?)?;
        Ok(Job { cases, ..job })
    }

    /// What is submitted twice when this is: the plan, or all plans of a sweep.
    fn hash(&self) -> String {
        match self.cases.as_slice() {
            [] => self.plan.hash(),
            cases => cases.iter().map(|case| case.plan.hash()).collect::<Vec<_>>().join("+"),
        }
    }

    /// Prints what would happen.
    pub(crate) fn show(&self, out: &Path, slurm: &Slurm) -> Result<(), Failure> {
        let script = self.request.script(out, &self.program);
        let mut text = format!("# job folder: {}\n# {}\n{script}", out.display(), job::script_path(out).display());
        text.push_str("\n# submission\n");
        text.push_str(&format!(
            "env -i {} sbatch --parsable {}\n",
            quoted_env(&slurm.environment(), &self.job_env()),
            job::script_path(out).display()
        ));
        text.push_str("\n# servers, as steps of the job (NODE_0 … are its nodes in order; ports come from the job's own block)\n");
        for line in self.step_lines(out)? {
            text.push_str(&line);
            text.push('\n');
        }
        text.push_str("\n# environment of the servers, besides Slurm's variables\n");
        self.server_env().iter().for_each(|(name, value)| text.push_str(&format!("{name}={}\n", shown(name, value))));
        text.push_str("\n# what Slurm would do (sbatch --test-only)\n");
        text.push_str(&self.test_only(slurm));
        std::io::stdout().write_all(text.as_bytes()).or_exit(Exit::Artifact)
    }

    fn step_lines(&self, out: &Path) -> Result<Vec<String>, Failure> {
        let allocation = tandem_launch::slurm::Allocation::imagined(
            &self.plan,
            self.request.head.as_ref().map_or(0, |head| head.n_nodes),
            self.settings.clone(),
            self.server_env(),
            self.args.calls.slurm(),
        );
        let quoted = |argv: &Vec<String>| argv.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ");
        let lines = |plan: &Plan| -> Result<Vec<String>, Failure> {
            let lines = allocation.command_lines(plan, out, &self.program).or_exit(Exit::Infeasible)?;
            Ok(lines.iter().map(quoted).collect())
        };
        if self.cases.is_empty() {
            return lines(&self.plan);
        }
        let mut all = Vec::new();
        for case in &self.cases {
            all.push(format!("# case-{}: {} load points", case.number, case.plan.load.points.len()));
            all.extend(lines(&case.plan)?);
        }
        Ok(all)
    }

    /// Slurm's own opinion; it needs the script as a file.
    fn test_only(&self, slurm: &Slurm) -> String {
        let run = || -> std::io::Result<Result<String, SlurmError>> {
            let dir = std::env::temp_dir().join(format!("tandem-dry-run-{}", std::process::id()));
            fs::create_dir_all(dir.join("logs"))?;
            let script = dir.join("job.sbatch");
            fs::write(&script, self.request.script(&dir, &self.program))?;
            // It says what it thinks on standard error; the shell brings that to standard output.
            let ask = format!("sbatch --test-only {} 2>&1", quote(&script.display().to_string()));
            let answer = slurm.call("sh", &["-c", &ask]);
            fs::remove_dir_all(&dir)?;
            Ok(answer)
        };
        match run() {
            Ok(Ok(text)) => text,
            Ok(Err(SlurmError::Refused { message, .. })) => format!("{message}\n"),
            Ok(Err(error)) => format!("unknown: {error}\n"),
            Err(error) => format!("unknown: {error}\n"),
        }
    }

    /// Writes the folder and submits it. `argv` is what a repetition starts from.
    pub(crate) fn submit(&self, out: &Path, argv: Vec<String>, retry_of: Option<&Path>) -> Result<PathBuf, Failure> {
        if job::receipt(out).is_some() {
            return Err(Failure::message(Exit::Usage, format!("{} was submitted before", out.display()))
                .with_hint("`tandem status DIR` says where it is, `tandem retry DIR` submits it once more"));
        }
        let slurm = self.args.calls.slurm();
        self.refuse_a_twin(&slurm)?;
        let folder = RunFolder::create(out)?;
        let root = folder.root();
        if self.cases.is_empty() {
            folder.write("plan.json", serde_json::to_string_pretty(&self.plan).or_exit(Exit::Bug)?.as_bytes())?;
            for (name, text) in render_configs(&self.plan, &[]) {
                folder.write(&name, text.as_bytes())?;
            }
        }
        for case in &self.cases {
            folder.write(&sweep::plan_name(case.number), serde_json::to_string_pretty(&case.plan).or_exit(Exit::Bug)?.as_bytes())?;
        }
        let script = self.request.script(root, &self.program);
        // Secrets travel in the environment of the submission only.
        let written =
            |(name, value): &(String, String)| (name.clone(), if is_secret(name) { Value::Null } else { Value::from(value.clone()) });
        let description = json!({
            "argv": without_secrets(argv), "settings": self.settings.to_json(), "token": self.request.token,
            "env": self.env.iter().map(written).collect::<serde_json::Map<_, _>>(),
            "cases": self.cases.iter().map(|case| case.number).collect::<Vec<_>>(),
            "retry_of": retry_of.map(|path| path.display().to_string()),
        });
        folder.write("job/job.json", format!("{description:#}\n").as_bytes())?;
        folder.write("job/job.sbatch", script.as_bytes())?;
        let job_id = self.send(root, &slurm)?;
        let entry = Entry {
            folder: root.to_owned(),
            job_id,
            recipe: self.plan.recipe.clone(),
            plan_hash: self.hash(),
            submitted_ns: wall_ns(),
            workload: self.workload.clone().map(|workload| WorkloadJob {
                log_dir: root.join("logs"),
                config: job_id.map(|id| root.join(format!("llmb-config_{id}.yaml"))),
                ..workload
            }),
        };
        history::append(&entry);
        let id = job_id.map_or_else(|| "submitted without an answer".to_owned(), |id| format!("job {id}"));
        say(&format!("{id}: {} nodes, {} devices; folder {}", self.plan.n_nodes, self.plan.n_devices(), root.display()));
        // The folder is what every other command takes.
        let _ = writeln!(std::io::stdout(), "{}", root.display());
        Ok(root.to_owned())
    }

    /// Calls `sbatch`. An answer that does not come is not a refusal: the job may be there, and carries the token.
    fn send(&self, root: &Path, slurm: &Slurm) -> Result<Option<u64>, Failure> {
        let token = &self.request.token;
        job::begin_submission(root, token)
            .with_context(|| format!("cannot write the receipt in {}", root.display()))
            .or_exit(Exit::Artifact)?;
        let script = job::script_path(root).display().to_string();
        let answer = match slurm.call_with("sbatch", &["--parsable", &script], &self.job_env()) {
            Ok(answer) => answer,
            Err(error @ (SlurmError::Refused { .. } | SlurmError::Missing { .. })) if !matches!(&error, SlurmError::Refused { .. } if error.is_unknown()) =>
            {
                job::withdraw_submission(root);
                let hint = format!("the folder {} is complete: correct the options and submit again into another", root.display());
                return Err(Failure::new(Exit::NotReady, error).with_hint(hint));
            }
            Err(error) => {
                say(&format!("warning: {error}; `tandem status` finds the job when Slurm answers again"));
                return Ok(None);
            }
        };
        let id = text::job_id(&answer).ok_or(SlurmError::Unreadable { program: "sbatch".into(), text: answer }).or_exit(Exit::NotReady)?;
        job::complete_submission(root, token, id).context("cannot write the receipt").or_exit(Exit::Artifact)?;
        Ok(Some(id))
    }

    /// The same plan is not submitted twice by a second press of the same key.
    fn refuse_a_twin(&self, slurm: &Slurm) -> Result<(), Failure> {
        if self.args.again {
            return Ok(());
        }
        let hash = self.hash();
        let twin = history::newest(50)
            .into_iter()
            .filter(|entry| entry.plan_hash == hash)
            .find(|entry| entry.folder.exists() && job::result(&entry.folder).is_none() && !observe(&entry.folder, slurm).state.is_final());
        match twin {
            Some(twin) => Err(Failure::message(Exit::Usage, format!("a job with the same plan has not ended: {}", twin.folder.display()))
                .with_hint("--again submits it all the same")),
            None => Ok(()),
        }
    }

    /// Environment of the job script: what the shell has of the listed variables, and what `--env` names.
    fn job_env(&self) -> Vec<(String, String)> {
        kept_env().into_iter().chain(self.env.iter().cloned()).collect()
    }

    fn server_env(&self) -> Vec<(String, String)> {
        server_env_inside(&self.env)
    }
}

/// The listed variables that this process has.
fn kept_env() -> Vec<(String, String)> {
    KEPT.iter().filter_map(|name| std::env::var(name).ok().map(|value| ((*name).to_owned(), value))).collect()
}

/// A command line for `job.json`: `--env NAME=VALUE` of a secret becomes `--env NAME`, which takes the shell's value when it is used again.
fn without_secrets(mut argv: Vec<String>) -> Vec<String> {
    for i in 0..argv.len() {
        let (flag, pair) = match argv[i].split_once('=') {
            Some(("--env", pair)) => ("--env=", pair.to_owned()),
            _ if i > 0 && argv[i - 1] == "--env" => ("", argv[i].clone()),
            _ => continue,
        };
        if let Some((name, _)) = pair.split_once('=').filter(|(name, _)| is_secret(name)) {
            argv[i] = format!("{flag}{name}");
        }
    }
    argv
}

/// The job's own variables out of `job.json`; the secrets among them are in the environment of the job script.
pub(crate) fn own_env(description: &Value) -> Vec<(String, String)> {
    let own = description["env"].as_object().into_iter().flatten();
    let of = |(name, value): (&String, &Value)| {
        let value = value.as_str().map(str::to_owned).or_else(|| std::env::var(name).ok());
        value.map(|value| (name.clone(), value))
    };
    own.filter_map(of).collect()
}

/// What servers get inside the job: the listed variables of the job script, then the job's own.
pub(crate) fn server_env_inside(own: &[(String, String)]) -> Vec<(String, String)> {
    let mut env: BTreeMap<String, String> = kept_env().into_iter().collect();
    env.extend(own.iter().cloned());
    env.into_iter().collect()
}

fn server_env(flags: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let one = |flag: &String| match flag.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => std::env::var(flag).map(|value| (flag.clone(), value)).map_err(|_| {
            Failure::message(Exit::Usage, format!("--env {flag}: the variable is not set")).with_hint("give it a value: --env NAME=VALUE")
        }),
    };
    flags.iter().map(one).collect()
}

fn quoted_env(slurm: &[String], job: &[(String, String)]) -> String {
    let mut all: BTreeMap<String, String> =
        slurm.iter().filter_map(|pair| pair.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    all.extend(job.iter().cloned());
    all.iter().map(|(name, value)| format!("{name}={}", quote(shown(name, value)))).collect::<Vec<_>>().join(" ")
}

/// Options of sbatch, `NAME=VALUE` or `NAME`, with or without dashes.
fn pairs(options: &[String]) -> impl Iterator<Item = (String, String)> {
    let split = |option: &String| {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        (name.trim_start_matches('-').to_owned(), value.to_owned())
    };
    options.iter().map(split)
}

/// Nodes before the first server.
fn n_head(plan: &Plan) -> u32 {
    plan.workers.iter().flat_map(|worker| &worker.ranks).map(|rank| rank.node).min().unwrap_or(0)
}

/// The component of the nodes without servers, when they come from a partition of their own.
fn head(args: &SubmitArgs, plan: &Plan, options: &[(String, String)]) -> Result<Option<Head>, Failure> {
    let Some(partition) = &args.head_partition else { return Ok(None) };
    let n_nodes = n_head(plan);
    if n_nodes == 0 {
        return Err(Failure::message(Exit::Usage, "--head-partition: the plan has no node without servers")
            .with_hint("--set FRONTEND_DEDICATED_NODE=true or --set CLIENT_DEDICATED_NODE=true makes one"));
    }
    // Who pays is the same for both.
    let mut of_head: Vec<_> = options.iter().filter(|(name, _)| ["account", "qos"].contains(&name.as_str())).cloned().collect();
    of_head.push(("partition".to_owned(), partition.clone()));
    of_head.extend(pairs(&args.head_option));
    Ok(Some(Head { n_nodes, options: of_head }))
}

/// Options that are no knobs: flag or variable (clap has combined these), then site file.
struct Options {
    site: BTreeMap<String, String>,
    cluster: Cluster,
}

impl Options {
    fn resolve(args: &SubmitArgs, plan: &Plan) -> Result<Self, Failure> {
        let site = match &args.run.recipe.site {
            Some(path) => {
                let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Recipe)?;
                slurm_facts(&TextFile { path: path.display().to_string(), text }).map_err(recipe_failure)?
            }
            None => BTreeMap::new(),
        };
        Ok(Options { site, cluster: Cluster::of(plan) })
    }

    fn request(&self, args: &SubmitArgs, plan: &Plan) -> Result<JobRequest, Failure> {
        let or_site = |flag: &Option<String>, name: &str| flag.clone().or_else(|| self.site.get(name).cloned());
        let named = [
            ("partition", args.partition.clone().or_else(|| self.cluster.partition.clone())),
            ("account", args.account.clone().or_else(|| self.cluster.account.clone())),
            ("qos", or_site(&args.qos, "qos")),
            ("reservation", or_site(&args.reservation, "reservation")),
            ("nodelist", or_site(&args.nodelist, "nodelist")),
            ("exclude", or_site(&args.exclude, "exclude")),
            ("constraint", or_site(&args.constraint, "constraint")),
            ("mem", or_site(&args.mem, "mem")),
        ];
        let mut options: Vec<(String, String)> =
            named.into_iter().filter_map(|(name, value)| value.map(|value| (name.to_owned(), value))).collect();
        let head = head(args, plan, &options)?;
        options.extend(pairs(&args.option));
        let has_gpus = plan.hardware.gpu_type != GpuType::Cpu;
        let per_node = (0..plan.n_nodes).map(|node| plan.workers.iter().flat_map(|w| &w.ranks).filter(|rank| rank.node == node).count());
        let n_ranks = per_node.max().unwrap_or(0).max(1);
        Ok(JobRequest {
            name: format!("tandem-{}", plan.recipe),
            token: format!("tandem-{:x}-{:x}", wall_ns(), std::process::id()),
            n_nodes: plan.n_nodes,
            head,
            n_tasks_per_node: u32::try_from(n_ranks).unwrap_or(u32::MAX),
            n_gpus_per_node: if has_gpus { plan.hardware.devices_per_node } else { 0 },
            gpu_request: self.gpu_request(args)?,
            time_limit: args.time.clone().unwrap_or_else(|| self.cluster.time_limit.clone()),
            signal_before_s: args.stop_before,
            exclusive: args.exclusive.unwrap_or_else(|| self.site.get("exclusive").is_none_or(|value| value != "false")),
            segment: args.segment.or_else(|| self.site.get("segment").and_then(|value| value.parse().ok())),
            options,
        })
    }

    fn gpu_request(&self, args: &SubmitArgs) -> Result<GpuRequest, Failure> {
        match (args.gpu_request, self.site.get("gpu_request").map(String::as_str)) {
            (Some(GpuRequestArg::PerNode), _) | (None, None | Some("per-node")) => Ok(GpuRequest::PerNode),
            (Some(GpuRequestArg::Gres), _) | (None, Some("gres")) => Ok(GpuRequest::Gres),
            (Some(GpuRequestArg::None), _) | (None, Some("none")) => Ok(GpuRequest::None),
            (None, Some(other)) => {
                Err(Failure::message(Exit::Recipe, format!("site file: slurm.gpu_request is `{other}` (per-node, gres, none)")))
            }
        }
    }

    fn settings(&self, args: &SubmitArgs, plan: &Plan, program: &Path) -> Result<StepSettings, Failure> {
        let image = || args.image.clone().or_else(|| self.site.get("image").cloned()).unwrap_or_else(|| self.cluster.image.clone());
        let mounts = || {
            let dir = program.parent().unwrap_or(program).display().to_string();
            args.mount.iter().cloned().chain([format!("{dir}:{dir}:ro")]).collect()
        };
        let runtime = match (args.container, self.site.get("container").map(String::as_str)) {
            (Some(runtime), _) => runtime,
            (None, None | Some("none")) => ContainerArg::None,
            (None, Some("pyxis")) => ContainerArg::Pyxis,
            (None, Some("apptainer")) => ContainerArg::Apptainer,
            (None, Some(other)) => {
                return Err(Failure::message(Exit::Recipe, format!("site file: slurm.container is `{other}` (none, pyxis, apptainer)")));
            }
        };
        let container = match runtime {
            ContainerArg::None => Container::None,
            ContainerArg::Pyxis => Container::Pyxis { image: image(), mounts: mounts() },
            ContainerArg::Apptainer => Container::Apptainer { image: image(), mounts: mounts() },
        };
        let has_gpus = plan.hardware.gpu_type != GpuType::Cpu;
        Ok(StepSettings {
            mpi: args.mpi.clone().or_else(|| self.site.get("mpi").cloned()),
            container,
            ask_gpus: has_gpus && self.gpu_request(args)? != GpuRequest::None,
            extra: args.srun_arg.clone(),
        })
    }
}

/// How often a waiting command looks.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_on_the_command_line_stays_out_of_the_folder() {
        let argv = ["tandem", "submit", "--env", "HF_TOKEN=abc", "--env=API_KEY=d", "--env", "NCCL_DEBUG=INFO", "--set", "MY_KEY=kept"];
        let kept = without_secrets(argv.map(str::to_owned).to_vec());
        assert_eq!(kept, ["tandem", "submit", "--env", "HF_TOKEN", "--env=API_KEY", "--env", "NCCL_DEBUG=INFO", "--set", "MY_KEY=kept"]);
        let read = own_env(&json!({"env": {"NCCL_DEBUG": "INFO", "PATH": null, "TANDEM_NO_SUCH_TOKEN": null}}));
        let path = std::env::var("PATH").expect("a path");
        assert_eq!(read, [("NCCL_DEBUG".to_owned(), "INFO".to_owned()), ("PATH".to_owned(), path)]);
    }
}
