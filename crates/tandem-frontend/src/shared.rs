//! What all tasks of one frontend share: the facts of the Plan that it needs, and its tables.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;
use tandem_plan::{Phase, Plan};
use tandem_tokenizer::Tokenizer;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::inflight::Inflight;
use crate::metrics::{Metrics, Outcome};
use crate::server::{Options, ServeError};
use crate::text::Marks;
use crate::workers::Workers;

/// Shared by all tasks.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) model: String,
    pub(crate) recipe: String,
    pub(crate) plan_hash: String,
    pub(crate) limits: Limits,
    pub(crate) api_key: Option<String>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) marks: Option<Marks>,
    /// End-of-sequence tokens of the model.
    pub(crate) eos: Vec<u32>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) inflight: Inflight,
    pub(crate) metrics: Metrics,
    /// Cancelled when connections to workers are to be closed.
    pub(crate) closing: CancellationToken,
    /// Start of the process, in Unix seconds.
    pub(crate) started: u64,
    /// Makes response ids of different frontends differ.
    pub(crate) id_salt: u64,
    n_in_flight: AtomicU32,
}

/// What a request may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Prompt and output together, tokens.
    pub(crate) context: u32,
    /// Prompt alone, tokens.
    pub(crate) prompt: u32,
    /// Token ids are below this.
    pub(crate) vocab: u32,
    pub(crate) in_flight: u32,
    pub(crate) body_bytes: usize,
    pub(crate) timeout: Duration,
}

impl Shared {
    pub(crate) fn new(plan: &Plan, options: Options) -> Result<Self, ServeError> {
        let shortest = |phase| plan.workers_of(phase).map(|w| w.limits.max_seq_len).min();
        let context = shortest(Phase::Decode).ok_or(ServeError::NoWorkers(Phase::Decode))?;
        // A prefill worker computes the first token as well, which must fit its own limit.
        let prompt = shortest(Phase::Prefill).ok_or(ServeError::NoWorkers(Phase::Prefill))?.min(context).saturating_sub(1);
        let workers = Arc::new(Workers::new(plan));
        let started = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs());
        Ok(Shared {
            model: plan.model.served_name.clone(),
            recipe: plan.recipe.clone(),
            plan_hash: plan.hash(),
            limits: Limits {
                context,
                prompt,
                vocab: plan.model.config.vocab_size,
                in_flight: plan.frontend.max_inflight,
                body_bytes: usize::try_from(plan.frontend.max_body_bytes).unwrap_or(usize::MAX),
                timeout: Duration::from_millis(plan.frontend.request_timeout_ms),
            },
            api_key: options.api_key,
            marks: Marks::of(&options.tokenizer),
            eos: options.tokenizer.stop_ids().iter().copied().chain(plan.model.config.eos_token_id).collect(),
            tokenizer: options.tokenizer,
            metrics: Metrics::new(Arc::clone(&workers)),
            workers,
            inflight: Inflight::default(),
            closing: CancellationToken::new(),
            started,
            id_salt: random(),
            n_in_flight: AtomicU32::new(0),
        })
    }

    /// Counts a request as being in the system, if there is room.
    pub(crate) fn admit(self: &Arc<Self>, endpoint: &'static str, request_id: HeaderValue) -> Option<Ticket> {
        let room = |n: u32| (n < self.limits.in_flight).then_some(n + 1);
        if self.n_in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            self.metrics.rejections.inc();
            self.metrics.ended(endpoint, Outcome::Rejected);
            return None;
        }
        self.metrics.in_flight.inc();
        Some(Ticket { shared: Arc::clone(self), endpoint, request_id, arrived: Instant::now(), outcome: Outcome::Cancelled })
    }
}

/// The place of one request in the system. Dropped without an outcome, the client has left.
#[derive(Debug)]
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    endpoint: &'static str,
    request_id: HeaderValue,
    pub(crate) arrived: Instant,
    outcome: Outcome,
}

impl Ticket {
    /// Says how the request ended.
    pub(crate) fn ended(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.n_in_flight.fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.in_flight.dec();
        self.shared.metrics.ended(self.endpoint, self.outcome);
        let (request_id, outcome) = (&self.request_id, self.outcome.as_str());
        debug!(?request_id, endpoint = self.endpoint, outcome, latency = ?self.arrived.elapsed(), "request ended");
    }
}

/// 64 bits that differ between processes and calls.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}
