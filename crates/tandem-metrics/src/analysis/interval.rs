//! 95 % confidence intervals within one run, by a circular block bootstrap.
//!
//! Requests are drawn in order of start (`resample`). Throughput of a closed loop is concurrency times tokens over request
//! time, so its interval is that of the ratio of sums, scaled to the figure.
//! What no interval within a run can know is how much another run would differ; see `repeats`.

use serde_json::{Map, Value, json};

use super::resample::{Blocks, MIN_REQUESTS, MIN_REQUESTS_FOR_P99, block_length, interval_95, quantile};
use crate::metrics::{Kind, Metric, Sample, output_throughput, request_latency, tpot, ttft};
use crate::record::RequestRecord;

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
    let Some(block) = block_length(kept.len(), sample.load.concurrency) else { return Vec::new() };
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
    let mut blocks = Blocks::new(values.len(), block, 0);
    let mut drawn = Vec::with_capacity(values.len());
    let mut found: Vec<f64> = (0..n_resamples(values.len()))
        .map(|_| {
            blocks.draw(values, &mut drawn);
            of(&mut drawn)
        })
        .collect();
    let (low, high) = interval_95(&mut found);
    Some(Interval { metric: metric.name, stat, low, high, block })
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
    let mut blocks = Blocks::new(pairs.len(), block, 0);
    let mut found: Vec<f64> = (0..n_resamples(pairs.len()))
        .filter_map(|_| {
            let (mut tokens, mut time) = (0.0, 0.0);
            blocks.resample(|start, length| {
                for (n, took) in (start..start + length).map(|i| pairs[i % pairs.len()]) {
                    tokens += n;
                    time += took;
                }
            });
            Some(figure * ratio(tokens, time)? / whole)
        })
        .collect();
    let (low, high) = interval_95(&mut found);
    Some(Interval { metric: output_throughput::METRIC.name, stat: "avg", low, high, block })
}

fn n_resamples(n: usize) -> usize {
    (BUDGET / n.max(1)).clamp(100, 1_000)
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
    use super::super::resample::SplitMix;
    use super::super::tests::{load, request};
    use super::*;

    /// Independent TTFTs with a known spread: uniform on 50..=149 ms, standard deviation 28.87 ms.
    fn sample_of(n: u64, seed: u64) -> Vec<RequestRecord> {
        let mut random = SplitMix(seed);
        (0..n).map(|i| request(i, i * 200, 50 + random.below(100) as u64)).collect()
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
