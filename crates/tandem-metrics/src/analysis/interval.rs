//! 95 % confidence intervals within one run, by a circular block bootstrap.
//!
//! Requests that run together share their fate, so blocks of successive requests (in order of start) are drawn, each as
//! long as the concurrency (Politis & Romano 1992). Throughput of a closed loop is concurrency times tokens over request
//! time, so its interval is that of the ratio of sums, scaled to the figure. Seeded: equal records give equal intervals.
//! What no interval within a run can know is how much another run would differ; see `repeats`.

use serde_json::{Map, Value, json};

use crate::metrics::{Kind, Metric, Sample, output_throughput, request_latency, tpot, ttft};
use crate::record::RequestRecord;

/// Fewer requests or blocks than this say nothing about spread.
const MIN_REQUESTS: usize = 8;
const MIN_BLOCKS: usize = 4;
/// The 99th percentile of fewer requests is their maximum, which resampling cannot exceed.
const MIN_REQUESTS_FOR_P99: usize = 100;
/// Half of what lies outside.
const TAIL: f64 = 0.025;
/// Values drawn for one statistic at most.
const BUDGET: usize = 2_000_000;

/// The interval of one statistic, in the metric's shown unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Interval {
    /// The metric.
    pub metric: &'static str,
    /// `avg`, `p50` or `p99`.
    pub stat: &'static str,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Requests per block.
    pub block: usize,
}

/// Intervals of TTFT, TPOT and latency (mean, median, p99) and of the output throughput; none where there are too few requests.
#[must_use]
pub fn intervals(sample: &Sample<'_>) -> Vec<Interval> {
    let mut kept: Vec<&RequestRecord> = sample.kept.clone();
    kept.sort_by_key(|record| (record.start_ns, record.index));
    let together = sample.load.concurrency.map_or(1, |n| n as usize);
    let block = together.min(kept.len() / MIN_BLOCKS).max(1);
    if kept.len() < MIN_REQUESTS {
        return Vec::new();
    }
    let mut found = Vec::new();
    for metric in [&ttft::METRIC, &tpot::METRIC, &request_latency::METRIC] {
        let (Kind::Record(value), true) = (metric.kind, sample.load.streaming || !metric.streaming_only) else { continue };
        let values: Vec<f64> = kept.iter().filter_map(|record| value(record)).map(|raw| raw * metric.unit.scale()).collect();
        if values.len() < MIN_REQUESTS {
            continue;
        }
        let quantile = |q: f64| move |drawn: &mut [f64]| quantile(drawn, q);
        found.extend(of_values(metric, "avg", &values, block, |drawn| drawn.iter().sum::<f64>() / drawn.len() as f64));
        found.extend(of_values(metric, "p50", &values, block, quantile(0.5)));
        if values.len() >= MIN_REQUESTS_FOR_P99 {
            found.extend(of_values(metric, "p99", &values, block, quantile(0.99)));
        }
    }
    found.extend(throughput(sample, &kept, block));
    found
}

fn of_values(metric: &Metric, stat: &'static str, values: &[f64], block: usize, of: impl Fn(&mut [f64]) -> f64) -> Option<Interval> {
    let mut draw = Blocks::new(values.len(), block);
    let mut drawn = Vec::with_capacity(values.len());
    let mut found: Vec<f64> = (0..n_resamples(values.len()))
        .map(|_| {
            drawn.clear();
            draw.resample(|i| drawn.push(values[i]));
            of(&mut drawn)
        })
        .collect();
    Some(Interval { metric: metric.name, stat, low: quantile(&mut found, TAIL), high: quantile(&mut found, 1.0 - TAIL), block })
}

/// Only in a closed loop: in an open one arrivals decide about throughput.
fn throughput(sample: &Sample<'_>, kept: &[&RequestRecord], block: usize) -> Option<Interval> {
    sample.load.concurrency?;
    let figure = output_throughput::of(sample)?;
    let pairs: Vec<(f64, f64)> = kept
        .iter()
        .map(|record| Some((f64::from(record.osl_tokens()?), record.end_ns.saturating_sub(record.start_ns) as f64)))
        .collect::<Option<_>>()?;
    let ratio = |tokens: f64, time: f64| (time > 0.0 && tokens > 0.0).then(|| tokens / time);
    let whole = ratio(pairs.iter().map(|p| p.0).sum(), pairs.iter().map(|p| p.1).sum())?;
    let mut draw = Blocks::new(pairs.len(), block);
    let mut found: Vec<f64> = (0..n_resamples(pairs.len()))
        .filter_map(|_| {
            let (mut tokens, mut time) = (0.0, 0.0);
            draw.resample(|i| {
                tokens += pairs[i].0;
                time += pairs[i].1;
            });
            Some(figure * ratio(tokens, time)? / whole)
        })
        .collect();
    let (low, high) = (quantile(&mut found, TAIL), quantile(&mut found, 1.0 - TAIL));
    Some(Interval { metric: output_throughput::METRIC.name, stat: "avg", low, high, block })
}

fn n_resamples(n: usize) -> usize {
    (BUDGET / n.max(1)).clamp(100, 1_000)
}

/// The `q`th quantile by numpy's linear rule; reorders the values. NaN of none.
fn quantile(values: &mut [f64], q: f64) -> f64 {
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

/// Draws blocks of successive indices of a circle.
struct Blocks {
    n: usize,
    block: usize,
    state: u64,
}

impl Blocks {
    fn new(n: usize, block: usize) -> Self {
        Blocks { n, block, state: 0x7461_6e64_656d }
    }

    /// Calls `take` with `n` indices.
    fn resample(&mut self, mut take: impl FnMut(usize)) {
        let mut left = self.n;
        while left > 0 {
            let start = self.below();
            let length = left.min(self.block);
            (0..length).for_each(|i| take((start + i) % self.n));
            left -= length;
        }
    }

    /// A random index (SplitMix64, and a multiplication instead of a remainder).
    fn below(&mut self) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let scaled = (u128::from(z ^ (z >> 31)) * self.n as u128) >> 64;
        usize::try_from(scaled).unwrap_or(0)
    }
}

pub(super) fn to_json(all: &[Interval]) -> Value {
    let mut root = Map::new();
    for one in all {
        let metric =
            root.entry(one.metric).or_insert_with(|| json!({"level_percent": 95, "method": "block_bootstrap", "block": one.block}));
        metric[one.stat] = json!([one.low, one.high]);
    }
    Value::Object(root)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{load, request};
    use super::*;

    /// Independent TTFTs with a known spread: uniform on 50..=149 ms, standard deviation 28.87 ms.
    fn sample_of(n: u64, seed: u64) -> Vec<RequestRecord> {
        let mut draw = Blocks { n: 100, block: 1, state: seed };
        (0..n).map(|i| request(i, i * 200, 50 + draw.below() as u64)).collect()
    }

    #[test]
    fn intervals_are_as_wide_as_theory_says_and_cover_the_truth_about_as_often() {
        let load = load(1, 400);
        let (mut covered, mut width) = (0, 0.0);
        for seed in 0..60 {
            let records = sample_of(400, seed);
            let all = intervals(&Sample::new(&records, &load));
            let mean = all.iter().find(|one| one.metric == "ttft" && one.stat == "avg").unwrap();
            covered += u32::from((mean.low..=mean.high).contains(&99.5));
            width += (mean.high - mean.low) / 60.0;
        }
        let theory = 2.0 * 1.96 * 28.87 / 20.0;
        assert!((width / theory - 1.0).abs() < 0.1, "{width} against {theory}");
        assert!(covered >= 50, "{covered} of 60 intervals cover the mean");
    }

    #[test]
    fn blocks_widen_the_interval_of_requests_that_share_their_fate() {
        // Pairs of blocks: eight requests fast, eight slow, and so on.
        let records: Vec<_> = (0..160).map(|i| request(i, i * 200, if i / 8 % 2 == 0 { 50 } else { 150 })).collect();
        let width = |concurrency: u32| {
            let load = load(concurrency, 160);
            let all = intervals(&Sample::new(&records, &load));
            let mean = all.iter().find(|one| one.metric == "ttft" && one.stat == "avg").unwrap();
            mean.high - mean.low
        };
        assert!(width(8) > 1.5 * width(1), "{} {}", width(8), width(1));
    }

    #[test]
    fn few_requests_have_none_and_equal_records_equal_ones() {
        let load = load(1, 300);
        let records = sample_of(300, 1);
        assert_eq!(intervals(&Sample::new(&records[..7], &load)), []);
        let all = intervals(&Sample::new(&records, &load));
        assert_eq!(all, intervals(&Sample::new(&records, &load)));
        assert!(all.iter().any(|one| one.metric == "output_throughput") && all.iter().any(|one| one.stat == "p99"));
        assert!(all.iter().all(|one| one.low <= one.high));
    }
}
