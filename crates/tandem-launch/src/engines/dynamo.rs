//! What the engines behind NVIDIA Dynamo share: dialects, discovery, services, frontend, environment, questions.
//!
//! Two dialects: 0.6 (etcd and NATS always; the worker's role is a flag of its own for some engines) and 1 (`--disaggregation-mode`
//! everywhere; TCP and ZMQ between servers, so that one machine needs a folder for discovery and several nodes need etcd alone).

use std::time::Duration;

use serde_json::{Value, json};
use tandem_plan::{Phase, Plan, Routing, WorkerPlan};

use super::{Binding, FRONTEND_LOG, Pair, PortNeeds, Role, Step, args, path_text};
use crate::error::LaunchError;
use crate::probe::{Health, Probe};

/// Which generation of Dynamo's command line and environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// 0.6.x.
    V0_6,
    /// 1.0 and later.
    V1,
}

/// How servers find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discovery {
    /// A folder of this machine.
    File,
    /// etcd on the frontend's node.
    Etcd,
}

/// A knob's text; empty when the plan has none.
pub(crate) fn knob<'a>(plan: &'a Plan, name: &str) -> &'a str {
    plan.knob(name).and_then(Value::as_str).unwrap_or_default()
}

/// The dialect that `ENGINE_DIALECT` names; `auto` is `default`.
#[must_use]
pub fn dialect(plan: &Plan, default: Dialect) -> Dialect {
    match knob(plan, "ENGINE_DIALECT") {
        "0.6" => Dialect::V0_6,
        "1" => Dialect::V1,
        _ => default,
    }
}

/// The discovery that `ENGINE_DISCOVERY` names; `auto` is a folder on one machine where the dialect can, else etcd.
#[must_use]
pub fn discovery(plan: &Plan, dialect: Dialect) -> Discovery {
    match (dialect, knob(plan, "ENGINE_DISCOVERY")) {
        (Dialect::V1, "file") => Discovery::File,
        (Dialect::V1, "auto" | "") if plan.n_nodes <= 1 => Discovery::File,
        _ => Discovery::Etcd,
    }
}

/// Whether requests go through NATS: always in dialect 0.6, on demand in dialect 1.
#[must_use]
pub fn uses_nats(plan: &Plan, dialect: Dialect) -> bool {
    dialect == Dialect::V0_6 || knob(plan, "ENGINE_REQUEST_PLANE") == "nats"
}

/// The Python with Dynamo.
#[must_use]
pub fn python(plan: &Plan) -> String {
    Some(knob(plan, "ENGINE_PYTHON")).filter(|text| !text.is_empty()).unwrap_or("python3").to_owned()
}

/// The model's directory as workers see it.
#[must_use]
pub fn model_path(plan: &Plan) -> String {
    match &plan.model.source {
        tandem_plan::ModelSource::Checkpoint { path } => path.clone(),
        // An engine that computes nothing still wants config.json and a tokenizer.
        _ => plan.model.tokenizer_dir.clone().unwrap_or_default(),
    }
}

/// Ports that Dynamo needs.
#[must_use]
pub fn ports(plan: &Plan, dialect: Dialect) -> PortNeeds {
    PortNeeds {
        http: true,
        etcd: discovery(plan, dialect) == Discovery::Etcd,
        nats: uses_nats(plan, dialect),
        workers: dialect == Dialect::V1,
    }
}

/// etcd, NATS and the frontend, as far as the plan needs them.
///
/// # Errors
/// When the plan asks for a folder as discovery over several nodes: it works by file events, which other nodes' writes do not make.
pub fn front(plan: &Plan, binding: &Binding, dialect: Dialect) -> Result<Vec<Step>, LaunchError> {
    let discovery = discovery(plan, dialect);
    if discovery == Discovery::File && plan.n_nodes > 1 {
        let reason = format!("ENGINE_DISCOVERY=file works on one machine, the plan has {} nodes; use etcd", plan.n_nodes);
        return Err(LaunchError::Unsupported(reason));
    }
    let mut steps = Vec::new();
    if uses_nats(plan, dialect) {
        steps.push(nats(plan, binding));
    }
    if discovery == Discovery::Etcd {
        steps.push(etcd(plan, binding));
    }
    let port = binding.ports.http.to_string();
    let mut argv = args(&[&python(plan), "-m", "dynamo.frontend"]);
    // All addresses are its default.
    if plan.frontend.http.host != "0.0.0.0" {
        argv.extend(args(&["--http-host", &plan.frontend.http.host]));
    }
    argv.extend(args(&["--http-port", &port]));
    if dialect == Dialect::V1 {
        let mode = match plan.frontend.routing {
            Routing::RoundRobin => "round-robin",
            Routing::LeastLoaded => "least-loaded",
        };
        argv.extend(args(&["--router-mode", mode]));
    }
    let node = plan.frontend.node;
    let frontend = Step::new("frontend", Role::Frontend, node, argv, FRONTEND_LOG).with_env(env(plan, binding, dialect, node));
    steps.push(Step { stop_order: 1, ..frontend });
    Ok(steps)
}

fn nats(plan: &Plan, binding: &Binding) -> Step {
    let (node, port) = (plan.frontend.node, binding.ports.nats);
    let store = path_text(binding.run_dir.join("nats"));
    let argv = args(&["nats-server", "-js", "-a", listen_host(plan, binding), "-p", &port.to_string(), "-sd", &store]);
    let step = Step::new("nats", Role::Service, node, argv, "logs/nats.log");
    Step { wait_for_port: Some(port), stop_order: 2, ..step }
}

fn etcd(plan: &Plan, binding: &Binding) -> Step {
    let node = plan.frontend.node;
    let (host, listen) = (binding.address(node), listen_host(plan, binding));
    let (client, peer) = (binding.ports.etcd, binding.ports.etcd_peer);
    let data = path_text(binding.run_dir.join("etcd"));
    let advertised_peer = format!("http://{host}:{peer}");
    let argv = args(&[
        "etcd",
        "--data-dir",
        &data,
        "--listen-client-urls",
        &format!("http://{listen}:{client}"),
        "--advertise-client-urls",
        &format!("http://{host}:{client}"),
        "--listen-peer-urls",
        &format!("http://{listen}:{peer}"),
        "--initial-advertise-peer-urls",
        &advertised_peer,
        "--initial-cluster",
        &format!("default={advertised_peer}"),
    ]);
    let step = Step::new("etcd", Role::Service, node, argv, "logs/etcd.log");
    Step { wait_for_port: Some(client), stop_order: 2, ..step }
}

/// Services listen on the address that the other nodes use, never on all.
fn listen_host<'a>(plan: &Plan, binding: &'a Binding) -> &'a str {
    binding.address(plan.frontend.node)
}

/// Variables of every Dynamo process on `node`.
#[must_use]
pub fn env(plan: &Plan, binding: &Binding, dialect: Dialect, node: u32) -> Vec<(String, String)> {
    let head = binding.address(plan.frontend.node);
    let mut env: Vec<(&str, String)> = Vec::new();
    match discovery(plan, dialect) {
        Discovery::File => {
            env.push(("DYN_DISCOVERY_BACKEND", "file".into()));
            env.push(("DYN_FILE_KV", path_text(binding.run_dir.join("discovery"))));
        }
        Discovery::Etcd => {
            if dialect == Dialect::V1 {
                env.push(("DYN_DISCOVERY_BACKEND", "etcd".into()));
            }
            env.push(("ETCD_ENDPOINTS", format!("http://{head}:{}", binding.ports.etcd)));
        }
    }
    if uses_nats(plan, dialect) {
        env.push(("NATS_SERVER", format!("nats://{head}:{}", binding.ports.nats)));
    }
    match dialect {
        Dialect::V0_6 => {}
        Dialect::V1 => {
            if uses_nats(plan, dialect) {
                env.extend(["DYN_REQUEST_PLANE", "DYN_EVENT_PLANE"].map(|name| (name, "nats".to_owned())));
            }
            // Without these it advertises the machine's first address that is not loopback.
            let hosts = ["DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST", "DYN_HTTP_RPC_HOST"];
            env.extend(hosts.map(|name| (name, binding.address(node).to_owned())));
            env.push(("DYN_SELF_HOST_METADATA", "0".into()));
        }
    }
    env.push(("HF_HUB_OFFLINE", "1".into()));
    // At info it writes about nine lines a request.
    env.push(("DYN_LOG", "warn".into()));
    env.push(("DYN_LOGGING_JSONL", "1".into()));
    env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Variables of a worker: those of its node, and the port where it answers for its own counters.
#[must_use]
pub fn worker_env(plan: &Plan, binding: &Binding, dialect: Dialect, worker: &WorkerPlan) -> Vec<(String, String)> {
    let node = worker.ranks.first().map_or(0, |rank| rank.node);
    let mut env = env(plan, binding, dialect, node);
    if let Some(port) = binding.worker_port(plan, &worker.name).filter(|_| dialect == Dialect::V1) {
        env.push(("DYN_SYSTEM_PORT".into(), port.to_string()));
        env.push(("DYN_SYSTEM_HOST".into(), binding.address(node).to_owned()));
    }
    env
}

/// The devices of a worker that does not get its own from the cluster.
#[must_use]
pub fn visible_devices(step: &Step) -> String {
    step.devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Engines whose ranks find each other by arguments that differ by node are rendered for one node only.
pub(crate) fn one_node_only(engine: &str, worker: &WorkerPlan) -> Result<(), LaunchError> {
    let first = worker.ranks.first().map_or(0, |rank| rank.node);
    match worker.ranks.iter().any(|rank| rank.node != first) {
        true => Err(LaunchError::Unsupported(format!("{} spans nodes, which is not rendered for {engine}", worker.name))),
        false => Ok(()),
    }
}

/// Fraction of the device that weights, workspace and KV cache take: for engines that count from the whole memory.
pub(crate) fn memory_share(worker: &WorkerPlan) -> String {
    let m = &worker.memory;
    format!("{:.3}", (m.weights.0 + m.workspace.0 + m.kv.0) as f64 / m.device.0.max(1) as f64)
}

/// Ready workers: 1.x says so by model, 0.6 lists instances.
///
/// # Errors
/// What is missing, in the frontend's words.
pub fn health(probe: &Probe, plan: &Plan, dialect: Dialect) -> Result<Health, String> {
    match dialect {
        Dialect::V1 => {
            let body = probe.get_json(&format!("/v1/models/{}/ready", plan.model.served_name))?;
            let mut health = Health { n_prefill: 0, n_decode: 0 };
            for namespace in body["namespaces"].as_object().into_iter().flatten().map(|(_, namespace)| namespace) {
                let n = |phase: &str| count(namespace["worker_types"][phase]["workers"].as_u64());
                health.n_prefill += n("prefill");
                health.n_decode += n("decode");
            }
            match body["ready"].as_bool() {
                Some(true) => Ok(health),
                _ if health.n_prefill + health.n_decode > 0 => {
                    Err(format!("{} prefill and {} decode workers are there, the model is not ready", health.n_prefill, health.n_decode))
                }
                _ => Err("no worker has registered".to_owned()),
            }
        }
        Dialect::V0_6 => {
            let body = probe.get_json("/health")?;
            let of = |components: &[&str]| {
                let instances = body["instances"].as_array().into_iter().flatten();
                let ours = instances.filter(|i| i["endpoint"] == "generate" && components.iter().any(|c| i["component"] == *c));
                count(Some(ours.count() as u64))
            };
            Ok(Health { n_prefill: of(&["prefill", "tensorrt_llm_next"]), n_decode: of(&["backend", "tensorrt_llm"]) })
        }
    }
}

fn count(n: Option<u64>) -> u32 {
    u32::try_from(n.unwrap_or(0)).unwrap_or(u32::MAX)
}

/// One request; under dialect 1 its answer must name a prefill worker and another decode worker.
///
/// The frontend routes in turn, so the pair is not the client's choice; as many canaries as pairs reach every worker.
///
/// # Errors
/// What was wrong with the answer.
pub fn canary(probe: &Probe, plan: &Plan, _pair: &Pair, dialect: Dialect, timeout: Duration) -> Result<(), String> {
    let ask = (dialect == Dialect::V1).then(|| ("nvext", json!({"extra_fields": ["worker_id"]})));
    let answer = probe.canary(&plan.model.served_name, &[], ask, timeout)?;
    if dialect == Dialect::V0_6 {
        return Ok(());
    }
    let id = |name: &str| answer.body["nvext"]["worker_id"][name].as_u64();
    match (id("prefill_worker_id"), id("decode_worker_id")) {
        (Some(prefill), Some(decode)) if prefill != decode => Ok(()),
        (None, _) => Err("no prefill worker served it: the deployment is not disaggregated".to_owned()),
        (prefill, decode) => Err(format!("it was served by prefill worker {prefill:?} and decode worker {decode:?}")),
    }
}

/// Requests that the prefill workers count themselves.
#[must_use]
pub fn n_prefilled(probe: &Probe, plan: &Plan, binding: &Binding) -> Option<u64> {
    let mut total = 0;
    for worker in plan.workers_of(Phase::Prefill) {
        let port = binding.worker_port(plan, &worker.name)?;
        let node = worker.ranks.first().map_or(0, |rank| rank.node);
        let text = probe.at(format!("http://{}:{port}", binding.address(node))).get_text("/metrics").ok()?;
        total += requests_total(&text)?;
    }
    Some(total)
}

/// The sum of `dynamo_component_requests_total` of the endpoint that serves.
fn requests_total(metrics: &str) -> Option<u64> {
    let values = metrics.lines().filter(|line| line.starts_with("dynamo_component_requests_total{"));
    let generate = values.filter(|line| line.contains("dynamo_endpoint=\"generate\""));
    let mut sum = None;
    for line in generate {
        let value: f64 = line.rsplit_once(' ')?.1.parse().ok()?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter of requests")]
        let value = value as u64;
        sum = Some(sum.unwrap_or(0) + value);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_summed_over_its_labels() {
        let text = "# TYPE dynamo_component_requests_total counter\n\
            dynamo_component_requests_total{dynamo_component=\"prefill\",dynamo_endpoint=\"generate\",worker_id=\"1\"} 12\n\
            dynamo_component_requests_total{dynamo_component=\"prefill\",dynamo_endpoint=\"clear\",worker_id=\"1\"} 5\n\
            dynamo_component_requests_total{dynamo_component=\"prefill\",dynamo_endpoint=\"generate\",worker_id=\"2\"} 3\n";
        assert_eq!(requests_total(text), Some(15));
        assert_eq!(requests_total("other 3\n"), None);
    }
}
