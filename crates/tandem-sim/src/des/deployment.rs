//! What is simulated: two pools of workers, the links between them, and the load.

use rand::Rng;

use crate::cost::{DecodeCost, PrefillCost};

/// Prefill workers, all alike.
#[derive(Debug, Clone, PartialEq)]
pub struct PrefillPool {
    /// Workers.
    pub workers: u32,
    /// Attention ranks of a worker; each has its own queue, and all of them wait for the slowest in each iteration.
    pub ranks: u32,
    /// Sequences of a rank in one iteration.
    pub max_batch: u32,
    /// Prompt tokens of a rank in one iteration; longer prompts take several.
    pub max_tokens: u32,
    /// Whether a prompt may be split where the tokens of an iteration run out, and not only when it is longer than all of them.
    pub chunked: bool,
    /// How a worker spreads prompts over its ranks.
    pub spread: RankSpread,
    /// Factor on iterations that hold prompts of the first burst: cold caches, connections and tokenizers.
    pub burst: f64,
    /// Iteration times.
    pub cost: PrefillCost,
}

/// How a prefill worker chooses the attention rank of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RankSpread {
    /// The rank with the least work (TensorRT-LLM's attention-DP balance).
    Balanced,
    /// Any rank, whatever its queue (SGLang derives the rank from a random room number).
    Random,
}

/// How a request whose prompt is computed gets its decode worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WorkerChoice {
    /// The worker with the fewest requests.
    #[default]
    LeastLoaded,
    /// One after the other, whatever they have to do.
    RoundRobin,
    /// Any, whatever they have to do.
    Random,
}

impl WorkerChoice {
    /// All of them; the position is what a fit counts by.
    pub const ALL: [WorkerChoice; 3] = [WorkerChoice::LeastLoaded, WorkerChoice::RoundRobin, WorkerChoice::Random];

    /// The name in a file of constants.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            WorkerChoice::LeastLoaded => "least-loaded",
            WorkerChoice::RoundRobin => "round-robin",
            WorkerChoice::Random => "random",
        }
    }
}

/// Decode workers, all alike.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodePool {
    /// Workers.
    pub workers: u32,
    /// Attention ranks of a worker.
    pub ranks: u32,
    /// Sequences of a rank.
    pub max_batch: u32,
    /// Tokens that the KV cache of a rank holds.
    pub kv_tokens: u64,
    /// Batch sizes of captured graphs, ascending; a rank's batch is padded to the next one. Empty = no padding.
    pub graph_batches: Vec<u32>,
    /// Who chooses the worker of a request.
    pub routing: WorkerChoice,
    /// Step times.
    pub cost: DecodeCost,
}

/// The way of the KV cache from prefill to decode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transfer {
    /// Bytes of one token's KV cache.
    pub bytes_per_token: f64,
    /// Bytes/s that leave one prefill worker.
    pub bandwidth: f64,
    /// Seconds of every transfer, whatever its size.
    pub latency_s: f64,
}

/// Everything that serves.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployment {
    /// Prefill workers.
    pub prefill: PrefillPool,
    /// Decode workers.
    pub decode: DecodePool,
    /// The link.
    pub transfer: Transfer,
    /// Seconds that client, frontend and tokenizer add before the first token.
    pub request_s: f64,
    /// GPUs of all workers.
    pub gpus: f64,
}

/// Lengths of prompts or outputs, tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lengths {
    /// All alike.
    Fixed(u32),
    /// Uniform between the two, both included.
    Uniform(u32, u32),
}

impl Lengths {
    /// The mean.
    #[must_use]
    pub fn mean(&self) -> f64 {
        match *self {
            Lengths::Fixed(n) => f64::from(n),
            Lengths::Uniform(a, b) => f64::midpoint(f64::from(a), f64::from(b)),
        }
    }

    /// The longest.
    #[must_use]
    pub const fn max(&self) -> u32 {
        match *self {
            Lengths::Fixed(n) | Lengths::Uniform(_, n) => n,
        }
    }

    pub(crate) fn draw(&self, rng: &mut impl Rng) -> u32 {
        match *self {
            Lengths::Fixed(n) => n.max(1),
            Lengths::Uniform(a, b) => rng.random_range(a.min(b)..=a.max(b)).max(1),
        }
    }
}

/// A closed loop: `concurrency` requests in the system from the first moment on, until `requests` have been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Requests in the system.
    pub concurrency: u32,
    /// Requests in all.
    pub requests: u32,
    /// Prompt lengths.
    pub isl: Lengths,
    /// Output lengths.
    pub osl: Lengths,
    /// Seed of the lengths.
    pub seed: u64,
    /// Tokens between two events that a client sees; 1 = each token.
    pub stream_interval: u32,
}
