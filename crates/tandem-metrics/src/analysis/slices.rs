//! Time slices: the measured phase in spans of a length that the user chooses.
//!
//! Slice `i` covers `[first start + i * length, first start + (i + 1) * length)`, up to the last end of a measured request; the last
//! one may be shorter than it says. Tokens and requests in flight count where they were, of every request, warm-up
//! included. TTFT is of requests whose first output arrived in the slice, the other latencies of requests that ended in it.

use serde_json::{Map, Value, json};

use super::bins::Bins;
use super::first_start;
use crate::artifacts::foreign;
use crate::metrics::{Kind, Metric, Sample, request_latency, tpot, ttft};
use crate::record::{RequestRecord, RunClock};
use crate::stats::Stats;

/// More slices than this are no help to anybody; longer ones are used instead.
pub const MAX_SLICES: usize = 10_000;

/// One slice.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    /// Begin, s after the first measured start.
    pub from_s: f64,
    /// Length, s.
    pub length_s: f64,
    /// Measured requests that started in it.
    pub n_started: usize,
    /// Measured requests that ended well in it.
    pub n_ok: usize,
    /// Measured requests that failed in it.
    pub n_failed: usize,
    /// Time-weighted mean of requests in flight.
    pub mean_in_flight: f64,
    /// Output tokens a second.
    pub output_throughput: f64,
    /// Statistics of TTFT, TPOT and request latency, ms.
    pub latencies: Vec<(&'static Metric, Stats)>,
}

impl Slice {
    pub(super) fn to_json(&self) -> Value {
        let mut entry = Map::new();
        let numbers = [("from_s", self.from_s), ("length_s", self.length_s), ("mean_in_flight", self.mean_in_flight)];
        entry.extend(numbers.map(|(name, value)| (name.to_owned(), json!(value))));
        let counts = [("n_started", self.n_started), ("n_ok", self.n_ok), ("n_failed", self.n_failed)];
        entry.extend(counts.map(|(name, value)| (name.to_owned(), json!(value))));
        entry.insert("output_throughput".to_owned(), json!(self.output_throughput));
        for (metric, stats) in &self.latencies {
            let figures =
                json!({"avg": stats.avg, "p50": stats.percentile(50), "p99": stats.percentile(99), "max": stats.max, "count": stats.count});
            entry.insert(metric.name.to_owned(), figures);
        }
        Value::Object(entry)
    }
}

/// Which moment of a request decides about its slice.
type When = fn(&RequestRecord) -> Option<u64>;

/// Cuts the measured phase into slices of `length_s` seconds, or longer ones where there would be more than [`MAX_SLICES`].
#[must_use]
pub fn slices(sample: &Sample<'_>, length_s: f64) -> Vec<Slice> {
    let Some(origin) = first_start(sample) else { return Vec::new() };
    let end = sample.profiling.iter().map(|record| record.end_ns).max().unwrap_or(origin).max(origin + 1);
    let span_s = (end - origin) as f64 / 1e9;
    let length_s = if length_s.is_finite() && length_s > 0.0 { length_s.max(span_s / MAX_SLICES as f64).max(1e-6) } else { span_s };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and at most the span, which is of u64")]
    let width = ((length_s * 1e9).ceil() as u64).min(end - origin).max(1);
    let n = usize::try_from((end - origin).div_ceil(width)).unwrap_or(MAX_SLICES);
    let bins = Bins::of(sample.profiling.iter().chain(&sample.warmup).copied(), origin, width, n);
    let index = |at_ns: u64| at_ns.checked_sub(origin).and_then(|offset| usize::try_from(offset / width).ok()).map(|i| i.min(n - 1));
    let mut counts = vec![[0usize; 3]; n];
    for record in &sample.profiling {
        let ended = if record.is_kept() { 1 } else { 2 };
        for (at_ns, which) in [(record.start_ns, 0), (record.end_ns, ended)] {
            if let Some(i) = index(at_ns) {
                counts[i][which] += 1;
            }
        }
    }
    let mut latencies: Vec<Vec<(&'static Metric, Stats)>> = vec![Vec::new(); n];
    let first_chunk = |record: &RequestRecord| record.chunks.first().map(|chunk| chunk.at_ns);
    let ended = |record: &RequestRecord| Some(record.end_ns);
    let kinds: [(&'static Metric, When); 3] = [(&ttft::METRIC, first_chunk), (&tpot::METRIC, ended), (&request_latency::METRIC, ended)];
    for (metric, when) in kinds {
        let (Kind::Record(value), true) = (metric.kind, sample.load.streaming || !metric.streaming_only) else { continue };
        let mut values: Vec<Vec<f64>> = vec![Vec::new(); n];
        for record in &sample.kept {
            if let (Some(i), Some(value)) = (when(record).and_then(index), value(record)) {
                values[i].push(value * metric.unit.scale());
            }
        }
        for (slice, values) in latencies.iter_mut().zip(&values) {
            slice.extend(Stats::of(values).map(|stats| (metric, stats)));
        }
    }
    let length_s = width as f64 / 1e9;
    let slice = |(i, latencies): (usize, Vec<(&'static Metric, Stats)>)| Slice {
        from_s: i as f64 * length_s,
        length_s,
        n_started: counts[i][0],
        n_ok: counts[i][1],
        n_failed: counts[i][2],
        mean_in_flight: bins.in_flight[i],
        output_throughput: bins.tokens[i] / length_s,
        latencies,
    };
    latencies.into_iter().enumerate().map(slice).collect()
}

/// `timeslices.csv`, in the long layout of AIPerf's file of slices: one statistic a line, times in wall-clock nanoseconds.
#[must_use]
pub fn slices_csv(slices: &[Slice], sample: &Sample<'_>, clock: RunClock) -> String {
    use std::fmt::Write;
    let origin = clock.wall_ns(first_start(sample).unwrap_or(0));
    let mut out = String::from("Timeslice,Start_NS,End_NS,Metric,Unit,Stat,Value\n");
    for (i, slice) in slices.iter().enumerate() {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a length in ns that was made from a u64")]
        let width = (slice.length_s * 1e9).round() as u64;
        let start = origin + width * i as u64;
        let mut row = |metric: &str, unit: &str, stat: &str, value: f64| {
            let _ = writeln!(out, "{i},{start},{},{metric},{unit},{stat},{value}", start + width);
        };
        row("request_count", "requests", "avg", slice.n_ok as f64);
        row("error_request_count", "requests", "avg", slice.n_failed as f64);
        row("output_token_throughput", "tokens/sec", "avg", slice.output_throughput);
        row("effective_concurrency", "requests", "avg", slice.mean_in_flight);
        for (metric, stats) in &slice.latencies {
            let tag = foreign::tag_of(metric).unwrap_or(metric.name);
            for name in ["avg", "p50", "p90", "p95", "p99", "min", "max", "std"] {
                if let Some(value) = stats.by_name(name) {
                    row(tag, metric.unit.as_str(), name, value);
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::{closed_loop, load};
    use super::*;
    use crate::record::{FailureKind, LoadPhase, Outcome};

    #[test]
    fn slices_hold_everything_once() {
        let mut records = closed_loop(4, 10);
        records[20].outcome = Outcome::failed(FailureKind::Truncated, "eof");
        let load = load(4, 40);
        let sample = Sample::new(&records, &load);
        let all = slices(&sample, 0.25);
        assert_eq!(all.len(), 5, "1.003 s of load");
        let sum = |of: fn(&Slice) -> usize| all.iter().map(of).sum::<usize>();
        assert_eq!((sum(|s| s.n_started), sum(|s| s.n_ok), sum(|s| s.n_failed)), (40, 39, 1));
        assert_eq!(all.iter().flat_map(|s| &s.latencies).filter(|(m, _)| m.name == "ttft").map(|(_, s)| s.count).sum::<u64>(), 39);
        let first = &all[0];
        assert!((first.mean_in_flight - 4.0).abs() < 1e-9 && (first.output_throughput - 320.0).abs() < 40.0, "{first:?}");
        let csv = slices_csv(&all, &sample, RunClock { wall_origin_ns: 1_000_000_000_000 });
        assert!(csv.contains("\n1,1000350000000,1000600000000,time_to_first_token,ms,p99,70\n"), "{csv}");
    }

    #[test]
    fn slices_are_never_too_many_and_never_none() {
        let records = closed_loop(1, 3);
        let load = load(1, 3);
        let sample = Sample::new(&records, &load);
        assert!(slices(&sample, 1e-9).len() <= MAX_SLICES + 1);
        assert_eq!(slices(&sample, 1e9).len(), 1);
        assert_eq!(slices(&Sample::new(&records[..1], &load), 1.0), [], "{:?}", LoadPhase::Warmup);
    }
}
