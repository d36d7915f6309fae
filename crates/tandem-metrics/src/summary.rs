//! Every metric of one load point, and whether its figures can be trusted.
//!
//! A [`Summary`] is what the terminal shows, what `result.json` carries under `summary` (each metric by its
//! name and unit), and what all artifact writers read. It is computed once, from records alone.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::metrics::{self, Kind, Load, Metric, Sample};
use crate::record::RequestRecord;
use crate::stats::{PERCENTILES, Stats};
use crate::validity::Validity;

/// The figures of one load point.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// What was asked.
    pub load: Load,
    /// How the measured requests ended: number by outcome name.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Whether the figures can be trusted; say this first.
    pub validity: Validity,
    figures: Vec<(&'static str, Figure)>,
}

/// The value of a metric, in its shown unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Figure {
    /// Of a metric with values per request.
    Stats(Stats),
    /// Of a metric of the whole load point.
    Number(f64),
}

impl Summary {
    /// Computes every metric that applies, without telemetry.
    #[must_use]
    pub fn of(records: &[RequestRecord], load: &Load) -> Summary {
        Summary::of_sample(&Sample::new(records, load))
    }

    /// Computes every metric that applies.
    #[must_use]
    pub fn of_sample(sample: &Sample<'_>) -> Summary {
        let load = sample.load;
        let applies = |metric: &&&'static Metric| load.streaming || !metric.streaming_only;
        let figures =
            metrics::ALL.iter().filter(applies).filter_map(|metric| figure(metric, sample).map(|figure| (metric.name, figure))).collect();
        let mut outcomes = BTreeMap::new();
        for record in &sample.profiling {
            *outcomes.entry(record.outcome.as_str()).or_default() += 1;
        }
        Summary { load: load.clone(), outcomes, validity: Validity::of(sample), figures }
    }

    /// Replaces the value of a metric of the whole load point, if it has one.
    pub(crate) fn set_number(&mut self, metric: &Metric, number: f64) {
        if let Some((_, figure)) = self.figures.iter_mut().find(|(name, _)| *name == metric.name) {
            *figure = Figure::Number(number);
        }
    }

    /// The value of a metric, if it has one here.
    #[must_use]
    pub fn figure(&self, metric: &Metric) -> Option<Figure> {
        self.figures.iter().find(|(name, _)| *name == metric.name).map(|&(_, figure)| figure)
    }

    /// The statistics of a metric with values per request.
    #[must_use]
    pub fn stats(&self, metric: &Metric) -> Option<Stats> {
        match self.figure(metric)? {
            Figure::Stats(stats) => Some(stats),
            Figure::Number(_) => None,
        }
    }

    /// The value of a metric, or its mean over requests.
    #[must_use]
    pub fn avg(&self, metric: &Metric) -> Option<f64> {
        self.figure(metric).map(Figure::avg)
    }

    /// All metrics that have a value, in the order of [`metrics::ALL`].
    pub fn figures(&self) -> impl Iterator<Item = (&'static Metric, Figure)> + '_ {
        metrics::ALL.into_iter().filter_map(|metric| self.figure(metric).map(|figure| (metric, figure)))
    }

    /// `{name: {unit, avg, …}}`: a metric of the whole load point has `unit` and `avg` alone, the others their statistics too.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let entries = self.figures().map(|(metric, figure)| (metric.name.to_owned(), figure_json(metric, figure)));
        Value::Object(entries.collect())
    }
}

impl Figure {
    /// The number, or the mean.
    #[must_use]
    pub const fn avg(self) -> f64 {
        match self {
            Figure::Stats(stats) => stats.avg,
            Figure::Number(number) => number,
        }
    }
}

pub(crate) fn figure(metric: &Metric, sample: &Sample<'_>) -> Option<Figure> {
    let scale = metric.unit.scale();
    match metric.kind {
        Kind::Record(value) => {
            let values: Vec<f64> = sample.kept.iter().filter_map(|record| value(record)).collect();
            Stats::of(&values).map(|stats| Figure::Stats(stats.scaled(scale)))
        }
        Kind::Pooled(append) => {
            // Most have a value for each gap between chunks; growing step by step would take twice the memory.
            let n_chunks = sample.kept.iter().map(|record| record.chunks.len()).sum();
            let mut values = Vec::with_capacity(n_chunks);
            sample.kept.iter().for_each(|record| append(record, &mut values));
            Stats::of_weighted(values).map(|stats| Figure::Stats(stats.scaled(scale)))
        }
        Kind::Aggregate(value) | Kind::Derived(value) => value(sample).map(|number| Figure::Number(number * scale)),
    }
}

pub(crate) fn figure_json(metric: &Metric, figure: Figure) -> Value {
    let mut entry = Map::new();
    entry.insert("unit".to_owned(), metric.unit.as_str().into());
    match figure {
        Figure::Number(number) => {
            entry.insert("avg".to_owned(), json!(number));
        }
        Figure::Stats(stats) => {
            entry.insert("avg".to_owned(), json!(stats.avg));
            for (p, value) in PERCENTILES.into_iter().zip(stats.percentiles) {
                entry.insert(format!("p{p}"), json!(value));
            }
            for (name, value) in [("p99.9", stats.p999), ("min", stats.min), ("max", stats.max), ("std", stats.std)] {
                entry.insert(name.to_owned(), json!(value));
            }
            entry.insert("count".to_owned(), json!(stats.count));
        }
    }
    Value::Object(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{osl, output_throughput, request_count, tpot, ttft};
    use crate::record::{Chunk, FailureKind, LoadPhase, Outcome};

    fn load(streaming: bool) -> Load {
        Load { streaming, concurrency: Some(1), request_rate: None, n_requests: 2, isl: Some(3), osl: Some(3), n_gpus: 2, slos: Vec::new() }
    }

    fn record(index: u64, start_ns: u64) -> RequestRecord {
        let mut record = RequestRecord::issued(index, "r", 0, LoadPhase::Profiling, start_ns);
        record.chunks = [10, 20, 30].map(|ms| Chunk::content(start_ns + ms * 1_000_000)).into_iter().collect();
        record.end_ns = start_ns + 30_000_000;
        record.isl.client = Some(3);
        record.osl.server = Some(3);
        record
    }

    #[test]
    fn only_kept_requests_of_the_profiling_phase_count() {
        let mut failed = record(1, 40_000_000);
        failed.outcome = Outcome::failed(FailureKind::Timeout, "no answer");
        let mut warmup = record(2, 0);
        warmup.phase = LoadPhase::Warmup;
        let summary = Summary::of(&[record(0, 1_000_000), failed, warmup], &load(true));
        assert_eq!(summary.avg(&request_count::METRIC), Some(1.0));
        assert_eq!(summary.stats(&ttft::METRIC).unwrap().max, 10.0);
        assert_eq!(summary.avg(&output_throughput::METRIC), Some(3.0 / 0.030));
        assert_eq!(summary.outcomes, BTreeMap::from([("ok", 1), ("timeout", 1)]));
    }

    #[test]
    fn metrics_of_a_stream_are_absent_when_the_response_comes_at_once() {
        let mut whole = record(0, 0);
        whole.chunks = [Chunk::content(30_000_000)].into_iter().collect();
        let summary = Summary::of(&[whole], &load(false));
        assert_eq!((summary.figure(&ttft::METRIC), summary.figure(&tpot::METRIC)), (None, None));
        assert_eq!(summary.avg(&osl::METRIC), Some(3.0));
    }

    #[test]
    fn a_run_without_any_record_has_a_summary() {
        let summary = Summary::of(&[], &load(true));
        assert_eq!(summary.avg(&request_count::METRIC), Some(0.0));
        assert_eq!(summary.figure(&ttft::METRIC), None);
        assert!(summary.to_json()["request_count"]["unit"] == "requests");
    }
}
