//! A task as a job: nodes, `sbatch` arguments, environment.

use std::collections::BTreeMap;

use crate::flags::SlurmFlags;
use crate::{Cluster, LlmbError, Task, Workload};

/// Which release's habits are reproduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compat {
    /// Tandem's own: the shell wins over the cluster's file, requests are as many as the documentation says.
    #[default]
    Corrected,
    /// Release 26.02: the file wins over the shell, the whole login environment goes to the job, the recipe's script sends 10 requests
    /// for each unit of concurrency where the text says 8.
    Dgxc26_02,
}

/// What a submission depends on besides the task.
#[derive(Debug)]
pub struct Circumstances<'a> {
    /// The variable `GPUS_PER_NODE`.
    pub gpus_per_node: Option<u32>,
    /// Which release is followed.
    pub compat: Compat,
    /// Variables of the shell.
    pub shell: &'a BTreeMap<String, String>,
    /// Options that go to Slurm as they are.
    pub flags: &'a SlurmFlags,
    /// Folder of a `configured_sbatch` job.
    pub experiment: Option<&'a str>,
}

/// A job to submit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// Nodes.
    pub n_nodes: u32,
    /// Tasks on each node.
    pub n_tasks_per_node: u32,
    /// `sbatch` and its arguments.
    pub argv: Vec<String>,
    /// Variables of the job beside those of the shell, later ones over earlier ones; each name once.
    pub env: Vec<(String, String)>,
    /// Variables of the shell that the job keeps.
    pub inherited: Vec<(String, String)>,
    /// Names of variables of the shell that the job does not get.
    pub withheld: Vec<String>,
    /// Where the shell and the cluster's file say different things: which of them holds.
    pub notes: Vec<String>,
}

/// Variables of a login that say nothing about the job, so the cluster's file wins over them.
const LOGIN: [&str; 12] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "PWD", "OLDPWD", "TERM", "TMPDIR", "LD_LIBRARY_PATH", "SHLVL"];

/// A Python environment of the login node is wrong on compute nodes and in containers.
const PYTHON: [&str; 7] =
    ["VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT", "PYTHONPATH", "PYTHONHOME", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "UV_PYTHON"];

/// Keys that a `slurm` block may hold for Tandem, and that no `sbatch` knows.
const TANDEM_KEYS: [&str; 4] = ["SBATCH_GPU_REQUEST", "SBATCH_CONTAINER", "SBATCH_IMAGE", "SBATCH_MPI"];

/// Whether the value of a variable must be seen by nobody.
#[must_use]
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL"].iter().any(|part| name.contains(part))
}

/// A value for people and files.
#[must_use]
pub fn shown<'v>(name: &str, value: &'v str) -> &'v str {
    if is_secret(name) { "(not shown)" } else { value }
}

/// GPUs on a node: `stated` (the variable `GPUS_PER_NODE`), or what the type has.
///
/// # Errors
/// For a type that is not in the table.
pub fn gpus_per_node(gpu: &str, stated: Option<u32>) -> Result<u32, LlmbError> {
    const TABLE: [(&str, u32); 6] = [("a100", 8), ("h100", 8), ("b200", 8), ("b300", 8), ("gb200", 4), ("gb300", 4)];
    let found = stated.or_else(|| TABLE.iter().find(|(name, _)| *name == gpu).map(|(_, n)| *n));
    let valid = || TABLE.map(|(name, _)| name).join(", ");
    found
        .filter(|n| *n > 0)
        .ok_or_else(|| LlmbError(format!("Invalid GPU type specified: '{gpu}'. Valid types in 'llmb-run' modules are: {}.", valid())))
}

/// Nodes and tasks a node for `scale` GPUs: whole nodes, `ceil(scale / n)`.
#[must_use]
pub fn nodes(scale: u32, gpus_per_node: u32) -> (u32, u32) {
    (scale.div_ceil(gpus_per_node), gpus_per_node.min(scale))
}

/// The name of a task's folder below `experiments`, without the time that follows.
#[must_use]
pub fn experiment_name(task: &Task) -> String {
    format!("{}_gpus{}", job_name(task), task.scale)
}

fn job_name(task: &Task) -> String {
    format!("{}_{}_{}", task.workload, task.size, task.dtype)
}

/// The job of a task whose workload is a script of its own.
///
/// # Errors
/// A launcher type that is missing or unknown, or a GPU type without a size of nodes.
pub fn submission(task: &Task, workload: &Workload, cluster: &Cluster, around: &Circumstances<'_>) -> Result<Submission, LlmbError> {
    let is_configured = match workload.launcher_type.as_deref() {
        Some("sbatch") => false,
        Some("configured_sbatch") => true,
        Some(other @ ("nemo" | "megatron_bridge")) => {
            return Err(LlmbError(format!(
                "Launcher type {other} of {} runs a script in a Python environment that submits by itself; only llmb-run can start it",
                workload.key
            )));
        }
        Some(other) => return Err(LlmbError(format!("Unknown launcher type: {other}"))),
        None => {
            let text = format!("Missing required 'run.launcher_type' field in metadata for workload {}", workload.key);
            return Err(LlmbError(text));
        }
    };
    let (n_nodes, n_tasks_per_node) = nodes(task.scale, gpus_per_node(&cluster.gpu_type, around.gpus_per_node)?);
    let folder = match around.experiment.filter(|_| is_configured) {
        Some(folder) => folder.to_owned(),
        None => format!("{}/workloads/{}", cluster.llmb_install, task.workload),
    };
    let mut env = Environment { names: Vec::new(), notes: Vec::new(), around };
    env.set("LLMB_INSTALL", &cluster.llmb_install);
    env.set("MODEL_SIZE", &task.size);
    env.set("DTYPE", &task.dtype);
    env.set("JOB_TOTAL_GPUS", &task.scale.to_string());
    env.set("GPU_TYPE", &cluster.gpu_type);
    if is_configured {
        env.set("LLMB_EXPERIMENT_DIR", &folder);
    }
    let slurm = cluster.slurm_gpu.iter().filter(|(name, _)| !TANDEM_KEYS.contains(&name.as_str()));
    slurm.for_each(|(name, value)| env.of_cluster(name, value));
    if task.profile {
        env.set("ENABLE_PROFILE", "true");
    }
    if cluster.cluster_name.as_deref() == Some("eos") && !around.shell.contains_key("ENABLE_VBOOST") {
        env.set("ENABLE_VBOOST", "true");
    }
    cluster.environment.iter().for_each(|(name, value)| env.of_cluster(name, value));
    task.env.iter().for_each(|(name, value)| env.set(name, value));
    if !task.env.is_empty() && around.compat == Compat::Corrected {
        let names: Vec<&str> = task.env.iter().map(|(name, _)| name.as_str()).collect();
        env.set("LLMB_CONTAINER_ENV", &names.join(","));
    }
    task.params.iter().for_each(|(name, value)| env.set(&name.to_ascii_uppercase(), value));

    let mut flags = around.flags.clone();
    let is_rack = ["gb200", "gb300"].contains(&cluster.gpu_type.as_str());
    let has_segment = |name: &str| env.names.iter().any(|(n, _)| n == name) || around.shell.contains_key(name);
    if is_configured && is_rack && flags.segment.is_none() && !has_segment("SBATCH_SEGMENT_SIZE") {
        flags.segment = Some(segment(n_nodes));
    }
    let mut argv: Vec<String> = ["sbatch", "--parsable"].map(str::to_owned).to_vec();
    argv.push(format!("--output={folder}/slurm-%j.out"));
    argv.extend(["-J".to_owned(), job_name(task), "-N".to_owned(), n_nodes.to_string()]);
    argv.push(format!("--ntasks-per-node={n_tasks_per_node}"));
    argv.extend(flags.arguments());
    argv.push(workload.launch_script.clone());
    let Environment { names: env, notes, .. } = env;
    let (inherited, withheld) = inherited(around, &env);
    Ok(Submission { n_nodes, n_tasks_per_node, argv, env, inherited, withheld, notes })
}

struct Environment<'a> {
    names: Vec<(String, String)>,
    notes: Vec<String>,
    around: &'a Circumstances<'a>,
}

impl Environment<'_> {
    fn set(&mut self, name: &str, value: &str) {
        self.names.retain(|(n, _)| n != name);
        self.names.push((name.to_owned(), value.to_owned()));
    }

    /// The cluster's file gives a value; who typed another one into the shell meant it.
    fn of_cluster(&mut self, name: &str, value: &str) {
        let said = self.around.shell.get(name).filter(|said| *said != value && !LOGIN.contains(&name));
        let (Some(said), compat) = (said, self.around.compat) else { return self.set(name, value) };
        let (holds, other, whose) = match compat {
            Compat::Corrected => (said.clone(), value, "the shell wins over cluster_config.yaml"),
            Compat::Dgxc26_02 => (value.to_owned(), said.as_str(), "cluster_config.yaml wins over the shell"),
        };
        self.notes.push(format!("{name}={}, not {}: {whose}", shown(name, &holds), shown(name, other)));
        self.set(name, &holds);
    }
}

/// What the job keeps of the shell, and the names of the rest.
fn inherited(around: &Circumstances<'_>, env: &[(String, String)]) -> (Vec<(String, String)>, Vec<String>) {
    let is_set = |name: &str| env.iter().any(|(n, _)| n == name);
    let stays =
        |name: &str| around.compat == Compat::Corrected && (is_secret(name) || PYTHON.contains(&name) || name.starts_with("BASH_FUNC_"));
    let (mut kept, mut withheld) = (Vec::new(), Vec::new());
    for (name, value) in around.shell.iter().filter(|(name, _)| !is_set(name)) {
        if stays(name) {
            withheld.push(name.clone());
        } else {
            kept.push((name.clone(), value.clone()));
        }
    }
    (kept, withheld)
}

/// The greatest divisor of the nodes that an NVL72 rack's 18 nodes hold.
fn segment(n_nodes: u32) -> u32 {
    (1..=18).rev().find(|d| n_nodes.is_multiple_of(*d)).unwrap_or(1)
}
