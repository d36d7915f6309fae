//! What the GPUs of a run did over time, by role, reduced to lines of fixed size; and what each load point consumed.

use std::collections::BTreeMap;

use serde::Deserialize;
use tandem_metrics::telemetry::{Series, SubjectKind, TelemetryLineError, UNASSIGNED, parse};

use super::series::Bins;

/// GPUs of a run: their samples, by role.
#[derive(Debug, Clone)]
pub(crate) struct Gpus {
    roles: BTreeMap<String, Vec<Series>>,
    /// First and last sample, wall-clock ns.
    span: (u64, u64),
}

/// A bin of a line: the value drawn, and the smallest and largest of the GPUs behind it.
pub(crate) type GpuBin = Option<(f64, f64, f64)>;

/// How the GPUs of a role become one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fold {
    /// Together, as watts are.
    Sum,
    /// On average, as temperatures are.
    Mean,
}

impl Gpus {
    /// The GPUs in the text of `telemetry.jsonl`; none when there is no sample of any.
    ///
    /// # Errors
    /// At the first line that is no sample.
    pub(crate) fn parse(text: &str) -> Result<Option<Gpus>, TelemetryLineError> {
        let (mut roles, mut span) = (BTreeMap::<String, Vec<Series>>::new(), (u64::MAX, 0));
        for series in parse(text)?.into_iter().filter(|series| series.subject.kind == SubjectKind::Gpu) {
            let Some(last) = series.last_ns() else { continue };
            let names: Vec<String> = series.columns().map(str::to_owned).collect();
            let first = names.iter().filter_map(|name| series.values(name).next()).map(|(at, _)| at).min().unwrap_or(last);
            span = (span.0.min(first), span.1.max(last));
            roles.entry(series.subject.role.clone().unwrap_or_else(|| UNASSIGNED.to_owned())).or_default().push(series);
        }
        Ok((!roles.is_empty()).then_some(Gpus { roles, span }))
    }

    /// Names of the roles, and the GPUs of each.
    pub(crate) fn roles(&self) -> impl Iterator<Item = (&str, usize)> {
        self.roles.iter().map(|(role, gpus)| (role.as_str(), gpus.len()))
    }

    /// Seconds from the first to the last sample.
    pub(crate) fn duration_s(&self) -> f64 {
        (self.span.1 - self.span.0) as f64 * 1e-9
    }

    /// One line a role: `quantity` in `n_bins` of the whole time, times `scale`.
    pub(crate) fn lines(&self, quantity: &str, fold: Fold, scale: f64, n_bins: usize) -> Vec<(&str, Vec<GpuBin>)> {
        let line = |gpus: &Vec<Series>| -> Vec<GpuBin> {
            let each: Vec<Vec<Option<f64>>> = gpus.iter().map(|gpu| self.binned(gpu, quantity, scale, n_bins)).collect();
            let bin = |i: usize| {
                let values: Vec<f64> = each.iter().filter_map(|bins| bins[i]).collect();
                let sum: f64 = values.iter().sum();
                let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)));
                // A sum without one of its parts would look like a fall.
                let is_whole = fold == Fold::Mean || values.len() == each.len();
                (is_whole && !values.is_empty()).then(|| (if fold == Fold::Sum { sum } else { sum / values.len() as f64 }, low, high))
            };
            (0..n_bins).map(bin).collect()
        };
        let mut lines: Vec<_> = self.roles.iter().map(|(role, gpus)| (role.as_str(), line(gpus))).collect();
        lines.retain(|(_, bins)| bins.iter().any(Option::is_some));
        lines
    }

    /// Means of one GPU; a bin between two samples has the value before it.
    fn binned(&self, gpu: &Series, quantity: &str, scale: f64, n_bins: usize) -> Vec<Option<f64>> {
        let seconds = |at: u64| (at - self.span.0) as f64 * 1e-9;
        let mut bins = Bins::new(0.0, self.duration_s(), n_bins);
        let mut counts = vec![0.0; n_bins];
        let mut last_bin = 0;
        for (at, value) in gpu.values(quantity) {
            last_bin = bins.index(seconds(at));
            bins.sums[last_bin] += value * scale;
            counts[last_bin] += 1.0;
        }
        let mut before = None;
        let of = |(i, (sum, n)): (usize, (&f64, &f64))| {
            if *n > 0.0 {
                before = Some(sum / n);
            }
            before.filter(|_| i <= last_bin)
        };
        bins.sums.iter().zip(&counts).enumerate().map(of).collect()
    }
}

/// The part of a load point's telemetry that a report shows.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct SavedTelemetry {
    #[serde(default)]
    pub(crate) energy: Option<SavedEnergy>,
}

/// What the GPUs consumed during a load point.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SavedEnergy {
    pub(crate) total_j: f64,
    pub(crate) mean_power_w: f64,
    #[serde(default)]
    pub(crate) roles: BTreeMap<String, SavedRoleEnergy>,
}

/// What the GPUs of a role consumed; tokens are those of the whole load point.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SavedRoleEnergy {
    pub(crate) n_gpus: u32,
    pub(crate) energy_j: f64,
    pub(crate) mean_power_w: f64,
    pub(crate) output_tokens_per_joule: Option<f64>,
}

/// A row of the energy table: what, GPUs, J, W, J a token of output, tokens a second and watt.
pub(crate) struct EnergyRow<'a> {
    pub(crate) role: &'a str,
    pub(crate) n_gpus: u32,
    pub(crate) energy_j: f64,
    pub(crate) mean_power_w: f64,
    pub(crate) joules_per_token: Option<f64>,
    /// Tokens a joule, which is the same number.
    pub(crate) tokens_per_s_w: Option<f64>,
}

impl SavedEnergy {
    /// One row a role, and one of all where there are several.
    pub(crate) fn rows(&self) -> Vec<EnergyRow<'_>> {
        let mut rows: Vec<EnergyRow<'_>> = self
            .roles
            .iter()
            .map(|(role, used)| EnergyRow {
                role,
                n_gpus: used.n_gpus,
                energy_j: used.energy_j,
                mean_power_w: used.mean_power_w,
                joules_per_token: used.output_tokens_per_joule.map(|rate| 1.0 / rate),
                tokens_per_s_w: used.output_tokens_per_joule,
            })
            .collect();
        if rows.len() > 1 {
            // Each role's tokens are those of the whole point, so their joules a token add up.
            let joules_per_token: Option<f64> = rows.iter().map(|row| row.joules_per_token).sum();
            rows.push(EnergyRow {
                role: "together",
                n_gpus: self.roles.values().map(|used| used.n_gpus).sum(),
                energy_j: self.total_j,
                mean_power_w: self.mean_power_w,
                joules_per_token,
                tokens_per_s_w: joules_per_token.map(|joules| 1.0 / joules),
            });
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use tandem_metrics::telemetry::{Subject, line};

    use super::*;

    fn gpu(id: &str, role: &str) -> Subject {
        let (host, id, name, role) = ("n1".to_owned(), id.to_owned(), "H100".to_owned(), Some(role.to_owned()));
        Subject { kind: SubjectKind::Gpu, host, id, index: Some(0), name, role }
    }

    #[test]
    fn watts_add_up_within_a_role_and_temperatures_do_not() {
        let mut text = String::new();
        for second in 0..=10u64 {
            let at = 1_000 + second * 1_000_000_000;
            text += &line(at, &gpu("a", "decode"), &[("power_w", 300.0), ("temperature_c", 40.0)]);
            text += &line(at, &gpu("b", "decode"), &[("power_w", 500.0), ("temperature_c", 60.0)]);
            if second % 5 == 0 {
                text += &line(at, &gpu("c", "prefill"), &[("power_w", 100.0 + second as f64)]);
            }
        }
        let gpus = Gpus::parse(&text).unwrap().unwrap();
        assert_eq!((gpus.roles().collect::<Vec<_>>(), gpus.duration_s()), (vec![("decode", 2), ("prefill", 1)], 10.0));
        let power = gpus.lines("power_w", Fold::Sum, 1.0, 10);
        assert_eq!(power[0], ("decode", vec![Some((800.0, 300.0, 500.0)); 10]));
        // Sampled at 0, 5 and 10 s: in between stands what was seen last.
        let prefill: Vec<f64> = power[1].1.iter().map(|bin| bin.unwrap().0).collect();
        assert_eq!(prefill, [100.0, 100.0, 100.0, 100.0, 100.0, 105.0, 105.0, 105.0, 105.0, 110.0]);
        let temperature = gpus.lines("temperature_c", Fold::Mean, 1.0, 2);
        assert_eq!(temperature, [("decode", vec![Some((50.0, 40.0, 60.0)); 2])], "what nobody samples has no line");
        assert!(Gpus::parse("").unwrap().is_none() && Gpus::parse("x\n").is_err());
    }
}
