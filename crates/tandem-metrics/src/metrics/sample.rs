//! What a metric is computed from: the records of one load point and what was asked of it.

use crate::metrics::goodput::Slo;
use crate::record::{LoadPhase, RequestRecord};

/// What was asked of one load point.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Whether responses stream.
    pub streaming: bool,
    /// Requests kept in flight; none for loads that are driven by time.
    pub concurrency: Option<u32>,
    /// Requests a second; none for loads that are not driven by a rate.
    pub request_rate: Option<f64>,
    /// Measured requests.
    pub n_requests: u64,
    /// Input tokens of each request, if all are to have the same.
    pub isl: Option<u32>,
    /// Output tokens of each request, if all are to have the same.
    pub osl: Option<u32>,
    /// GPUs of the deployment, prefill and decode together.
    pub n_gpus: u32,
    /// What a good request must meet; empty means no goodput.
    pub slos: Vec<Slo>,
}

/// The records of one load point, sorted out.
#[derive(Debug, Clone)]
pub struct Sample<'a> {
    /// What was asked.
    pub load: &'a Load,
    /// Requests of the warm-up.
    pub warmup: Vec<&'a RequestRecord>,
    /// Measured requests, failed ones included.
    pub profiling: Vec<&'a RequestRecord>,
    /// Measured requests that ended well and produced output.
    pub kept: Vec<&'a RequestRecord>,
    /// What the GPUs of the deployment consumed during [`Sample::window_ns`], J; none without telemetry.
    pub energy_j: Option<f64>,
}

impl<'a> Sample<'a> {
    /// Sorts the records of one load point.
    #[must_use]
    pub fn new(records: &'a [RequestRecord], load: &'a Load) -> Self {
        let (profiling, warmup): (Vec<_>, Vec<_>) = records.iter().partition(|record| record.phase == LoadPhase::Profiling);
        let kept = profiling.iter().copied().filter(|record| record.is_kept()).collect();
        Sample { load, warmup, profiling, kept, energy_j: None }
    }

    /// From the first start to the last output chunk of the kept requests, ns since the run's origin; none when empty or zero.
    #[must_use]
    pub fn window_ns(&self) -> Option<(u64, u64)> {
        let start = self.kept.iter().map(|record| record.start_ns).min()?;
        let end = self.kept.iter().filter_map(|record| record.chunks.last()).map(|chunk| chunk.at_ns).max()?;
        (end > start).then_some((start, end))
    }

    /// Length of the window, seconds.
    #[must_use]
    pub fn duration_s(&self) -> Option<f64> {
        self.window_ns().map(|(start, end)| (end - start) as f64 / 1e9)
    }

    /// Output tokens of the kept requests; none if any has no count.
    #[must_use]
    pub fn output_tokens(&self) -> Option<u64> {
        self.kept.iter().map(|record| record.osl_tokens().map(u64::from)).sum()
    }

    /// Input tokens of the kept requests; none if any has no count.
    #[must_use]
    pub fn input_tokens(&self) -> Option<u64> {
        self.kept.iter().map(|record| record.isl_tokens().map(u64::from)).sum()
    }

    /// Time-weighted mean of requests in flight, warm-up included, over the span `from_ns..to_ns`.
    #[must_use]
    pub fn mean_in_flight(&self, from_ns: u64, to_ns: u64) -> Option<f64> {
        if to_ns <= from_ns {
            return None;
        }
        let busy: u64 = self
            .profiling
            .iter()
            .chain(&self.warmup)
            .map(|record| record.end_ns.min(to_ns).saturating_sub(record.start_ns.max(from_ns)))
            .sum();
        Some(busy as f64 / (to_ns - from_ns) as f64)
    }
}
