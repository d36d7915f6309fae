//! Messages between the frontend and the workers.
//!
//! A worker dials the frontend's control address, says [`FromWorker::Hello`], and the
//! connection then carries [`ToWorker`] one way and [`FromWorker`] the other until either
//! side closes it. A closed connection means that the worker is gone: its requests are
//! retried or failed by the frontend, and everything it held is released by the worker.
//!
//! One request: `Reserve` to a decode worker, `Reserved` back, `Prefill` with that target to
//! a prefill worker, which pushes KV to the target, sends the first token as a
//! [`TokenEvent`] and is then done; the decode worker sends the rest. `Cancel` may be sent to
//! both at any time and may be repeated. A request that wants one token needs no decode worker.

use serde::{Deserialize, Serialize};
use tandem_plan::Phase;

/// Version of these messages; a worker and a frontend of different versions refuse each other.
pub const PROTOCOL_VERSION: u32 = 1;

/// Largest frame either side accepts, bytes (a prompt of a million tokens fits).
pub const MAX_FRAME_BYTES: usize = 16 << 20;

/// A request on its way through one frontend; unique for the frontend's lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// How tokens are chosen and when a request ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Tokens to generate at most, the first included; at least 1.
    pub max_tokens: u32,
    /// End-of-sequence tokens are not chosen before this many.
    pub min_tokens: u32,
    /// Whether end-of-sequence tokens do not end the request.
    pub ignore_eos: bool,
    /// 0 = greedy.
    pub temperature: f32,
    /// Nucleus, 1 = off.
    pub top_p: f32,
    /// Most likely candidates, 0 = all.
    pub top_k: u32,
    /// Seed of this request's random choices.
    pub seed: u64,
    /// Tokens that end the request.
    pub stop_token_ids: Vec<u32>,
}

/// Where a prefill worker pushes the KV cache of one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvTarget {
    /// Address of the decode worker's KV listener.
    pub address: String,
    /// Names the reservation; unguessable.
    pub ticket: u64,
    /// Milliseconds from now after which an uncommitted reservation is released.
    pub deadline_ms: u64,
}

/// Frontend to worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// The registration was accepted.
    Welcome,
    /// The registration was refused; the worker ends.
    Rejected {
        /// Why.
        reason: String,
    },
    /// To decode: hold KV blocks for a prompt of `n_prompt` tokens and its output.
    Reserve {
        /// The request.
        id: RequestId,
        /// Prompt tokens.
        n_prompt: u32,
        /// Sampling and length.
        sampling: SamplingParams,
    },
    /// To prefill: compute the prompt and the first token, push KV to `target`.
    Prefill {
        /// The request.
        id: RequestId,
        /// The prompt.
        tokens: Vec<u32>,
        /// Sampling and length.
        sampling: SamplingParams,
        /// None when only one token is wanted.
        target: Option<KvTarget>,
    },
    /// Forget the request and free what it holds, whatever state it is in.
    Cancel {
        /// The request.
        id: RequestId,
    },
}

/// Worker to frontend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// First message of a connection.
    Hello {
        /// [`PROTOCOL_VERSION`].
        version: u32,
        /// Hash of the Plan that the worker runs.
        plan_hash: String,
        /// Worker name, e.g. `decode-0`.
        name: String,
        /// Its phase.
        phase: Phase,
        /// Longest sequence it can hold.
        max_seq_len: u32,
    },
    /// Blocks are held; push the KV there.
    Reserved {
        /// The request.
        id: RequestId,
        /// Where to.
        target: KvTarget,
    },
    /// Tokens of one step, several requests together.
    Tokens {
        /// One entry a request.
        events: Vec<TokenEvent>,
    },
    /// The request failed here; the worker has released it.
    Failed {
        /// The request.
        id: RequestId,
        /// What kind of failure, which decides whether the frontend may retry.
        kind: FailureKind,
        /// For logs and the client.
        message: String,
    },
    /// Sent at least every [`HEARTBEAT_MS`].
    Heartbeat {
        /// Occupancy, for routing and `/metrics`.
        stats: WorkerStats,
    },
}

/// A worker sends a heartbeat at least this often, milliseconds; three missed ones mean that it is gone.
pub const HEARTBEAT_MS: u64 = 250;

/// New tokens of one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenEvent {
    /// The request.
    pub id: RequestId,
    /// Tokens in order.
    pub tokens: Vec<u32>,
    /// Set with the last tokens.
    pub finish: Option<FinishReason>,
}

/// Why a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// An end-of-sequence or stop token (not part of the text).
    Stop,
    /// `max_tokens` reached.
    Length,
}

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The request can never run here (too long for the cache).
    Impossible,
    /// The other worker of the pair died or refused the transfer; another try may work.
    Transfer,
    /// The reservation was not committed in time.
    Expired,
    /// The engine failed.
    Engine,
}

/// Occupancy of a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStats {
    /// Requests that wait for admission (prefill) or for blocks (decode).
    pub n_waiting: u32,
    /// Requests that run.
    pub n_running: u32,
    /// Requests that hold blocks for a transfer: reserved and not committed, or pushed and not acknowledged.
    pub n_transferring: u32,
    /// KV blocks in use.
    pub kv_blocks_used: u32,
    /// KV blocks in all.
    pub kv_blocks_total: u32,
    /// Engine steps since the start.
    pub n_steps: u64,
    /// Prompt tokens computed since the start.
    pub n_prefill_tokens: u64,
    /// Tokens generated since the start.
    pub n_output_tokens: u64,
    /// Requests taken on since the start.
    pub n_requests: u64,
}
