//! The facts of one request, as the load generator saw them or the simulator predicts them.
//!
//! Both sources fill a [`RequestRecord`]; everything after that (metrics, summary, artifacts) is one path
//! and cannot tell them apart. All times are nanoseconds since the run's origin; [`RunClock`] ties the
//! origin to the wall clock, once per run.
//!
//! A request that fails is a record with an [`Outcome`], never a missing one.
//!
//! Reading order: `outcome` (how it ended), `chunks` (what arrived when). Not here: any statistic, any file
//! format (`artifacts::profile_export` writes records as lines and reads them back).

mod chunks;
mod outcome;

pub use chunks::{Chunk, ChunkKind, ChunkLog};
pub use outcome::{FailureKind, Outcome};

/// Ties the run's origin to the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunClock {
    /// Nanoseconds since the Unix epoch at which the run's own time was zero.
    pub wall_origin_ns: u64,
}

impl RunClock {
    /// Wall-clock nanoseconds of a time of the run.
    #[must_use]
    pub const fn wall_ns(self, at_ns: u64) -> u64 {
        self.wall_origin_ns.saturating_add(at_ns)
    }
}

/// Part of a load run; only profiling counts in statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LoadPhase {
    /// Requests that bring the deployment to its steady state.
    Warmup,
    /// Measured requests.
    Profiling,
}

impl LoadPhase {
    /// The name in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            LoadPhase::Warmup => "warmup",
            LoadPhase::Profiling => "profiling",
        }
    }

    /// The phase with that name in files.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [LoadPhase::Warmup, LoadPhase::Profiling].into_iter().find(|phase| phase.as_str() == name)
    }
}

/// A token count from two independent sources.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenCount {
    /// Counted by the client: prompts by construction, outputs with its own tokenizer.
    pub client: Option<u32>,
    /// From the server's `usage`.
    pub server: Option<u32>,
}

/// Tokens of the texts of a request alone, by the client's tokenizer: what GenAI-Perf counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TextTokens {
    /// Of the messages, without what the chat template adds.
    pub prompt: Option<u32>,
    /// Of the answer, without reasoning.
    pub answer: Option<u32>,
}

/// Everything known about one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    /// Number of the request within its load point and phase, in the order of issue.
    pub index: u64,
    /// The `x-request-id` it was sent with.
    pub x_request_id: String,
    /// Index of the load point within the run.
    pub point: u32,
    /// Conversation it belongs to; equals `index` for single-turn loads.
    pub session: u64,
    /// Turn within the conversation, from 0.
    pub turn: u32,
    /// Client thread or slot that sent it.
    pub worker: u32,
    /// Warm-up or measured.
    pub phase: LoadPhase,
    /// When it was due, ns. In closed loops: when its slot became free.
    pub scheduled_ns: u64,
    /// When its sending began, ns. Latencies count from here.
    pub start_ns: u64,
    /// When its last byte left the client's host, ns, if known: the kernel's stamp where it gives one, else the time after the last write.
    /// Not the origin of any latency, but how long sending took.
    pub sent_ns: Option<u64>,
    /// When the first byte of the response arrived, ns.
    pub ack_ns: Option<u64>,
    /// When the response ended or the failure was noticed, ns. The request was in flight until here.
    pub end_ns: u64,
    /// Non-empty output chunks. A response that does not stream has one.
    pub chunks: ChunkLog,
    /// Input length.
    pub isl: TokenCount,
    /// Output length, reasoning included.
    pub osl: TokenCount,
    /// The client's own counts of the texts alone, where they were asked for.
    pub text_tokens: TextTokens,
    /// The `finish_reason` of the response.
    pub finish_reason: Option<String>,
    /// The HTTP status, if a response began.
    pub http_status: Option<u16>,
    /// How it ended.
    pub outcome: Outcome,
}

impl RequestRecord {
    /// A request that has just been issued: nothing sent, nothing received, outcome [`Outcome::Ok`] until told otherwise.
    #[must_use]
    pub fn issued(index: u64, x_request_id: impl Into<String>, point: u32, phase: LoadPhase, scheduled_ns: u64) -> Self {
        RequestRecord {
            index,
            x_request_id: x_request_id.into(),
            point,
            session: index,
            turn: 0,
            worker: 0,
            phase,
            scheduled_ns,
            start_ns: scheduled_ns,
            sent_ns: None,
            ack_ns: None,
            end_ns: scheduled_ns,
            chunks: ChunkLog::new(),
            isl: TokenCount::default(),
            osl: TokenCount::default(),
            text_tokens: TextTokens::default(),
            finish_reason: None,
            http_status: None,
            outcome: Outcome::Ok,
        }
    }

    /// Whether it ended well and produced output: the requests that latency metrics are taken over.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.outcome.is_ok() && !self.chunks.is_empty()
    }

    /// Output tokens: the server's count, else the client's.
    #[must_use]
    pub fn osl_tokens(&self) -> Option<u32> {
        self.osl.server.or(self.osl.client)
    }

    /// Input tokens: the client's count (the prompt itself, as GenAI-Perf counts), else the server's.
    #[must_use]
    pub fn isl_tokens(&self) -> Option<u32> {
        self.isl.client.or(self.isl.server)
    }
}
