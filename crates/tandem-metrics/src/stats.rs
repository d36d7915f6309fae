//! Statistics of a sample, equal to numpy's to the last bit where artifacts demand it.
//!
//! Percentiles interpolate linearly (numpy's default), the standard deviation is the population's, sums are
//! pairwise as numpy's are. An empty sample has no statistics ([`None`]); no statistic is ever NaN or
//! infinite as long as no value is.

/// The percentiles of GenAI-Perf's files, in ascending order.
pub const PERCENTILES: [u32; 9] = [1, 5, 10, 25, 50, 75, 90, 95, 99];

/// Statistics of one sample, in the unit of its values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stats {
    /// Values in the sample.
    pub count: u64,
    /// Arithmetic mean.
    pub avg: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Population standard deviation.
    pub std: f64,
    /// The [`PERCENTILES`].
    pub percentiles: [f64; 9],
    /// The 99.9th percentile.
    pub p999: f64,
}

impl Stats {
    /// Statistics of `values`; none if there are none.
    ///
    /// The order of `values` matters in the last bits of `avg` and `std` only.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Stats> {
        debug_assert!(values.iter().all(|v| v.is_finite()), "metrics yield finite values only");
        if values.is_empty() {
            return None;
        }
        let n = values.len() as f64;
        let avg = pairwise_sum(values) / n;
        let std = (pairwise_sum_of(values, &|v| (v - avg) * (v - avg)) / n).sqrt();
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |i: usize| sorted[i];
        Some(Stats {
            count: values.len() as u64,
            avg,
            min: sorted[0],
            max: sorted[sorted.len() - 1],
            std,
            percentiles: PERCENTILES.map(|p| percentile(sorted.len(), f64::from(p), at)),
            p999: percentile(sorted.len(), 99.9, at),
        })
    }

    /// Statistics of a sample in which each value occurs as often as its weight says, without writing it out.
    #[must_use]
    pub fn of_weighted(mut values: Vec<(f64, u64)>) -> Option<Stats> {
        debug_assert!(values.iter().all(|(v, _)| v.is_finite()), "metrics yield finite values only");
        values.retain(|&(_, weight)| weight > 0);
        if values.is_empty() {
            return None;
        }
        values.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let count = values.iter().map(|(_, weight)| weight).sum::<u64>();
        let n = count as f64;
        let avg = pairwise_sum_of(&values, &|&(v, w)| v * w as f64) / n;
        let std = (pairwise_sum_of(&values, &|&(v, w)| (v - avg) * (v - avg) * w as f64) / n).sqrt();
        // A run has millions of values: where each one's repetitions end takes the place of its weight.
        values.iter_mut().fold(0, |end, (_, weight)| {
            *weight += end;
            *weight
        });
        let len = usize::try_from(count).expect("a sample has fewer values than the address space has bytes");
        let at = |i: usize| values[values.partition_point(|&(_, end)| end <= i as u64)].0;
        Some(Stats {
            count,
            avg,
            min: values[0].0,
            max: values[values.len() - 1].0,
            std,
            percentiles: PERCENTILES.map(|p| percentile(len, f64::from(p), at)),
            p999: percentile(len, 99.9, at),
        })
    }

    /// All statistics multiplied by `factor`, for another unit.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Stats {
        Stats {
            count: self.count,
            avg: self.avg * factor,
            min: self.min * factor,
            max: self.max * factor,
            std: self.std * factor,
            percentiles: self.percentiles.map(|v| v * factor),
            p999: self.p999 * factor,
        }
    }

    /// One of the [`PERCENTILES`].
    #[must_use]
    pub fn percentile(&self, p: u32) -> Option<f64> {
        PERCENTILES.iter().position(|&q| q == p).map(|i| self.percentiles[i])
    }

    /// A statistic by its name in files: `avg`, `min`, `max`, `std`, `p1` … `p99`, `p99.9`.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<f64> {
        match name {
            "avg" => Some(self.avg),
            "min" => Some(self.min),
            "max" => Some(self.max),
            "std" => Some(self.std),
            "p99.9" => Some(self.p999),
            _ => self.percentile(name.strip_prefix('p')?.parse().ok()?),
        }
    }
}

/// The `p`th percentile of `len` ascending values that `at` yields.
///
/// numpy interpolates from the nearer end, which differs from the textbook formula in the last bit.
pub(crate) fn percentile(len: usize, p: f64, at: impl Fn(usize) -> f64) -> f64 {
    let position = (p / 100.0) * (len - 1) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= position <= len - 1")]
    let lo = position.floor() as usize;
    let (a, b) = (at(lo), at((lo + 1).min(len - 1)));
    let t = position - position.floor();
    if t >= 0.5 { b - (b - a) * (1.0 - t) } else { a + (b - a) * t }
}

/// Sum with numpy's order of additions: blocks of 128 in eight lanes, halves above that.
pub(crate) fn pairwise_sum(values: &[f64]) -> f64 {
    pairwise_sum_of(values, &|v| *v)
}

/// [`pairwise_sum`] of a term of each value.
fn pairwise_sum_of<T>(values: &[T], term: &impl Fn(&T) -> f64) -> f64 {
    const BLOCK: usize = 128;
    if values.len() < 8 {
        return values.iter().fold(0.0, |sum, v| sum + term(v));
    }
    if values.len() > BLOCK {
        let half = values.len() / 2;
        let (a, b) = values.split_at(half - half % 8);
        return pairwise_sum_of(a, term) + pairwise_sum_of(b, term);
    }
    let (first, rest) = values.split_at(8);
    let mut lanes = [0.0; 8];
    lanes.iter_mut().zip(first).for_each(|(lane, v)| *lane = term(v));
    let mut rows = rest.chunks_exact(8);
    for row in &mut rows {
        lanes.iter_mut().zip(row).for_each(|(lane, v)| *lane += term(v));
    }
    let sum = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
    rows.remainder().iter().fold(sum, |sum, v| sum + term(v))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_sample_has_no_statistics() {
        assert_eq!(Stats::of(&[]), None);
        assert_eq!(Stats::of_weighted(vec![]), None);
        assert_eq!(Stats::of_weighted(vec![(3.0, 0)]), None);
    }

    #[test]
    fn one_value_is_every_statistic() {
        let stats = Stats::of(&[7.25]).unwrap();
        assert_eq!((stats.avg, stats.min, stats.max, stats.std, stats.p999), (7.25, 7.25, 7.25, 0.0, 7.25));
        assert!(stats.percentiles.iter().all(|&p| p == 7.25));
    }

    #[test]
    fn percentiles_interpolate_between_neighbours() {
        let values: Vec<f64> = (0..101).map(f64::from).collect();
        let stats = Stats::of(&values).unwrap();
        assert_eq!(stats.percentiles, PERCENTILES.map(f64::from));
        assert_eq!(Stats::of(&[10.0, 20.0]).unwrap().percentile(25), Some(12.5));
    }

    #[test]
    fn statistics_are_found_by_name() {
        let stats = Stats::of(&[1.0, 2.0, 4.0]).unwrap();
        assert_eq!(stats.by_name("p50"), Some(2.0));
        assert_eq!(stats.by_name("max"), Some(4.0));
        assert_eq!(stats.by_name("p42"), None);
        assert_eq!(stats.by_name("sum"), None);
    }
}
