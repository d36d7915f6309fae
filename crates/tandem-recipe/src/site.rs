//! Facts of a cluster: the site file, and what of them a plan carries for the launcher.
//!
//! A site file is a YAML mapping of knob names, or the `cluster_config.yaml` that the `llmb` tools write; of the latter
//! the facts that are knobs are taken and the rest is left to the launcher.

use std::collections::BTreeMap;

use serde_saphyr::Spanned;
use tandem_plan::{GpuType, Plan};

use crate::error::RecipeError;
use crate::knobs::KNOBS;
use crate::layers::{Entries, Layer, Origin, Raw};
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

/// Keys of a `cluster_config.yaml` that are no knobs and hold none.
const OTHER_FACTS: [&str; 5] = ["schema_version", "llmb_repo", "cluster_name", "install", "workloads"];

/// Reads a site file.
pub(crate) fn load(file: &TextFile) -> Result<Layer, RecipeError> {
    let mut site = Site { path: &file.path, layer: Layer::default() };
    for (key, value) in Entries::parse(&file.path, &file.text)?.0 {
        match (key.as_str(), &value.value) {
            (fact, _) if OTHER_FACTS.contains(&fact) => {}
            ("environment", Raw::Mapping(entries)) => site.environment(entries)?,
            ("launcher", Raw::Mapping(entries)) => site.facts(entries, &[("gpu_type", "GPU_TYPE"), ("llmb_install", "LLMB_INSTALL")])?,
            ("slurm", Raw::Mapping(entries)) => site.slurm(entries)?,
            ("gpu_type", _) => site.fact("GPU_TYPE", &value)?,
            ("llmb_install", _) => site.fact("LLMB_INSTALL", &value)?,
            _ => site.layer.set_raw(&key, &value.value, site.origin(&value))?,
        }
    }
    Ok(site.layer)
}

/// The scalar keys of a site file's `slurm` mapping, those of its `gpu` block over the others (null unsets one). They are options of
/// jobs that are no knobs: `qos`, `reservation`, `gpu_request`, `mpi` …
///
/// # Errors
/// When the file is no YAML mapping.
pub fn slurm_facts(file: &TextFile) -> Result<BTreeMap<String, String>, RecipeError> {
    fn take(facts: &mut BTreeMap<String, String>, entries: &Entries) {
        for (key, value) in &entries.0 {
            let key = key.trim().replace('-', "_");
            match &value.value {
                Raw::One(text) => drop(facts.insert(key, text.clone())),
                Raw::Null => drop(facts.remove(&key)),
                _ => {}
            }
        }
    }
    let mut facts = BTreeMap::new();
    for (key, value) in Entries::parse(&file.path, &file.text)?.0 {
        if let ("slurm", Raw::Mapping(slurm)) = (key.as_str(), &value.value) {
            take(&mut facts, slurm);
            let gpu = slurm.0.iter().find(|(key, _)| *key == "gpu");
            if let Some(Raw::Mapping(gpu)) = gpu.map(|(_, value)| &value.value) {
                take(&mut facts, gpu);
            }
        }
    }
    Ok(facts)
}

struct Site<'a> {
    path: &'a str,
    layer: Layer,
}

impl Site<'_> {
    fn origin(&self, value: &Spanned<Raw>) -> Origin {
        Origin::Site { path: self.path.to_owned(), line: value.referenced.line() }
    }

    /// A fact under another name than the knob's.
    fn fact(&mut self, knob: &str, value: &Spanned<Raw>) -> Result<(), RecipeError> {
        // A GPU type that no recipe knows concerns only recipes that need one, and they ask for it.
        let is_unknown_gpu = |text: &str| knob == "GPU_TYPE" && text.parse::<GpuType>().is_err();
        match &value.value {
            Raw::Null => Ok(()),
            Raw::One(text) if is_unknown_gpu(text) => Ok(()),
            raw => self.layer.set_raw(knob, raw, self.origin(value)),
        }
    }

    fn facts(&mut self, entries: &Entries, names: &[(&str, &str)]) -> Result<(), RecipeError> {
        for (key, value) in &entries.0 {
            if let Some((_, knob)) = names.iter().find(|(name, _)| name == key) {
                self.fact(knob, value)?;
            }
        }
        Ok(())
    }

    /// Account and the GPU partition, in the layouts of both schema versions.
    fn slurm(&mut self, entries: &Entries) -> Result<(), RecipeError> {
        let names = [
            ("account", "SBATCH_ACCOUNT"),
            ("gpu_partition", "SBATCH_PARTITION"),
            ("gpu_partition_gres", "SBATCH_GPUS_PER_NODE"),
            ("gpu_gres", "SBATCH_GPUS_PER_NODE"),
        ];
        self.facts(entries, &names)?;
        for (key, value) in &entries.0 {
            if let ("gpu", Raw::Mapping(gpu)) = (key.as_str(), &value.value) {
                self.facts(gpu, &[("account", "SBATCH_ACCOUNT"), ("partition", "SBATCH_PARTITION"), ("gres", "SBATCH_GPUS_PER_NODE")])?;
            }
        }
        Ok(())
    }

    /// Variables for jobs: those that are knobs.
    fn environment(&mut self, entries: &Entries) -> Result<(), RecipeError> {
        for (variable, value) in &entries.0 {
            if let Some(knob) = KNOBS.iter().find(|k| k.env_name() == *variable) {
                self.fact(knob.name, value)?;
            }
        }
        Ok(())
    }
}
