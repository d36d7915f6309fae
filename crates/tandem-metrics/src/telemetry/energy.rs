//! Energy of GPUs over a load point, in total and by role.
//!
//! By the driver's energy counter where there is one (last minus first, interpolated to the ends of the window), else by
//! the integral of power. Only GPUs with a role count when any has one: others on the same host serve somebody else.

use std::collections::BTreeMap;

use super::series::{Series, Subject, SubjectKind};

/// The role of GPUs that no plan speaks about.
pub const UNASSIGNED: &str = "all";

/// Where an energy comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnergySource {
    /// The device's counter.
    Counter,
    /// Power, integrated between samples.
    Power,
}

impl EnergySource {
    /// The name in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            EnergySource::Counter => "counter",
            EnergySource::Power => "power",
        }
    }
}

/// What one GPU consumed.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuEnergy {
    /// The GPU.
    pub subject: Subject,
    /// Joules.
    pub energy_j: f64,
    /// How it is known.
    pub source: EnergySource,
    /// Joules by integrating power, beside the counter: the two should agree within a few percent.
    pub integrated_j: Option<f64>,
}

/// What the GPUs of one role consumed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RoleEnergy {
    /// Number of GPUs.
    pub n_gpus: u32,
    /// Joules.
    pub energy_j: f64,
}

/// What the GPUs of a deployment consumed during one load point.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EnergyUse {
    /// Each GPU that counts.
    pub gpus: Vec<GpuEnergy>,
    /// Length of the window, s.
    pub duration_s: f64,
}

impl EnergyUse {
    /// Energy of the window `from_ns..to_ns`; none when no GPU tells, or the window is empty.
    #[must_use]
    pub fn of(series: &[Series], from_ns: u64, to_ns: u64) -> Option<EnergyUse> {
        if to_ns <= from_ns {
            return None;
        }
        let gpus: Vec<&Series> = series.iter().filter(|one| one.subject.kind == SubjectKind::Gpu).collect();
        let any_role = gpus.iter().any(|one| one.subject.role.is_some());
        let gpus: Vec<GpuEnergy> = gpus
            .into_iter()
            .filter(|one| !any_role || one.subject.role.is_some())
            .filter_map(|one| gpu_energy(one, from_ns, to_ns))
            .collect();
        (!gpus.is_empty()).then(|| EnergyUse { gpus, duration_s: (to_ns - from_ns) as f64 / 1e9 })
    }

    /// Joules of all GPUs.
    #[must_use]
    pub fn total_j(&self) -> f64 {
        self.gpus.iter().map(|gpu| gpu.energy_j).sum()
    }

    /// Mean power of all GPUs together, W.
    #[must_use]
    pub fn mean_power_w(&self) -> f64 {
        self.total_j() / self.duration_s
    }

    /// By role; a GPU that has none goes under [`UNASSIGNED`].
    #[must_use]
    pub fn by_role(&self) -> BTreeMap<&str, RoleEnergy> {
        let mut roles: BTreeMap<&str, RoleEnergy> = BTreeMap::new();
        for gpu in &self.gpus {
            let role = roles.entry(gpu.subject.role.as_deref().unwrap_or(UNASSIGNED)).or_default();
            role.n_gpus += 1;
            role.energy_j += gpu.energy_j;
        }
        roles
    }
}

fn gpu_energy(series: &Series, from_ns: u64, to_ns: u64) -> Option<GpuEnergy> {
    // A GPU that was not sampled within the window tells nothing about it.
    let sampled = |name: &str| series.values(name).any(|(at, _)| (from_ns..=to_ns).contains(&at));
    let integrated_j = Some("power_w").filter(|name| sampled(name)).and_then(|name| series.integral(name, from_ns, to_ns));
    let counted = Some("energy_j").filter(|name| sampled(name)).and_then(|name| series.growth(name, from_ns, to_ns));
    let (energy_j, source) = match (counted, integrated_j) {
        (Some(joules), _) => (joules, EnergySource::Counter),
        (None, Some(joules)) => (joules, EnergySource::Power),
        (None, None) => return None,
    };
    Some(GpuEnergy { subject: series.subject.clone(), energy_j, source, integrated_j })
}

#[cfg(test)]
mod tests {
    use super::super::series::tests::gpu;
    use super::*;

    const S: u64 = 1_000_000_000;

    fn series(subject: Subject, counter: bool, watts: f64) -> Series {
        let mut series = Series::new(subject);
        for second in 0..11 {
            let mut values = vec![("power_w", watts)];
            if counter {
                values.push(("energy_j", 5e6 + watts * 1.02 * second as f64));
            }
            series.push(second * S, &values);
        }
        series
    }

    #[test]
    fn the_counter_goes_before_integrated_power_and_roles_are_kept_apart() {
        let all = [
            series(gpu("n1", "GPU-1", Some("prefill")), true, 500.0),
            series(gpu("n1", "GPU-2", Some("decode")), false, 300.0),
            series(gpu("n2", "GPU-2", Some("decode")), false, 200.0),
            series(gpu("n2", "GPU-9", None), true, 700.0),
        ];
        let energy = EnergyUse::of(&all, 2 * S, 6 * S + S / 2).unwrap();
        assert_eq!(energy.gpus.iter().map(|gpu| gpu.source).collect::<Vec<_>>()[..2], [EnergySource::Counter, EnergySource::Power]);
        let roles = energy.by_role();
        assert_eq!(roles["prefill"].n_gpus, 1);
        assert!((roles["prefill"].energy_j - 510.0 * 4.5).abs() < 1e-6);
        assert_eq!(roles["decode"], RoleEnergy { n_gpus: 2, energy_j: 500.0 * 4.5 });
        assert!((energy.gpus[0].integrated_j.unwrap() - 500.0 * 4.5).abs() < 1e-6);
        assert!((energy.mean_power_w() - 1010.0).abs() < 1e-6, "the GPU without a role is somebody else's");
    }

    #[test]
    fn without_roles_all_gpus_count_and_without_samples_none() {
        let all = [series(gpu("n1", "GPU-1", None), true, 100.0)];
        assert_eq!(EnergyUse::of(&all, 0, 10 * S).unwrap().by_role()[UNASSIGNED].n_gpus, 1);
        assert_eq!(EnergyUse::of(&all, 20 * S, 30 * S), None, "it was not sampled then");
        assert_eq!(EnergyUse::of(&[], 0, S), None);
    }
}
