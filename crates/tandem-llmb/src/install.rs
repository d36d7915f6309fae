//! What `llmb-install` prepares: answers (play files), GPU resources, image files, models, and the cluster's file as text.

use serde_json::{Map, Value, json};

use crate::document::{LlmbError, scalar, yaml};
use crate::{Workload, pyyaml};

/// The answers from which an installation is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    /// The installation.
    pub install_path: Option<String>,
    /// Folder of the recipes.
    pub llmb_repo: Option<String>,
    /// GPU type, e.g. `h100`.
    pub gpu_type: Option<String>,
    /// `x86_64` or `aarch64`.
    pub node_architecture: Option<String>,
    /// `local`, or `slurm` to make images on a compute node.
    pub install_method: Option<String>,
    /// `uv`, `venv` or `conda`; written into the cluster's file for the tools.
    pub venv_type: Option<String>,
    /// Workloads.
    pub workloads: Vec<String>,
    /// Account.
    pub account: Option<String>,
    /// Partition of GPU jobs.
    pub gpu_partition: Option<String>,
    /// Partition of CPU jobs.
    pub cpu_partition: Option<String>,
    /// GPUs that a GPU job asks for on each node; none where the cluster counts none.
    pub gpu_gres: Option<u32>,
    /// The same of CPU jobs.
    pub cpu_gres: Option<u32>,
    /// Variables of every job.
    pub environment: Vec<(String, String)>,
    /// Folder of images that are there already.
    pub image_folder: Option<String>,
    /// Models besides those of the workloads' metadata.
    pub models: Vec<Model>,
}

/// Something to fetch from a model hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    /// `owner/name`.
    pub repo_id: String,
    /// `model` or `dataset`.
    pub repo_type: String,
    /// Commit, branch or tag.
    pub revision: Option<String>,
    /// Patterns of files that are fetched; empty = all.
    pub include: Vec<String>,
    /// Patterns of files that are not.
    pub exclude: Vec<String>,
    /// Folder, relative to the installation; empty = the hub's cache, `.cache/huggingface`.
    pub dir: String,
    /// Bytes, as far as known, for the check of free space.
    pub bytes: Option<u64>,
}

impl Answers {
    /// Reads a play file, as `llmb-install --record` writes it.
    ///
    /// # Errors
    /// No YAML, an unknown key, or a value of the wrong kind.
    pub fn parse(path: &str, text: &str) -> Result<Answers, LlmbError> {
        const KNOWN: [&str; 14] = [
            "install_path",
            "llmb_repo",
            "venv_type",
            "gpu_type",
            "node_architecture",
            "install_method",
            "selected_workloads",
            "workload_selection_mode",
            "slurm",
            "environment_vars",
            "image_folder",
            "models",
            "schema_version",
            "cluster_name",
        ];
        let all = yaml(path, text)?;
        if let Some((key, _)) = all.as_object().into_iter().flatten().find(|(key, _)| !KNOWN.contains(&key.as_str())) {
            return Err(LlmbError(format!("{path}: unknown key '{key}' (known: {})", KNOWN.join(", "))));
        }
        let text = |value: &Value| scalar(value).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let slurm = &all["slurm"];
        let gres = |key: &str| match &slurm[key] {
            Value::Null => Ok(None),
            value => {
                let number = scalar(value).and_then(|text| text.parse::<u32>().ok()).filter(|n| (1..=8).contains(n));
                number.map(Some).ok_or_else(|| LlmbError(format!("{path}: slurm.{key} must be 1 to 8, got {value}")))
            }
        };
        let answers = Answers {
            install_path: text(&all["install_path"]),
            llmb_repo: text(&all["llmb_repo"]),
            gpu_type: text(&all["gpu_type"]).map(|gpu| gpu.to_ascii_lowercase()),
            node_architecture: text(&all["node_architecture"]),
            install_method: text(&all["install_method"]),
            venv_type: text(&all["venv_type"]),
            workloads: all["selected_workloads"].as_array().into_iter().flatten().filter_map(scalar).collect(),
            account: text(&slurm["account"]),
            gpu_partition: text(&slurm["gpu_partition"]),
            cpu_partition: text(&slurm["cpu_partition"]),
            gpu_gres: gres("gpu_partition_gres")?,
            cpu_gres: gres("cpu_partition_gres")?,
            environment: pairs(&all["environment_vars"]),
            image_folder: text(&all["image_folder"]),
            models: all["models"].as_array().into_iter().flatten().map(|model| of_play(path, model)).collect::<Result<_, _>>()?,
        };
        let one_of = |name: &str, value: &Option<String>, known: &[&str]| match value {
            Some(value) if !known.contains(&value.as_str()) => {
                Err(LlmbError(format!("{path}: {name} is '{value}' ({})", known.join(", "))))
            }
            _ => Ok(()),
        };
        one_of("node_architecture", &answers.node_architecture, &["x86_64", "aarch64"])?;
        one_of("install_method", &answers.install_method, &["local", "slurm"])?;
        one_of("venv_type", &answers.venv_type, &["uv", "venv", "conda"])?;
        Ok(answers)
    }

    /// The answers as a play file.
    #[must_use]
    pub fn play_file(&self) -> String {
        let mut all = json!({
            "install_path": self.install_path, "llmb_repo": self.llmb_repo, "venv_type": self.venv_type, "gpu_type": self.gpu_type,
            "node_architecture": self.node_architecture, "install_method": self.install_method, "selected_workloads": self.workloads,
            "slurm": {
                "account": self.account, "gpu_partition": self.gpu_partition, "cpu_partition": self.cpu_partition,
                "gpu_partition_gres": self.gpu_gres, "cpu_partition_gres": self.cpu_gres,
            },
            "environment_vars": map(&self.environment), "image_folder": self.image_folder,
        });
        let model = |m: &Model| json!({"repo_id": m.repo_id, "repo_type": m.repo_type, "revision": m.revision, "include": m.include, "exclude": m.exclude, "dir": m.dir, "bytes": m.bytes});
        if !self.models.is_empty() {
            all["models"] = self.models.iter().map(model).collect();
        }
        pyyaml::document(&without_null(&all))
    }

    /// What an installation cannot do without and has no answer.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let needed = [
            ("install_path", self.install_path.is_none()),
            ("gpu_type", self.gpu_type.is_none()),
            ("node_architecture", self.node_architecture.is_none()),
            ("selected_workloads", self.workloads.is_empty()),
            ("slurm.gpu_partition", self.gpu_partition.is_none()),
        ];
        needed.into_iter().filter(|(_, lacks)| *lacks).map(|(name, _)| name).collect()
    }

    /// `cluster_config.yaml`, schema 2, keys in the tools' order. `kept` are other workloads that are installed.
    #[must_use]
    pub fn cluster_config(&self, cluster_name: Option<&str>, kept: &[String]) -> String {
        let mut installed = self.workloads.clone();
        installed.extend(kept.iter().filter(|key| !self.workloads.contains(key)).cloned());
        let block = |partition: &Option<String>, gres: Option<u32>, inherits: bool| match (partition, gres) {
            // A CPU job must not inherit the GPUs.
            (Some(partition), None) if !inherits => json!({"partition": partition, "gres": null}),
            (Some(partition), None) => json!({"partition": partition}),
            (Some(partition), Some(gres)) => json!({"partition": partition, "gres": gres}),
            (None, _) => Value::Null,
        };
        let mut slurm = Map::new();
        slurm.extend(self.account.as_deref().map(|account| ("account".to_owned(), Value::from(account))));
        slurm.insert("gpu".to_owned(), block(&self.gpu_partition, self.gpu_gres, true));
        if self.cpu_partition.is_some() {
            slurm.insert("cpu".to_owned(), block(&self.cpu_partition, self.cpu_gres, false));
        }
        let mut all = json!({
            "schema_version": 2,
            "llmb_repo": self.llmb_repo, "llmb_install": self.install_path, "gpu_type": self.gpu_type, "cluster_name": cluster_name,
            "install": without_null(&json!({
                "venv_type": self.venv_type, "method": self.install_method, "node_architecture": self.node_architecture,
                "image_folder": self.image_folder,
            })),
        });
        if !self.environment.is_empty() {
            all["environment"] = Value::Object(map(&self.environment));
        }
        let mut all = without_null(&all);
        // Its nulls mean something.
        all["slurm"] = Value::Object(slurm);
        all["workloads"] = json!({"installed": installed});
        pyyaml::document(&all)
    }
}

fn map(pairs: &[(String, String)]) -> Map<String, Value> {
    pairs.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect()
}

fn pairs(value: &Value) -> Vec<(String, String)> {
    let of = |(name, value): (&String, &Value)| scalar(value).map(|value| (name.clone(), value));
    value.as_object().into_iter().flatten().filter_map(of).collect()
}

fn without_null(value: &Value) -> Value {
    match value {
        Value::Object(entries) => {
            let kept = entries.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), without_null(value)));
            Value::Object(kept.collect())
        }
        other => other.clone(),
    }
}

fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().filter_map(scalar).collect(),
        one => scalar(one).into_iter().collect(),
    }
}

fn of_play(path: &str, value: &Value) -> Result<Model, LlmbError> {
    let repo_id = scalar(&value["repo_id"]).ok_or_else(|| LlmbError(format!("{path}: an entry of models has no repo_id")))?;
    let name = repo_id.rsplit('/').next().unwrap_or_default().to_owned();
    Ok(Model {
        repo_type: scalar(&value["repo_type"]).unwrap_or_else(|| "model".to_owned()),
        revision: scalar(&value["revision"]),
        include: strings(&value["include"]),
        exclude: strings(&value["exclude"]),
        dir: scalar(&value["dir"]).unwrap_or_else(|| format!("datasets/{name}")),
        bytes: value["bytes"].as_u64(),
        repo_id,
    })
}

/// The models of a workload on a GPU type: what its metadata names, or for the DeepSeek-R1 workload, whose metadata leaves that to a
/// script, the weights that the script fetches.
#[must_use]
pub fn models(workload: &Workload, gpu: &str) -> Vec<Model> {
    let mut all = workload.downloads(gpu);
    if all.is_empty() && workload.key == "inference_deepseek-r1-dynamo" {
        // Sizes as the hub lists the weight files, rounded up.
        let (repo_id, dir, bytes) = match gpu {
            "h100" => ("deepseek-ai/DeepSeek-R1", "DeepSeek-R1-FP8", 690_000_000_000),
            _ => ("nvidia/DeepSeek-R1-FP4", "DeepSeek-R1-FP4", 430_000_000_000),
        };
        all.push(Model {
            repo_id: repo_id.to_owned(),
            repo_type: "model".to_owned(),
            include: ["*.json", "*.safetensors", "*.py", "*.txt"].map(str::to_owned).to_vec(),
            dir: format!("workloads/{}/{dir}", workload.key),
            bytes: Some(bytes),
            ..Model::default()
        });
    }
    all
}

/// Reads `downloads.huggingface` and `downloads.hf_tokenizers` of a `metadata.yaml`, for one GPU type.
pub(crate) fn downloads(key: &str, downloads: &Value, gpu: &str) -> Vec<Model> {
    // Assets are kinds of small files that a workload needs of a repository.
    let patterns = |asset: &str| -> &[&str] {
        match asset {
            "tokenizer" => &["tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model"],
            "config" => &["config.json", "generation_config.json"],
            _ => &[],
        }
    };
    let cached = |repo_id: String, assets: Vec<String>, revision: Option<String>| Model {
        include: assets.iter().flat_map(|asset| patterns(asset)).map(|p| (*p).to_owned()).collect(),
        repo_type: "model".to_owned(),
        revision,
        repo_id,
        ..Model::default()
    };
    let of_cache = |entry: &Value| Some(cached(scalar(&entry["repo_id"])?, strings(&entry["assets"]), scalar(&entry["revision"])));
    let hub = &downloads["huggingface"];
    let (cache, repos) = match hub {
        Value::Array(_) => (hub, &Value::Null),
        _ => (&hub["cache"], &hub["repos"]),
    };
    let mut all: Vec<Model> = cache.as_array().into_iter().flatten().filter_map(of_cache).collect();
    let tokenizer = || vec!["tokenizer".to_owned(), "config".to_owned()];
    all.extend(strings(&downloads["hf_tokenizers"]).into_iter().map(|repo| cached(repo, tokenizer(), None)));
    for repo in repos.as_array().into_iter().flatten() {
        let Some(repo_id) = scalar(&repo["repo_id"]) else { continue };
        let when = strings(&repo["when"]["gpu"]);
        if !when.is_empty() && !when.iter().any(|name| name == gpu) {
            continue;
        }
        let name = scalar(&repo["name"]).unwrap_or_else(|| repo_id.rsplit('/').next().unwrap_or_default().to_owned());
        let dir = match scalar(&repo["target"]).as_deref() {
            Some("shared") => format!("datasets/{name}"),
            _ => format!("workloads/{key}/{name}"),
        };
        all.push(Model {
            repo_type: scalar(&repo["repo_type"]).unwrap_or_else(|| "model".to_owned()),
            revision: scalar(&repo["revision"]),
            include: strings(&repo["include"]),
            exclude: strings(&repo["exclude"]),
            dir,
            bytes: None,
            repo_id,
        });
    }
    all
}

/// The file of an image: `<parent>+<name>+<tag>.sqsh`, with a digest `sha256-<12>`; an image that is given as a name is `name.sqsh`.
#[must_use]
pub fn image_file(image: &str) -> String {
    // Enroot separates the registry by `#`.
    let path = image.split_once('#').map_or(image, |(_, path)| path);
    let (path, version) = match (path.split_once('@'), path.rsplit_once(':')) {
        (Some((path, digest)), _) => {
            let short: String = digest.trim_start_matches("sha256:").chars().take(12).collect();
            (path, format!("sha256-{short}"))
        }
        (None, Some((path, tag))) if !tag.contains('/') => (path, tag.to_owned()),
        _ => (path, "latest".to_owned()),
    };
    let mut parts = path.rsplit('/');
    let name = parts.next().unwrap_or_default();
    match parts.next() {
        Some(parent) => format!("{parent}+{name}+{version}.sqsh"),
        None if image.contains(['#', '/', ':', '@']) => format!("{name}+{version}.sqsh"),
        None => format!("{name}.sqsh"),
    }
}

/// What `enroot import` is given for an image.
#[must_use]
pub fn image_url(image: &str) -> String {
    format!("docker://{image}")
}

/// GPUs of a generic resource as Slurm prints it: `gpu:8`, `gpu:a100:8(S:0-1)`; type (if stated) and number.
#[must_use]
pub fn gpus_of_gres(gres: &str) -> Option<(Option<String>, u32)> {
    gres.split(',').find_map(|part| {
        let part = part.split('(').next()?.trim();
        let mut words = part.strip_prefix("gpu:")?.split(':');
        let (first, second) = (words.next()?, words.next());
        let (kind, number) = match second {
            Some(number) => (Some(first.to_ascii_lowercase()), number),
            None => (None, first),
        };
        let number = number.parse().ok().filter(|n| (1..=8).contains(n))?;
        Some((kind, number))
    })
}

/// The GPU type that a text names: a resource's type, or a product name such as `NVIDIA H100 80GB HBM3`.
#[must_use]
pub fn gpu_type_of(text: &str) -> Option<&'static str> {
    let text = text.to_ascii_lowercase();
    // Those whose names hold another one's come first.
    ["gb300", "gb200", "b300", "b200", "h100", "a100"].into_iter().find(|name| text.contains(name))
}

/// A partition as `sinfo -h -o '%P|%D|%G'` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Name.
    pub name: String,
    /// Whether jobs go there when nothing is said.
    pub is_default: bool,
    /// GPUs of a node, as most nodes have them; type and number.
    pub gpus: Option<(Option<String>, u32)>,
}

/// Reads partitions; of several kinds of nodes the one with the most nodes counts.
#[must_use]
pub fn partitions(sinfo: &str) -> Vec<Partition> {
    let mut all: Vec<(Partition, u32)> = Vec::new();
    for line in sinfo.lines() {
        let mut parts = line.split('|').map(str::trim);
        let (Some(name), Some(nodes)) = (parts.next(), parts.next()) else { continue };
        let n_nodes: u32 = nodes.parse().unwrap_or(0);
        let gpus = parts.next().and_then(gpus_of_gres);
        let (name, is_default) = (name.trim_end_matches('*').to_owned(), name.ends_with('*'));
        match all.iter_mut().find(|(known, _)| known.name == name) {
            Some((known, most)) if gpus.is_some() && (known.gpus.is_none() || n_nodes > *most) => (known.gpus, *most) = (gpus, n_nodes),
            Some(_) => {}
            None => all.push((Partition { name, is_default, gpus }, n_nodes)),
        }
    }
    all.into_iter().map(|(partition, _)| partition).collect()
}

/// `metadata.yaml` of the DeepSeek-R1 workload as far as Tandem needs it, for installations without the benchmark collection.
pub const OWN_METADATA: &str = "\
# Written by `tandem install`: the workload that Tandem runs by its own recipe `deepseek-r1`.
general: {workload: deepseek-r1-dynamo, workload_type: inference, framework: dynamo}
container:
  images: ['nvcr.io#nvidia/ai-dynamo/tensorrtllm-runtime:0.6.1']
run:
  launcher_type: sbatch
  gpu_configs:
    gb200: {model_configs: [{model_size: 671b, dtypes: nvfp4, scales: [32], exact_scales: true}]}
    b200: {model_configs: [{model_size: 671b, dtypes: nvfp4, scales: [32], exact_scales: true}]}
    h100: {model_configs: [{model_size: 671b, dtypes: fp8, scales: [48], exact_scales: true}]}
";
