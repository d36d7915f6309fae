//! Distributions: which share of requests took at most how long.

use std::fmt::Write;

use super::scale::Scale;
use super::{Axis, Frame, Picture, colour_class, hover_json};
use crate::numbers::number;

const HEIGHT: f64 = 230.0;
/// From this ratio of the longest to the shortest on, a linear axis would show the longest only.
const LOG_RATIO: f64 = 25.0;

/// The shares at which a curve is drawn, in percent: whole ones, and the tail where users suffer.
pub(crate) static QUANTILES: [f64; 104] = quantile_steps();

const fn quantile_steps() -> [f64; 104] {
    let mut steps = [0.0; 104];
    let mut i = 0;
    while i < 100 {
        steps[i] = i as f64;
        i += 1;
    }
    (steps[100], steps[101], steps[102], steps[103]) = (99.5, 99.9, 99.95, 100.0);
    steps
}

/// Distributions side by side.
#[derive(Debug)]
pub(crate) struct QuantileChart<'a> {
    pub(crate) title: String,
    pub(crate) about: String,
    pub(crate) x: Axis<'a>,
    pub(crate) curves: Vec<Curve>,
}

/// One distribution at the [`QUANTILES`].
#[derive(Debug)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) colour: usize,
    pub(crate) quantiles: Vec<f64>,
}

/// The [`QUANTILES`] of ascending values, interpolated linearly as in all other figures; none of none.
pub(crate) fn quantiles_of(sorted: &[f64]) -> Option<Vec<f64>> {
    let last = sorted.len().checked_sub(1)?;
    let at = |percent: &f64| {
        let position = percent / 100.0 * last as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= position <= last")]
        let low = position.floor() as usize;
        let (a, b) = (sorted[low], sorted[(low + 1).min(last)]);
        a + (b - a) * position.fract()
    };
    Some(QUANTILES.iter().map(at).collect())
}

impl QuantileChart<'_> {
    pub(crate) fn draw(&self) -> Picture {
        let ends = |pick: fn(f64, f64) -> f64, start: f64| self.curves.iter().flat_map(|curve| &curve.quantiles).copied().fold(start, pick);
        let (low, high) = (ends(f64::min, f64::INFINITY), ends(f64::max, 0.0));
        let is_log = low > 0.0 && low.is_finite() && high / low > LOG_RATIO;
        let x = if is_log { Scale::log(low, high) } else { Scale::from_zero(0.0, high) };
        let frame = Frame::new(x, Scale::exact(0.0, 100.0), HEIGHT);
        let label = if is_log { format!("{}, logarithmic", self.x.label) } else { self.x.label.to_owned() };
        let mut body = frame.axes(&label, "% of requests");
        for curve in &self.curves {
            let points = curve.quantiles.iter().zip(&QUANTILES).map(|(x, percent)| Some((*x, *percent)));
            let _ = write!(body, r#"<path class="line {}" d="{}"/>"#, colour_class(curve.colour), frame.path(points));
        }
        Picture {
            title: self.title.clone(),
            about: self.about.clone(),
            legend: self.curves.iter().map(|curve| (curve.colour, curve.name.clone())).collect(),
            body,
            height: HEIGHT,
            hover: Some(self.hover(&frame)),
        }
    }

    fn hover(&self, frame: &Frame) -> String {
        let places: Vec<f64> = QUANTILES.iter().map(|percent| frame.y.at(*percent)).collect();
        let keys: Vec<String> = QUANTILES.iter().map(|percent| format!("p{percent}")).collect();
        let texts = |curve: &Curve| curve.quantiles.iter().map(|value| format!("{} {}", number(*value), self.x.label)).collect();
        let values: Vec<(String, Vec<String>)> = self.curves.iter().map(|curve| (curve.name.clone(), texts(curve))).collect();
        hover_json("y", frame, &places, &keys, &values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_ascend_from_all_to_none() {
        assert!(QUANTILES.is_sorted() && QUANTILES[0] == 0.0 && QUANTILES[103] == 100.0);
        assert!(QUANTILES.contains(&50.0) && QUANTILES.contains(&90.0) && QUANTILES.contains(&99.0));
    }

    #[test]
    fn quantiles_interpolate() {
        let quantiles = quantiles_of(&[1.0, 2.0, 4.0]).unwrap();
        let at = |percent: f64| quantiles[QUANTILES.iter().position(|q| *q == percent).unwrap()];
        assert_eq!((at(0.0), at(50.0), at(100.0)), (1.0, 2.0, 4.0));
        assert!((at(75.0) - 3.0).abs() < 1e-12);
        assert!(quantiles_of(&[]).is_none());
    }
}
