//! From values to units of the picture, linear or logarithmic, and round ticks between them.

use crate::numbers::tick;

/// A range of values mapped onto a range of units.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    is_log: bool,
}

impl Scale {
    /// From zero (or `low`, if negative) to a round value not below `high`.
    pub(super) fn from_zero(low: f64, high: f64) -> Self {
        let low = low.min(0.0);
        let high = if high.is_finite() && high > low { high } else { low + 1.0 };
        let step = round_step((high - low) / 5.0);
        Scale { low, high: (high / step - 1e-9).ceil() * step, from: 0.0, to: 1.0, is_log: false }
    }

    /// Exactly `low..high`.
    pub(super) fn exact(low: f64, high: f64) -> Self {
        let high = if high.is_finite() && high > low { high } else { low + 1.0 };
        Scale { low, high, from: 0.0, to: 1.0, is_log: false }
    }

    /// Logarithmic; both ends above zero.
    pub(super) fn log(low: f64, high: f64) -> Self {
        debug_assert!(low > 0.0, "a logarithm needs positive values");
        Scale { low, high: high.max(low * 1.01), from: 0.0, to: 1.0, is_log: true }
    }

    pub(super) fn onto(self, from: f64, to: f64) -> Self {
        Scale { from, to, ..self }
    }

    pub(super) fn at(&self, value: f64) -> f64 {
        let share = if self.is_log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// About `n` round values within the range, with their labels.
    pub(super) fn ticks(&self, n: usize) -> Vec<(f64, String)> {
        if self.is_log { self.log_ticks(n) } else { self.linear_ticks(n) }
    }

    fn linear_ticks(&self, n: usize) -> Vec<(f64, String)> {
        let step = round_step((self.high - self.low) / n as f64);
        let first = (self.low / step - 1e-9).ceil();
        let values = (0..=2 * n + 2).map(|i| (first + i as f64) * step);
        values.take_while(|value| *value <= self.high + step * 1e-6).map(|value| (value, tick(value, step))).collect()
    }

    fn log_ticks(&self, n: usize) -> Vec<(f64, String)> {
        let within = |factors: &[f64]| -> Vec<(f64, String)> {
            let decades = (self.low.log10().floor(), self.high.log10().ceil());
            let mut ticks = Vec::new();
            let mut exponent = decades.0;
            while exponent <= decades.1 {
                let base = 10f64.powf(exponent);
                ticks.extend(factors.iter().map(|factor| (factor * base, tick(factor * base, base))));
                exponent += 1.0;
            }
            ticks.retain(|(value, _)| *value >= self.low * 0.999 && *value <= self.high * 1.001);
            ticks
        };
        let choices: [&[f64]; 3] = [&[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]];
        choices.into_iter().map(within).find(|ticks| ticks.len() <= n + 2).unwrap_or_else(|| within(&[1.0]))
    }
}

/// The smallest of 1, 2, 2.5 and 5 times a power of ten that is not below `raw`.
fn round_step(raw: f64) -> f64 {
    if !(raw.is_finite() && raw > 0.0) {
        return 1.0;
    }
    let base = 10f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 2.5, 5.0].into_iter().find(|factor| factor * base >= raw * 0.999_999).unwrap_or(10.0);
    factor * base
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, n: usize) -> Vec<String> {
        scale.ticks(n).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round_and_cover_the_data() {
        assert_eq!(labels(Scale::from_zero(3.0, 97.0), 5), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(labels(Scale::from_zero(0.0, 0.0), 5), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(labels(Scale::exact(-1.5, 8.0), 5), ["0", "2", "4", "6", "8"]);
        assert_eq!(labels(Scale::log(0.8, 120.0), 6), ["1", "2", "5", "10", "20", "50", "100"]);
    }

    #[test]
    fn values_outside_stay_within_the_picture() {
        let scale = Scale::from_zero(0.0, 10.0).onto(0.0, 100.0);
        assert_eq!([scale.at(-5.0), scale.at(5.0), scale.at(50.0)], [0.0, 50.0, 100.0]);
        let log = Scale::log(1.0, 100.0).onto(0.0, 100.0);
        assert_eq!([log.at(0.0), log.at(1.0), log.at(100.0)], [0.0, 0.0, 100.0]);
        assert!((log.at(10.0) - 50.0).abs() < 1e-9);
    }

    #[test]
    fn nonsense_ranges_still_give_a_picture() {
        for scale in [Scale::from_zero(f64::NAN, f64::NAN), Scale::exact(2.0, 2.0), Scale::exact(0.0, f64::INFINITY), Scale::log(1.0, 1.0)]
        {
            let ticks = scale.ticks(5);
            assert!(ticks.len() < 20 && ticks.iter().all(|(value, _)| value.is_finite()), "{scale:?}");
        }
    }
}
