//! The records of one load point, reduced to what a page shows: values of each request, binned series, sampled rows.
//!
//! Times are seconds after the first start of a measured request; warm-up lies before zero.

use tandem_metrics::metrics::{Kind, Metric, output_throughput_per_user, request_latency, tpot, ttft};
use tandem_metrics::{LoadPhase, RequestRecord};

use super::series::{Bins, Cover};

/// Bins of a time series.
const N_BINS: usize = 160;
/// Rows of a waterfall: what a page can show and an eye can follow.
const MAX_ROWS: usize = 60;
/// Failed requests that are shown in any case.
const MAX_FAILED_ROWS: usize = 12;

/// The metrics with a value per request that a report looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestMetric {
    Latency,
    Ttft,
    Tpot,
    PerUser,
}

impl RequestMetric {
    pub(crate) const ALL: [RequestMetric; 4] = [Self::Ttft, Self::Tpot, Self::Latency, Self::PerUser];

    pub(crate) const fn metric(self) -> &'static Metric {
        match self {
            Self::Latency => &request_latency::METRIC,
            Self::Ttft => &ttft::METRIC,
            Self::Tpot => &tpot::METRIC,
            Self::PerUser => &output_throughput_per_user::METRIC,
        }
    }

    pub(crate) fn of_metric(metric: &Metric) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.metric().name == metric.name)
    }
}

/// Values of a kept request, each in the unit in which its metric is shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RequestFacts {
    values: [Option<f64>; 4],
    pub(crate) osl: Option<u32>,
}

impl RequestFacts {
    fn of(record: &RequestRecord, streaming: bool) -> Self {
        let value = |known: RequestMetric| {
            let metric = known.metric();
            match metric.kind {
                Kind::Record(of) if streaming || !metric.streaming_only => of(record).map(|raw| raw * metric.unit.scale()),
                _ => None,
            }
        };
        RequestFacts { values: RequestMetric::ALL.map(value), osl: record.osl_tokens() }
    }

    pub(crate) fn value(&self, metric: RequestMetric) -> Option<f64> {
        let index = RequestMetric::ALL.iter().position(|known| *known == metric)?;
        self.values[index]
    }
}

/// How much is known about when tokens came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenStamps {
    /// Each chunk says how many tokens it has.
    Counted,
    /// Chunks are stamped, and the output length is spread evenly over them.
    Spread,
    /// No output length is known.
    Unknown,
}

/// One request as a row of the waterfall, times in seconds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WaterfallRow {
    pub(crate) index: u64,
    pub(crate) scheduled: f64,
    pub(crate) start: f64,
    pub(crate) first_chunk: Option<f64>,
    pub(crate) end: f64,
    pub(crate) osl: Option<u32>,
    /// `ok`, or how it failed.
    pub(crate) outcome: &'static str,
}

/// What a page shows of one load point's requests.
#[derive(Debug, Clone)]
pub(crate) struct Digest {
    /// Kept requests of the measured phase in order of issue.
    pub(crate) requests: Vec<RequestFacts>,
    pub(crate) n_measured: usize,
    pub(crate) n_warmup: usize,
    /// Where warm-up begins: zero or less.
    pub(crate) from_s: f64,
    pub(crate) until_s: f64,
    /// Middle of each bin.
    pub(crate) times_s: Vec<f64>,
    pub(crate) bin_s: f64,
    pub(crate) in_flight: Vec<f64>,
    pub(crate) tokens_per_s: Vec<f64>,
    pub(crate) stamps: TokenStamps,
    pub(crate) waterfall: Vec<WaterfallRow>,
}

impl Digest {
    /// Reduces the records of one load point, warm-up included, in any order; none without a measured request.
    pub(crate) fn of(records: &[RequestRecord], streaming: bool) -> Option<Digest> {
        let mut measured: Vec<&RequestRecord> = records.iter().filter(|record| record.phase == LoadPhase::Profiling).collect();
        measured.sort_by_key(|record| record.index);
        let zero_ns = measured.iter().map(|record| record.start_ns).min()?;
        let seconds = |ns: u64| (i128::from(ns) - i128::from(zero_ns)) as f64 * 1e-9;
        let from_s = records.iter().map(|record| seconds(record.start_ns)).fold(0.0, f64::min);
        let until_s = records.iter().map(|record| seconds(record.end_ns)).fold(0.0, f64::max);
        let mut cover = Cover::new(from_s, until_s, N_BINS);
        let mut tokens = Bins::new(from_s, until_s, N_BINS);
        for record in records {
            cover.add(seconds(record.start_ns), seconds(record.end_ns));
            add_tokens(&mut tokens, record, seconds);
        }
        Some(Digest {
            requests: measured.iter().filter(|record| record.is_kept()).map(|record| RequestFacts::of(record, streaming)).collect(),
            n_measured: measured.len(),
            n_warmup: records.len() - measured.len(),
            from_s,
            until_s,
            times_s: tokens.centres(),
            bin_s: tokens.width(),
            in_flight: cover.means(),
            tokens_per_s: tokens.rates(),
            stamps: token_stamps(&measured),
            waterfall: sampled(&measured).into_iter().map(|record| row(record, seconds)).collect(),
        })
    }

    /// The values of a metric, ascending.
    pub(crate) fn sorted(&self, metric: RequestMetric) -> Vec<f64> {
        let mut values: Vec<f64> = self.requests.iter().filter_map(|request| request.value(metric)).collect();
        values.sort_unstable_by(f64::total_cmp);
        values
    }
}

fn add_tokens(tokens: &mut Bins, record: &RequestRecord, seconds: impl Fn(u64) -> f64) {
    let n_chunks = record.chunks.len();
    let even = record.osl_tokens().map_or(0.0, |osl| f64::from(osl) / n_chunks.max(1) as f64);
    for chunk in record.chunks.iter() {
        tokens.add(seconds(chunk.at_ns), chunk.n_tokens.map_or(even, f64::from));
    }
}

fn token_stamps(measured: &[&RequestRecord]) -> TokenStamps {
    let mut chunks = measured.iter().flat_map(|record| record.chunks.iter());
    if measured.iter().any(|record| !record.chunks.is_empty()) && chunks.all(|chunk| chunk.n_tokens.is_some()) {
        TokenStamps::Counted
    } else if measured.iter().any(|record| record.osl_tokens().is_some()) {
        TokenStamps::Spread
    } else {
        TokenStamps::Unknown
    }
}

/// Evenly spaced requests, and the first failed ones, in order of issue.
fn sampled<'a>(measured: &[&'a RequestRecord]) -> Vec<&'a RequestRecord> {
    if measured.len() <= MAX_ROWS {
        return measured.to_vec();
    }
    let failed: Vec<usize> = (0..measured.len()).filter(|&i| !measured[i].outcome.is_ok()).take(MAX_FAILED_ROWS).collect();
    let n_even = MAX_ROWS - failed.len();
    let mut chosen: Vec<usize> = (0..n_even).map(|k| k * (measured.len() - 1) / (n_even - 1)).chain(failed).collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen.into_iter().map(|i| measured[i]).collect()
}

fn row(record: &RequestRecord, seconds: impl Fn(u64) -> f64) -> WaterfallRow {
    WaterfallRow {
        index: record.index,
        scheduled: seconds(record.scheduled_ns),
        start: seconds(record.start_ns),
        first_chunk: record.chunks.first().map(|chunk| seconds(chunk.at_ns)),
        end: seconds(record.end_ns),
        osl: record.osl_tokens(),
        outcome: record.outcome.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use tandem_metrics::{Chunk, FailureKind, Outcome};

    use super::*;

    const MS: u64 = 1_000_000;

    fn record(index: u64, start_ms: u64) -> RequestRecord {
        let mut record = RequestRecord::issued(index, "r", 0, LoadPhase::Profiling, start_ms * MS);
        record.chunks = [10, 20, 30].map(|ms| Chunk::content((start_ms + ms) * MS)).into_iter().collect();
        record.end_ns = (start_ms + 40) * MS;
        record.osl.server = Some(6);
        record
    }

    #[test]
    fn time_begins_with_the_first_measured_request_and_warmup_lies_before() {
        let mut warmup = record(0, 100);
        warmup.phase = LoadPhase::Warmup;
        let digest = Digest::of(&[warmup, record(1, 220), record(0, 150)], true).unwrap();
        assert_eq!((digest.from_s, digest.n_warmup, digest.n_measured), (-0.05, 1, 2));
        assert!((digest.until_s - 0.11).abs() < 1e-12);
        assert_eq!(digest.waterfall.iter().map(|row| row.index).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn every_token_and_every_moment_in_flight_is_in_the_series() {
        let records: Vec<_> = (0..50).map(|i| record(i, 7 * i)).collect();
        let digest = Digest::of(&records, true).unwrap();
        let total = |series: &[f64]| series.iter().sum::<f64>() * digest.bin_s;
        assert!((total(&digest.tokens_per_s) - 300.0).abs() < 1e-9);
        assert!((total(&digest.in_flight) - 50.0 * 0.040).abs() < 1e-9);
        assert_eq!(digest.stamps, TokenStamps::Spread);
    }

    #[test]
    fn a_response_that_comes_at_once_has_a_latency_only() {
        let digest = Digest::of(&[record(0, 0)], false).unwrap();
        assert_eq!(digest.sorted(RequestMetric::Latency).len(), 1);
        assert!(digest.sorted(RequestMetric::Ttft).is_empty());
    }

    #[test]
    fn a_long_run_is_sampled_and_its_failures_are_kept() {
        let mut records: Vec<_> = (0..5000).map(|i| record(i, i)).collect();
        records[777].outcome = Outcome::failed(FailureKind::Timeout, "late");
        let digest = Digest::of(&records, true).unwrap();
        let rows = &digest.waterfall;
        assert!(rows.len() <= MAX_ROWS && rows.first().unwrap().index == 0 && rows.last().unwrap().index == 4999);
        assert!(rows.iter().any(|row| row.index == 777 && row.outcome == "timeout"));
    }

    #[test]
    fn without_a_measured_request_there_is_nothing() {
        assert!(Digest::of(&[], true).is_none());
    }
}
