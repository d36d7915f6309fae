//! What a load point's records say beyond one figure a metric: the steady window, time slices, the timeline, percentiles
//! that count failures, confidence intervals, and intervals over repeats.
//!
//! Every definition is in the header of its file and, for readers of `result.json`, in `docs/reference/run-folder.md`.
//!
//! Reading order: `bins` (what happened in a span of time), `steady`, `slices`, `inclusive`, `interval`, `repeats`.

mod bins;
mod inclusive;
mod interval;
pub(crate) mod repeats;
pub mod resample;
mod slices;
mod steady;

use serde_json::{Value, json};

pub use inclusive::{Inclusive, failure_inclusive};
pub use interval::{Interval, intervals};
pub use repeats::{Repeated, repeats, student_t_975};
pub use slices::{MAX_SLICES, Slice, slices, slices_csv};
pub use steady::SteadyState;

use crate::metrics::Sample;
use crate::record::RunClock;

/// Bins of a timeline: fine enough for a page, few enough for a file.
const N_TIMELINE_BINS: usize = 120;

/// Requests in flight and output over the whole load point, warm-up included, in equal bins.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Timeline {
    /// Where the first bin begins, s after the first measured start; negative when there was a warm-up.
    pub from_s: f64,
    /// Length of a bin, s.
    pub bin_s: f64,
    /// Time-weighted mean of requests in flight in each bin.
    pub in_flight: Vec<f64>,
    /// Output tokens a second in each bin.
    pub output_tokens_per_s: Vec<f64>,
}

/// All of it for one load point.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Analysis {
    /// None in an open loop, or when the concurrency was never reached.
    pub steady: Option<SteadyState>,
    /// Latency percentiles in which a failed request counts as infinitely slow.
    pub inclusive: Vec<Inclusive>,
    /// Confidence intervals.
    pub intervals: Vec<Interval>,
    /// Slices of the length that was asked for.
    pub slices: Vec<Slice>,
    /// None without a measured request.
    pub timeline: Option<Timeline>,
}

impl Analysis {
    /// Computes everything; `slice_s` is the length of a slice, if slices are wanted.
    #[must_use]
    pub fn of(sample: &Sample<'_>, slice_s: Option<f64>) -> Analysis {
        Analysis {
            steady: SteadyState::of(sample),
            inclusive: failure_inclusive(sample),
            intervals: intervals(sample),
            slices: slice_s.map_or_else(Vec::new, |length| slices(sample, length)),
            timeline: timeline(sample),
        }
    }

    /// Keys and values for the point's entry in `result.json`.
    #[must_use]
    pub fn to_json(&self) -> Vec<(&'static str, Value)> {
        let timeline = self.timeline.as_ref().map(|line| {
            json!({"from_s": line.from_s, "bin_s": line.bin_s, "in_flight": line.in_flight, "output_tokens_per_s": line.output_tokens_per_s})
        });
        vec![
            ("steady_state", self.steady.as_ref().map_or(Value::Null, SteadyState::to_json)),
            ("failure_inclusive", inclusive::to_json(&self.inclusive)),
            ("confidence_intervals", interval::to_json(&self.intervals)),
            ("slices", self.slices.iter().map(Slice::to_json).collect()),
            ("timeline", timeline.unwrap_or(Value::Null)),
        ]
    }

    /// `timeslices.csv`; none without slices.
    #[must_use]
    pub fn slices_csv(&self, sample: &Sample<'_>, clock: RunClock) -> Option<String> {
        (!self.slices.is_empty()).then(|| slices_csv(&self.slices, sample, clock))
    }
}

fn timeline(sample: &Sample<'_>) -> Option<Timeline> {
    let origin = first_start(sample)?;
    let records = || sample.profiling.iter().chain(&sample.warmup);
    let from = records().map(|record| record.start_ns).min()?;
    let to = records().map(|record| record.end_ns).max()?.max(from + 1);
    let width = (to - from).div_ceil(N_TIMELINE_BINS as u64);
    let bins = bins::Bins::of(records().copied(), from, width, N_TIMELINE_BINS);
    let bin_s = width as f64 / 1e9;
    Some(Timeline {
        from_s: -((origin - from) as f64 / 1e9),
        bin_s,
        output_tokens_per_s: bins.tokens.iter().map(|tokens| tokens / bin_s).collect(),
        in_flight: bins.in_flight,
    })
}

/// First start of a measured request.
fn first_start(sample: &Sample<'_>) -> Option<u64> {
    sample.profiling.iter().map(|record| record.start_ns).min()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::metrics::Load;
    use crate::record::{Chunk, LoadPhase, RequestRecord};

    pub(crate) const MS: u64 = 1_000_000;

    pub(crate) fn load(concurrency: u32, n_requests: u64) -> Load {
        Load {
            streaming: true,
            concurrency: Some(concurrency),
            request_rate: None,
            n_requests,
            isl: None,
            osl: None,
            n_gpus: 1,
            slos: Vec::new(),
        }
    }

    /// A request of four chunks of two tokens, the first after `ttft_ms`, then one each 10 ms.
    pub(crate) fn request(index: u64, start_ms: u64, ttft_ms: u64) -> RequestRecord {
        let mut record = RequestRecord::issued(index, "r", 0, LoadPhase::Profiling, start_ms * MS);
        let chunk = |i: u64| Chunk { n_tokens: Some(2), ..Chunk::content((start_ms + ttft_ms + 10 * i) * MS) };
        record.chunks = (0..4).map(chunk).collect();
        record.end_ns = (start_ms + ttft_ms + 30) * MS;
        record.isl.client = Some(5);
        record.osl.server = Some(8);
        record
    }

    /// `slots` closed loops of back-to-back requests of 100 ms: the first `slots` are warm-up.
    pub(crate) fn closed_loop(slots: u64, rounds: u64) -> Vec<RequestRecord> {
        let mut records = Vec::new();
        for round in 0..=rounds {
            for slot in 0..slots {
                let mut record = request(round * slots + slot, round * 100 + slot, 70);
                if round == 0 {
                    record.phase = LoadPhase::Warmup;
                }
                records.push(record);
            }
        }
        records
    }

    #[test]
    fn the_timeline_holds_all_tokens_and_the_concurrency() {
        let (records, load) = (closed_loop(4, 10), load(4, 40));
        let line = Analysis::of(&Sample::new(&records, &load), None).timeline.unwrap();
        let tokens: f64 = line.output_tokens_per_s.iter().map(|rate| rate * line.bin_s).sum();
        assert!((tokens - 44.0 * 8.0).abs() < 1e-6, "{tokens}");
        assert_eq!(line.from_s, -0.1);
        assert!(line.in_flight[10..100].iter().all(|n| (n - 4.0).abs() < 1e-9), "{:?}", line.in_flight);
    }
}
