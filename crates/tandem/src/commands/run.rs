//! `tandem run`: a recipe deployed on this machine, driven, measured, torn down.
//!
//! One deployment is one run folder. Whatever ends it (the last request, a process that dies,
//! an interrupt), the folder holds what was measured and a verdict on it, and nothing is left running.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tandem_launch::engines::{self, worker_log};
use tandem_launch::slurm::Allocation;
use tandem_launch::slurm::text::Cancelled;
use tandem_launch::{Deployment, EventLog, Exited, LaunchError, LaunchOptions};
use tandem_load::StopSignal;
use tandem_metrics::artifacts::{RunContext, RunKind};
use tandem_metrics::{Reason, Verdict};
use tandem_plan::{LoadPoint, Phase, Plan};
use tandem_recipe::render_configs;

use super::manifest;
use super::measure::{self, Ask, Point};
use super::progress::say;
use super::recipe::{load, plans_of};
use super::results::Results;
use super::run_folder::RunFolder;
use super::serve::api_key;
use super::sweep;
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
    let Some(first) = plans.first() else { return Ok(()) };
    let out = args.out.clone().unwrap_or_else(|| RunFolder::default_path(first.load.isl, first.load.osl));
    if !sweep::is_sweep(&args, plans.len()) {
        return run_plan(&args, plans.remove(0), RunFolder::create(&out)?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Bug)?;
    runtime.block_on(async {
        let mut interrupts = Interrupts::install()?;
        sweep::drive(&args, &out, sweep::cases(&args, plans, &out), &mut interrupts, None, |_| Ok(None)).await
    })
}

/// Runs one plan on this machine into a folder.
pub(crate) fn run_plan(args: &RunArgs, plan: Plan, folder: RunFolder) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Bug)?;
    runtime.block_on(async {
        let mut interrupts = Interrupts::install()?;
        Run::begin(args, plan, folder, None)?.drive(&mut interrupts).await
    })
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
    results: Results,
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
        Ok(Run { args, plan, folder, events, started, results: Results::default(), client_reasons: Vec::new(), allocation })
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
                        let of_node = deployment.died_of_node_failure().await.map(|exited| Ended::Died(Box::new(exited)));
                        of_node.or(deployment.met_time_limit().then_some(Ended::TimeLimit)).or(ended)
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
            if let Err(failure) = manifest::add_processes(&self.folder, deployment.commands()) {
                tracing::warn!(%failure, "the manifest lacks the command lines");
            }
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
                no_progress: Duration::from_secs(self.args.no_progress),
                ..Ask::of_plan(&self.plan, deployment.url(), point, Duration::from_secs(self.args.grace), api_key())
            };
            let fields = engines::adapter(&self.plan).request_fields(&self.plan);
            ask.extra_inputs.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
            let job = match Point::new(&ask, index, self.folder.root(), &self.folder.path("logs/bench.log")) {
                Ok(job) => job,
                Err(failure) => return Some(Ended::Failed(failure)),
            };
            self.events.emit("point_started", json!({"concurrency": point.concurrency, "n_requests": point.n_requests}));
            let before = self.prefilled(deployment).await;
            let deadline = sleep_for(self.args.point_timeout);
            tokio::pin!(deadline);
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
                    () = &mut deadline, if ended.is_none() => {
                        stop.stop();
                        let limit = self.args.point_timeout.unwrap_or(0);
                        let failure = Failure::message(Exit::Incomplete, format!("the load point took longer than {limit} s"));
                        ended = Some(Ended::Failed(failure.with_hint("--point-timeout gives it more time")));
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
                let mut after = self.prefilled(deployment).await;
                if not_disaggregated(point, before, after).is_some() {
                    tokio::time::sleep(LATE_LINES).await;
                    after = self.prefilled(deployment).await;
                }
                self.client_reasons.extend(not_disaggregated(point, before, after));
            }
            match measured {
                Ok(measured) => {
                    if measured.has_hung && ended.is_none() {
                        let message = format!("no server has sent anything for {} s", self.args.no_progress);
                        let failure = Failure::message(Exit::Incomplete, message);
                        ended = Some(Ended::Failed(
                            failure.with_hint("the logs of every process are in the run folder; --no-progress waits longer"),
                        ));
                    }
                    self.events.emit("point_ended", measured.event);
                    self.client_reasons.extend(measured.reasons);
                    self.results.add(&self.folder, measured.artifacts);
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
        self.results.conclude(&self.folder, &context, failure, self.args.strict)
    }

    /// What the prefill servers have done so far.
    async fn prefilled(&self, deployment: &Deployment) -> Prefilled {
        let logs: Vec<_> = self.plan.workers_of(Phase::Prefill).map(|w| self.folder.path(&worker_log(w.phase, w.index))).collect();
        Prefilled { n_requests: deployment.n_prefilled(&self.plan).await, n_tokens: tandem_launch::logs::prompt_tokens(&logs) }
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

/// Pends for `seconds`, or for ever.
async fn sleep_for(seconds: Option<u64>) {
    match seconds {
        Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
        None => std::future::pending().await,
    }
}

/// Lines of servers on other nodes, and counters, may come this much after the responses that they are about.
const LATE_LINES: Duration = Duration::from_secs(2);

/// What prefill servers have done, as far as they say so.
#[derive(Debug, Clone, Copy, Default)]
struct Prefilled {
    /// Requests that they count themselves.
    n_requests: Option<u64>,
    /// Prompt tokens of their iteration lines. Not every rank writes lines, so only growth means something.
    n_tokens: Option<u64>,
}

/// Every request must have passed through a prefill worker; a frontend may serve without them and say nothing.
fn not_disaggregated(point: LoadPoint, before: Prefilled, after: Prefilled) -> Option<Reason> {
    let invalid = |message| Some(Reason { verdict: Verdict::Invalid, code: "not_disaggregated", message });
    let sent = u64::from(point.n_requests) + u64::from(point.n_warmup);
    if let (Some(before), Some(after)) = (before.n_requests, after.n_requests) {
        let served = after.saturating_sub(before);
        let message = format!("prefill workers served {served} of {sent} requests: the rest was computed elsewhere");
        return if served < sent { invalid(message) } else { None };
    }
    // The canaries have been prefilled before, so servers that write such lines have written some.
    let (before, after) = (before.n_tokens.filter(|n| *n > 0)?, after.n_tokens?);
    if after > before { None } else { invalid(format!("prefill servers computed no token while {sent} requests were served")) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_that_prefill_servers_did_not_see_is_invalid() {
        let point = LoadPoint { concurrency: 1, n_requests: 8, n_warmup: 2 };
        let counted = |n| Prefilled { n_requests: Some(n), n_tokens: None };
        let logged = |n| Prefilled { n_requests: None, n_tokens: Some(n) };
        let code = |before, after| not_disaggregated(point, before, after).map(|reason| reason.message);
        assert_eq!(code(counted(4), counted(14)), None);
        assert!(code(counted(4), counted(13)).is_some_and(|message| message.contains("9 of 10")));
        assert_eq!(code(logged(100), logged(101)), None);
        assert!(code(logged(100), logged(100)).is_some());
        // Servers that say nothing cannot be judged.
        assert_eq!(code(Prefilled::default(), Prefilled::default()), None);
        assert_eq!(code(logged(0), logged(0)), None);
    }
}
