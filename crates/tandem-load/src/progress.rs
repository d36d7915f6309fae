//! Live figures of a run, for a progress bar. Counters only: the report's figures come from records.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tandem_metrics::metrics::tpot;
use tandem_metrics::{LoadPhase, RequestRecord};
use tandem_plan::Nanos;

use crate::health::LagHistogram;

/// The state of a run at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Time since the first request, zero before.
    pub elapsed: Nanos,
    /// Requests of the whole run, warm-up included.
    pub n_total: u64,
    /// Requests sent.
    pub n_sent: u64,
    /// Requests that ended well, as far as the transport can tell.
    pub n_done: u64,
    /// Requests that failed.
    pub n_failed: u64,
    /// Output chunks received.
    pub n_chunks: u64,
    /// Output tokens received; a chunk whose tokens are unknown counts as one.
    pub n_tokens: u64,
    /// Time to first token of the measured requests that have ended: p50 and p99, within 12 %.
    pub ttft: Option<(Nanos, Nanos)>,
    /// Time per output token of the measured requests that have ended: p50 and p99, within 12 %.
    pub tpot: Option<(Nanos, Nanos)>,
    /// Until when measured requests are sent, from the first on, if time ends the run; with what has passed of it.
    pub of_duration: Option<(Nanos, Nanos)>,
}

impl Snapshot {
    /// Requests sent and not ended.
    #[must_use]
    pub fn n_in_flight(&self) -> u64 {
        self.n_sent.saturating_sub(self.n_done + self.n_failed)
    }
}

/// Somebody who watches a run.
pub trait Progress {
    /// Called about ten times a second, and once at the end.
    fn show(&mut self, snapshot: &Snapshot);
}

/// Nobody watches.
#[derive(Debug, Clone, Copy)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn show(&mut self, _: &Snapshot) {}
}

impl<F: FnMut(&Snapshot)> Progress for F {
    fn show(&mut self, snapshot: &Snapshot) {
        self(snapshot);
    }
}

/// The counters, written by the receive and decode threads.
#[derive(Debug, Default)]
pub(crate) struct Live {
    started: AtomicU64,
    n_sent: AtomicU64,
    n_done: AtomicU64,
    n_failed: AtomicU64,
    n_chunks: AtomicU64,
    n_tokens: AtomicU64,
    latencies: Mutex<Latencies>,
}

#[derive(Debug, Default)]
struct Latencies {
    first_start: Option<u64>,
    ttft: LagHistogram,
    tpot: LagHistogram,
}

impl Live {
    /// The first request is about to be sent.
    pub(crate) fn start(&self, now: Nanos) {
        self.started.store(now.0.max(1), Ordering::Relaxed);
    }

    /// A request has been issued.
    pub(crate) fn sent(&self) {
        self.n_sent.fetch_add(1, Ordering::Relaxed);
    }

    /// A request has ended.
    pub(crate) fn ended(&self, well: bool) {
        if well { &self.n_done } else { &self.n_failed }.fetch_add(1, Ordering::Relaxed);
    }

    /// A request that ended well on the wire turned out to have failed.
    pub(crate) fn failed_after_all(&self) {
        self.n_done.fetch_sub(1, Ordering::Relaxed);
        self.n_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Output has arrived.
    pub(crate) fn output(&self, n_chunks: u64, n_tokens: u64) {
        self.n_chunks.fetch_add(n_chunks, Ordering::Relaxed);
        self.n_tokens.fetch_add(n_tokens, Ordering::Relaxed);
    }

    /// A request has been decoded.
    pub(crate) fn measured(&self, record: &RequestRecord) {
        if record.phase != LoadPhase::Profiling {
            return;
        }
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        latencies.first_start.get_or_insert(record.start_ns);
        if let Some(first) = record.chunks.first().filter(|_| record.outcome.is_ok()) {
            latencies.ttft.add(Nanos(first.at_ns.saturating_sub(record.start_ns)));
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float-to-integer cast saturates")]
            if let Some(tpot) = tpot::of(record) {
                latencies.tpot.add(Nanos(tpot as u64));
            }
        }
    }

    /// The counters at `now`.
    pub(crate) fn snapshot(&self, now: Nanos, n_total: u64, duration: Option<Nanos>) -> Snapshot {
        let latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let both = |h: &LagHistogram| (h.n() > 0).then(|| (h.quantile(0.5), h.quantile(0.99)));
        let passed = latencies.first_start.map_or(Nanos::ZERO, |start| now.saturating_sub(Nanos(start)));
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let started = read(&self.started);
        Snapshot {
            elapsed: if started == 0 { Nanos::ZERO } else { now.saturating_sub(Nanos(started)) },
            n_total,
            n_sent: read(&self.n_sent),
            n_done: read(&self.n_done),
            n_failed: read(&self.n_failed),
            n_chunks: read(&self.n_chunks),
            n_tokens: read(&self.n_tokens),
            ttft: both(&latencies.ttft),
            tpot: both(&latencies.tpot),
            of_duration: duration.map(|duration| (passed.min(duration), duration)),
        }
    }
}
