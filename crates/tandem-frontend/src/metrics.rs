//! What `/metrics` shows, in the OpenMetrics text format.
//!
//! Counts of requests and their times are kept as they happen; occupancy of workers is read
//! from their last heartbeats when somebody asks, so that nothing stale is left of a worker
//! that is gone.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tandem_plan::Phase;
use tandem_wire::worker::WorkerStats;

use crate::workers::{Worker, Workers};

/// How a request ended, as the label `outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// Complete.
    Ok,
    /// Refused with 4xx because of what it asks.
    Invalid,
    /// Refused with 429.
    Rejected,
    /// Nobody to serve it.
    Unavailable,
    /// A worker failed or died.
    Failed,
    /// Not done in time.
    Timeout,
    /// The client left.
    Cancelled,
}

impl Outcome {
    /// The label.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Invalid => "invalid",
            Outcome::Rejected => "rejected",
            Outcome::Unavailable => "unavailable",
            Outcome::Failed => "failed",
            Outcome::Timeout => "timeout",
            Outcome::Cancelled => "cancelled",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    outcome: &'static str,
}

/// All metrics of one frontend.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    pub(crate) in_flight: Gauge,
    pub(crate) rejections: Counter,
    pub(crate) retries: Counter,
    pub(crate) prompt_tokens: Counter,
    pub(crate) output_tokens: Counter,
    ttft: Histogram,
    inter_chunk: Histogram,
    tpot: Histogram,
    latency: Histogram,
}

impl Metrics {
    pub(crate) fn new(workers: Arc<Workers>) -> Self {
        let slow = || Histogram::new([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0]);
        let fast = || Histogram::new([0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0]);
        let mut metrics = Metrics {
            registry: Registry::with_prefix("tandem"),
            requests: Family::default(),
            in_flight: Gauge::default(),
            rejections: Counter::default(),
            retries: Counter::default(),
            prompt_tokens: Counter::default(),
            output_tokens: Counter::default(),
            ttft: slow(),
            inter_chunk: fast(),
            tpot: fast(),
            latency: slow(),
        };
        metrics.register(workers);
        metrics
    }

    fn register(&mut self, workers: Arc<Workers>) {
        let r = &mut self.registry;
        r.register("requests", "Requests that ended, by endpoint and outcome", self.requests.clone());
        r.register("requests_in_flight", "Requests in the system", self.in_flight.clone());
        r.register("queue_rejections", "Requests answered 429 because max_inflight were in the system", self.rejections.clone());
        r.register("request_retries", "Times that a request started again on other workers", self.retries.clone());
        r.register("prompt_tokens", "Prompt tokens of requests that were given to workers", self.prompt_tokens.clone());
        r.register("output_tokens", "Tokens received from workers", self.output_tokens.clone());
        r.register("time_to_first_token_seconds", "From the request's arrival to its first token", self.ttft.clone());
        r.register("inter_chunk_seconds", "Gap between successive token events of a request", self.inter_chunk.clone());
        r.register(
            "time_per_output_token_seconds",
            "Per finished request: (latency - time to first token) / (output tokens - 1)",
            self.tpot.clone(),
        );
        r.register("request_latency_seconds", "Per finished request: from its arrival to its last token", self.latency.clone());
        r.register_collector(Box::new(Occupancy { workers }));
    }

    pub(crate) fn ended(&self, endpoint: &'static str, outcome: Outcome) {
        self.requests.get_or_create(&RequestLabels { endpoint, outcome: outcome.as_str() }).inc();
    }

    pub(crate) fn first_token(&self, after: Duration) {
        self.ttft.observe(after.as_secs_f64());
    }

    pub(crate) fn gap(&self, gap: Duration) {
        self.inter_chunk.observe(gap.as_secs_f64());
    }

    /// A complete response of `n_tokens`.
    pub(crate) fn complete(&self, ttft: Duration, latency: Duration, n_tokens: u32) {
        self.latency.observe(latency.as_secs_f64());
        if n_tokens > 1 {
            self.tpot.observe(latency.saturating_sub(ttft).as_secs_f64() / f64::from(n_tokens - 1));
        }
    }

    /// The page.
    pub(crate) fn render(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

/// Reads the connected workers whenever the page is rendered.
#[derive(Debug)]
struct Occupancy {
    workers: Arc<Workers>,
}

impl Collector for Occupancy {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let connected = self.workers.connected();
        let stats: Vec<(Phase, &str, WorkerStats)> = connected.iter().map(|w| (w.phase, w.name.as_str(), w.stats())).collect();
        type Read = fn(&WorkerStats) -> u64;
        let gauges: [(&str, &str, Read); 5] = [
            ("requests_waiting", "Requests that wait in the worker", |s| s.n_waiting.into()),
            ("requests_running", "Requests that run in the worker", |s| s.n_running.into()),
            ("requests_transferring", "Requests that hold blocks for a transfer", |s| s.n_transferring.into()),
            ("kv_blocks_used", "KV blocks in use", |s| s.kv_blocks_used.into()),
            ("kv_blocks", "KV blocks in all", |s| s.kv_blocks_total.into()),
        ];
        let counters: [(&str, &str, Read); 4] = [
            ("engine_steps", "Engine steps", |s| s.n_steps),
            ("worker_prefill_tokens", "Prompt tokens computed", |s| s.n_prefill_tokens),
            ("worker_output_tokens", "Tokens generated", |s| s.n_output_tokens),
            ("worker_requests", "Requests taken on", |s| s.n_requests),
        ];
        for (name, help, read) in gauges {
            let gauge = |v: u64| ConstGauge::new(i64::try_from(v).unwrap_or(i64::MAX));
            encode_all(&mut encoder, name, help, &stats, |s| gauge(read(s)))?;
        }
        for (name, help, read) in counters {
            encode_all(&mut encoder, name, help, &stats, |s| ConstCounter::new(read(s)))?;
        }
        encode_outstanding(&mut encoder, &connected)?;
        let up: Vec<_> = [Phase::Prefill, Phase::Decode].map(|phase| (phase, self.workers.health(phase))).into();
        let mut metric = encoder.encode_descriptor("workers_ready", "Workers that are connected", None, MetricType::Gauge)?;
        for (phase, health) in up {
            let labels = [("phase", phase.to_string())];
            let value = i64::try_from(health.ready.len()).unwrap_or(i64::MAX);
            ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn encode_outstanding(encoder: &mut DescriptorEncoder<'_>, workers: &[Arc<Worker>]) -> Result<(), fmt::Error> {
    let help = "Prompt tokens (prefill) or sequences (decode) that this frontend has given to the worker and that are not done";
    let mut metric = encoder.encode_descriptor("outstanding_load", help, None, MetricType::Gauge)?;
    for worker in workers {
        let labels = [("phase", worker.phase.to_string()), ("worker", worker.name.clone())];
        ConstGauge::new(i64::try_from(worker.load()).unwrap_or(i64::MAX)).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn encode_all<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    workers: &[(Phase, &str, WorkerStats)],
    value: impl Fn(&WorkerStats) -> M,
) -> Result<(), fmt::Error> {
    let Some((_, _, first)) = workers.first() else { return Ok(()) };
    let kind = value(first).metric_type();
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (phase, name, stats) in workers {
        let labels = [("phase", phase.to_string()), ("worker", (*name).to_owned())];
        value(stats).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}
