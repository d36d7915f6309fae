//! A deployment: frontend and workers as children of the launcher, on this machine or as steps of its Slurm job.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tandem_plan::{Address, Plan};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::engines::{self, Adapter, Binding, Step};
use crate::error::LaunchError;
use crate::events::EventLog;
use crate::probe::Probe;
use crate::process::{Announcement, Exited, ProcessSpec, Processes};
use crate::slurm::Allocation;
use crate::slurm::text::{Cancelled, Culprit};

/// Pause between two tries to reach a server's port.
const PORT_INTERVAL: Duration = Duration::from_millis(20);

/// The frontend's process name; workers have their names from the Plan.
const FRONTEND: &str = "frontend";

/// After a worker's end, that of the frontend is waited for this long: it would explain the worker's.
const BLAME_WINDOW: Duration = Duration::from_millis(300);

/// After a node has failed, the ends of its servers are waited for this long.
const NODE_BLAME_WINDOW: Duration = Duration::from_secs(1);

/// After one step's end, those of the others are waited for this long: one may know of a failed node.
const NODE_FAILURE_WINDOW: Duration = Duration::from_secs(3);

/// `srun` sees the end of a task through two daemons; requests fail long before.
const SLURM_BLAME_WINDOW: Duration = Duration::from_secs(5);

/// What the launcher needs besides the Plan.
#[derive(Debug, Clone)]
pub struct LaunchOptions {
    /// The `tandem` executable.
    pub program: PathBuf,
    /// The run folder; `plan.json` and `logs/` are in it.
    pub run_dir: PathBuf,
    /// The deployment must be ready by then.
    pub ready_timeout: Duration,
    /// Key that the frontend asks for (handed on by the environment variable `TANDEM_API_KEY`, which children inherit).
    pub api_key: Option<String>,
    /// Port of the frontend inside a Slurm job; 0 for one of the job's own.
    pub http_port: u16,
    /// The Slurm job in which the processes run as steps; none for this machine.
    pub allocation: Option<Allocation>,
}

/// A Plan that runs.
#[derive(Debug)]
pub struct Deployment {
    processes: Processes,
    /// Seen to end and not yet reported, in the order in which they were seen.
    exits: Vec<Exited>,
    events: EventLog,
    options: LaunchOptions,
    url: String,
    adapter: Arc<dyn Adapter>,
    binding: Binding,
    commands: Vec<Value>,
    /// Nodes of each process.
    placed: Vec<(String, Vec<u32>)>,
    met_time_limit: bool,
}

impl Deployment {
    /// Starts services and frontend, then all workers. They are not ready yet: see [`Deployment::ready`].
    ///
    /// # Errors
    /// When a process cannot be started, or one ends before the next can start.
    pub async fn start(plan: &Plan, options: LaunchOptions, events: EventLog) -> Result<Self, LaunchError> {
        let adapter: Arc<dyn Adapter> = engines::adapter(plan).into();
        let binding = match &options.allocation {
            Some(allocation) => {
                let (allocation, plan, options) = (allocation.clone(), plan.clone(), options.clone());
                let bind = move || allocation.binding(&plan, &options.run_dir, &options.program, options.http_port);
                let (binding, busy) = tokio::task::spawn_blocking(bind).await.expect("binding does not panic")?;
                events.emit("ports_bound", json!({"http": binding.ports.http, "ports": format!("{:?}", binding.ports), "busy": busy}));
                binding
            }
            None => {
                if let Some(reason) = adapter.needs_cluster(plan) {
                    return Err(LaunchError::Unsupported(reason));
                }
                Binding::local(plan, &options.run_dir, &options.program, adapter.ports(plan))
                    .map_err(|source| LaunchError::Io { path: options.run_dir.clone(), source })?
            }
        };
        for (name, text) in adapter.files(plan, &binding) {
            write_below(&options.run_dir, &name, &text)?;
        }
        let url = adapter.url(plan, &binding);
        let mut deployment = Deployment {
            processes: Processes::default(),
            exits: Vec::new(),
            events,
            options,
            url,
            adapter,
            binding,
            commands: Vec::new(),
            placed: Vec::new(),
            met_time_limit: false,
        };
        let deadline = Instant::now() + deployment.options.ready_timeout;
        for step in deployment.adapter.front(plan, &deployment.binding)? {
            deployment.start_step(&step, deadline).await?;
        }
        for step in deployment.adapter.workers(plan, &deployment.binding)? {
            deployment.start_step(&step, deadline).await?;
        }
        Ok(deployment)
    }

    /// Starts one process, and waits for what the next ones need of it.
    async fn start_step(&mut self, step: &Step, deadline: Instant) -> Result<(), LaunchError> {
        let spec = match &self.options.allocation {
            Some(allocation) => allocation.process_of(step, &self.options.run_dir),
            None => ProcessSpec::of_step(step, &self.options.run_dir),
        };
        let announcement = self.processes.start(&spec)?;
        if let Some((name, pid)) = self.processes.pids().last() {
            self.events.emit("process_started", json!({"name": name, "pid": pid}));
            let program = spec.program.display().to_string();
            let argv: Vec<&String> = std::iter::once(&program).chain(&spec.args).collect();
            let nodes: Vec<&str> = step.nodes.iter().map(|&node| self.binding.node_name(node)).collect();
            self.placed.push((name.clone(), step.nodes.clone()));
            self.commands.push(json!({"name": name, "nodes": nodes, "devices": step.devices, "n_tasks": step.n_tasks, "argv": argv}));
        }
        if let Some(announcement) = announcement {
            self.take_addresses(step, announcement, deadline).await?;
        }
        if let Some(port) = step.wait_for_port {
            let host = self.binding.address(step.nodes.first().copied().unwrap_or(0)).to_owned();
            let open = wait_for_port(&host, port);
            tokio::select! {
                open = timeout_at(deadline, open) => open.map_err(|_| self.not_listening(&step.name))?,
                exited = self.processes.next_exit() => return Err(LaunchError::Died(Box::new(exited))),
            }
        }
        Ok(())
    }

    async fn take_addresses(&mut self, step: &Step, announcement: Announcement, deadline: Instant) -> Result<(), LaunchError> {
        let addresses = tokio::select! {
            addresses = timeout_at(deadline, announcement.read()) => addresses,
            exited = self.processes.next_exit() => return Err(LaunchError::Died(Box::new(exited))),
        };
        let addresses = match addresses {
            Ok(Some(addresses)) => addresses,
            // Its standard output ended, so it is about to be reaped: say how it ended.
            Ok(None) => {
                let exited = timeout_at(deadline, self.processes.next_exit()).await;
                return Err(exited.map_or_else(|_| self.not_listening(&step.name), |exited| LaunchError::Died(Box::new(exited))));
            }
            Err(_) => return Err(self.not_listening(&step.name)),
        };
        let text = |key: &str| addresses[key].as_str().unwrap_or_default().to_owned();
        self.url = format!("http://{}", text("http"));
        self.binding.control = split_address(&text("control"));
        Ok(())
    }

    fn not_listening(&self, name: &str) -> LaunchError {
        LaunchError::NotReady { seconds: self.options.ready_timeout.as_secs(), state: format!("the {name} does not listen") }
    }

    /// Waits for the exact worker counts, then sends a canary through every prefill-decode pair.
    ///
    /// # Errors
    /// [`LaunchError::Died`] as soon as a process ends, [`LaunchError::NotReady`] at the deadline, [`LaunchError::Canary`].
    pub async fn ready(&mut self, plan: &Plan) -> Result<(), LaunchError> {
        let probe = Probe::new(self.url.clone(), self.options.api_key.clone());
        let check = check(self.asked(probe, plan), self.options.ready_timeout);
        tokio::select! {
            // A death explains a failed probe better than the probe does.
            biased;
            exited = self.died() => Err(LaunchError::Died(Box::new(exited))),
            checked = check => checked,
        }?;
        self.events.emit("ready", json!({"url": self.url}));
        Ok(())
    }

    /// Where clients connect, e.g. `http://127.0.0.1:34567`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Requests that prefill workers have served so far; none when the engine does not tell.
    pub async fn n_prefilled(&self, plan: &Plan) -> Option<u64> {
        let probe = Probe::new(self.url.clone(), self.options.api_key.clone());
        self.asked(probe, plan).ask(|adapter, probe, plan, binding| adapter.n_prefilled(probe, plan, binding)).await
    }

    fn asked(&self, probe: Probe, plan: &Plan) -> Asked {
        Asked { adapter: self.adapter.clone(), probe, plan: Arc::new(plan.clone()), binding: self.binding.clone() }
    }

    /// Each process with its nodes, devices, number of tasks and command line, as JSON objects, in the order of their starts.
    #[must_use]
    pub fn commands(&self) -> &[Value] {
        &self.commands
    }

    /// Name and process id of every process.
    #[must_use]
    pub fn pids(&self) -> &[(String, u32)] {
        self.processes.pids()
    }

    /// Pends until a process has ended, and returns the one that is to blame. Safe to cancel: nothing seen is forgotten.
    ///
    /// Workers end when their frontend goes, never the other way round, and may be seen to end before it.
    pub async fn died(&mut self) -> Exited {
        if self.exits.is_empty() {
            self.next_exit().await;
        }
        let _ = timeout(BLAME_WINDOW, async {
            while !self.exits.iter().any(|exited| exited.name == FRONTEND) {
                self.next_exit().await;
            }
        })
        .await;
        let frontend = self.exits.iter().position(|exited| exited.name == FRONTEND);
        self.exits.remove(frontend.unwrap_or(0))
    }

    /// A process that has just ended, if there is one: asked when requests fail, which a death shows before it is seen itself.
    pub async fn died_just_now(&mut self) -> Option<Exited> {
        let window = if self.options.allocation.is_some() { SLURM_BLAME_WINDOW } else { BLAME_WINDOW };
        timeout(window, self.died()).await.ok()
    }

    /// A process that Slurm ended because a node failed, if there is one: Slurm ends all steps of the job with it, in any order.
    pub async fn died_of_node_failure(&mut self) -> Option<Exited> {
        let is_it = |exited: &Exited| exited.cancelled == Some(Cancelled::NodeFailure);
        let _ = timeout(NODE_FAILURE_WINDOW, async {
            while !self.exits.iter().any(is_it) && self.processes.next_to_stop().is_some() {
                self.next_exit().await;
            }
        })
        .await;
        let Some(known) = self.exits.iter().position(is_it) else {
            // Slurm ends the whole job at once, perhaps before any `srun` could write why: then only Slurm knows.
            let allocation = self.options.allocation.clone()?;
            let node = tokio::task::spawn_blocking(move || allocation.failed_node()).await.ok()??;
            let at = self.exits.iter().position(|exited| self.lived_on(exited, &node))?;
            return Some(lost_with(self.exits.remove(at), node));
        };
        // Servers of other nodes were ended because of it, and may have been seen first: one of the failed node is to blame.
        let _ = timeout(NODE_BLAME_WINDOW, async {
            while self.on_failed_node().is_none() && self.processes.next_to_stop().is_some() {
                self.next_exit().await;
            }
        })
        .await;
        Some(match self.on_failed_node() {
            Some((at, node)) => lost_with(self.exits.remove(at), node),
            None => self.exits.remove(known),
        })
    }

    /// Whether Slurm ended a process because the job's time was over.
    #[must_use]
    pub fn met_time_limit(&self) -> bool {
        self.met_time_limit
    }

    /// Which of the ended processes had a place on the node that failed, and that node, as far as Slurm has named it.
    fn on_failed_node(&self) -> Option<(usize, String)> {
        let culprits = self.exits.iter().filter_map(|exited| exited.culprit.as_ref());
        let node = culprits.into_iter().find(|culprit| culprit.tasks.is_none())?.node.clone();
        let at = self.exits.iter().position(|exited| self.lived_on(exited, &node))?;
        Some((at, node))
    }

    fn lived_on(&self, exited: &Exited, node: &str) -> bool {
        let place = self.placed.iter().find(|(name, _)| *name == exited.name);
        place.is_some_and(|(_, nodes)| nodes.iter().any(|&n| self.binding.node_name(n) == node))
    }

    async fn next_exit(&mut self) {
        let exited = self.processes.next_exit().await;
        let culprit = exited.culprit.as_ref().map(|c| json!({"node": c.node, "tasks": c.tasks, "how": c.how}));
        let cause = exited.known.map(|known| known.code);
        let fields = json!({
            "name": exited.name, "code": exited.code, "signal": exited.signal, "culprit": culprit, "cause": cause, "tail": exited.tail,
        });
        self.events.emit("process_died", fields);
        self.met_time_limit |= exited.cancelled == Some(Cancelled::TimeLimit);
        self.exits.push(exited);
    }

    /// Ends every process and waits until all are gone.
    pub async fn stop(mut self) {
        let (grace, mut exits) = (self.adapter.stop_grace(), Vec::new());
        if let Some(allocation) = self.options.allocation.clone() {
            // SIGTERM to `srun` has Slurm kill its tasks at once; the tasks themselves must get it.
            while let Some((order, names)) = self.processes.next_to_stop() {
                let asking = allocation.clone();
                let asked = tokio::task::spawn_blocking(move || asking.terminate_steps(&names));
                match timeout(Allocation::TERMINATE_WITHIN, asked).await {
                    Ok(Ok(Ok(()))) if self.processes.wait_for(order, grace, &mut exits).await => continue,
                    Ok(Ok(Err(reason))) => tracing::warn!(reason, "steps cannot be asked to stop and are killed"),
                    _ => tracing::warn!("steps did not end in time and are killed"),
                }
                break;
            }
        }
        exits.extend(self.processes.stop(grace).await);
        for exited in exits {
            self.events.emit("process_stopped", json!({"name": exited.name, "code": exited.code, "signal": exited.signal}));
        }
    }
}

async fn check(asked: Asked, within: Duration) -> Result<(), LaunchError> {
    let deadline = Instant::now() + within;
    let plan = asked.plan.clone();
    loop {
        let state = match asked.ask(|adapter, probe, plan, binding| adapter.health(probe, plan, binding)).await {
            Ok(health) if health.is_complete(&plan) => break,
            Ok(health) => format!("{} prefill and {} decode workers are registered", health.n_prefill, health.n_decode),
            Err(reason) => reason,
        };
        if Instant::now() >= deadline {
            return Err(LaunchError::NotReady { seconds: within.as_secs(), state });
        }
        sleep(asked.adapter.health_interval()).await;
    }
    for pair in engines::pairs(&plan) {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let through = pair.clone();
        let answer = asked.ask(move |adapter, probe, plan, _| adapter.canary(probe, plan, &through, left)).await;
        answer.map_err(|reason| LaunchError::Canary { prefill: pair.prefill, decode: pair.decode, reason })?;
    }
    Ok(())
}

/// Whom to ask about what; its questions block, so each gets a thread.
struct Asked {
    adapter: Arc<dyn Adapter>,
    probe: Probe,
    plan: Arc<Plan>,
    binding: Binding,
}

impl Asked {
    async fn ask<T: Send + 'static>(&self, question: impl FnOnce(&dyn Adapter, &Probe, &Plan, &Binding) -> T + Send + 'static) -> T {
        let (adapter, probe, plan, binding) = (self.adapter.clone(), self.probe.clone(), self.plan.clone(), self.binding.clone());
        let asked = tokio::task::spawn_blocking(move || question(adapter.as_ref(), &probe, &plan, &binding));
        asked.await.expect("a probe does not panic")
    }
}

/// Pends until something listens there.
async fn wait_for_port(host: &str, port: u16) {
    while tokio::net::TcpStream::connect((host, port)).await.is_err() {
        sleep(PORT_INTERVAL).await;
    }
}

fn split_address(text: &str) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    Some(Address { host: host.to_owned(), port: port.parse().ok()? })
}

fn write_below(dir: &Path, name: &str, text: &str) -> Result<(), LaunchError> {
    let path = dir.join(name);
    let write = || {
        std::fs::create_dir_all(path.parent().unwrap_or(dir))?;
        std::fs::write(&path, text)
    };
    write().map_err(|source| LaunchError::Io { path: path.clone(), source })
}

/// A process that ended because its node failed.
fn lost_with(mut exited: Exited, node: String) -> Exited {
    exited.culprit = Some(Culprit { node, tasks: None, how: "Node failure".to_owned() });
    exited
}
