//! A frontend on loopback, scripted workers that speak the worker protocol to it, and a small HTTP client.
#![allow(dead_code, unreachable_pub, reason = "shared by several test binaries and the benchmark, each of which uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

pub mod client;
pub mod plan;
pub mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tandem_frontend::{Options, serve};
use tandem_plan::{Phase, Plan};
use tandem_tokenizer::{ByteLevelConfig, Tokenizer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::client::{Client, Response};
use self::worker::{Auto, Worker};

/// Longer than anything takes on a busy machine; only a hang reaches it.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A running frontend.
pub struct Frontend {
    pub plan: Plan,
    pub http: SocketAddr,
    pub control: SocketAddr,
    pub shutdown: CancellationToken,
    pub tasks: JoinSet<()>,
}

impl Frontend {
    pub async fn start(plan: Plan) -> Self {
        Self::start_with(plan, None, Tokenizer::byte_level(&ByteLevelConfig::deepseek())).await
    }

    pub async fn start_with(plan: Plan, api_key: Option<&str>, tokenizer: Tokenizer) -> Self {
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (http_at, control_at) = (http.local_addr().unwrap(), control.local_addr().unwrap());
        let (shutdown, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let options = Options { api_key: api_key.map(str::to_owned), tokenizer: Arc::new(tokenizer) };
        let serving = serve(plan.clone(), http, control, options, shutdown.clone());
        tasks.spawn(async move { serving.await.unwrap() });
        Frontend { plan, http: http_at, control: control_at, shutdown, tasks }
    }

    /// A frontend with one automatic worker of each phase.
    pub async fn with_auto(plan: Plan) -> (Self, Auto, Auto) {
        let frontend = Self::start(plan).await;
        let prefill = frontend.auto("prefill-0").await;
        let decode = frontend.auto("decode-0").await;
        frontend.until_ready(1, 1).await;
        (frontend, prefill, decode)
    }

    /// Connects a worker that does only what the test tells it.
    pub async fn worker(&self, name: &str) -> Worker {
        let phase = if name.starts_with("prefill") { Phase::Prefill } else { Phase::Decode };
        Worker::connect(self.control, &self.plan.hash(), name, phase).await
    }

    /// Connects a worker that serves everything at once.
    pub async fn auto(&self, name: &str) -> Auto {
        Auto::start(self.worker(name).await)
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.http).await
    }

    pub async fn get(&self, path: &str) -> Response {
        self.client().await.get(path).await
    }

    pub async fn chat(&self, body: &serde_json::Value) -> Response {
        self.client().await.post("/v1/chat/completions", &[], body.to_string().as_bytes()).await
    }

    /// Waits until so many workers are registered.
    pub async fn until_ready(&self, n_prefill: u64, n_decode: u64) {
        self.until(|health| health["workers"]["prefill"]["ready"] == n_prefill && health["workers"]["decode"]["ready"] == n_decode).await;
    }

    /// Waits until `/health` says what `condition` wants; returns it.
    pub async fn until(&self, condition: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let wait = async {
            let mut client = self.client().await;
            loop {
                let health = client.get("/health").await.json();
                if condition(&health) {
                    return health;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(DEADLINE, wait).await.expect("the frontend never came into the state that was waited for")
    }

    /// The value of one line of `/metrics`, e.g. `tandem_requests_total{endpoint="chat",outcome="ok"}`.
    pub async fn metric(&self, line: &str) -> Option<f64> {
        let text = self.get("/metrics").await.text();
        text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' ')?.trim().parse().ok())
    }

    /// Waits until a metric has a value.
    pub async fn until_metric(&self, line: &str, value: f64) {
        let wait = async {
            while self.metric(line).await != Some(value) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if timeout(DEADLINE, wait).await.is_err() {
            panic!("{line} never became {value}:\n{}", self.get("/metrics").await.text());
        }
    }

    pub async fn stop(mut self) {
        self.shutdown.cancel();
        timeout(DEADLINE, async { while self.tasks.join_next().await.is_some_and(|r| r.map(|()| true).unwrap()) {} }).await.unwrap();
    }
}
