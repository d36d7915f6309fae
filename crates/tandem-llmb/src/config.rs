//! `llmb-config_<JOBID>.yaml`: what was submitted, as the tools write it beside a job.

use serde_json::{Map, Value, json};

use crate::document::{scalar, yaml};
use crate::submission::{gpus_per_node, shown};
use crate::{Cluster, LlmbError, Task, Workload, pyyaml};

/// What the file says besides task, workload and cluster.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The job.
    pub job_id: u64,
    /// Local time as Python's `datetime.isoformat` writes it, e.g. `2026-11-24T03:30:15.955573`.
    pub launch_time: &'a str,
    /// `llmb_version` of `release.yaml`.
    pub release: Option<&'a str>,
    /// The variable `GPUS_PER_NODE`.
    pub gpus_per_node: Option<u32>,
    /// The variable `STRONG_SCALING`.
    pub strong_scaling: bool,
}

/// The file's text.
///
/// # Errors
/// A GPU type without a size of nodes.
pub fn llmb_config(task: &Task, workload: &Workload, cluster: &Cluster, launch: &Launch<'_>) -> Result<String, LlmbError> {
    let slurm = |name: &str, from: &[(String, String)]| from.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    // The file lies in a shared folder, and archives hold it.
    let map = |pairs: &[(String, String)]| -> Map<String, Value> {
        pairs.iter().map(|(name, value)| (name.clone(), Value::from(shown(name, value)))).collect()
    };
    let images = workload.images(&cluster.gpu_type);
    let version = images.first().and_then(|image| image_tag(image)).unwrap_or("unknown");
    Ok(pyyaml::document(&json!({
        "job_info": {"job_id": launch.job_id.to_string(), "launch_time": launch.launch_time, "experiment_id": null},
        "workload_info": {
            "framework": workload.framework, "gsw_version": workload.gsw_version.as_deref().or(launch.release),
            "fw_version": version, "workload_type": workload.workload_type, "synthetic_dataset": true,
        },
        "model_info": {
            "model_name": workload.name, "model_size": task.size, "dtype": task.dtype, "scale": task.scale,
            "gpu_type": cluster.gpu_type,
        },
        "cluster_info": {
            "cluster_name": cluster.cluster_name,
            "gpus_per_node": gpus_per_node(&cluster.gpu_type, launch.gpus_per_node)?.to_string(),
            "llmb_install": cluster.llmb_install, "llmb_repo": cluster.llmb_repo,
            "slurm_account": slurm("SBATCH_ACCOUNT", &cluster.slurm_gpu),
            "slurm_gpu_partition": slurm("SBATCH_PARTITION", &cluster.slurm_gpu),
            "slurm_cpu_partition": slurm("SBATCH_PARTITION", &cluster.slurm_cpu),
        },
        "container_info": {"images": images},
        "job_config": {
            "profile_enabled": task.profile, "proxy": task.proxy, "strong_scaling": launch.strong_scaling,
            "env_overrides": map(&task.env), "model_overrides": map(&task.params),
        },
    })))
}

/// What follows the last colon of an image, unless that belongs to a registry's port.
fn image_tag(image: &str) -> Option<&str> {
    image.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/'))
}

/// What a configuration file says about its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// The job.
    pub job_id: u64,
    /// Local time of the submission.
    pub launch_time: String,
    /// What was submitted.
    pub task: Task,
}

/// Reads an `llmb-config_<JOBID>.yaml`.
///
/// # Errors
/// When it is no YAML, or says nothing of job or model.
pub fn read_config(path: &str, text: &str) -> Result<Read, LlmbError> {
    let all = yaml(path, text)?;
    let need =
        |section: &str, key: &str| scalar(&all[section][key]).ok_or_else(|| LlmbError(format!("{path}: {section}.{key} is missing")));
    let number = |section: &str, key: &str| {
        let text = need(section, key)?;
        text.parse::<u64>().map_err(|_| LlmbError(format!("{path}: {section}.{key} is no number: {text}")))
    };
    let pairs = |key: &str| {
        let of = |(name, value): (&String, &Value)| scalar(value).map(|value| (name.clone(), value));
        all["job_config"][key].as_object().into_iter().flatten().filter_map(of).collect()
    };
    let flag = |key: &str| all["job_config"][key].as_bool().unwrap_or(false);
    let workload = format!("{}_{}", need("workload_info", "workload_type")?, need("model_info", "model_name")?);
    Ok(Read {
        job_id: number("job_info", "job_id")?,
        launch_time: need("job_info", "launch_time")?,
        task: Task {
            workload,
            size: need("model_info", "model_size")?,
            dtype: need("model_info", "dtype")?,
            scale: u32::try_from(number("model_info", "scale")?).unwrap_or(u32::MAX),
            profile: flag("profile_enabled"),
            proxy: flag("proxy"),
            env: pairs("env_overrides"),
            params: pairs("model_overrides"),
        },
    })
}
