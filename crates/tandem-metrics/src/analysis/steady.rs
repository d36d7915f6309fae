//! The steady window of a closed loop: from the moment at which the asked concurrency was first in flight to the last start.
//!
//! Before it the load ramps up, after it the load drains; both are in the figures of the whole run and not in these.
//! Definition: `from` is the first moment at or after the first measured start at which at least the nominal
//! concurrency (warm-up requests included) is in flight; `to` is the last measured start.
//! Latencies are of kept measured requests that *started* within the window; a request that started near its end finishes while
//! the load drains, so TPOT is at most slightly better than steady. Throughputs count what *arrived* within the window,
//! of every request (warm-up and failed ones too: the server served them).

use serde_json::{Map, Value, json};

use super::bins::tokens_over_time;
use super::first_start;
use crate::metrics::{Metric, Sample, icl, itl, output_throughput_per_user, request_latency, tpot, ttft};
use crate::record::RequestRecord;
use crate::summary::{Figure, figure, figure_json};

/// Metrics that are given for the window.
static METRICS: [&Metric; 6] =
    [&ttft::METRIC, &tpot::METRIC, &itl::METRIC, &icl::METRIC, &request_latency::METRIC, &output_throughput_per_user::METRIC];

/// The steady window and its figures.
#[derive(Debug, Clone, PartialEq)]
pub struct SteadyState {
    /// Begin and end, ns since the run's origin.
    pub window_ns: (u64, u64),
    /// Begin, s after the first measured start.
    pub from_s: f64,
    /// Length, s.
    pub duration_s: f64,
    /// Measured requests that started within it.
    pub n_requests: usize,
    /// Time-weighted mean of requests in flight.
    pub mean_in_flight: f64,
    /// Output tokens that arrived within it, a second.
    pub output_throughput: f64,
    /// Requests that ended well within it, a second.
    pub request_throughput: f64,
    figures: Vec<(&'static Metric, Figure)>,
}

impl SteadyState {
    /// None in an open loop, and when the concurrency was never reached before the last start.
    #[must_use]
    pub fn of(sample: &Sample<'_>) -> Option<SteadyState> {
        let concurrency = sample.load.concurrency?;
        let origin = first_start(sample)?;
        let from = reached(sample, concurrency, origin)?;
        let to = sample.profiling.iter().map(|record| record.start_ns).max().filter(|to| *to > from)?;
        let starts_within = |record: &&&RequestRecord| (from..=to).contains(&record.start_ns);
        let within = Sample {
            warmup: Vec::new(),
            profiling: sample.profiling.iter().filter(starts_within).copied().collect(),
            kept: sample.kept.iter().filter(starts_within).copied().collect(),
            ..sample.clone()
        };
        let all = || sample.profiling.iter().chain(&sample.warmup);
        let inside = |at_ns: u64| (from..to).contains(&at_ns);
        let tokens: f64 = all().flat_map(|record| tokens_over_time(record)).filter(|(at, _)| inside(*at)).map(|(_, n)| n).sum();
        let n_ended = all().filter(|record| record.is_kept() && inside(record.end_ns)).count();
        let duration_s = (to - from) as f64 / 1e9;
        let applies = |metric: &&&'static Metric| sample.load.streaming || !metric.streaming_only;
        Some(SteadyState {
            window_ns: (from, to),
            from_s: (from - origin) as f64 / 1e9,
            duration_s,
            n_requests: within.profiling.len(),
            mean_in_flight: sample.mean_in_flight(from, to)?,
            output_throughput: tokens / duration_s,
            request_throughput: n_ended as f64 / duration_s,
            figures: METRICS.iter().filter(applies).filter_map(|metric| Some((*metric, figure(metric, &within)?))).collect(),
        })
    }

    /// The figure of a metric within the window.
    #[must_use]
    pub fn figure(&self, metric: &Metric) -> Option<Figure> {
        self.figures.iter().find(|(known, _)| known.name == metric.name).map(|(_, figure)| *figure)
    }

    pub(super) fn to_json(&self) -> Value {
        let figures: Map<String, Value> =
            self.figures.iter().map(|(metric, figure)| (metric.name.to_owned(), figure_json(metric, *figure))).collect();
        json!({
            "from_s": self.from_s,
            "duration_s": self.duration_s,
            "n_requests": self.n_requests,
            "mean_in_flight": self.mean_in_flight,
            "output_throughput": {"unit": "tokens/s", "avg": self.output_throughput},
            "request_throughput": {"unit": "requests/s", "avg": self.request_throughput},
            "figures": figures,
        })
    }
}

/// The first moment from `origin` on at which `concurrency` requests are in flight.
fn reached(sample: &Sample<'_>, concurrency: u32, origin: u64) -> Option<u64> {
    let records = || sample.profiling.iter().chain(&sample.warmup);
    // At one moment ends come before starts: a slot that is handed over is never counted twice.
    let mut events: Vec<(u64, i64)> = records().flat_map(|record| [(record.start_ns, 1), (record.end_ns, -1)]).collect();
    events.sort_unstable();
    let mut in_flight = 0;
    for (at_ns, change) in events {
        in_flight += change;
        if at_ns >= origin && in_flight >= i64::from(concurrency) {
            return Some(at_ns);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::tests::{MS, closed_loop, load, request};
    use super::*;

    #[test]
    fn the_window_leaves_out_ramp_and_drain() {
        // Four slots that start 20 ms apart, without a warm-up: full at 60 ms, drained from 340 ms (the last start) on.
        let records: Vec<_> = (0..16).map(|i| request(i, (i / 4) * 100 + (i % 4) * 20, 70)).collect();
        let load = load(4, 16);
        let steady = SteadyState::of(&Sample::new(&records, &load)).unwrap();
        assert_eq!(steady.window_ns, (60 * MS, 360 * MS));
        assert!((steady.mean_in_flight - 4.0).abs() < 1e-9);
        assert!((steady.output_throughput - 8.0 * 4.0 / 0.1).abs() / 320.0 < 0.05, "{}", steady.output_throughput);
        assert_eq!(steady.n_requests, 13);
        assert_eq!(steady.figure(&ttft::METRIC).unwrap().avg(), 70.0);
    }

    #[test]
    fn a_warm_up_that_hands_over_makes_it_begin_at_once() {
        let (records, load) = (closed_loop(4, 5), load(4, 20));
        let steady = SteadyState::of(&Sample::new(&records, &load)).unwrap();
        assert_eq!(steady.from_s, 0.0);
        assert!((steady.output_throughput - 320.0).abs() < 20.0, "{}", steady.output_throughput);
    }

    #[test]
    fn a_concurrency_that_was_never_reached_has_no_steady_state() {
        let (records, load) = (closed_loop(2, 5), load(4, 10));
        assert_eq!(SteadyState::of(&Sample::new(&records, &load)), None);
    }
}
