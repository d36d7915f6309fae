//! What this host can measure: a load on a paced server whose log is the truth, judged bar by bar.
//!
//! The caller runs the server, in a process of its own so that its CPU time is not the client's. `drive` makes
//! the load, [`Figures::of`] compares what was recorded with the log, [`Figures::bars`] says what holds.
//! The bars are absolute: they are what a figure of the report may be wrong by.

use std::sync::Arc;
use std::time::Duration;

use tandem_metrics::RequestRecord;
use tandem_plan::Nanos;

use crate::error::LoadError;
use crate::health::process_cpu;
use crate::paced::{Accuracy, EmissionLog, PacedConfig, Spread};
use crate::progress::NoProgress;
use crate::prompts::texts::ByteTexts;
use crate::run::{LoadReport, run};
use crate::spec::LoadSpec;
use crate::stop::StopSignal;

/// A load on a paced server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    /// Requests in flight.
    pub concurrency: u32,
    /// How often each slot of them is used.
    pub n_rounds: u32,
    /// Prompt length, bytes: the paced server has no tokenizer.
    pub isl: u32,
    /// Output length, tokens.
    pub osl: u32,
    /// Tokens in a chunk.
    pub tokens_per_chunk: u32,
    /// The server's time to first token.
    pub ttft: Nanos,
    /// The server's time between tokens.
    pub itl: Nanos,
    /// Whether the kernel stamps.
    pub kernel_stamps: bool,
    /// Receive threads; `None` = the default of a load.
    pub receive_threads: Option<u32>,
}

/// A load that was driven.
#[derive(Debug)]
pub struct Driven {
    /// What the client recorded.
    pub report: LoadReport,
    /// CPU time of the whole client process meanwhile.
    pub cpu: Duration,
}

impl Case {
    /// How the server has to answer.
    #[must_use]
    pub fn server(&self) -> PacedConfig {
        let itl = Nanos(self.itl.0 * u64::from(self.tokens_per_chunk));
        PacedConfig { ttft: self.ttft, itl, tokens_per_chunk: self.tokens_per_chunk, n_prompt: self.isl }
    }

    /// Chunks of one answer.
    #[must_use]
    pub fn n_chunks(&self) -> u32 {
        self.osl.div_ceil(self.tokens_per_chunk.max(1))
    }

    /// How long one answer takes.
    #[must_use]
    pub fn answer_time(&self) -> Nanos {
        Nanos(self.server().ttft.0 + self.server().itl.0 * u64::from(self.n_chunks() - 1))
    }

    /// Drives the load against the server at `url`; blocks. Every slot is used equally often and there is no warm-up, so the
    /// first requests leave at once: the hardest start that there is.
    ///
    /// # Errors
    /// Those of [`run`].
    pub fn drive(&self, url: &str, stop: &Arc<StopSignal>) -> Result<Driven, LoadError> {
        let n_requests = self.concurrency.saturating_mul(self.n_rounds);
        let mut spec = LoadSpec::closed_loop(url, "paced", self.concurrency, n_requests, self.isl, self.osl)?;
        spec.load.n_warmup = 0;
        spec.max_connections = spec.max_connections.max(self.concurrency);
        spec.kernel_stamps = self.kernel_stamps;
        spec.receive_threads = self.receive_threads;
        let before = process_cpu();
        let report = run(&spec, Arc::new(ByteTexts { template_tokens: 0 }), &mut NoProgress, stop)?;
        Ok(Driven { report, cpu: process_cpu().saturating_sub(before) })
    }
}

/// What a case showed.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// The load.
    pub case: Case,
    /// Requests that did not end well.
    pub n_failed: usize,
    /// From the first send to the last response.
    pub seconds: f64,
    /// Requests a second.
    pub requests_per_second: f64,
    /// Chunks a second.
    pub chunks_per_second: f64,
    /// Chunks a second, of those that the schedule offers to a client that never delays.
    pub offered_share: f64,
    /// Mean requests in flight, of the concurrency.
    pub in_flight_share: f64,
    /// CPU time of the client process, microseconds a chunk.
    pub cpu_us_per_chunk: f64,
    /// CPU time of the server, microseconds a chunk.
    pub server_cpu_us_per_chunk: f64,
    /// How late the server itself wrote, against its schedule; nanoseconds.
    pub server_late: Spread,
    /// The client's errors.
    pub accuracy: Accuracy,
    /// Recorded gap between chunks, mean over the requests; milliseconds.
    pub itl_ms: f64,
    /// Share of chunks that shared a read with an earlier one.
    pub clumped_share: f64,
    /// `kernel`, `clock` or `mixed`.
    pub stamp_source: &'static str,
    /// Receive threads.
    pub n_receive_threads: usize,
    /// Busy share of the busiest receive thread.
    pub receive_utilisation: f64,
    /// Share of time in which it waited for a CPU.
    pub cpu_wait_share: f64,
}

impl Figures {
    /// Compares what was recorded with what was sent.
    #[must_use]
    pub fn of(case: Case, driven: &Driven, log: &EmissionLog) -> Self {
        let (report, health) = (&driven.report, &driven.report.health);
        let first = report.records.iter().map(|r| r.start_ns).min().unwrap_or(0);
        let last = report.records.iter().map(|r| r.end_ns).max().unwrap_or(0);
        let seconds = Nanos(last.saturating_sub(first)).as_secs_f64().max(1e-9);
        let per_chunk = |cpu: Duration| cpu.as_secs_f64() * 1e6 / (health.n_chunks as f64).max(1.0);
        Self {
            case,
            n_failed: report.records.iter().filter(|r| !r.outcome.is_ok()).count(),
            seconds,
            requests_per_second: report.records.len() as f64 / seconds,
            chunks_per_second: health.n_chunks as f64 / seconds,
            offered_share: case.answer_time().as_secs_f64() * f64::from(case.n_rounds) / seconds,
            in_flight_share: health.in_flight_mean / f64::from(case.concurrency),
            cpu_us_per_chunk: per_chunk(driven.cpu),
            server_cpu_us_per_chunk: per_chunk(log.cpu),
            server_late: log.lateness(&case.server()),
            accuracy: Accuracy::of(report, log),
            itl_ms: mean(report.records.iter().filter_map(gap_ms)),
            clumped_share: health.clumped_share(),
            stamp_source: health.receive.stamp_source(),
            n_receive_threads: health.n_receive_threads(),
            receive_utilisation: health.receive_utilisation(),
            cpu_wait_share: health.cpu_wait_share(),
        }
    }

    /// What has to hold, and whether it does. The bars of a paced load; those of a ceiling are its caller's.
    #[must_use]
    pub fn bars(&self) -> Vec<Bar> {
        let (a, us) = (&self.accuracy, 1e-3);
        let stamp_limit = if self.stamp_source == "kernel" { 20.0 } else { 500.0 };
        let at_least = |name, unit, value, limit| Bar { name, unit, value, limit, at_least: true, decides: true };
        let at_most = |name, unit, value, limit| Bar { name, unit, value, limit, at_least: false, decides: true };
        let wrong = self.n_failed + a.n_miscounted;
        vec![
            at_most("failed or miscounted requests", "", wrong as f64, 0.0),
            at_least("chunks/s, of those offered", "", self.offered_share, 0.95),
            at_least("in flight, of the concurrency", "", self.in_flight_share, 0.985),
            at_most("chunk stamp error, p99", "us", a.stamp.p99 * us, stamp_limit),
            at_most("TTFT excess, mean", "ms", a.ttft.mean * 1e-6, 1.5),
            at_most("ITL error of a request, p99", "ms", a.itl.p99.max(-a.itl.min) * 1e-6, 0.01),
            at_most("clumped chunks", "%", self.clumped_share * 100.0, 1.0),
            // What it costs; it limits nothing by itself.
            Bar { decides: false, ..at_most("client CPU per chunk", "us", self.cpu_us_per_chunk, 8.0) },
        ]
    }

    /// The names of the bars that decide and do not hold.
    #[must_use]
    pub fn failed(&self) -> Vec<&'static str> {
        self.bars().iter().filter(|b| b.decides && !b.holds()).map(|b| b.name).collect()
    }
}

/// A figure and its limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bar {
    /// What.
    pub name: &'static str,
    /// Its unit; empty for a share or a count.
    pub unit: &'static str,
    /// As measured.
    pub value: f64,
    /// Its limit.
    pub limit: f64,
    /// Whether larger is better.
    pub at_least: bool,
    /// Whether a host that misses it cannot do what was asked.
    pub decides: bool,
}

impl Bar {
    /// Whether the figure is within its limit.
    #[must_use]
    pub fn holds(&self) -> bool {
        if self.at_least { self.value >= self.limit } else { self.value <= self.limit }
    }
}

/// Mean gap between the chunks of a request, milliseconds.
fn gap_ms(record: &RequestRecord) -> Option<f64> {
    let n = record.chunks.len().checked_sub(1).filter(|n| *n > 0)?;
    let (first, last) = (record.chunks.first()?.at_ns, record.chunks.last()?.at_ns);
    Some(last.saturating_sub(first) as f64 * 1e-6 / n as f64)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0u32), |(sum, n), v| (sum + v, n + 1));
    if n == 0 { 0.0 } else { sum / f64::from(n) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paced::PacedServer;

    fn case() -> Case {
        let ms = Nanos::from_millis;
        Case {
            concurrency: 4,
            n_rounds: 3,
            isl: 16,
            osl: 8,
            tokens_per_chunk: 2,
            ttft: ms(4),
            itl: ms(1),
            kernel_stamps: true,
            receive_threads: Some(2),
        }
    }

    #[test]
    fn a_case_is_driven_and_every_figure_follows_from_the_log() {
        let case = case();
        assert_eq!((case.n_chunks(), case.answer_time()), (4, Nanos::from_millis(10)));
        let server = PacedServer::start_at(case.server(), "127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let driven = case.drive(&server.url(), &Arc::new(StopSignal::new())).unwrap();
        let figures = Figures::of(case, &driven, &server.stop().unwrap());
        assert_eq!((figures.n_failed, figures.accuracy.n_requests, figures.accuracy.n_miscounted), (0, 12, 0));
        assert_eq!(figures.n_receive_threads, 2);
        // The server is never early, so nobody can have been faster than its schedule.
        assert!(figures.seconds >= 0.0299 && figures.offered_share <= 1.01, "{figures:?}");
        assert!(figures.server_late.min >= 0.0 && figures.in_flight_share <= 1.0 && figures.itl_ms > 0.0);
        assert!((figures.chunks_per_second - 48.0 / figures.seconds).abs() < 1e-6);
    }

    #[test]
    fn a_host_that_misses_a_bar_is_told_which() {
        let driven = Driven {
            report: LoadReport {
                records: Vec::new(),
                clock: crate::clock::Clock::start(),
                health: crate::ClientHealth::default(),
                n_repeated_prompts: 0,
                n_isl_mismatches: 0,
                n_osl_mismatches: 0,
                exchanges: None,
            },
            cpu: Duration::ZERO,
        };
        let log = PacedServer::start(case().server()).unwrap().stop().unwrap();
        let mut figures = Figures::of(case(), &driven, &log);
        (figures.offered_share, figures.in_flight_share, figures.stamp_source) = (0.99, 0.99, "kernel");
        assert_eq!(figures.failed(), [""; 0]);
        figures.accuracy.stamp.p99 = 30e3;
        figures.cpu_us_per_chunk = 100.0;
        assert_eq!(figures.failed(), ["chunk stamp error, p99"], "what costs much is not wrong by that");
        figures.stamp_source = "clock";
        assert_eq!(figures.failed(), [""; 0]);
        (figures.offered_share, figures.accuracy.itl.min) = (0.9, -20e3);
        assert_eq!(figures.failed(), ["chunks/s, of those offered", "ITL error of a request, p99"]);
    }
}
