//! Engine adapters: what each engine needs to become a deployment, as data that every executor understands.
//!
//! An [`Adapter`] looks at a [`Plan`] and a [`Binding`] (addresses, ports, folders: what is only known at launch) and says which
//! processes to start with which arguments, environment and files, how to ask whether they serve, in which order to stop them.
//! It starts nothing itself: the local launcher spawns [`Step`]s, a cluster's launcher makes job steps of them.
//! One engine is one file; what the Dynamo engines share is in `dynamo`.

pub mod binding;
pub mod dynamo;
pub mod dynamo_adapter;
pub mod dynamo_mocker;
pub mod dynamo_sglang;
pub mod dynamo_trtllm;
pub mod dynamo_vllm;
pub mod external;
pub mod failures;
pub mod tandem;
pub mod trtllm_serve;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tandem_plan::{EngineKind, Phase, Plan, WorkerPlan};

pub use binding::{Binding, NodeBinding, Ports};
pub use failures::{KnownFailure, explain};

use crate::error::LaunchError;
use crate::probe::{Health, Probe};

/// What a step is to the deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// What servers find each other with (etcd, NATS).
    Service,
    /// Where clients connect.
    Frontend,
    /// Computes a phase.
    Worker(Phase),
}

/// One server to start: a process here, a job step on a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `etcd`, `frontend`, `prefill-0` …; unique within the deployment.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Plan node indices that it spans, in order; the first holds its rank 0.
    pub nodes: Vec<u32>,
    /// Devices that it uses on each of its nodes; empty for those that compute nothing.
    pub devices: Vec<u32>,
    /// Processes in all, divided evenly over `nodes`.
    pub n_tasks: u32,
    /// Whether its processes are ranks of one MPI world (`srun --mpi=pmix`).
    pub mpi: bool,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables to set.
    pub env: Vec<(String, String)>,
    /// Variables to remove.
    pub unset: Vec<&'static str>,
    /// Its log, relative to the run folder.
    pub log: String,
    /// Whether the first line of its standard output tells the launcher its addresses.
    pub announces: bool,
    /// The next step may start only once this port of its first node accepts connections.
    pub wait_for_port: Option<u16>,
    /// Stopped in rising order; steps with the same number at once.
    pub stop_order: u8,
}

impl Step {
    /// A step of one process on `node`, without environment.
    #[must_use]
    pub fn new(name: &str, role: Role, node: u32, argv: Vec<String>, log: &str) -> Self {
        Step {
            name: name.to_owned(),
            role,
            nodes: vec![node],
            devices: Vec::new(),
            n_tasks: 1,
            mpi: false,
            argv,
            env: Vec::new(),
            unset: Vec::new(),
            log: log.to_owned(),
            announces: false,
            wait_for_port: None,
            stop_order: 0,
        }
    }

    /// A step of `worker` on its nodes and devices, one process.
    #[must_use]
    pub fn worker(worker: &WorkerPlan, argv: Vec<String>) -> Self {
        let mut nodes: Vec<u32> = worker.ranks.iter().map(|rank| rank.node).collect();
        nodes.dedup();
        let first = nodes.first().copied().unwrap_or(0);
        let devices = worker.ranks.iter().filter(|rank| rank.node == first).map(|rank| rank.device).collect();
        let log = worker_log(worker.phase, worker.index);
        Step { nodes, devices, ..Step::new(&worker.name, Role::Worker(worker.phase), first, argv, &log) }
    }

    /// Adds variables.
    #[must_use]
    pub fn with_env<K: Into<String>, V: Into<String>>(mut self, env: impl IntoIterator<Item = (K, V)>) -> Self {
        self.env.extend(env.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }
}

/// Log of the frontend, relative to the run folder; the recipe's own name.
pub const FRONTEND_LOG: &str = "logs/output_server.log";

/// The log of a worker relative to the run folder, as the recipe names it (counted from 1).
#[must_use]
pub fn worker_log(phase: Phase, index: u32) -> String {
    format!("logs/output_{phase}_{}.log", index + 1)
}

/// Turns plans of one engine into steps and says how they are asked and stopped.
///
/// Probing methods block; call them from a thread that may.
pub trait Adapter: fmt::Debug + Send + Sync {
    /// The engine's name in recipes.
    fn name(&self) -> &'static str;

    /// Why `plan` cannot run on one machine without a cluster; none when it can.
    fn needs_cluster(&self, plan: &Plan) -> Option<String> {
        (plan.n_nodes > 1).then(|| format!("it spans {} nodes", plan.n_nodes))
    }

    /// Which ports must be chosen before anything starts.
    fn ports(&self, plan: &Plan) -> PortNeeds;

    /// Files besides `plan.json` and the engine's `configs/`, with paths relative to the run folder.
    fn files(&self, _plan: &Plan, _binding: &Binding) -> Vec<(String, String)> {
        Vec::new()
    }

    /// What starts first, in order: services, then the frontend.
    ///
    /// # Errors
    /// [`LaunchError::Unsupported`] when the plan asks for what the engine cannot do.
    fn front(&self, plan: &Plan, binding: &Binding) -> Result<Vec<Step>, LaunchError>;

    /// The workers, all at once. `binding` has what the frontend announced.
    ///
    /// # Errors
    /// As [`Adapter::front`].
    fn workers(&self, plan: &Plan, binding: &Binding) -> Result<Vec<Step>, LaunchError>;

    /// Where clients connect. A frontend that announces its address overrides it.
    fn url(&self, plan: &Plan, binding: &Binding) -> String {
        binding.url(plan)
    }

    /// The workers that the frontend knows to be ready.
    ///
    /// # Errors
    /// What is missing, for the not-ready message.
    fn health(&self, probe: &Probe, plan: &Plan, binding: &Binding) -> Result<Health, String>;

    /// Sends one request that must pass through a prefill and a decode worker (the named ones, where the engine lets a client choose).
    ///
    /// # Errors
    /// What was wrong with the answer.
    fn canary(&self, probe: &Probe, plan: &Plan, pair: &Pair, timeout: Duration) -> Result<(), String>;

    /// Fields of each measured request's body to set for this engine; null leaves one out.
    fn request_fields(&self, _plan: &Plan) -> Vec<(&'static str, Value)> {
        Vec::new()
    }

    /// Requests that prefill workers have served so far, to prove that a run was disaggregated; none when the engine does not tell.
    fn n_prefilled(&self, _probe: &Probe, _plan: &Plan, _binding: &Binding) -> Option<u64> {
        None
    }

    /// Pause between two questions for health.
    fn health_interval(&self) -> Duration {
        Duration::from_millis(500)
    }

    /// Time that a step gets between SIGTERM and SIGKILL.
    fn stop_grace(&self) -> Duration {
        Duration::from_secs(10)
    }
}

/// Ports that a launcher chooses before the start. The embedded engine needs none: its frontend binds and announces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortNeeds {
    /// The frontend's HTTP port, unless the plan names one.
    pub http: bool,
    /// Two ports of etcd (clients, peers).
    pub etcd: bool,
    /// Port of NATS.
    pub nats: bool,
    /// One port for each worker of the plan, below 32,768.
    pub workers: bool,
}

/// A prefill and a decode worker that a canary goes through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Name of the prefill worker.
    pub prefill: String,
    /// Name of the decode worker.
    pub decode: String,
}

/// Every prefill-decode pair of a plan.
#[must_use]
pub fn pairs(plan: &Plan) -> Vec<Pair> {
    plan.workers_of(Phase::Prefill)
        .flat_map(|p| plan.workers_of(Phase::Decode).map(|d| Pair { prefill: p.name.clone(), decode: d.name.clone() }))
        .collect()
}

/// The adapter of a plan's engine.
#[must_use]
pub fn adapter(plan: &Plan) -> Box<dyn Adapter> {
    match plan.engine {
        EngineKind::Cpu | EngineKind::Modeled => Box::new(tandem::Tandem),
        EngineKind::DynamoTrtllm => Box::new(dynamo_trtllm::TRTLLM),
        EngineKind::DynamoMocker => Box::new(dynamo_mocker::MOCKER),
        EngineKind::DynamoVllm => Box::new(dynamo_vllm::VLLM),
        EngineKind::DynamoSglang => Box::new(dynamo_sglang::SGLANG),
        EngineKind::TrtllmServe => Box::new(trtllm_serve::TrtllmServe),
        EngineKind::External => Box::new(external::External),
    }
}

/// The configuration file of `phase`, as a path for a process.
#[must_use]
pub fn config_path(binding: &Binding, phase: Phase) -> String {
    path_text(binding.run_dir.join("configs").join(format!("{phase}.yaml")))
}

pub(crate) fn path_text(path: PathBuf) -> String {
    path.display().to_string()
}

/// Owned strings of an argument list.
pub(crate) fn args(list: &[&str]) -> Vec<String> {
    list.iter().map(|&arg| arg.to_owned()).collect()
}
