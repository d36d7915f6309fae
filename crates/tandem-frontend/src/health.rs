//! Who is there, who is missing, what is served, what has happened so far.

use bytes::Bytes;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tandem_plan::Phase;
use tandem_wire::openai::ApiError;

use crate::http::{ResponseBody, json_response, shown, with_type};
use crate::shared::Shared;
use crate::workers::PhaseHealth;

/// `/health`: 200 when every worker of the Plan is there, 503 otherwise.
///
/// `endpoints` and `instances` have the shape that tools which wait for Dynamo deployments count.
pub(crate) fn health(shared: &Shared) -> Response<ResponseBody> {
    let (prefill, decode) = phases(shared);
    let all_there = prefill.missing.is_empty() && decode.missing.is_empty();
    let status = match (all_there, prefill.ready.is_empty() || decode.ready.is_empty()) {
        (true, _) => "healthy",
        (false, false) => "degraded",
        (false, true) => "unavailable",
    };
    let instances: Vec<Value> = shared.workers.connected().iter().map(|w| instance(w.phase, &w.name, w.key.0, w.peer)).collect();
    let body = json!({
        "status": status,
        "model": shared.model,
        "recipe": shared.recipe,
        "plan_hash": shared.plan_hash,
        "workers": {"prefill": phase_json(&prefill), "decode": phase_json(&decode)},
        "requests_in_flight": shared.inflight.len(),
        "endpoints": ["/v1/chat/completions", "/v1/completions", "/v1/models"],
        "instances": instances,
    });
    page(all_there, &body)
}

/// `/ready`: 200 when a request could be served.
pub(crate) fn ready(shared: &Shared) -> Response<ResponseBody> {
    let (prefill, decode) = phases(shared);
    let ready = !prefill.ready.is_empty() && !decode.ready.is_empty();
    let absent: Vec<&str> =
        [("prefill", &prefill), ("decode", &decode)].iter().filter(|(_, h)| h.ready.is_empty()).map(|(name, _)| *name).collect();
    page(
        ready,
        &json!({"ready": ready, "missing_phases": absent, "workers": {"prefill": phase_json(&prefill), "decode": phase_json(&decode)}}),
    )
}

/// `/v1/models`.
pub(crate) fn models(shared: &Shared) -> Response<ResponseBody> {
    page(true, &json!({"object": "list", "data": [model_json(shared)]}))
}

/// `/v1/models/{id}` and `/v1/models/{id}/ready`.
pub(crate) fn model(shared: &Shared, path: &str) -> Result<Response<ResponseBody>, ApiError> {
    if path == shared.model {
        return Ok(page(true, &model_json(shared)));
    }
    if path.strip_suffix("/ready") == Some(&shared.model) {
        return Ok(ready(shared));
    }
    let message = format!("the model '{}' does not exist; this server has '{}'", shown(path), shared.model);
    let error = ApiError::bare(404, "invalid_request_error", Some("model_not_found"), message);
    Err(ApiError { param: Some("model".into()), ..error })
}

/// `/metrics`.
pub(crate) fn metrics(shared: &Shared) -> Result<Response<ResponseBody>, ApiError> {
    let failed = |e| ApiError::bare(500, "server_error", None, format!("the metrics cannot be written: {e}"));
    let text = shared.metrics.render().map_err(failed)?;
    let body = ResponseBody::Whole(Some(Bytes::from(text)));
    Ok(with_type(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body))
}

fn phases(shared: &Shared) -> (PhaseHealth, PhaseHealth) {
    (shared.workers.health(Phase::Prefill), shared.workers.health(Phase::Decode))
}

fn phase_json(health: &PhaseHealth) -> Value {
    json!({"expected": health.n_expected, "ready": health.ready.len(), "names": health.ready, "missing": health.missing})
}

fn instance(phase: Phase, name: &str, id: u64, peer: std::net::SocketAddr) -> Value {
    let component = if phase == Phase::Prefill { "prefill" } else { "backend" };
    json!({"component": component, "endpoint": "generate", "namespace": "tandem", "instance_id": id, "name": name, "transport": {"tcp": peer.to_string()}})
}

fn model_json(shared: &Shared) -> Value {
    json!({"id": shared.model, "object": "model", "created": shared.started, "owned_by": "tandem", "max_model_len": shared.limits.context})
}

fn page(good: bool, body: &Value) -> Response<ResponseBody> {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json_response(status, Bytes::from(body.to_string()))
}
