//! What a configuration may do, given what is not known of its corrections: a handful of simulations, and the value that they agree on.
//!
//! Where prefill and decode are nearly in balance, a few percent in either decide which of them queues, and TTFT is 1 s or 100 s. One
//! simulation at the most probable corrections then says one or the other. Here corrections are drawn from their distribution, and of the
//! values the one with the smallest expected relative error is taken: the median weighted by 1/value (Gneiting 2011, "Making and evaluating
//! point forecasts", on the mean absolute percentage error).

use crate::des::{Deployment, Load, Outcome, simulate};
use crate::model::Model;
use crate::rows::Scenario;

/// Quantiles of a normal distribution in the middle of eight strips of equal probability.
const STRIPS: [f64; 8] = [-1.534, -0.887, -0.489, -0.157, 0.157, 0.489, 0.887, 1.534];
/// The strip of prefill beside each strip of decode: a lattice, the same when both are turned round.
const BESIDE: [usize; 8] = [2, 7, 4, 1, 6, 3, 0, 5];
/// Deviations of decode and prefill corrections beside fitted configurations, as logarithms: that of the errors of unseen ones.
const ALWAYS: [f64; 2] = [0.04, 0.15];
/// Share of what the prior leaves open far from them that unseen configurations showed.
const OPEN: [f64; 2] = [0.5, 0.6];

/// How far apart the draws of a balanced deployment are: its TTFT changes much more than its step times.
const BALANCED: f64 = 5.0;

/// What the simulations of one configuration gave, smallest first; seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// Median time to first token.
    pub ttft_median: Vec<f64>,
    /// Mean time to first token.
    pub ttft_mean: Vec<f64>,
    /// 99th percentile of the time to first token.
    pub ttft_p99: Vec<f64>,
}

impl Drawn {
    /// The smallest and the largest median time to first token where they are so far apart that prefill and decode must be nearly in balance.
    #[must_use]
    pub fn balance(&self) -> Option<(f64, f64)> {
        let (low, high) = (*self.ttft_median.first()?, *self.ttft_median.last()?);
        (high > 1.0 && high > BALANCED * low).then_some((low, high))
    }
}

/// Simulates `load` at the most probable corrections, which `deployment` has, and at eight others.
#[must_use]
pub fn outcomes(model: &Model, s: &Scenario, deployment: &Deployment, load: &Load, warmup: usize) -> (Outcome, Drawn) {
    let unknown = model.unknown(s);
    let factors = model.factors(s);
    let deviation: [f64; 2] = std::array::from_fn(|i| ALWAYS[i].hypot(OPEN[i] * unknown[i]));
    let run = |deployment: &Deployment| simulate(deployment, load).after(warmup);
    let point = run(deployment);
    let mut other = deployment.clone();
    let draws: Vec<Outcome> = STRIPS
        .iter()
        .zip(BESIDE)
        .map(|(decode, beside)| {
            other.decode.cost = model.decode_cost(s, factors.decode.shifted(deviation[0] * decode));
            other.prefill.cost = model.prefill_cost(s, factors.prefill * (deviation[1] * STRIPS[beside]).exp());
            run(&other)
        })
        .collect();
    let sorted = |get: fn(&Outcome) -> f64| {
        let mut values: Vec<f64> = draws.iter().map(get).collect();
        values.sort_unstable_by(f64::total_cmp);
        values
    };
    let drawn = Drawn { ttft_median: sorted(|o| o.ttft.median), ttft_mean: sorted(|o| o.ttft.mean), ttft_p99: sorted(|o| o.ttft.p99) };
    (point, drawn)
}

/// The value with the smallest expected relative error among `sorted` ones: the median under weights 1/value, between two of them on a
/// logarithmic scale.
#[must_use]
pub fn least_relative_error(sorted: &[f64]) -> f64 {
    let weights: Vec<f64> = sorted.iter().map(|v| 1.0 / v.max(1e-9)).collect();
    let half = weights.iter().sum::<f64>() / 2.0;
    let (mut before, mut last) = (0.0, None::<(f64, f64)>);
    for (value, weight) in sorted.iter().zip(&weights) {
        let middle = before + weight / 2.0;
        if middle >= half {
            let Some((below, at)) = last else { return *value };
            let share = (half - at) / (middle - at);
            return below * (value / below).powf(share);
        }
        last = Some((value.max(1e-9), middle));
        before += weight;
    }
    last.map_or(0.0, |(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::least_relative_error;

    #[test]
    fn the_chosen_value_has_the_smallest_expected_relative_error() {
        let values = [0.4, 0.5, 0.6, 0.9, 1.5, 20.0, 60.0, 90.0];
        let error = |guess: f64| values.iter().map(|v| (guess / v - 1.0_f64).abs()).sum::<f64>();
        let chosen = least_relative_error(&values);
        let best = (1..9000).map(|i| error(f64::from(i) * 0.01)).fold(f64::INFINITY, f64::min);
        assert!(error(chosen) < 1.05 * best, "{chosen}: {} for {best}", error(chosen));
        assert!(chosen < 1.0, "the median of the values, 1.2, is not it: {chosen}");
    }

    #[test]
    fn values_that_agree_are_the_answer() {
        assert!((least_relative_error(&[2.0; 8]) - 2.0).abs() < 1e-12);
        assert!(least_relative_error(&[]).abs() < 1e-12);
        assert!(least_relative_error(&[0.0; 8]) < 1e-8);
    }
}
