//! Asks a frontend over HTTP: JSON documents, and canary requests whose answer is checked.

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

/// The good answer to a canary.
#[derive(Debug)]
pub struct Answer {
    headers: Vec<(String, String)>,
    /// The body.
    pub body: Value,
}

impl Answer {
    /// The value of a header, by its lower-case name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
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

    /// The same questions to another server.
    #[must_use]
    pub fn at(&self, base: String) -> Self {
        Probe { base, ..self.clone() }
    }

    /// A text document; any status.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn get_text(&self, path: &str) -> Result<String, String> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.config().timeout_global(Some(PROBE_TIMEOUT)).build().call().map_err(|e| e.to_string())?;
        response.body_mut().read_to_string().map_err(|e| e.to_string())
    }

    /// Whether `path` is answered with success.
    #[must_use]
    pub fn is_ok(&self, path: &str) -> bool {
        let request = self.agent.get(format!("{}{path}", self.base)).config().timeout_global(Some(PROBE_TIMEOUT)).build();
        request.call().is_ok_and(|response| response.status().is_success())
    }

    /// A JSON document; any status, since servers that are not ready say why in one.
    ///
    /// # Errors
    /// Why there is no such answer.
    pub fn get_json(&self, path: &str) -> Result<Value, String> {
        let text = self.get_text(path)?;
        serde_json::from_str(&text).map_err(|e| format!("{path}: {e}"))
    }

    /// Sends one short chat request, with `headers` and the fields of `extra`, and checks that it got the tokens it asked for.
    ///
    /// # Errors
    /// A text that says what was wrong.
    pub fn canary(&self, model: &str, headers: &[(&str, &str)], extra: Option<(&str, Value)>, timeout: Duration) -> Result<Answer, String> {
        let mut body = json!({
            "model": model,
            "messages": [{"role": "user", "content": "Is anybody there?"}],
            "max_tokens": CANARY_TOKENS, "min_tokens": CANARY_TOKENS, "ignore_eos": true, "temperature": 0,
        });
        if let Some((name, value)) = extra {
            body[name] = value;
        }
        let mut request = self.agent.post(format!("{}/v1/chat/completions", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.config().timeout_global(Some(timeout)).build().send_json(&body).map_err(|e| e.to_string())?;
        let status = response.status();
        let named = response.headers().iter().filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
        let headers = named.collect();
        let text = response.body_mut().read_to_string().map_err(|e| format!("status {status}: {e}"))?;
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        if !status.is_success() {
            // OpenAI's error object, or Dynamo's flat one.
            let message = body["error"]["message"].as_str().or_else(|| body["message"].as_str());
            return Err(format!("status {status}: {}", message.unwrap_or("no message")));
        }
        let n_tokens = body["usage"]["completion_tokens"].as_u64();
        if n_tokens != Some(u64::from(CANARY_TOKENS)) {
            return Err(format!("it has {n_tokens:?} tokens instead of {CANARY_TOKENS}"));
        }
        Ok(Answer { headers, body })
    }
}
