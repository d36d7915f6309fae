//! A task as a job: nodes, `sbatch` arguments, environment, and the knobs of Tandem's own recipe.

use crate::{Cluster, LlmbError, Task, Workload};

/// Which release's figures are reproduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compat {
    /// Tandem's own: requests as the documentation says.
    #[default]
    Corrected,
    /// Release 26.02: the script sends 10 requests for each unit of concurrency, where the text says 8.
    Dgxc26_02,
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
    /// Variables of the job beside the caller's own, later ones over earlier ones; each name once.
    pub env: Vec<(String, String)>,
    /// `NAME=VALUE` for Tandem's recipe `deepseek-r1`, when this is that workload.
    pub knobs: Vec<String>,
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

/// The job of a task.
///
/// # Errors
/// A launcher type that is missing or unknown, or a GPU type without a size of nodes.
pub fn submission(
    task: &Task,
    workload: &Workload,
    cluster: &Cluster,
    stated_gpn: Option<u32>,
    compat: Compat,
) -> Result<Submission, LlmbError> {
    match workload.launcher_type.as_deref() {
        Some("sbatch" | "configured_sbatch") => {}
        Some(other) => return Err(LlmbError(format!("Unknown launcher type: {other}"))),
        None => {
            let text = format!("Missing required 'run.launcher_type' field in metadata for workload {}", workload.key);
            return Err(LlmbError(text));
        }
    }
    let (n_nodes, n_tasks_per_node) = nodes(task.scale, gpus_per_node(&cluster.gpu_type, stated_gpn)?);
    let folder = format!("{}/workloads/{}", cluster.llmb_install, task.workload);
    let mut argv: Vec<String> = ["sbatch", "--parsable"].map(str::to_owned).to_vec();
    argv.push(format!("--output={folder}/slurm-%j.out"));
    argv.extend(["-J".to_owned(), format!("{}_{}_{}", task.workload, task.size, task.dtype)]);
    argv.extend(["-N".to_owned(), n_nodes.to_string(), format!("--ntasks-per-node={n_tasks_per_node}")]);
    if workload.launcher_type.as_deref() == Some("configured_sbatch") && ["gb200", "gb300"].contains(&cluster.gpu_type.as_str()) {
        argv.push(format!("--segment={}", segment(n_nodes)));
    }
    argv.push(workload.launch_script.clone());
    let mut env: Vec<(String, String)> = Vec::new();
    let own = [
        ("LLMB_INSTALL", cluster.llmb_install.clone()),
        ("MODEL_SIZE", task.size.clone()),
        ("DTYPE", task.dtype.clone()),
        ("JOB_TOTAL_GPUS", task.scale.to_string()),
        ("GPU_TYPE", cluster.gpu_type.clone()),
    ];
    let profile = task.profile.then(|| ("ENABLE_PROFILE".to_owned(), "true".to_owned()));
    let params = task.params.iter().map(|(name, value)| (name.to_ascii_uppercase(), value.clone()));
    let layers = own.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(cluster.slurm_gpu.clone()).chain(profile);
    for (name, value) in layers.chain(cluster.environment.clone()).chain(task.env.clone()).chain(params.clone()) {
        env.retain(|(n, _)| *n != name);
        env.push((name, value));
    }
    let mut knobs = Vec::new();
    if task.workload == "inference_deepseek-r1-dynamo" {
        knobs.push(format!("GPU_TYPE={}", cluster.gpu_type));
        if compat == Compat::Dgxc26_02 {
            knobs.push("MULTI_ROUND=10".to_owned());
        }
        knobs.extend(task.env.iter().cloned().chain(params).map(|(name, value)| format!("{name}={value}")));
    }
    Ok(Submission { n_nodes, n_tasks_per_node, argv, env, knobs })
}

/// The greatest divisor of the nodes that an NVL72 rack's 18 nodes hold.
fn segment(n_nodes: u32) -> u32 {
    (1..=18).rev().find(|d| n_nodes.is_multiple_of(*d)).unwrap_or(1)
}
