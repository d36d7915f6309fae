//! Facts of a cluster: the site file, and what of them a plan carries for the launcher.
//!
//! A site file is a YAML mapping of knob names, or the `cluster_config.yaml` that the `llmb` tools write; of the latter
//! the facts that are knobs are taken and the rest is left to the launcher.

use tandem_plan::Plan;

use crate::error::RecipeError;
use crate::layers::{FileLayer, Layer, Origin};
use crate::recipe::TextFile;

/// The container image that the recipe starts, below `LLMB_INSTALL`.
const DEFAULT_IMAGE: &str = "images/ai-dynamo+tensorrtllm-runtime+0.6.1.sqsh";
/// The workload's folder, below `LLMB_INSTALL`.
const WORKLOAD: &str = "workloads/inference_deepseek-r1-dynamo";

/// What a cluster launcher needs besides the deployment, from the plan's knobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Port of etcd.
    pub etcd_port: u16,
    /// Port of NATS.
    pub nats_port: u16,
    /// Container image.
    pub image: String,
    /// Top folder of the installation; empty when it is not stated.
    pub install_dir: String,
    /// Folder of the workload: models and experiments.
    pub workload_dir: String,
    /// Slurm partition, if stated.
    pub partition: Option<String>,
    /// Slurm account, if stated.
    pub account: Option<String>,
    /// Slurm time limit.
    pub time_limit: String,
}

impl Cluster {
    /// Reads the cluster's facts out of a plan.
    #[must_use]
    pub fn of(plan: &Plan) -> Cluster {
        let text = |name| plan.knob(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        let port = |name| plan.knob(name).and_then(serde_json::Value::as_u64).and_then(|p| u16::try_from(p).ok()).unwrap_or(0);
        let stated = |name| Some(text(name)).filter(|s| !s.is_empty());
        let install_dir = text("LLMB_INSTALL");
        Cluster {
            etcd_port: port("ETCD_SERVER_PORT"),
            nats_port: port("NATS_SERVER_PORT"),
            image: stated("RUN_CONF_IMAGE").unwrap_or_else(|| join(&install_dir, DEFAULT_IMAGE)),
            workload_dir: workload_dir(&text("LLMB_WORKLOAD"), &install_dir),
            partition: stated("SBATCH_PARTITION"),
            account: stated("SBATCH_ACCOUNT"),
            time_limit: text("SBATCH_TIMELIMIT"),
            install_dir,
        }
    }
}

/// The workload's folder: stated, or below the installation.
pub(crate) fn workload_dir(stated: &str, install_dir: &str) -> String {
    if stated.is_empty() { join(install_dir, WORKLOAD) } else { stated.to_owned() }
}

fn join(dir: &str, path: &str) -> String {
    if dir.is_empty() { path.to_owned() } else { format!("{}/{path}", dir.trim_end_matches('/')) }
}

/// Reads a site file.
pub(crate) fn load(file: &TextFile) -> Result<Layer, RecipeError> {
    let origin = |line| Origin::Site { path: file.path.clone(), line };
    Ok(FileLayer::parse(&file.path, &file.text, origin, false)?.layer)
}
