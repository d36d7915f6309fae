//! What `result.json` says about telemetry: statistics of each subject over the load point's window, and energy by role.

use serde_json::{Map, Value, json};

use super::energy::EnergyUse;
use super::quantity::{Behaviour, behaviour, quantity};
use super::series::{Series, SubjectKind};
use crate::stats::Stats;

/// Something that kept telemetry from being whole, said in the results.
pub type TelemetryNote = String;

/// NVML's names of throttle reasons, by bit (`nvmlClocksEventReason*`).
const THROTTLE_BITS: [(u32, &str); 9] = [
    (0, "gpu_idle"),
    (1, "applications_clocks"),
    (2, "sw_power_cap"),
    (3, "hw_slowdown"),
    (4, "sync_boost"),
    (5, "sw_thermal"),
    (6, "hw_thermal"),
    (7, "hw_power_brake"),
    (8, "display_clocks"),
];

/// The telemetry of one load point, clipped to its window.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PointTelemetry {
    /// What was sampled, somewhat beyond the window at both ends.
    pub series: Vec<Series>,
    /// What was missing.
    pub notes: Vec<TelemetryNote>,
    /// Whether GenAI-Perf's section averages the energy counter as GenAI-Perf does, instead of saying what was consumed.
    pub raw_energy: bool,
}

impl PointTelemetry {
    /// Energy of a window of wall-clock time.
    #[must_use]
    pub fn energy(&self, window: (u64, u64)) -> Option<EnergyUse> {
        EnergyUse::of(&self.series, window.0, window.1)
    }

    /// The section of `result.json`; `tokens` are input and output tokens of the window.
    #[must_use]
    pub fn to_json(&self, window: (u64, u64), tokens: (Option<u64>, Option<u64>)) -> Value {
        let of_kind = |kind: SubjectKind| {
            let subjects = self.series.iter().filter(|one| one.subject.kind == kind);
            subjects.map(|one| subject_json(one, window)).collect::<Vec<_>>()
        };
        json!({
            "energy": self.energy(window).map(|energy| energy_json(&energy, tokens)),
            "gpus": of_kind(SubjectKind::Gpu),
            "hosts": of_kind(SubjectKind::Host),
            "servers": of_kind(SubjectKind::Server),
            "notes": self.notes,
        })
    }
}

fn energy_json(energy: &EnergyUse, (input, output): (Option<u64>, Option<u64>)) -> Value {
    let per = |tokens: Option<u64>, joules: f64| tokens.filter(|n| *n > 0 && joules > 0.0).map(|n| n as f64 / joules);
    let roles: Map<String, Value> = energy
        .by_role()
        .into_iter()
        .map(|(role, used)| {
            let entry = json!({
                "n_gpus": used.n_gpus,
                "energy_j": used.energy_j,
                "mean_power_w": used.energy_j / energy.duration_s,
                "input_tokens_per_joule": per(input, used.energy_j),
                "output_tokens_per_joule": per(output, used.energy_j),
            });
            (role.to_owned(), entry)
        })
        .collect();
    let gpu = |gpu: &super::energy::GpuEnergy| {
        json!({
            "host": gpu.subject.host,
            "uuid": gpu.subject.id,
            "role": gpu.subject.role,
            "energy_j": gpu.energy_j,
            "source": gpu.source.as_str(),
            "integrated_power_j": gpu.integrated_j,
        })
    };
    json!({
        "duration_s": energy.duration_s,
        "total_j": energy.total_j(),
        "mean_power_w": energy.mean_power_w(),
        "roles": roles,
        "gpus": energy.gpus.iter().map(gpu).collect::<Vec<_>>(),
    })
}

fn subject_json(series: &Series, (from_ns, to_ns): (u64, u64)) -> Value {
    let subject = &series.subject;
    let mut figures = Map::new();
    for name in series.columns() {
        if let Some(figure) = figure_json(series, name, from_ns, to_ns) {
            figures.insert(name.to_owned(), figure);
        }
    }
    json!({
        "host": subject.host,
        "id": subject.id,
        "index": subject.index,
        "name": subject.name,
        "role": subject.role,
        "figures": figures,
    })
}

fn figure_json(series: &Series, name: &str, from_ns: u64, to_ns: u64) -> Option<Value> {
    let values = series.within(name, from_ns, to_ns);
    let unit = quantity(name).map(|quantity| quantity.unit);
    let stats = Stats::of(&values)?;
    Some(match behaviour(name) {
        Behaviour::Gauge => json!({
            "unit": unit, "avg": stats.avg, "min": stats.min, "p50": stats.percentile(50), "p99": stats.percentile(99),
            "max": stats.max, "n_samples": stats.count,
        }),
        Behaviour::Counter => json!({"unit": unit, "growth": series.growth(name, from_ns, to_ns), "n_samples": stats.count}),
        Behaviour::Constant => json!({"unit": unit, "value": values.last()}),
        Behaviour::Bits => json!({"share_percent": bit_shares(&values), "n_samples": stats.count}),
    })
}

/// In what share of the samples each bit was set, percent.
fn bit_shares(values: &[f64]) -> Map<String, Value> {
    let is_set = |value: f64, bit: u32| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sampled from an integer of at most 53 bits")]
        let bits = value as u64;
        bits >> bit & 1 == 1
    };
    let share = |bit: u32| values.iter().filter(|value| is_set(**value, bit)).count() as f64 * 100.0 / values.len() as f64;
    THROTTLE_BITS
        .into_iter()
        .map(|(bit, name)| (name.to_owned(), share(bit)))
        .filter(|(_, s)| *s > 0.0)
        .map(|(n, s)| (n, json!(s)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::series::tests::gpu;
    use super::*;

    #[test]
    fn figures_are_of_the_window_alone() {
        let mut series = Series::new(gpu("n1", "GPU-1", Some("decode")));
        for second in 0..10u64 {
            let throttled = if second == 4 { 4.0 } else { 1.0 };
            let values = [("power_w", 100.0 * second as f64), ("energy_j", 1e6 + 50.0 * second as f64), ("throttle_reasons", throttled)];
            series.push(second * 1_000_000_000, &values);
        }
        let telemetry = PointTelemetry { series: vec![series], ..PointTelemetry::default() };
        let json = telemetry.to_json((2_000_000_000, 5_000_000_000), (Some(300), Some(30)));
        let figures = &json["gpus"][0]["figures"];
        assert_eq!((figures["power_w"]["avg"].as_f64(), figures["power_w"]["max"].as_f64()), (Some(350.0), Some(500.0)));
        assert_eq!(figures["energy_j"]["growth"], 150.0);
        assert_eq!(figures["throttle_reasons"]["share_percent"], json!({"gpu_idle": 75.0, "sw_power_cap": 25.0}));
        assert_eq!(json["energy"]["roles"]["decode"]["output_tokens_per_joule"], 0.2);
        assert_eq!(json["energy"]["roles"]["decode"]["input_tokens_per_joule"], 2.0);
    }
}
