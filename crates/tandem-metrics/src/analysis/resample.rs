//! Drawing requests again: a circular block bootstrap (Politis & Romano 1992), for intervals within a run and between runs.
//!
//! Requests that run together share their fate, so blocks of successive requests are drawn, each as long as the concurrency.
//! Seeded: equal records give equal intervals.

/// Fewer requests, or fewer blocks, say nothing about spread.
pub const MIN_REQUESTS: usize = 8;
const MIN_BLOCKS: usize = 4;
/// The 99th percentile of fewer requests is their maximum, which resampling cannot exceed.
pub const MIN_REQUESTS_FOR_P99: usize = 100;
/// Half of what lies outside a 95 % interval.
const TAIL: f64 = 0.025;
const SEED: u64 = 0x7461_6e64_656d;

/// Requests of a block: as many as run together, but at least four blocks; none when there are too few requests.
#[must_use]
pub fn block_length(n_requests: usize, concurrency: Option<u32>) -> Option<usize> {
    let together = concurrency.map_or(1, |n| n as usize).max(1);
    (n_requests >= MIN_REQUESTS).then(|| together.min(n_requests / MIN_BLOCKS))
}

/// Ends of the 95 % interval of resampled values; reorders them. NaN of none.
#[must_use]
pub fn interval_95(values: &mut [f64]) -> (f64, f64) {
    (quantile(values, TAIL), quantile(values, 1.0 - TAIL))
}

/// The `q`th quantile by numpy's linear rule; reorders the values. NaN of none.
#[must_use]
pub fn quantile(values: &mut [f64], q: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let position = q * (values.len() - 1) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= position <= len - 1")]
    let lo = position.floor() as usize;
    let (_, low, above) = values.select_nth_unstable_by(lo, f64::total_cmp);
    let low = *low;
    let next = above.iter().copied().min_by(f64::total_cmp).unwrap_or(low);
    low + (next - low) * (position - position.floor())
}

/// Draws blocks of successive indices of a circle of `n`.
#[derive(Debug)]
pub struct Blocks {
    n: usize,
    block: usize,
    random: SplitMix,
}

impl Blocks {
    /// Blocks of `block` among `n`; another `stream` draws others.
    #[must_use]
    pub fn new(n: usize, block: usize, stream: u64) -> Self {
        Blocks { n, block: block.max(1), random: SplitMix(SEED ^ stream) }
    }

    /// One resample: calls `take` with start and length of blocks that are `n` long together. An index beyond `n` begins anew.
    pub fn resample(&mut self, mut take: impl FnMut(usize, usize)) {
        let mut left = self.n;
        while left > 0 {
            let length = left.min(self.block);
            take(self.random.below(self.n), length);
            left -= length;
        }
    }

    /// One resample of `values` (of which there are `n`), in place of what `drawn` holds.
    pub fn draw(&mut self, values: &[f64], drawn: &mut Vec<f64>) {
        drawn.clear();
        self.resample(|start, length| {
            let until_end = length.min(values.len() - start);
            drawn.extend_from_slice(&values[start..start + until_end]);
            drawn.extend_from_slice(&values[..length - until_end]);
        });
    }
}

/// SplitMix64 (Steele, Lea & Flood 2014).
#[derive(Debug)]
pub struct SplitMix(pub u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        let wide = u128::from(self.next()) * n as u128;
        usize::try_from(wide >> 64).expect("the product's upper half is below n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resample_is_as_long_as_the_sample_and_made_of_its_blocks() {
        let values: Vec<f64> = (0..10).map(f64::from).collect();
        let (mut blocks, mut drawn) = (Blocks::new(10, 4, 0), Vec::new());
        for _ in 0..50 {
            blocks.draw(&values, &mut drawn);
            assert_eq!(drawn.len(), 10);
            for block in drawn.chunks(4) {
                assert!(block.windows(2).all(|pair| pair[1] == (pair[0] + 1.0) % 10.0), "{drawn:?}");
            }
        }
    }

    #[test]
    fn quantiles_are_numpys() {
        assert_eq!(quantile(&mut [4.0, 1.0, 3.0, 2.0], 0.5), 2.5);
        assert_eq!(interval_95(&mut (0..=1000).map(f64::from).collect::<Vec<_>>()), (25.0, 975.0));
        assert!(quantile(&mut [], 0.5).is_nan());
        assert_eq!([block_length(7, None), block_length(8, Some(100)), block_length(80, Some(4))], [None, Some(2), Some(4)]);
    }
}
