//! What the caller decides about a worker process, and how it can end.

use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use tandem_engine::EngineError;
use tandem_kv::KvTimeouts;
use tandem_sched::ConfigError;
use tandem_wire::frame::FrameError;
use thiserror::Error;
use tokio::net::TcpListener;

/// Shortest time for which a reservation waits for its KV, whatever the plan says.
const RESERVATION_DEADLINE_MIN: Duration = Duration::from_secs(10);

/// What the caller decides about a worker process.
pub struct WorkerOptions {
    /// Control address of the frontend, `host:port`.
    pub frontend: String,
    /// Where prefill workers push KV to; bound by the caller. A prefill worker closes it.
    pub kv_listener: TcpListener,
    /// Address of the KV listener as prefill workers reach it; none = the listener's own.
    pub kv_address: Option<String>,
    /// One line a step goes there; none = nowhere.
    pub iteration_log: Option<Box<dyn Write + Send>>,
    /// A reservation whose KV is not complete by then is released. None = as long as the plan lets a request take,
    /// at least 10 s: a request may wait that long for its turn on a busy prefill worker, and every faster way for it
    /// to end (cancel, a lost worker, a lost frontend) releases the reservation too.
    pub reservation_deadline: Option<Duration>,
    /// For how long a frontend that does not answer is tried at the start.
    pub connect_within: Duration,
    /// Whether to dial again, until shutdown, when the frontend is lost, instead of ending with an error.
    pub reconnect: bool,
    /// Deadlines of KV transfers.
    pub kv_timeouts: KvTimeouts,
}

impl WorkerOptions {
    /// The usual options: iteration lines to standard error, no reconnecting.
    #[must_use]
    pub fn new(frontend: String, kv_listener: TcpListener) -> Self {
        Self {
            frontend,
            kv_listener,
            kv_address: None,
            iteration_log: Some(Box::new(std::io::stderr())),
            reservation_deadline: None,
            connect_within: Duration::from_secs(60),
            reconnect: false,
            kv_timeouts: KvTimeouts::default(),
        }
    }

    /// The deadline of reservations under a plan whose requests may take `request_timeout`.
    pub(crate) fn reservation_deadline(&self, request_timeout: Duration) -> Duration {
        self.reservation_deadline.unwrap_or(request_timeout.max(RESERVATION_DEADLINE_MIN))
    }
}

impl fmt::Debug for WorkerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerOptions")
            .field("frontend", &self.frontend)
            .field("kv_listener", &self.kv_listener)
            .field("reservation_deadline", &self.reservation_deadline)
            .field("reconnect", &self.reconnect)
            .finish_non_exhaustive()
    }
}

/// Why a worker ended before it was asked to.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The plan wants more ranks than one.
    #[error("worker {name} has {n_ranks} ranks and this engine runs one")]
    Layout {
        /// The worker.
        name: String,
        /// Its ranks.
        n_ranks: u32,
    },
    /// A limit of the plan is 0.
    #[error("the plan's limits cannot be used")]
    Limits(#[from] ConfigError),
    /// The KV listener has no address, or the engine thread cannot be started.
    #[error("cannot start the worker")]
    Start(#[source] std::io::Error),
    /// The KV listener is bound to every address and nobody said by which one it is reached.
    #[error("the KV listener at {0} needs an address that prefill workers can reach")]
    KvAddress(SocketAddr),
    /// No frontend answered in time.
    #[error("no frontend answers at {address} within {within:?}")]
    Connect {
        /// Its control address.
        address: String,
        /// How long it was tried.
        within: Duration,
        /// What the last try ended with.
        #[source]
        source: std::io::Error,
    },
    /// The frontend does not want this worker.
    #[error("the frontend refused the worker: {reason}")]
    Rejected {
        /// Its words.
        reason: String,
    },
    /// The connection to the frontend is gone.
    #[error("the frontend is gone")]
    FrontendLost(#[source] std::io::Error),
    /// The frontend does not speak this protocol.
    #[error("the frontend sent something that is no message")]
    Protocol(#[source] FrameError),
    /// The engine cannot go on.
    #[error("the engine is broken")]
    Engine(#[source] EngineError),
    /// A bug in the engine or the worker.
    #[error("the engine thread panicked")]
    Panicked,
}
