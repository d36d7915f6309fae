//! `exemplar.yaml`: the runs by which an installation is judged.

use serde_json::Value;

use crate::document::{LlmbError, scalar, yaml};
use crate::metadata::split_size;
use crate::{Task, Workload};

/// The tasks of an exemplar file for one GPU type; with profiling the last repeat is the profiled one.
///
/// # Errors
/// An unknown key, a workload that is not installed or does not list the scale, or a GPU type without entries.
pub fn exemplar_tasks(
    path: &str,
    text: &str,
    workloads: &[Workload],
    installed: &[String],
    gpu: &str,
    repeats: Option<u32>,
) -> Result<Vec<Task>, LlmbError> {
    let fail = |text: String| LlmbError(format!("{path}: {text}"));
    let all = yaml(path, text)?;
    only(path, &all, &["config", "workloads"])?;
    let config = &all["config"];
    only(path, config, &["scale", "repeats", "profile"])?;
    let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    let scale = number(&config["scale"]).ok_or_else(|| fail("config.scale must be a number of GPUs".into()))?;
    let stated = match &config["repeats"] {
        Value::Null => 3,
        value => number(value).ok_or_else(|| fail("config.repeats must be at least 1".into()))?,
    };
    let profile = config["profile"].as_bool().unwrap_or(true);
    let repeats = repeats.unwrap_or(stated).max(1);
    let entries = all["workloads"][gpu].as_array().ok_or_else(|| fail(format!("no workloads for GPU type '{gpu}'")))?;
    let mut tasks = Vec::new();
    for (header, entry) in entries.iter().filter_map(Value::as_object).flatten() {
        let (key, Some(size)) = split_size(header) else { return Err(fail(format!("'{header}' is no KEY_SIZE"))) };
        only(path, entry, &["dtypes"])?;
        let workload = workloads.iter().find(|w| w.key == key).ok_or_else(|| fail(format!("workload '{key}' not found")))?;
        if !installed.iter().any(|name| name == key) {
            return Err(fail(format!("workload '{key}' is not installed on this cluster")));
        }
        let dtypes: Vec<String> = match &entry["dtypes"] {
            Value::Array(list) => list.iter().filter_map(scalar).collect(),
            one => scalar(one).into_iter().collect(),
        };
        if dtypes.is_empty() {
            return Err(fail(format!("'{header}' needs dtypes")));
        }
        for dtype in dtypes {
            let support = workload.support(gpu, &size, &dtype);
            if !support.is_some_and(|support| support.scales.contains(&scale)) {
                return Err(fail(format!("{header} (dtype={dtype}) does not list scale {scale} on {gpu}")));
            }
            let task = Task { profile: false, ..Task::new(key, &size, &dtype, scale) };
            tasks.extend((1..=repeats).map(|n| Task { profile: profile && n == repeats, ..task.clone() }));
        }
    }
    Ok(tasks)
}

fn only(path: &str, value: &Value, known: &[&str]) -> Result<(), LlmbError> {
    let unknown = value.as_object().into_iter().flatten().map(|(key, _)| key).find(|key| !known.contains(&key.as_str()));
    unknown.map_or(Ok(()), |key| Err(LlmbError(format!("{path}: unknown key '{key}' (known: {})", known.join(", ")))))
}

/// `llmb_version` of a `release.yaml`.
///
/// # Errors
/// When it is no YAML.
pub fn release(path: &str, text: &str) -> Result<Option<String>, LlmbError> {
    Ok(scalar(&yaml(path, text)?["llmb_version"]))
}
