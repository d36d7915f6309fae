//! Asks a frontend over HTTP whether it serves: worker counts, and canary requests.

use std::time::Duration;

use serde_json::{Value, json};
use tandem_plan::{Phase, Plan};

/// How long one probe may take, besides the time a canary computes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Tokens a canary asks for: more than one, so that the decode worker takes part.
const CANARY_TOKENS: u32 = 4;

/// Speaks to one frontend. Blocking: call it from `spawn_blocking`.
#[derive(Debug, Clone)]
pub struct Probe {
    agent: ureq::Agent,
    base: String,
    api_key: Option<String>,
}

/// Workers that a frontend says are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Ready prefill workers.
    pub n_prefill: u32,
    /// Ready decode workers.
    pub n_decode: u32,
}

impl Health {
    /// Whether exactly the planned workers are there.
    #[must_use]
    pub fn is_complete(&self, plan: &Plan) -> bool {
        let planned = |phase| u32::try_from(plan.workers_of(phase).count()).unwrap_or(u32::MAX);
        self.n_prefill == planned(Phase::Prefill) && self.n_decode == planned(Phase::Decode)
    }
}

impl Probe {
    /// A probe of the frontend at `base`, e.g. `http://127.0.0.1:8000`.
    #[must_use]
    pub fn new(base: String, api_key: Option<String>) -> Self {
        // Proxies of the environment are for the internet, not for our own processes.
        let config = ureq::Agent::config_builder().proxy(None).http_status_as_error(false).build();
        Probe { agent: config.new_agent(), base, api_key }
    }

    /// The ready workers of each phase.
    ///
    /// # Errors
    /// A text that says what was wrong, for the not-ready message.
    pub fn health(&self) -> Result<Health, String> {
        let request = self.agent.get(format!("{}/health", self.base)).config().timeout_global(Some(PROBE_TIMEOUT)).build();
        let mut response = request.call().map_err(|e| e.to_string())?;
        let body: Value = response.body_mut().read_json().map_err(|e| e.to_string())?;
        let ready = |phase: &str| -> Result<u32, String> {
            let n = body["workers"][phase]["ready"].as_u64().ok_or_else(|| format!("/health lacks workers.{phase}.ready"))?;
            u32::try_from(n).map_err(|e| e.to_string())
        };
        Ok(Health { n_prefill: ready("prefill")?, n_decode: ready("decode")? })
    }

    /// Sends one request through the given pair and checks what comes back.
    ///
    /// # Errors
    /// A text that says what was wrong.
    pub fn canary(&self, model: &str, prefill: &str, decode: &str, timeout: Duration) -> Result<(), String> {
        let body = json!({
            "model": model,
            "messages": [{"role": "user", "content": "Is anybody there?"}],
            "max_tokens": CANARY_TOKENS, "min_tokens": CANARY_TOKENS, "ignore_eos": true, "temperature": 0,
        });
        let mut request = self
            .agent
            .post(format!("{}/v1/chat/completions", self.base))
            .header("x-tandem-prefill", prefill)
            .header("x-tandem-decode", decode);
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.config().timeout_global(Some(timeout)).build().send_json(&body).map_err(|e| e.to_string())?;
        let served = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("nobody").to_owned();
        let (by_prefill, by_decode) = (served("x-tandem-prefill-worker"), served("x-tandem-decode-worker"));
        let status = response.status();
        let answer: Value = response.body_mut().read_json().map_err(|e| format!("status {status}: {e}"))?;
        if !status.is_success() {
            return Err(format!("status {status}: {}", answer["error"]["message"].as_str().unwrap_or("no message")));
        }
        if (by_prefill.as_str(), by_decode.as_str()) != (prefill, decode) {
            return Err(format!("it was served by {by_prefill} and {by_decode}"));
        }
        let n_tokens = answer["usage"]["completion_tokens"].as_u64();
        if n_tokens != Some(u64::from(CANARY_TOKENS)) {
            return Err(format!("it has {n_tokens:?} tokens instead of {CANARY_TOKENS}"));
        }
        Ok(())
    }
}
