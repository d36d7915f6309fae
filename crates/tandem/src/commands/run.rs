//! `tandem run`: a recipe deployed on this machine, driven, measured, torn down.
//!
//! One deployment is one run folder. Whatever ends it (the last request, a process that dies,
//! an interrupt), the folder holds what was measured and a verdict on it, and nothing is left running.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tandem_launch::engines::{self, worker_log};
use tandem_launch::slurm::Allocation;
use tandem_launch::slurm::text::Cancelled;
use tandem_launch::{Deployment, EventLog, Exited, LaunchError, LaunchOptions};
use tandem_load::StopSignal;
use tandem_metrics::artifacts::{PointArtifacts, RunContext, RunKind};
use tandem_metrics::{Reason, Verdict};
use tandem_plan::{LoadPoint, Phase, Plan};
use tandem_recipe::render_configs;

use super::manifest;
use super::measure::{self, Ask, Point};
use super::progress::say;
use super::recipe::{load, plans_of};
use super::results::conclude;
use super::run_folder::RunFolder;
use super::serve::api_key;
use crate::cli::RunArgs;
use crate::exit::{Exit, Failure, OrExit};
use crate::signals::{Interrupt, Interrupts};
use crate::telemetry_args::roles_of_plan;

pub(crate) fn run(args: RunArgs) -> Result<(), Failure> {
    let recipe = load(&args.recipe)?;
    let mut plans = plans_of(&recipe)?;
    for plan in &plans {
        if let Some(reason) = engines::adapter(plan).needs_cluster(plan) {
            let message = format!("recipe {} needs GPUs and a cluster, `tandem run` has this machine only: {reason}", plan.recipe);
            return Err(Failure::message(Exit::Infeasible, message)
                .with_hint(format!("`tandem plan {} --gpu-type {}` shows what it would start", plan.recipe, plan.hardware.gpu_type)));
        }
    }
    for plan in &mut plans {
        // Before the plan is written and hashed: the run starts from that document alone.
        plan.frontend.http.port = args.port.unwrap_or(plan.frontend.http.port);
    }
    if args.serve_only && plans.len() > 1 {
        return Err(Failure::message(Exit::Usage, "--serve-only serves one deployment, the recipe sweeps over several"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Bug)?;
    runtime.block_on(async {
        let mut interrupts = Interrupts::install()?;
        let n_plans = plans.len();
        for (i, plan) in plans.into_iter().enumerate() {
            let folder = RunFolder::create(&folder_path(&args, &plan, i, n_plans))?;
            if n_plans > 1 {
                say(&format!("deployment {} of {n_plans}", i + 1));
            }
            Run::begin(&args, plan, folder, None)?.drive(&mut interrupts).await?;
        }
        Ok(())
    })
}

/// Runs one plan on this machine into a folder: a repetition of an earlier run.
pub(crate) fn run_plan(args: &RunArgs, plan: Plan, folder: RunFolder) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Bug)?;
    runtime.block_on(async {
        let mut interrupts = Interrupts::install()?;
        Run::begin(args, plan, folder, None)?.drive(&mut interrupts).await
    })
}

/// With several deployments, each is a folder of its own below the one that was named.
fn folder_path(args: &RunArgs, plan: &Plan, index: usize, n_plans: usize) -> PathBuf {
    match &args.out {
        Some(out) if n_plans > 1 => out.join(format!("case-{}", index + 1)),
        Some(out) => out.clone(),
        None => RunFolder::default_path(plan.load.isl, plan.load.osl),
    }
}

/// Why a run ended before its last request.
enum Ended {
    Interrupted,
    TimeLimit,
    Died(Box<Exited>),
    Failed(Failure),
}

/// One deployment and its folder.
pub(crate) struct Run<'a> {
    args: &'a RunArgs,
    plan: Plan,
    folder: RunFolder,
    events: EventLog,
    started: u64,
    points: Vec<PointArtifacts>,
    client_reasons: Vec<Reason>,
    /// The Slurm job in which it runs; none on this machine.
    allocation: Option<Allocation>,
}

impl<'a> Run<'a> {
    /// Writes everything that is known before anything starts.
    pub(crate) fn begin(args: &'a RunArgs, plan: Plan, folder: RunFolder, allocation: Option<Allocation>) -> Result<Self, Failure> {
        let text = serde_json::to_string_pretty(&plan).or_exit(Exit::Bug)?;
        folder.write("plan.json", text.as_bytes())?;
        for (name, text) in render_configs(&plan, &machines(&plan, allocation.as_ref())) {
            folder.write(&name, text.as_bytes())?;
        }
        manifest::write(&folder, &plan, allocation.as_ref())?;
        let events = EventLog::create(&folder.path("events.jsonl")).or_exit(Exit::Artifact)?;
        let started = measure::wall_ns();
        events.emit("run_started", json!({"recipe": plan.recipe, "plan_hash": plan.hash(), "version": env!("CARGO_PKG_VERSION")}));
        Ok(Run { args, plan, folder, events, started, points: Vec::new(), client_reasons: Vec::new(), allocation })
    }

    pub(crate) async fn drive(mut self, interrupts: &mut Interrupts) -> Result<(), Failure> {
        let ended = match self.deploy(interrupts).await {
            Ok(mut deployment) => {
                let ended = if self.args.serve_only {
                    self.serve(&mut deployment, interrupts).await
                } else {
                    self.measure(&mut deployment, interrupts).await
                };
                let ended = match ended {
                    // Slurm ends the steps and this process at once: the log of one of them says why.
                    Some(Ended::Interrupted | Ended::Died(_)) if self.allocation.is_some() => {
                        deployment.died_of_node_failure().await.map(|exited| Ended::Died(Box::new(exited))).or(ended)
                    }
                    ended => ended,
                };
                deployment.stop().await;
                ended
            }
            Err(ended) => Some(ended),
        };
        let ended = match ended {
            Some(Ended::Died(exited)) => Some(judge_death(exited, interrupts).await),
            ended => ended,
        };
        self.finish(ended)
    }

    async fn deploy(&self, interrupts: &mut Interrupts) -> Result<Deployment, Ended> {
        let count = |phase| self.plan.workers_of(phase).count();
        let (n_prefill, n_decode) = (count(Phase::Prefill), count(Phase::Decode));
        say(&format!("starting the frontend, {n_prefill} prefill and {n_decode} decode workers; logs in {}", self.folder.root().display()));
        let program = std::env::current_exe().or_exit(Exit::Bug).map_err(Ended::Failed)?;
        let options = LaunchOptions {
            program,
            run_dir: self.folder.root().to_owned(),
            ready_timeout: Duration::from_secs(self.args.ready_timeout),
            api_key: api_key(),
            http_port: self.args.port.unwrap_or(0),
            allocation: self.allocation.clone(),
        };
        let start = async {
            let mut deployment = Deployment::start(&self.plan, options, self.events.clone()).await?;
            match deployment.ready(&self.plan).await {
                Ok(()) => Ok(deployment),
                Err(error) => {
                    deployment.stop().await;
                    Err(error)
                }
            }
        };
        tokio::select! {
            started = start => started.map_err(launch_ended),
            // Dropping the start kills what has been started.
            interrupt = interrupts.next_kind() => Err(interrupt.into()),
        }
    }

    /// Serves until it is interrupted or cannot serve any more. A worker that dies is reported: the others go on.
    async fn serve(&self, deployment: &mut Deployment, interrupts: &mut Interrupts) -> Option<Ended> {
        let mut left = [Phase::Prefill, Phase::Decode].map(|phase| (phase, self.plan.workers_of(phase).count()));
        // The starter may have gone already; the run folder says the same.
        let _ = writeln!(std::io::stdout(), "{}", json!({"url": deployment.url(), "model": self.plan.model.served_name}));
        say(&format!("serving {} at {} until ctrl-C", self.plan.model.served_name, deployment.url()));
        loop {
            let exited = tokio::select! {
                exited = deployment.died() => exited,
                () = interrupts.next() => return Some(Ended::Interrupted),
            };
            let phase = self.plan.worker(&exited.name).map(|worker| worker.phase);
            let alive = left.iter_mut().find(|(p, _)| Some(*p) == phase);
            match alive {
                Some((_, n)) if *n > 1 => {
                    *n -= 1;
                    say(&format!("warning: {exited}"));
                }
                _ => return Some(Ended::Died(Box::new(exited))),
            }
        }
    }

    async fn measure(&mut self, deployment: &mut Deployment, interrupts: &mut Interrupts) -> Option<Ended> {
        // Once the deployment is there: a GPU source that was asked for and is missing must not leave it running.
        let own_metrics = [format!("{}/metrics", deployment.url())];
        let host = measure::host_name();
        let roles = roles_of_plan(&self.plan, &host);
        let session = match self.args.telemetry.start(&host, self.folder.path("telemetry.jsonl"), roles, &own_metrics) {
            Ok(session) => session,
            Err(failure) => return Some(Ended::Failed(failure)),
        };
        if let Some(session) = &session {
            self.events.emit("telemetry_started", json!({"sources": session.sources, "notes": session.notes()}));
        }
        for (index, point) in self.plan.load.points.clone().into_iter().enumerate() {
            let mut ask = Ask {
                telemetry: self.args.telemetry.clone(),
                session: session.clone(),
                ..Ask::of_plan(&self.plan, deployment.url(), point, Duration::from_secs(self.args.grace), api_key())
            };
            let fields = engines::adapter(&self.plan).request_fields(&self.plan);
            ask.extra_inputs.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
            let job = match Point::new(&ask, index, self.folder.root(), &self.folder.path("logs/bench.log")) {
                Ok(job) => job,
                Err(failure) => return Some(Ended::Failed(failure)),
            };
            self.events.emit("point_started", json!({"concurrency": point.concurrency, "n_requests": point.n_requests}));
            let prefilled_before = deployment.n_prefilled(&self.plan).await;
            let stop = Arc::new(StopSignal::new());
            let mut ended = None;
            let mut load = tokio::task::spawn_blocking({
                let stop = stop.clone();
                move || job.run(&stop)
            });
            let result = loop {
                tokio::select! {
                    result = &mut load => break result,
                    exited = deployment.died(), if ended.is_none() => {
                        stop.stop_now();
                        ended = Some(Ended::Died(Box::new(exited)));
                    }
                    interrupt = interrupts.next_kind() => {
                        if ended.is_none() {
                            say("interrupted: finishing what is in flight; once more to end now");
                        }
                        match interrupt {
                            // The servers have been told to end too, and the time until SIGKILL is short.
                            Interrupt::Stop if self.allocation.is_some() => stop.stop_now(),
                            _ => stop.stop(),
                        }
                        // A server that ended well just before this was told to, as this process is now.
                        if !matches!(&ended, Some(Ended::Died(exited)) if exited.code != Some(0)) {
                            ended = Some(interrupt.into());
                        }
                    }
                }
            };
            let measured = result.or_exit(Exit::Bug).and_then(|measured| measured);
            let all_well = measured.as_ref().is_ok_and(|m| m.artifacts.summary.outcomes.keys().all(|outcome| *outcome == "ok"));
            if ended.is_none() && !all_well {
                // The requests of a process that died fail before its end is seen.
                ended = deployment.died_just_now().await.map(|exited| Ended::Died(Box::new(exited)));
            }
            if all_well {
                let prefilled = deployment.n_prefilled(&self.plan).await;
                self.client_reasons.extend(not_disaggregated(point, prefilled_before.zip(prefilled)));
            }
            match measured {
                Ok(measured) => {
                    self.events.emit("point_ended", measured.event);
                    self.client_reasons.extend(measured.reasons);
                    self.points.push(measured.artifacts);
                }
                Err(failure) if ended.is_none() => ended = Some(Ended::Failed(failure)),
                Err(_) => {}
            }
            if ended.is_some() {
                return ended;
            }
        }
        None
    }

    /// Writes all that was measured, says what came out, and turns the way it ended into an exit code.
    fn finish(self, ended: Option<Ended>) -> Result<(), Failure> {
        self.cut_logs()?;
        let failure = ended.map(|ended| match ended {
            Ended::Interrupted => Failure::message(Exit::Interrupted, "interrupted; everything was torn down"),
            Ended::TimeLimit => Failure::message(Exit::Incomplete, "stopped before the job's time limit; what was measured is there")
                .with_hint("ask for more time with --time, or for fewer requests with MULTI_ROUND"),
            Ended::Died(exited) => died(&exited),
            Ended::Failed(failure) => failure,
        });
        let context = self.context(failure.as_ref());
        self.events.emit("run_ended", json!({"partial": context.is_partial}));
        if self.args.serve_only {
            return failure.map_or(Ok(()), Err);
        }
        conclude(&self.folder, self.points, &context, failure, self.args.strict)
    }

    fn cut_logs(&self) -> Result<(), Failure> {
        for (phase, target) in [(Phase::Prefill, "logs/prefill.log"), (Phase::Decode, "logs/decode.log")] {
            let sources: Vec<_> = self.plan.workers_of(phase).map(|w| self.folder.path(&worker_log(phase, w.index))).collect();
            tandem_launch::logs::cut_iterations(&sources, &self.folder.path(target)).or_exit(Exit::Artifact)?;
        }
        Ok(())
    }

    fn context(&self, failure: Option<&Failure>) -> RunContext {
        let mut reasons = self.client_reasons.clone();
        reasons.extend(failure.map(|f| Reason { verdict: Verdict::Invalid, code: "ended_early", message: f.error.to_string() }));
        RunContext {
            kind: RunKind::Measured,
            recipe: self.plan.recipe.clone(),
            model: self.plan.model.served_name.clone(),
            plan_hash: self.plan.hash(),
            versions: vec![("tandem".to_owned(), env!("CARGO_PKG_VERSION").to_owned())],
            machines: machines(&self.plan, self.allocation.as_ref()),
            n_gpus: self.plan.n_devices(),
            started_wall_ns: self.started,
            ended_wall_ns: measure::wall_ns(),
            is_partial: failure.is_some(),
            reasons,
        }
    }
}

impl From<Interrupt> for Ended {
    fn from(interrupt: Interrupt) -> Self {
        match interrupt {
            Interrupt::Stop => Ended::Interrupted,
            Interrupt::TimeLimit => Ended::TimeLimit,
        }
    }
}

/// Time that Slurm's signal may take to follow the end of a step.
const SIGNAL_WINDOW: Duration = Duration::from_secs(2);

/// Whether a server died, or Slurm was told to end the whole job.
async fn judge_death(exited: Box<Exited>, interrupts: &mut Interrupts) -> Ended {
    // A server that ends well although nobody here asked it to was asked by somebody else.
    let was_asked = exited.cancelled == Some(Cancelled::ByUser) || exited.code == Some(0);
    if was_asked && tokio::time::timeout(SIGNAL_WINDOW, interrupts.next_kind()).await.is_ok() {
        return Ended::Interrupted;
    }
    match exited.cancelled {
        Some(Cancelled::TimeLimit) => Ended::TimeLimit,
        _ => Ended::Died(exited),
    }
}

/// The machines of a run, as `machines.txt` holds them.
fn machines(plan: &Plan, allocation: Option<&Allocation>) -> Vec<String> {
    allocation.map_or_else(|| vec![measure::host_name()], |allocation| allocation.used_nodes(plan).to_vec())
}

/// The death, and what is known to cause such last lines.
fn died(exited: &Exited) -> Failure {
    let failure = Failure::message(Exit::Died, exited.to_string());
    match exited.known {
        Some(known) => failure.with_hint(format!("{}: {}", known.meaning, known.advice)),
        None => failure,
    }
}

/// Every request must have passed through a prefill worker; a frontend may serve without them and say nothing.
fn not_disaggregated(point: LoadPoint, prefilled: Option<(u64, u64)>) -> Option<Reason> {
    let (before, after) = prefilled?;
    let (served, sent) = (after.saturating_sub(before), u64::from(point.n_requests) + u64::from(point.n_warmup));
    (served < sent).then(|| Reason {
        verdict: Verdict::Invalid,
        code: "not_disaggregated",
        message: format!("prefill workers served {served} of {sent} requests: the rest was computed elsewhere"),
    })
}

fn launch_ended(error: LaunchError) -> Ended {
    match error {
        LaunchError::Died(exited) => Ended::Died(exited),
        LaunchError::NotReady { .. } | LaunchError::Canary { .. } => Ended::Failed(
            Failure::new(Exit::NotReady, error)
                .with_hint("the logs of every process are in the run folder; --ready-timeout gives it more time"),
        ),
        LaunchError::Io { .. } => Ended::Failed(Failure::new(Exit::Artifact, error)),
        LaunchError::Spawn { .. } => Ended::Failed(Failure::new(Exit::NotReady, error)),
        LaunchError::Allocation(_) | LaunchError::Unsupported(_) => Ended::Failed(Failure::new(Exit::Infeasible, error)),
    }
}
