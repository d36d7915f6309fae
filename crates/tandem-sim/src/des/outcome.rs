//! What a simulation yields: times of each request, statistics, and records like those of a real run.

use tandem_metrics::record::{Chunk, LoadPhase, RequestRecord, TokenCount};

/// The life of one request, seconds since the run began.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestTimes {
    /// When the client sent it.
    pub sent: f64,
    /// When its first token arrived.
    pub first: f64,
    /// When its last token arrived.
    pub end: f64,
    /// Prompt tokens.
    pub isl: u32,
    /// Output tokens.
    pub osl: u32,
}

impl RequestTimes {
    /// Time to first token, seconds.
    #[must_use]
    pub fn ttft(&self) -> f64 {
        self.first - self.sent
    }

    /// Time per output token, seconds; 0 when there is only one.
    #[must_use]
    pub fn tpot(&self) -> f64 {
        if self.osl < 2 { 0.0 } else { (self.end - self.first) / f64::from(self.osl - 1) }
    }

    /// The record that a load generator would have made; events come every `stream_interval` tokens after the first.
    #[must_use]
    pub fn to_record(&self, index: u64, stream_interval: u32) -> RequestRecord {
        let mut record = RequestRecord::issued(index, format!("sim-{index}"), 0, LoadPhase::Profiling, nanos(self.sent));
        record.ack_ns = Some(nanos(self.first));
        record.end_ns = nanos(self.end);
        record.isl = TokenCount { client: Some(self.isl), server: Some(self.isl) };
        record.osl = TokenCount { client: Some(self.osl), server: Some(self.osl) };
        record.finish_reason = Some("length".to_owned());
        record.http_status = Some(200);
        let mut seen = 0;
        while seen < self.osl {
            let n = if seen == 0 { 1 } else { stream_interval.max(1).min(self.osl - seen) };
            seen += n;
            let at = self.first + self.tpot() * f64::from(seen - 1);
            record.chunks.push(Chunk { n_tokens: Some(n), ..Chunk::content(nanos(at)) });
        }
        record
    }
}

fn nanos(seconds: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "virtual time is not negative and short of 500 years")]
    let nanos = (seconds * 1e9).round() as u64;
    nanos
}

/// Mean and two percentiles of a quantity.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Half lie below.
    pub median: f64,
    /// 99 of 100 lie below.
    pub p99: f64,
}

impl Spread {
    /// Of a sample; all zero when it is empty. Percentiles interpolate linearly.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        if values.is_empty() {
            return Spread::default();
        }
        #[expect(clippy::cast_precision_loss, reason = "samples are far smaller than 2^52")]
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let median = percentile(&mut values, 0.5);
        let p99 = percentile(&mut values, 0.99);
        Spread { mean, median, p99 }
    }
}

/// Linear interpolation between the two nearest ranks, by selection instead of a whole sort.
pub(crate) fn percentile(values: &mut [f64], p: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "samples are far smaller than 2^52")]
    let position = p * (values.len() - 1) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index into the sample")]
    let low = position.floor() as usize;
    let (_, &mut a, above) = values.select_nth_unstable_by(low, f64::total_cmp);
    let b = above.iter().copied().fold(f64::INFINITY, f64::min);
    if b.is_finite() { a + (b - a) * (position - position.floor()) } else { a }
}

/// The result of one simulation.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Each request, in the order in which they were sent.
    pub requests: Vec<RequestTimes>,
    /// Seconds until the last one ended.
    pub duration: f64,
    /// Time to first token, seconds.
    pub ttft: Spread,
    /// Time per output token, seconds.
    pub tpot: Spread,
    /// Output tokens per second.
    pub output_rate: f64,
    /// Requests per second.
    pub request_rate: f64,
    /// Mean of requests in the system: by Little's law, `request_rate` times the mean latency.
    pub in_flight: f64,
}

impl Outcome {
    /// The same without the first `warmup` requests, as a load generator reports a run with a warm-up.
    #[must_use]
    pub fn after(&self, warmup: usize) -> Self {
        let rest = self.requests.get(warmup..).unwrap_or_default();
        let begun = rest.iter().fold(f64::INFINITY, |t, r| t.min(r.sent));
        let shift = |r: &RequestTimes| RequestTimes { sent: r.sent - begun, first: r.first - begun, end: r.end - begun, ..*r };
        Outcome::new(rest.iter().map(shift).collect())
    }

    pub(super) fn new(requests: Vec<RequestTimes>) -> Self {
        let duration = requests.iter().fold(0.0, |end: f64, r| end.max(r.end));
        let per_second = if duration > 0.0 { 1.0 / duration } else { 0.0 };
        let tokens: f64 = requests.iter().map(|r| f64::from(r.osl)).sum();
        let latency: f64 = requests.iter().map(|r| r.end - r.sent).sum();
        #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
        let n = requests.len() as f64;
        Outcome {
            ttft: Spread::of(requests.iter().map(RequestTimes::ttft).collect()),
            tpot: Spread::of(requests.iter().filter(|r| r.osl > 1).map(RequestTimes::tpot).collect()),
            output_rate: tokens * per_second,
            request_rate: n * per_second,
            in_flight: latency * per_second,
            duration,
            requests,
        }
    }
}
