//! GPUs as data: what bounds a step on each. The shipped table is `data/hardware.json`; a user's own file has the same form.
//!
//! Not here: what fits in memory (`tandem_plan::memory`), or how much of a peak is reached (`cost::Coefficients`).

use serde_json::Value;
use thiserror::Error;

const SHIPPED: &str = include_str!("../data/hardware.json");

/// Peak figures of one GPU and how many of them share a fast network.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuSpec {
    /// Lower-case name, e.g. `gb200`.
    pub name: String,
    /// Memory, bytes.
    pub memory: f64,
    /// Memory bandwidth, bytes/s.
    pub hbm: f64,
    /// Dense BF16 rate, FLOP/s.
    pub bf16: f64,
    /// Dense FP8 rate, FLOP/s.
    pub fp8: f64,
    /// Dense FP4 rate, FLOP/s; where the GPU has none, FP4 weights are computed at the FP8 rate.
    pub fp4: f64,
    /// NVLink, bytes/s in one direction.
    pub nvlink: f64,
    /// GPUs that reach each other over NVLink.
    pub nvlink_domain: u32,
    /// GPUs of one node.
    pub gpus_per_node: u32,
    /// Network outside the NVLink domain, bytes/s a GPU.
    pub scale_out: f64,
}

/// Why a hardware table cannot be used.
#[derive(Debug, Error)]
pub enum HardwareError {
    /// Not JSON.
    #[error("hardware table is not JSON")]
    Json(#[from] serde_json::Error),
    /// A field is missing or not a positive number.
    #[error("hardware table: GPU {gpu}: `{field}` is missing or not a positive number")]
    Field {
        /// Number or name of the entry.
        gpu: String,
        /// The field.
        field: &'static str,
    },
    /// No list of GPUs.
    #[error("hardware table has no list `gpus`")]
    NoGpus,
}

/// The GPUs that ship.
#[must_use]
pub fn shipped() -> Vec<GpuSpec> {
    parse(SHIPPED).expect("a test reads the shipped table")
}

/// Reads a table in the form of `data/hardware.json`.
///
/// # Errors
/// [`HardwareError`] naming the entry and the field.
pub fn parse(text: &str) -> Result<Vec<GpuSpec>, HardwareError> {
    let table: Value = serde_json::from_str(text)?;
    let gpus = table["gpus"].as_array().ok_or(HardwareError::NoGpus)?;
    gpus.iter().enumerate().map(|(i, gpu)| spec(i, gpu)).collect()
}

/// The shipped GPUs with those of the user's table `text` added, or in the place of those of the same name.
///
/// # Errors
/// [`HardwareError`] naming the entry and the field.
pub fn with_own(text: &str) -> Result<Vec<GpuSpec>, HardwareError> {
    let own = parse(text)?;
    let kept = shipped().into_iter().filter(|gpu| find(&own, &gpu.name).is_none());
    Ok(kept.chain(own.iter().cloned()).collect())
}

fn spec(index: usize, json: &Value) -> Result<GpuSpec, HardwareError> {
    let label = json["name"].as_str().map_or_else(|| format!("#{index}"), str::to_owned);
    let number =
        |field: &'static str| json[field].as_f64().filter(|v| *v > 0.0).ok_or_else(|| HardwareError::Field { gpu: label.clone(), field });
    let count = |field: &'static str| {
        let n = json[field].as_u64().filter(|v| *v > 0).and_then(|v| u32::try_from(v).ok());
        n.ok_or_else(|| HardwareError::Field { gpu: label.clone(), field })
    };
    let fp8 = number("fp8")? * 1e15;
    Ok(GpuSpec {
        memory: number("memory")? * 1e9,
        hbm: number("hbm")? * 1e12,
        bf16: number("bf16")? * 1e15,
        fp8,
        fp4: json["fp4"].as_f64().map_or(fp8, |v| v * 1e15),
        nvlink: number("nvlink")? * 1e9,
        nvlink_domain: count("nvlink_domain")?,
        gpus_per_node: count("gpus_per_node")?,
        scale_out: number("scale_out")? * 1e9,
        name: json["name"].as_str().ok_or_else(|| HardwareError::Field { gpu: label.clone(), field: "name" })?.to_ascii_lowercase(),
    })
}

/// The GPU called `name`, whatever its case.
#[must_use]
pub fn find<'a>(gpus: &'a [GpuSpec], name: &str) -> Option<&'a GpuSpec> {
    gpus.iter().find(|g| g.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_table_has_the_six_gpus() {
        let names: Vec<String> = shipped().into_iter().map(|g| g.name).collect();
        assert_eq!(names, ["h100", "h200", "b200", "gb200", "b300", "gb300"]);
    }

    #[test]
    fn a_users_table_adds_and_replaces() {
        let entry = |name: &str| {
            format!(
                r#"{{"name": "{name}", "memory": 94, "hbm": 3.9, "bf16": 0.8, "fp8": 1.6, "nvlink": 300, "nvlink_domain": 2, "gpus_per_node": 4, "scale_out": 25}}"#
            )
        };
        let all = with_own(&format!(r#"{{"gpus": [{}, {}]}}"#, entry("H100"), entry("mine"))).unwrap();
        assert_eq!(all.len(), 7);
        assert_eq!(find(&all, "h100").unwrap().memory, 94e9);
        assert_eq!(find(&all, "mine").unwrap().gpus_per_node, 4);
        assert_eq!(find(&all, "gb200"), find(&shipped(), "gb200"));
    }

    #[test]
    fn a_missing_field_is_named() {
        let error = parse(r#"{"gpus": [{"name": "x", "memory": 1}]}"#).unwrap_err();
        assert_eq!(error.to_string(), "hardware table: GPU x: `fp8` is missing or not a positive number");
    }

    #[test]
    fn a_gpu_without_fp4_computes_it_at_the_fp8_rate() {
        let gpus = shipped();
        let h100 = find(&gpus, "H100").unwrap();
        assert_eq!(h100.fp4, h100.fp8);
    }
}
