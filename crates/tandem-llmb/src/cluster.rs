//! `cluster_config.yaml`, schema versions 1 and 2.

use serde_json::{Map, Value};

use crate::document::{LlmbError, scalar, yaml};

/// A cluster as the tools describe it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Folder of the recipes.
    pub llmb_repo: String,
    /// Folder of the installation.
    pub llmb_install: String,
    /// GPU type, e.g. `h100`.
    pub gpu_type: String,
    /// Its name, if stated.
    pub cluster_name: Option<String>,
    /// Variables for every job.
    pub environment: Vec<(String, String)>,
    /// `SBATCH_*` and `SLURM_*` variables of GPU jobs.
    pub slurm_gpu: Vec<(String, String)>,
    /// The same of CPU jobs.
    pub slurm_cpu: Vec<(String, String)>,
    /// Workloads that are installed; an empty list means no check.
    pub installed: Vec<String>,
}

impl Cluster {
    /// Reads the file.
    ///
    /// # Errors
    /// In the tools' own words.
    pub fn parse(path: &str, text: &str) -> Result<Cluster, LlmbError> {
        let all = yaml(path, text)?;
        let version = scalar(&all["schema_version"]).unwrap_or_else(|| "1".to_owned());
        let has_launcher = !all["launcher"].is_null();
        let facts = match version.as_str() {
            "1" if has_launcher => &all["launcher"],
            "1" => return Err(LlmbError::new("Missing required 'launcher' section; a flat file needs schema_version: 2")),
            "2" if has_launcher => return Err(LlmbError::new("'launcher' belongs to schema_version 1; with 2 its keys are flat")),
            "2" => &all,
            other => {
                let text = format!("Unsupported cluster configuration schema_version '{other}'. Supported versions are: 1, 2.");
                return Err(LlmbError(text));
            }
        };
        let required = |key: &str| {
            let value = scalar(&facts[key]).filter(|s| !s.trim().is_empty());
            value.ok_or_else(|| LlmbError(format!("Missing required '{key}' in {path}")))
        };
        let (slurm_gpu, slurm_cpu) = slurm(&all["slurm"])?;
        let text_of = |(key, value): (&String, &Value)| scalar(value).map(|value| (key.clone(), value));
        Ok(Cluster {
            llmb_repo: required("llmb_repo")?,
            llmb_install: required("llmb_install")?,
            gpu_type: required("gpu_type")?,
            cluster_name: scalar(&facts["cluster_name"]),
            environment: all["environment"].as_object().into_iter().flatten().filter_map(text_of).collect(),
            slurm_gpu,
            slurm_cpu,
            installed: all["workloads"]["installed"].as_array().into_iter().flatten().filter_map(scalar).collect(),
        })
    }
}

type Variables = Vec<(String, String)>;

fn slurm(section: &Value) -> Result<(Variables, Variables), LlmbError> {
    let Some(section) = section.as_object() else { return Err(LlmbError::new("Missing required 'slurm' section")) };
    const V1: [(&str, &str, &str); 5] = [
        ("gpu_partition", "gpu", "partition"),
        ("cpu_partition", "cpu", "partition"),
        ("gpu_gres", "gpu", "gres"),
        ("gpu_partition_gres", "gpu", "gres"),
        ("cpu_gres", "cpu", "gres"),
    ];
    let mut common = Map::new();
    let mut blocks = Map::new();
    for (key, value) in section {
        let old = V1.iter().find(|(name, ..)| name == key);
        match (key.as_str(), old, value) {
            (_, Some((_, block, name)), _) => {
                if section.contains_key("gpu") || section.contains_key("cpu") {
                    return Err(LlmbError(format!("slurm.{key} cannot be mixed with slurm.gpu or slurm.cpu")));
                }
                blocks.entry(*block).or_insert_with(|| Value::Object(Map::new()))[*name] = value.clone();
            }
            ("gpu" | "cpu", _, Value::Object(_)) => drop(blocks.insert(key.clone(), value.clone())),
            (_, _, Value::Object(_)) => return Err(LlmbError(format!("slurm.{key} cannot be a mapping"))),
            _ => drop(common.insert(key.clone(), value.clone())),
        }
    }
    let Some(gpu) = blocks.get("gpu").and_then(Value::as_object) else {
        return Err(LlmbError::new("'slurm.gpu' section is required"));
    };
    let cpu = blocks.get("cpu").and_then(Value::as_object).unwrap_or(gpu);
    let (gpu, cpu) = (variables(&common, gpu), variables(&common, cpu));
    if !gpu.iter().any(|(name, _)| name == "SBATCH_PARTITION") {
        return Err(LlmbError::new("'slurm.gpu.partition' is required"));
    }
    Ok((gpu, cpu))
}

/// Common keys below those of the block; null in the block removes one.
fn variables(common: &Map<String, Value>, block: &Map<String, Value>) -> Variables {
    let mut all: Variables = Vec::new();
    for (key, value) in common.iter().chain(block) {
        let name = variable(key);
        all.retain(|(n, _)| *n != name);
        all.extend(scalar(value).map(|value| (name, value)));
    }
    all
}

fn variable(key: &str) -> String {
    let key = key.trim().replace('-', "_");
    let lower = key.to_ascii_lowercase();
    match lower.as_str() {
        "gres" => "SBATCH_GPUS_PER_NODE".to_owned(),
        name if name.starts_with("sbatch_") || name.starts_with("slurm_") => key.to_ascii_uppercase(),
        _ => format!("SBATCH_{}", key.to_ascii_uppercase()),
    }
}
