//! GPU telemetry in GenAI-Perf's files: names, units and order of its metrics.
//!
//! Whoever measured fills [`Telemetry`]; without it the files have no telemetry section at all.

use serde_json::{Map, Value, json};

use crate::artifacts::{csv, foreign, genai_perf_csv, genai_perf_json, python};
use crate::stats::Stats;

/// A GPU metric: tag, unit, and whether it cannot change (its mean is all there is to say).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMetric {
    /// Their tag.
    pub tag: &'static str,
    /// Their unit.
    pub unit: &'static str,
    /// Whether it is a constant of the device.
    pub is_constant: bool,
}

const fn varying(tag: &'static str, unit: &'static str) -> GpuMetric {
    GpuMetric { tag, unit, is_constant: false }
}

const fn constant(tag: &'static str, unit: &'static str) -> GpuMetric {
    GpuMetric { tag, unit, is_constant: true }
}

/// All GPU metrics in the order of the files.
pub static GPU_METRICS: [GpuMetric; 29] = [
    varying("gpu_power_usage", "W"),
    constant("gpu_power_limit", "W"),
    varying("energy_consumption", "MJ"),
    constant("total_gpu_memory", "GB"),
    varying("gpu_memory_used", "GB"),
    varying("gpu_memory_free", "GB"),
    varying("gpu_utilization", "%"),
    varying("sm_utilization", "%"),
    varying("memory_copy_utilization", "%"),
    varying("video_encoder_utilization", "%"),
    varying("video_decoder_utilization", "%"),
    varying("gpu_clock_sm", "MHz"),
    varying("gpu_clock_memory", "MHz"),
    varying("gpu_temperature", "C"),
    varying("gpu_memory_temperature", "C"),
    varying("total_ecc_sbe_volatile", "errors"),
    varying("total_ecc_dbe_volatile", "errors"),
    varying("total_ecc_sbe_aggregate", "errors"),
    varying("total_ecc_dbe_aggregate", "errors"),
    varying("xid_last_error", "errors"),
    varying("power_throttle_duration", "us"),
    varying("thermal_throttle_duration", "us"),
    varying("retired_pages_sbe", "pages"),
    varying("retired_pages_dbe", "pages"),
    varying("total_nvlink_crc_flit_errors", "errors"),
    varying("total_nvlink_crc_data_errors", "errors"),
    varying("pcie_transmit_throughput", "KB/s"),
    varying("pcie_receive_throughput", "KB/s"),
    varying("pcie_replay_counter", "retries"),
];

/// What was measured on the GPUs of a deployment during one load point.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Telemetry {
    /// One entry for each metric and GPU; GPU names as they shall appear, any order.
    pub samples: Vec<GpuSample>,
}

/// Statistics of one metric on one GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuSample {
    /// The tag of one of [`GPU_METRICS`].
    pub tag: &'static str,
    /// Which GPU.
    pub gpu: String,
    /// In the unit of the metric.
    pub stats: Stats,
}

impl Telemetry {
    /// The GPUs that have a metric, in the order given.
    fn of(&self, metric: &GpuMetric) -> impl Iterator<Item = &GpuSample> {
        self.samples.iter().filter(|sample| sample.tag == metric.tag)
    }

    fn present(&self, is_constant: bool) -> impl Iterator<Item = (&'static GpuMetric, &GpuSample)> {
        let metrics = GPU_METRICS.iter().filter(move |metric| metric.is_constant == is_constant);
        metrics.flat_map(|metric| self.of(metric).map(move |sample| (metric, sample)))
    }

    /// The `telemetry_stats` of the JSON; none if nothing was measured.
    pub(crate) fn to_json(&self) -> Option<Value> {
        let mut all = Map::new();
        for metric in &GPU_METRICS {
            let mut entry = Map::new();
            for sample in self.of(metric) {
                let stats =
                    if metric.is_constant { json!({"avg": sample.stats.avg}) } else { genai_perf_json::stats(&sample.stats).into() };
                entry.insert(sample.gpu.clone(), stats);
            }
            if !entry.is_empty() {
                entry.shift_insert(0, "unit".to_owned(), metric.unit.into());
                all.insert(metric.tag.to_owned(), entry.into());
            }
        }
        (!all.is_empty()).then_some(Value::Object(all))
    }

    /// Appends the two tables of the CSV; nothing if nothing was measured.
    pub(crate) fn write_csv(&self, out: &mut String) {
        if self.samples.is_empty() {
            return;
        }
        let title = |metric: &GpuMetric| format!("{} ({})", foreign::title(metric.tag, &["gpu"]), metric.unit);
        csv::row(out, [""; 0]);
        csv::row(out, ["Metric", "GPU"].into_iter().chain(genai_perf_csv::STATISTICS));
        for (metric, sample) in self.present(false) {
            let stats =
                genai_perf_csv::STATISTICS.into_iter().map(|name| sample.stats.by_name(name).map_or_else(String::new, python::grouped2));
            csv::row(out, [title(metric), sample.gpu.clone()].into_iter().chain(stats));
        }
        csv::row(out, [""; 0]);
        csv::row(out, ["Metric", "GPU", "Value"]);
        for (metric, sample) in self.present(true) {
            csv::row(out, [title(metric), sample.gpu.clone(), python::fixed2(sample.stats.avg)]);
        }
    }
}
