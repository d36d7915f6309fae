//! What is simulated: workers, the way of a request through them, the links, and who drives them.

use tandem_plan::{LoadPoint, Phase, Routing};
use tandem_sched::pacing::Arrivals;
use tandem_sched::{ConfigError, SchedConfig};
use thiserror::Error;

use super::costs::StepCosts;
use super::faults::{Fault, FaultError};
use super::late::Late;

/// The way of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Decode blocks are reserved before the prompt is computed and the first token comes from prefill: the embedded engine.
    ReserveFirst,
    /// A decode worker is picked when the prompt is computed, and the first token is seen with its first step: TensorRT-LLM.
    PrefillFirst,
}

/// Seconds that are neither queueing nor computation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Overheads {
    /// From the client to the first worker: connection, template, tokenizer, queue of messages.
    pub request_s: f64,
    /// Between frontend and a worker, one way.
    pub hop_s: f64,
    /// What takes longer behind a prefill worker that goes on computing at once.
    pub late: Late,
    /// Between two requests that begin at once, or are handed to a worker at once: they go one after another, so that the first may
    /// find its worker idle and run alone.
    pub dispatch_s: f64,
    /// Between two steps of a prefill worker that has work.
    pub prefill_gap: Gap,
    /// Between two steps of a decode worker that has work.
    pub decode_gap: Gap,
    /// From the end of a prompt's last step until its decode worker may begin a step with it, beyond the bytes of its KV cache.
    pub commit_s: f64,
}

/// Seconds between two steps of a worker that has work: results are sent, messages read, the next step is formed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Gap {
    /// Of each step.
    pub step_s: f64,
    /// Of each request in the step that has ended.
    pub request_s: f64,
}

/// The way of the KV cache. Each worker has one link, used by one transfer at a time in either direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Bytes of one token's KV cache.
    pub bytes_per_token: f64,
    /// Bytes/s.
    pub bandwidth: f64,
    /// Seconds of every transfer, whatever its size.
    pub latency_s: f64,
    /// Share of a transfer that runs while its prompt is still computed.
    pub overlap: f64,
}

/// How often drafted tokens are accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Acceptance(
    /// Probability of a draft, given that those before it were accepted.
    pub f64,
);

/// One worker.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerSetup {
    /// `prefill-0`, `decode-0` …
    pub name: String,
    /// What it serves.
    pub phase: Phase,
    /// Index within its phase.
    pub index: u32,
    /// Limits of each of its schedulers.
    pub sched: SchedConfig,
    /// Attention-DP ranks: each has a scheduler, and all step together.
    pub n_ranks: u32,
    /// Tokens between two events of a request.
    pub stream_interval: u32,
    /// Step times.
    pub costs: StepCosts,
}

/// The client.
#[derive(Debug, Clone, PartialEq)]
pub struct Drive {
    /// Input tokens of each request.
    pub isl: u32,
    /// Output tokens of each request.
    pub osl: u32,
    /// Concurrency and counts.
    pub point: LoadPoint,
    /// Whether tokens are sent as they come.
    pub streaming: bool,
    /// When requests are due; in anything but a closed loop the concurrency is no cap.
    pub arrivals: Arrivals,
    /// Seed of arrivals and of accepted drafts.
    pub seed: u64,
    /// A request fails after this many seconds.
    pub request_timeout_s: f64,
}

/// Everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// Workers, prefill first.
    pub workers: Vec<WorkerSetup>,
    /// How the frontend picks one.
    pub routing: Routing,
    /// Requests that the frontend lets in; more are refused with status 429.
    pub max_inflight: u32,
    /// The way of a request.
    pub flow: Flow,
    /// Fixed times.
    pub overheads: Overheads,
    /// KV transfer.
    pub link: Link,
    /// Drafts.
    pub acceptance: Acceptance,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

/// Why a setup cannot be simulated.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SetupError {
    /// A phase without a worker.
    #[error("there is no {0} worker")]
    NoWorker(Phase),
    /// A limit of a worker is 0.
    #[error("worker {name} cannot work")]
    Limits {
        /// Its name.
        name: String,
        /// Which limit.
        #[source]
        source: ConfigError,
    },
    /// A fault that cannot happen.
    #[error("a fault cannot be injected")]
    Fault(#[from] FaultError),
}
