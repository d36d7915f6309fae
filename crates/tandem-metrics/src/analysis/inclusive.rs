//! Latency percentiles in which a failed request counts as infinitely slow.
//!
//! Percentiles of the requests that ended well flatter a server that drops the slow ones. Here the sample is the kept
//! requests' values and one infinity for each measured request that is not kept. Linear interpolation as everywhere;
//! a percentile that touches an infinity is infinite, which JSON writes as null.

use serde_json::{Map, Value, json};

use crate::metrics::{Kind, Metric, Sample, effective_latency, request_latency, tpot, ttft};
use crate::stats::percentile;

/// The percentiles that are given.
const PERCENTILES: [(&str, f64); 5] = [("p50", 50.0), ("p90", 90.0), ("p95", 95.0), ("p99", 99.0), ("p99.9", 99.9)];

/// Where a failure must not look like a fast request.
static METRICS: [&Metric; 4] = [&ttft::METRIC, &tpot::METRIC, &request_latency::METRIC, &effective_latency::METRIC];

/// The percentiles of one metric, in its shown unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Inclusive {
    /// The metric.
    pub metric: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Requests that count as infinite.
    pub n_failed: usize,
    /// All requests of the sample.
    pub n: usize,
    /// Name and value; none is infinite.
    pub percentiles: [(&'static str, Option<f64>); 5],
}

/// Those of every latency metric; a metric without any value has none.
#[must_use]
pub fn failure_inclusive(sample: &Sample<'_>) -> Vec<Inclusive> {
    let n_failed = sample.profiling.len() - sample.kept.len();
    let applies = |metric: &&&'static Metric| sample.load.streaming || !metric.streaming_only;
    let of = |metric: &&'static Metric| {
        let Kind::Record(value) = metric.kind else { return None };
        let mut values: Vec<f64> = sample.kept.iter().filter_map(|record| value(record)).collect();
        if values.is_empty() {
            return None;
        }
        values.sort_unstable_by(f64::total_cmp);
        let n = values.len() + n_failed;
        let at = |p: f64| {
            let highest = (p / 100.0 * (n - 1) as f64).ceil();
            let is_finite = highest < values.len() as f64;
            is_finite.then(|| percentile(n, p, |i| values[i.min(values.len() - 1)]) * metric.unit.scale())
        };
        let percentiles = PERCENTILES.map(|(name, p)| (name, at(p)));
        Some(Inclusive { metric: metric.name, unit: metric.unit.as_str(), n_failed, n, percentiles })
    };
    METRICS.iter().filter(applies).filter_map(of).collect()
}

pub(super) fn to_json(all: &[Inclusive]) -> Value {
    let entry = |one: &Inclusive| {
        let mut entry = Map::from_iter([("unit".to_owned(), json!(one.unit))]);
        entry.extend(one.percentiles.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
        entry.extend([("n_failed".to_owned(), json!(one.n_failed)), ("n".to_owned(), json!(one.n))]);
        (one.metric.to_owned(), Value::Object(entry))
    };
    Value::Object(all.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{load, request};
    use super::*;
    use crate::record::{FailureKind, Outcome};

    #[test]
    fn failures_push_percentiles_up_and_then_to_infinity() {
        let mut records: Vec<_> = (0..100).map(|i| request(i, i * 100, 10 + i)).collect();
        records.iter_mut().take(4).for_each(|record| record.outcome = Outcome::failed(FailureKind::Timeout, "late"));
        let load = load(1, 100);
        let all = failure_inclusive(&Sample::new(&records, &load));
        let ttft = all.iter().find(|one| one.metric == "ttft").unwrap();
        // Kept are 14 to 109 ms; of 100 values the median is between the 50th and 51st: 63 and 64 ms.
        assert_eq!(ttft.percentiles.map(|(_, value)| value), [Some(63.5), Some(103.10000000000001), Some(108.05), None, None]);
        assert_eq!((ttft.n_failed, ttft.n), (4, 100));
        assert_eq!(to_json(&all)["ttft"]["p99"], Value::Null);
    }

    #[test]
    fn without_failures_they_are_the_ordinary_ones() {
        let records: Vec<_> = (0..7).map(|i| request(i, i * 100, 10 + i * i)).collect();
        let load = load(1, 7);
        let sample = Sample::new(&records, &load);
        let stats = crate::summary::Summary::of_sample(&sample).stats(&ttft::METRIC).unwrap();
        let found = failure_inclusive(&sample)[0].percentiles.map(|(_, value)| value.unwrap());
        let p = |p| stats.percentile(p).unwrap();
        assert!(found.iter().zip([p(50), p(90), p(95), p(99), stats.p999]).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
    }
}
