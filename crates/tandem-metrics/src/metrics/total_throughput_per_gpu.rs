//! Total token throughput per GPU: prompt and output tokens a second and GPU.
//!
//! Formula: `total throughput / GPUs`, over all GPUs of the deployment, prefill and decode.
//! Kind: derived. Unit: tokens/s/GPU.

use crate::metrics::{Better, Kind, Metric, Sample, Unit, total_throughput};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "total_throughput_per_gpu",
    title: "Total token throughput per GPU",
    unit: Unit::TokensPerSecondPerGpu,
    better: Better::Higher,
    streaming_only: false,
    kind: Kind::Derived(of),
};

/// Tokens a second and GPU.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    (sample.load.n_gpus > 0).then(|| total_throughput::of(sample).map(|rate| rate / f64::from(sample.load.n_gpus))).flatten()
}
