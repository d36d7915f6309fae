//! Mean and 95 % confidence interval of each metric over load points that repeat the same load (Student's t).
//!
//! Repeats within one run share a deployment: the interval holds what varies from load to load, not from start to start.

use serde_json::{Map, Value, json};

use crate::metrics::{self, Load};
use crate::summary::Summary;

/// One load that was measured several times.
#[derive(Debug, Clone, PartialEq)]
pub struct Repeated {
    /// Indices of the points.
    pub points: Vec<usize>,
    /// Metric, its unit, mean of the points' averages, half the width of the interval, coefficient of variation (percent).
    pub figures: Vec<(&'static str, &'static str, f64, f64, f64)>,
}

/// Groups equal loads; those that occur once have no entry.
#[must_use]
pub fn repeats(summaries: &[&Summary]) -> Vec<Repeated> {
    let mut groups: Vec<(&Load, Vec<usize>)> = Vec::new();
    for (i, summary) in summaries.iter().enumerate() {
        match groups.iter_mut().find(|(load, _)| **load == summary.load) {
            Some((_, points)) => points.push(i),
            None => groups.push((&summary.load, vec![i])),
        }
    }
    let of = |points: Vec<usize>| {
        let figures = metrics::ALL.into_iter().filter_map(|metric| {
            let values: Vec<f64> = points.iter().map(|i| summaries[*i].avg(metric)).collect::<Option<_>>()?;
            let (mean, half) = mean_and_half_width(&values)?;
            let std = half * (values.len() as f64).sqrt() / student_t_975(values.len() - 1);
            let variation = if mean == 0.0 { 0.0 } else { std / mean.abs() * 100.0 };
            Some((metric.name, metric.unit.as_str(), mean, half, variation))
        });
        Repeated { figures: figures.collect(), points: points.clone() }
    };
    groups.into_iter().filter(|(_, points)| points.len() > 1).map(|(_, points)| of(points)).collect()
}

/// Mean, and `t * s / sqrt(n)` with the sample's standard deviation; none of fewer than two values.
fn mean_and_half_width(values: &[f64]) -> Option<(f64, f64)> {
    let n = values.len() as f64;
    if values.len() < 2 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1.0);
    Some((mean, student_t_975(values.len() - 1) * (variance / n).sqrt()))
}

/// The 97.5 % quantile of Student's t. Exact to three decimals up to 30 degrees of freedom, beyond that by the expansion of
/// Abramowitz & Stegun 26.7.5, whose error is below 0.0005 there.
#[must_use]
pub fn student_t_975(degrees: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101,
        2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
    ];
    if let Some(value) = degrees.checked_sub(1).and_then(|i| TABLE.get(i)) {
        return *value;
    }
    let (z, n) = (1.959_964_f64, degrees.max(1) as f64);
    z + (z.powi(3) + z) / (4.0 * n) + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * n * n)
}

/// For `result.json`.
pub(crate) fn to_json(all: &[Repeated]) -> Value {
    let entry = |one: &Repeated| {
        let figure = |(name, unit, mean, half, variation): &(&str, &str, f64, f64, f64)| {
            let entry = json!({"unit": unit, "mean": mean, "ci95": [mean - half, mean + half], "variation_percent": variation});
            ((*name).to_owned(), entry)
        };
        json!({"points": one.points, "method": "student_t", "figures": one.figures.iter().map(figure).collect::<Map<_, _>>()})
    };
    all.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{load, request};
    use super::*;

    #[test]
    fn equal_loads_are_repeats_and_others_are_not() {
        let of = |ttft_ms: u64, concurrency: u32| Summary::of(&[request(0, 0, ttft_ms), request(1, 200, ttft_ms)], &load(concurrency, 2));
        let all = [of(10, 1), of(50, 2), of(12, 1), of(14, 1)];
        let found = repeats(&all.iter().collect::<Vec<_>>());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].points, [0, 2, 3]);
        let (_, unit, mean, half, variation) = *found[0].figures.iter().find(|figure| figure.0 == "ttft").unwrap();
        assert_eq!((unit, mean), ("ms", 12.0));
        assert!((half - 4.303 * 2.0 / 3f64.sqrt()).abs() < 1e-9 && (variation - 100.0 / 6.0).abs() < 1e-9);
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        assert_eq!(student_t_975(1), 12.706);
        for (degrees, value) in [(30, 2.042), (40, 2.021), (60, 2.000), (120, 1.980), (100_000, 1.960)] {
            assert!((student_t_975(degrees) - value).abs() < 6e-4, "{degrees}: {}", student_t_975(degrees));
        }
    }
}
