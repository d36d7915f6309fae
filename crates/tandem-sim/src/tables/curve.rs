//! Between and beyond measured points.

use std::fmt;

/// How a time came out of a table, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hit {
    /// Measured at just this size.
    Exact,
    /// Between measured sizes.
    Interpolated,
    /// Beyond them: the nearest factor on the bound was held.
    Extrapolated,
}

impl fmt::Display for Hit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hit::Exact => "exact",
            Hit::Interpolated => "interpolated",
            Hit::Extrapolated => "extrapolated",
        })
    }
}

/// Distance of logarithms below which two sizes are the same.
const SAME: f64 = 1e-6;

/// Logarithms of measured time over bound along one size.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Curve(Vec<(f64, f64)>);

impl Curve {
    /// From (size, seconds, bound in seconds), in ascending order of sizes; none without a usable point.
    pub(super) fn new(points: impl IntoIterator<Item = (f64, f64, f64)>) -> Option<Self> {
        let usable = points.into_iter().filter(|(x, seconds, bound)| *x > 0.0 && *seconds > 0.0 && *bound > 0.0);
        let logs: Vec<(f64, f64)> = usable.map(|(x, seconds, bound)| (x.ln(), (seconds / bound).ln())).collect();
        debug_assert!(logs.windows(2).all(|w| w[0].0 < w[1].0), "sizes ascend");
        (!logs.is_empty()).then_some(Curve(logs))
    }

    /// The logarithm of the factor at the size whose logarithm is `x`.
    pub(super) fn ln_at(&self, x: f64) -> (f64, Hit) {
        let above = self.0.partition_point(|(size, _)| *size < x);
        let near = |i: usize| self.0.get(i).filter(|(size, _)| (size - x).abs() < SAME);
        if let Some((_, ln)) = near(above).or_else(|| near(above.wrapping_sub(1))) {
            return (*ln, Hit::Exact);
        }
        match (above.checked_sub(1).map(|i| self.0[i]), self.0.get(above)) {
            (Some((x0, y0)), Some((x1, y1))) => (y0 + (y1 - y0) * (x - x0) / (x1 - x0), Hit::Interpolated),
            (Some((_, ln)), None) | (None, Some(&(_, ln))) => (ln, Hit::Extrapolated),
            (None, None) => (0.0, Hit::Extrapolated),
        }
    }
}

/// Curves along the length of a sequence, by number of sequences.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Surface(Vec<(f64, Curve)>);

impl Surface {
    /// From curves by number of sequences, ascending; none without one.
    pub(super) fn new(curves: impl IntoIterator<Item = (f64, Curve)>) -> Option<Self> {
        let rows: Vec<(f64, Curve)> = curves.into_iter().map(|(batch, curve)| (batch.ln(), curve)).collect();
        (!rows.is_empty()).then_some(Surface(rows))
    }

    /// The logarithm of the factor for `batch` sequences of `length`; a part of a sequence (a chunk of a prompt) counts as one.
    pub(super) fn ln_at(&self, batch: f64, length: f64) -> (f64, Hit) {
        let (b, x) = (batch.max(1.0).ln(), length.max(1.0).ln());
        let above = self.0.partition_point(|(row, _)| *row < b - SAME);
        let row = |i: usize| self.0[i].1.ln_at(x);
        match self.0.get(above) {
            Some((row_b, _)) if (row_b - b).abs() < SAME => row(above),
            Some((b1, _)) if above > 0 => {
                let ((low, hit0), (high, hit1)) = (row(above - 1), row(above));
                let b0 = self.0[above - 1].0;
                (low + (high - low) * (b - b0) / (b1 - b0), hit0.max(hit1).max(Hit::Interpolated))
            }
            Some(_) => (row(above).0, Hit::Extrapolated),
            None => (row(above - 1).0, Hit::Extrapolated),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve() -> Curve {
        Curve::new([(1.0, 4.0, 1.0), (100.0, 1.0, 1.0)]).unwrap()
    }

    #[test]
    fn a_measured_size_is_exact_and_between_two_the_factor_is_their_geometric_mean() {
        assert_eq!(curve().ln_at(1.0_f64.ln()), (4.0_f64.ln(), Hit::Exact));
        let (ln, hit) = curve().ln_at(10.0_f64.ln());
        assert!((ln.exp() - 2.0).abs() < 1e-12);
        assert_eq!(hit, Hit::Interpolated);
    }

    #[test]
    fn beyond_the_measured_sizes_the_nearest_factor_is_held() {
        assert_eq!(curve().ln_at(1e6_f64.ln()), (0.0, Hit::Extrapolated));
        assert_eq!(curve().ln_at(0.5_f64.ln()), (4.0_f64.ln(), Hit::Extrapolated));
    }

    #[test]
    fn a_surface_is_exact_only_where_both_sizes_were_measured() {
        let one = Curve::new([(10.0, 2.0, 1.0), (1000.0, 2.0, 1.0)]).unwrap();
        let four = Curve::new([(10.0, 8.0, 1.0), (1000.0, 8.0, 1.0)]).unwrap();
        let surface = Surface::new([(1.0, one), (4.0, four)]).unwrap();
        assert_eq!(surface.ln_at(4.0, 10.0), (8.0_f64.ln(), Hit::Exact));
        let (ln, hit) = surface.ln_at(2.0, 10.0);
        assert!((ln.exp() - 4.0).abs() < 1e-9);
        assert_eq!(hit, Hit::Interpolated);
        assert_eq!(surface.ln_at(64.0, 10.0), (8.0_f64.ln(), Hit::Extrapolated));
        assert_eq!(surface.ln_at(0.25, 10.0), (2.0_f64.ln(), Hit::Exact));
        assert_eq!(surface.ln_at(1.0, 1e5), (2.0_f64.ln(), Hit::Extrapolated));
    }
}
