//! A deployment: frontend and workers as children of the launcher, on this machine or as steps of its Slurm job.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tandem_plan::{EngineKind, Phase, Plan, WorkerPlan};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::error::LaunchError;
use crate::events::EventLog;
use crate::probe::Probe;
use crate::process::{Exited, ProcessSpec, Processes};
use crate::slurm::Allocation;

/// Pause between two looks at `/health`.
const HEALTH_INTERVAL: Duration = Duration::from_millis(20);

/// The frontend's process name; workers have their names from the Plan.
const FRONTEND: &str = "frontend";

/// After a worker's end, that of the frontend is waited for this long: it would explain the worker's.
const BLAME_WINDOW: Duration = Duration::from_millis(300);

/// What the launcher needs besides the Plan.
#[derive(Debug, Clone)]
pub struct LaunchOptions {
    /// The `tandem` executable.
    pub program: PathBuf,
    /// The run folder; `plan.json` and `logs/` are in it.
    pub run_dir: PathBuf,
    /// The deployment must be ready by then.
    pub ready_timeout: Duration,
    /// Time between SIGTERM and SIGKILL at the end.
    pub stop_grace: Duration,
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
}

impl Deployment {
    /// Starts the frontend, then all workers. They are not ready yet: see [`Deployment::ready`].
    ///
    /// # Errors
    /// When a process cannot be started, or the frontend ends before it listens.
    pub async fn start(plan: &Plan, options: LaunchOptions, events: EventLog) -> Result<Self, LaunchError> {
        if plan.engine == EngineKind::DynamoTrtllm {
            let reason = "its engine is Dynamo with TensorRT-LLM, which needs GPUs and a cluster; `tandem plan` shows what it would start";
            return Err(LaunchError::Unsupported(reason.into()));
        }
        let mut processes = Processes::default();
        let deadline = Instant::now() + options.ready_timeout;
        let frontend = frontend_spec(plan, &options, &events)?;
        let announcement = processes.start(&frontend)?.expect("the frontend announces its addresses");
        let addresses = tokio::select! {
            addresses = timeout_at(deadline, announcement.read()) => addresses,
            exited = processes.next_exit() => return Err(LaunchError::Died(exited)),
        };
        let not_listening =
            || LaunchError::NotReady { seconds: options.ready_timeout.as_secs(), state: "the frontend does not listen".into() };
        let addresses = match addresses {
            Ok(Some(addresses)) => addresses,
            // Its standard output ended, so it is about to be reaped: say how it ended.
            Ok(None) => return Err(timeout_at(deadline, processes.next_exit()).await.map_or_else(|_| not_listening(), LaunchError::Died)),
            Err(_) => return Err(not_listening()),
        };
        let text = |key: &str| addresses[key].as_str().unwrap_or_default().to_owned();
        let url = format!("http://{}", text("http"));
        for worker in &plan.workers {
            processes.start(&worker_spec(plan, &options, worker, &text("control")))?;
        }
        for (name, pid) in processes.pids() {
            events.emit("process_started", json!({"name": name, "pid": pid}));
        }
        Ok(Deployment { processes, exits: Vec::new(), events, options, url })
    }

    /// Waits for the exact worker counts, then sends a canary through every prefill-decode pair.
    ///
    /// # Errors
    /// [`LaunchError::Died`] as soon as a process ends, [`LaunchError::NotReady`] at the deadline, [`LaunchError::Canary`].
    pub async fn ready(&mut self, plan: &Plan) -> Result<(), LaunchError> {
        let probe = Probe::new(self.url.clone(), self.options.api_key.clone());
        let check = check(probe, plan, self.options.ready_timeout);
        tokio::select! {
            // A death explains a failed probe better than the probe does.
            biased;
            exited = self.died() => Err(LaunchError::Died(exited)),
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
        timeout(BLAME_WINDOW, self.died()).await.ok()
    }

    async fn next_exit(&mut self) {
        let exited = self.processes.next_exit().await;
        let culprit = exited.culprit.as_ref().map(|c| json!({"node": c.node, "tasks": c.tasks, "how": c.how}));
        let cause = exited.cause.map(|cause| cause.what);
        let fields = json!({
            "name": exited.name, "code": exited.code, "signal": exited.signal, "culprit": culprit, "cause": cause, "tail": exited.tail,
        });
        self.events.emit("process_died", fields);
        self.exits.push(exited);
    }

    /// Ends every process and waits until all are gone.
    pub async fn stop(mut self) {
        let mut exits = Vec::new();
        if let Some(allocation) = self.options.allocation.clone() {
            // SIGTERM to `srun` has Slurm kill its tasks at once; the tasks themselves must get it.
            let asked = tokio::task::spawn_blocking(move || allocation.terminate_steps());
            let asked = timeout(Allocation::TERMINATE_WITHIN, asked).await;
            match asked {
                Ok(Ok(Ok(_))) => exits = self.processes.drain(self.options.stop_grace).await,
                Ok(Ok(Err(reason))) => tracing::warn!(reason, "the steps cannot be asked to stop and are killed"),
                _ => tracing::warn!("Slurm does not answer: the steps are killed"),
            }
        }
        exits.extend(self.processes.stop(self.options.stop_grace).await);
        for exited in exits {
            self.events.emit("process_stopped", json!({"name": exited.name, "code": exited.code, "signal": exited.signal}));
        }
    }
}

async fn check(probe: Probe, plan: &Plan, within: Duration) -> Result<(), LaunchError> {
    let deadline = Instant::now() + within;
    loop {
        let asking = probe.clone();
        let health = tokio::task::spawn_blocking(move || asking.health()).await.expect("a probe does not panic");
        let state = match health {
            Ok(health) if health.is_complete(plan) => break,
            Ok(health) => format!("{} prefill and {} decode workers are registered", health.n_prefill, health.n_decode),
            Err(reason) => reason,
        };
        if Instant::now() >= deadline {
            return Err(LaunchError::NotReady { seconds: within.as_secs(), state });
        }
        sleep(HEALTH_INTERVAL).await;
    }
    for prefill in plan.workers_of(Phase::Prefill) {
        for decode in plan.workers_of(Phase::Decode) {
            let (asking, model) = (probe.clone(), plan.model.served_name.clone());
            let (p, d) = (prefill.name.clone(), decode.name.clone());
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
            let answer = tokio::task::spawn_blocking(move || asking.canary(&model, &p, &d, left)).await;
            answer.expect("a probe does not panic").map_err(|reason| LaunchError::Canary {
                prefill: prefill.name.clone(),
                decode: decode.name.clone(),
                reason,
            })?;
        }
    }
    Ok(())
}

/// The log of a worker, as the recipe names it (counted from 1).
#[must_use]
pub fn worker_log(run_dir: &Path, phase: Phase, index: u32) -> PathBuf {
    run_dir.join("logs").join(format!("output_{phase}_{}.log", index + 1))
}

fn frontend_spec(plan: &Plan, options: &LaunchOptions, events: &EventLog) -> Result<ProcessSpec, LaunchError> {
    let mut args = vec!["serve".into(), "--plan".into(), plan_path(options), "--announce".into(), "--stop-with-stdin".into()];
    if let Some(allocation) = &options.allocation {
        let (http, control, busy) = allocation.frontend_ports(plan)?;
        let host = allocation.address(plan.frontend.node);
        // A port that was asked for is a promise to clients; any other comes from the block of the job.
        let http = if options.http_port == 0 { http } else { options.http_port };
        events.emit("ports_bound", json!({"host": host, "http": http, "control": control, "busy": busy}));
        args.extend(addresses_of_frontend(host, &http.to_string(), &control.to_string()));
    }
    let log = options.run_dir.join("logs/output_server.log");
    let spec = ProcessSpec { name: FRONTEND.into(), program: options.program.clone(), args, log, announces: true, env: None };
    Ok(match &options.allocation {
        Some(allocation) => allocation.client_step(spec, plan.frontend.node),
        None => spec,
    })
}

fn addresses_of_frontend(host: &str, http: &str, control: &str) -> [String; 4] {
    ["--http".into(), format!("{host}:{http}"), "--control".into(), format!("{host}:{control}")]
}

/// What a job would start in `allocation`, frontend first, as command lines with `HTTP` and `CONTROL` for ports.
#[must_use]
pub fn slurm_commands(plan: &Plan, program: &Path, run_dir: &Path, allocation: &Allocation) -> Vec<Vec<String>> {
    let options = LaunchOptions {
        program: program.to_owned(),
        run_dir: run_dir.to_owned(),
        ready_timeout: Duration::ZERO,
        stop_grace: Duration::ZERO,
        api_key: None,
        http_port: 0,
        allocation: Some(allocation.clone()),
    };
    let host = allocation.address(plan.frontend.node);
    let mut args = vec!["serve".into(), "--plan".into(), plan_path(&options), "--announce".into(), "--stop-with-stdin".into()];
    args.extend(addresses_of_frontend(host, "HTTP", "CONTROL"));
    let log = run_dir.join("logs/output_server.log");
    let frontend = ProcessSpec { name: FRONTEND.into(), program: program.to_owned(), args, log, announces: true, env: None };
    let mut specs = vec![allocation.client_step(frontend, plan.frontend.node)];
    specs.extend(plan.workers.iter().map(|worker| worker_spec(plan, &options, worker, &format!("{host}:CONTROL"))));
    specs.into_iter().map(|spec| std::iter::once(spec.program.display().to_string()).chain(spec.args).collect()).collect()
}

fn worker_spec(plan: &Plan, options: &LaunchOptions, worker: &WorkerPlan, control: &str) -> ProcessSpec {
    let args = ["worker", "--plan", &plan_path(options), "--name", &worker.name, "--frontend", control, "--stop-with-stdin"];
    let mut args: Vec<String> = args.iter().map(ToString::to_string).collect();
    if let (Some(allocation), Some(first)) = (&options.allocation, worker.ranks.first()) {
        args.extend(["--kv".into(), format!("{}:0", allocation.address(first.node)), "--rank-from".into(), "SLURM_PROCID".into()]);
    }
    let log = worker_log(&options.run_dir, worker.phase, worker.index);
    let spec = ProcessSpec { name: worker.name.clone(), program: options.program.clone(), args, log, announces: false, env: None };
    match &options.allocation {
        Some(allocation) => allocation.worker_step(spec, plan, worker),
        None => spec,
    }
}

fn plan_path(options: &LaunchOptions) -> String {
    options.run_dir.join("plan.json").display().to_string()
}
