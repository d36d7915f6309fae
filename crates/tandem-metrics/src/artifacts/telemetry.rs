//! GPU telemetry in GenAI-Perf's files: names, units and order of its metrics.
//!
//! Whoever measured fills [`Telemetry`]; without it the files have no telemetry section at all.

use serde_json::{Map, Value, json};

use crate::artifacts::{csv, foreign, genai_perf_csv, genai_perf_json, python};
use crate::stats::Stats;
use crate::telemetry::{PointTelemetry, Series, SubjectKind};

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

/// Our quantity, their tag, and what ours times is theirs.
static COUNTERPARTS: [(&str, &str, f64); 29] = [
    ("power_w", "gpu_power_usage", 1.0),
    ("power_limit_w", "gpu_power_limit", 1.0),
    (ENERGY, "energy_consumption", 1e-6),
    ("memory_total_bytes", "total_gpu_memory", 1e-9),
    ("memory_used_bytes", "gpu_memory_used", 1e-9),
    ("memory_free_bytes", "gpu_memory_free", 1e-9),
    ("gpu_utilization_percent", "gpu_utilization", 1.0),
    ("sm_active_percent", "sm_utilization", 1.0),
    ("memory_utilization_percent", "memory_copy_utilization", 1.0),
    ("encoder_utilization_percent", "video_encoder_utilization", 1.0),
    ("decoder_utilization_percent", "video_decoder_utilization", 1.0),
    ("sm_clock_mhz", "gpu_clock_sm", 1.0),
    ("memory_clock_mhz", "gpu_clock_memory", 1.0),
    ("temperature_c", "gpu_temperature", 1.0),
    ("memory_temperature_c", "gpu_memory_temperature", 1.0),
    ("ecc_corrected_volatile", "total_ecc_sbe_volatile", 1.0),
    ("ecc_uncorrected_volatile", "total_ecc_dbe_volatile", 1.0),
    ("ecc_corrected_aggregate", "total_ecc_sbe_aggregate", 1.0),
    ("ecc_uncorrected_aggregate", "total_ecc_dbe_aggregate", 1.0),
    ("xid_last_error", "xid_last_error", 1.0),
    ("power_throttle_us", "power_throttle_duration", 1.0),
    ("thermal_throttle_us", "thermal_throttle_duration", 1.0),
    ("retired_pages_sbe", "retired_pages_sbe", 1.0),
    ("retired_pages_dbe", "retired_pages_dbe", 1.0),
    ("nvlink_crc_flit_errors", "total_nvlink_crc_flit_errors", 1.0),
    ("nvlink_crc_data_errors", "total_nvlink_crc_data_errors", 1.0),
    ("pcie_tx_kb_per_s", "pcie_transmit_throughput", 1.0),
    ("pcie_rx_kb_per_s", "pcie_receive_throughput", 1.0),
    ("pcie_replays", "pcie_replay_counter", 1.0),
];

const ENERGY: &str = "energy_j";

impl Telemetry {
    /// The section for a window of wall-clock time; none without a GPU that was sampled in it.
    ///
    /// A GPU's key is its index, after its host's name where there are several hosts: GenAI-Perf itself merges GPUs of the same
    /// index. `energy_consumption` is what was consumed in the window, unless [`PointTelemetry::raw_energy`] asks for
    /// GenAI-Perf's own figure, the mean of the counter, which says nothing about the run.
    #[must_use]
    pub fn of(measured: &PointTelemetry, (from_ns, to_ns): (u64, u64)) -> Option<Telemetry> {
        let gpus: Vec<&Series> = measured.series.iter().filter(|series| series.subject.kind == SubjectKind::Gpu).collect();
        let is_one_host = gpus.iter().all(|series| series.subject.host == gpus[0].subject.host);
        let mut samples = Vec::new();
        for (quantity, tag, factor) in COUNTERPARTS {
            for (i, series) in gpus.iter().enumerate() {
                let index = series.subject.index.map_or_else(|| i.to_string(), |index| index.to_string());
                let gpu = if is_one_host { index } else { format!("{}:{index}", series.subject.host) };
                let mut values = series.within(quantity, from_ns, to_ns);
                if quantity == ENERGY && !measured.raw_energy && !values.is_empty() {
                    values = series.growth(quantity, from_ns, to_ns).into_iter().collect();
                }
                samples.extend(Stats::of(&values).map(|stats| GpuSample { tag, gpu, stats: stats.scaled(factor) }));
            }
        }
        (!samples.is_empty()).then_some(Telemetry { samples })
    }

    /// The GPUs that have a metric, in the order given.
    fn of_metric(&self, metric: &GpuMetric) -> impl Iterator<Item = &GpuSample> {
        self.samples.iter().filter(|sample| sample.tag == metric.tag)
    }

    fn present(&self, is_constant: bool) -> impl Iterator<Item = (&'static GpuMetric, &GpuSample)> {
        let metrics = GPU_METRICS.iter().filter(move |metric| metric.is_constant == is_constant);
        metrics.flat_map(|metric| self.of_metric(metric).map(move |sample| (metric, sample)))
    }

    /// The `telemetry_stats` of the JSON; none if nothing was measured.
    pub(crate) fn to_json(&self) -> Option<Value> {
        let mut all = Map::new();
        for metric in &GPU_METRICS {
            let mut entry = Map::new();
            for sample in self.of_metric(metric) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{QUANTITIES, Subject};

    #[test]
    fn every_foreign_metric_has_its_counterpart() {
        let tags: Vec<&str> = COUNTERPARTS.iter().map(|(_, tag, _)| *tag).collect();
        assert_eq!(tags, GPU_METRICS.iter().map(|metric| metric.tag).collect::<Vec<_>>());
        assert!(COUNTERPARTS.iter().all(|(ours, ..)| QUANTITIES.iter().any(|quantity| quantity.name == *ours)));
    }

    fn series(host: &str, start_j: f64) -> Series {
        let subject = Subject {
            kind: SubjectKind::Gpu,
            host: host.to_owned(),
            id: "GPU-1".to_owned(),
            index: Some(0),
            name: String::new(),
            role: None,
        };
        let mut series = Series::new(subject);
        (0..5u32).for_each(|i| series.push(u64::from(i) + 1, &[(ENERGY, start_j + 100.0 * f64::from(i)), ("memory_used_bytes", 2e9)]));
        series
    }

    #[test]
    fn energy_is_what_was_consumed_and_hosts_are_kept_apart() {
        let mut measured = PointTelemetry { series: vec![series("a", 5e6), series("b", 7e6)], ..PointTelemetry::default() };
        let json = Telemetry::of(&measured, (2, 4)).unwrap().to_json().unwrap();
        assert_eq!(json["energy_consumption"]["a:0"]["avg"], 200.0 * 1e-6);
        assert_eq!(json["energy_consumption"]["b:0"]["max"], 200.0 * 1e-6);
        assert_eq!(json["gpu_memory_used"]["b:0"]["p50"], 2.0);
        measured.raw_energy = true;
        measured.series.pop();
        let json = Telemetry::of(&measured, (2, 4)).unwrap().to_json().unwrap();
        assert_eq!(json["energy_consumption"]["0"]["avg"], 5_000_200.0 * 1e-6);
        assert_eq!(Telemetry::of(&measured, (20, 40)), None, "nothing was sampled then");
    }
}
