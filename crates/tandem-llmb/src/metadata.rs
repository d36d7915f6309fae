//! `metadata.yaml`: what a workload supports, in both schemas.

use serde_json::Value;

use crate::document::{LlmbError, scalar, yaml};
use crate::install::{self, downloads};

/// Number formats that the mapping form of `dtypes` may name.
const DTYPES: [&str; 4] = ["fp8", "bf16", "nvfp4", "mxfp4"];

/// A workload.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// `TYPE_NAME`, e.g. `inference_deepseek-r1-dynamo`.
    pub key: String,
    /// Its name alone, e.g. `deepseek-r1-dynamo`.
    pub name: String,
    /// `pretrain`, `inference` …
    pub workload_type: String,
    /// `general.framework`.
    pub framework: Option<String>,
    /// `general.gsw_version`, which old files state themselves.
    pub gsw_version: Option<String>,
    /// Container images: for all GPU types, or by GPU type (`default` for the rest).
    images: Vec<(Option<String>, Vec<String>)>,
    /// `downloads`, as it stands.
    downloads: Value,
    /// `setup`, as it stands.
    setup: Value,
    /// `run.launcher_type`; none when it lacks.
    pub launcher_type: Option<String>,
    /// The script that is submitted.
    pub launch_script: String,
    /// What runs on each GPU type, in file order.
    pub gpus: Vec<(String, Vec<Model>)>,
}

/// A model size on one GPU type.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// E.g. `671b`.
    pub size: String,
    /// By number format, in file order.
    pub dtypes: Vec<(String, Support)>,
}

/// The numbers of GPUs that one number format runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Support {
    /// Listed numbers, ascending.
    pub scales: Vec<u32>,
    /// Whether only the listed ones work.
    pub exact: bool,
    /// Numbers for a run that stands in for a larger one.
    pub proxy: Vec<u32>,
}

impl Workload {
    /// Reads a `metadata.yaml`; none when it lacks name or type, which the tools skip.
    ///
    /// # Errors
    /// When it is no YAML, or a number of GPUs is none.
    pub fn parse(path: &str, text: &str) -> Result<Option<Workload>, LlmbError> {
        let all = yaml(path, text)?;
        let general = &all["general"];
        let (Some(name), Some(kind)) = (scalar(&general["workload"]), scalar(&general["workload_type"])) else { return Ok(None) };
        let run = &all["run"];
        let mut gpus = Vec::new();
        for (gpu, config) in run["gpu_configs"].as_object().into_iter().flatten() {
            let models = config["model_configs"].as_array().into_iter().flatten().map(|model| model_config(path, model));
            gpus.push((gpu.clone(), models.collect::<Result<_, _>>()?));
        }
        Ok(Some(Workload {
            key: format!("{kind}_{name}"),
            name,
            workload_type: kind,
            framework: scalar(&general["framework"]),
            gsw_version: scalar(&general["gsw_version"]),
            images: images(&all["container"]["images"]),
            downloads: all["downloads"].clone(),
            setup: all["setup"].clone(),
            launcher_type: scalar(&run["launcher_type"]),
            launch_script: scalar(&run["launch_script"]).unwrap_or_else(|| "launch.sh".to_owned()),
            gpus,
        }))
    }

    /// Container images on a GPU type.
    #[must_use]
    pub fn images(&self, gpu: &str) -> &[String] {
        let of = |wanted: &str| self.images.iter().find(|(name, _)| name.as_deref().is_none_or(|name| name == wanted));
        of(gpu).or_else(|| of("default")).map_or(&[], |(_, images)| images.as_slice())
    }

    /// Commands that the tools' installer runs for it: those of `setup.tasks`, or the old `setup_script`.
    #[must_use]
    pub fn setup_tasks(&self) -> Vec<String> {
        let tasks = self.setup["tasks"].as_array().into_iter().flatten().filter_map(|task| scalar(&task["cmd"]));
        tasks.chain(scalar(&self.setup["setup_script"])).collect()
    }

    /// Whether it wants a Python environment of its own.
    #[must_use]
    pub fn needs_venv(&self) -> bool {
        self.setup["venv_req"].as_bool().unwrap_or(false)
    }

    /// What `downloads` names for a GPU type; [`crate::install::models`] adds what only a script knows.
    #[must_use]
    pub fn downloads(&self, gpu: &str) -> Vec<install::Model> {
        downloads(&self.key, &self.downloads, gpu)
    }

    /// The models on a GPU type.
    #[must_use]
    pub fn models(&self, gpu: &str) -> Option<&[Model]> {
        self.gpus.iter().find(|(name, _)| name == gpu).map(|(_, models)| models.as_slice())
    }

    /// What a number format of a model runs on.
    #[must_use]
    pub fn support(&self, gpu: &str, size: &str, dtype: &str) -> Option<&Support> {
        let model = self.models(gpu)?.iter().find(|m| m.size == size)?;
        model.dtypes.iter().find(|(name, _)| name == dtype).map(|(_, support)| support)
    }
}

/// `[image, {url, name}, …]`, or `{by_gpu: {h100: …, default: …}}`.
fn images(value: &Value) -> Vec<(Option<String>, Vec<String>)> {
    let url = |image: &Value| if image.is_object() { scalar(&image["url"]) } else { scalar(image) };
    let list = |value: &Value| -> Vec<String> {
        match value {
            Value::Array(items) => items.iter().filter_map(url).collect(),
            one => url(one).into_iter().collect(),
        }
    };
    match value["by_gpu"].as_object() {
        Some(by_gpu) => by_gpu.iter().map(|(gpu, value)| (Some(gpu.clone()), list(value))).collect(),
        None => vec![(None, list(value))],
    }
}

fn model_config(path: &str, model: &Value) -> Result<Model, LlmbError> {
    let own = support(path, model)?;
    let dtypes = match &model["dtypes"] {
        Value::Object(by_dtype) => by_dtype
            .iter()
            .filter(|(name, _)| DTYPES.contains(&name.as_str()))
            .map(|(name, value)| {
                let mut of = support(path, &serde_json::json!({"scales": value}))?;
                of.exact = own.exact;
                of.proxy.clone_from(&own.proxy);
                if value.is_object() {
                    of = support(path, value)?;
                    // What it leaves out is the model's.
                    of.exact = value["exact_scales"].as_bool().unwrap_or(own.exact);
                    if value["proxy_scales"].is_null() {
                        of.proxy.clone_from(&own.proxy);
                    }
                    if value["scales"].is_null() {
                        of.scales.clone_from(&own.scales);
                    }
                }
                Ok((name.clone(), of))
            })
            .collect::<Result<_, LlmbError>>()?,
        Value::Array(list) => list.iter().filter_map(scalar).map(|name| (name, own.clone())).collect(),
        one => scalar(one).into_iter().map(|name| (name, own.clone())).collect(),
    };
    Ok(Model { size: scalar(&model["model_size"]).unwrap_or_default(), dtypes })
}

fn support(path: &str, value: &Value) -> Result<Support, LlmbError> {
    let numbers = |value: &Value| -> Result<Vec<u32>, LlmbError> {
        let one = |v: &Value| {
            let n = v.as_u64().and_then(|n| u32::try_from(n).ok());
            n.ok_or_else(|| LlmbError(format!("{path}: {v} is no number of GPUs")))
        };
        let mut all = match value {
            Value::Array(list) => list.iter().map(one).collect::<Result<Vec<_>, _>>()?,
            Value::Null | Value::Object(_) => Vec::new(),
            single => vec![one(single)?],
        };
        all.sort_unstable();
        all.dedup();
        Ok(all)
    };
    Ok(Support {
        scales: numbers(&value["scales"])?,
        exact: value["exact_scales"].as_bool().unwrap_or(false),
        proxy: numbers(&value["proxy_scales"])?,
    })
}

/// `KEY_SIZE` in its parts; the size is the last part when it is a number of billions (`b`) or trillions (`t`).
#[must_use]
pub fn split_size(name: &str) -> (&str, Option<String>) {
    let Some((key, size)) = name.rsplit_once('_') else { return (name, None) };
    let size = size.to_ascii_lowercase();
    let number = size.strip_suffix(['b', 't']).unwrap_or_default();
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_size = match number.split_once('.') {
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => digits(number),
    };
    if is_size { (key, Some(size)) } else { (name, None) }
}
