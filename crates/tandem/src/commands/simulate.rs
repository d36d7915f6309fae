//! `tandem simulate`: a recipe in virtual time, with the run folder that `tandem run` would have written.
//!
//! Nothing here reads a clock: equal recipes, calibrations and faults give equal bytes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tandem_metrics::artifacts::{ArtifactOptions, InputConfig, PointArtifacts, PointContext, RunContext, RunKind, Stimulus, render_point};
use tandem_metrics::{Load, Reason, RunClock, Verdict};
use tandem_plan::{EngineKind, LoadPoint, Nanos, Phase, Plan};
use tandem_recipe::render_configs;
use tandem_sched::iteration::IterationLine;
use tandem_sched::pacing::Arrivals;
use tandem_sim::model::Model;
use tandem_sim::predict::{extrapolates, scenario};
use tandem_sim::virtual_time::{Calibration, Fault, Simulated, WorkerLog, drive, setup, simulate as run_virtual};

use super::prediction::model_for;
use super::progress::say;
use super::recipe::{load_on, plans_of};
use super::replay::Replay;
use super::results::Results;
use super::run_folder::RunFolder;
use crate::cli::SimulateArgs;
use crate::exit::{Exit, Failure, OrExit};

pub(crate) fn simulate(args: &SimulateArgs) -> Result<(), Failure> {
    let replay = args.replay.as_deref().map(Replay::read).transpose()?;
    let plans = match &replay {
        Some(replay) => vec![replay.plan.clone()],
        None => plans_of(&load_on(&args.recipe, &args.model)?)?,
    };
    let calibration = args.calibration.as_deref().map(read_calibration).transpose()?;
    let faults = args.inject.iter().map(|text| text.parse::<Fault>()).collect::<Result<Vec<_>, _>>().or_exit(Exit::Usage)?;
    let arrivals = replay.as_ref().map_or_else(|| arrivals(args), |replay| Ok(Arrivals::Trace(replay.sent.clone())))?;
    let n_plans = plans.len();
    if calibration.is_none() && plans.iter().any(|plan| plan.engine == EngineKind::Cpu) {
        return Err(Failure::message(Exit::Usage, "the CPU engine has no costs until a run of it was calibrated")
            .with_hint("tandem run --out RUN, then tandem calibrate --from-run RUN --out FILE, then --calibration FILE"));
    }
    let conditions = Conditions { calibration: calibration.as_ref(), faults: &faults, arrivals: &arrivals, replay: replay.as_ref() };
    for (i, plan) in plans.iter().enumerate() {
        let path = match &args.out {
            Some(out) if n_plans > 1 => out.join(format!("case-{}", i + 1)),
            Some(out) => out.clone(),
            None => RunFolder::default_path(plan.load.isl, plan.load.osl),
        };
        let model = model_for(plan.model.config.clone(), &args.model, &[plan.hardware.gpu_type.table_name()])?;
        simulate_plan(plan, &model, &conditions, RunFolder::create(&path)?, args.strict)?;
    }
    Ok(())
}

/// Under what a plan is simulated.
struct Conditions<'a> {
    calibration: Option<&'a Calibration>,
    faults: &'a [Fault],
    arrivals: &'a Arrivals,
    replay: Option<&'a Replay>,
}

fn simulate_plan(plan: &Plan, model: &Model, conditions: &Conditions<'_>, folder: RunFolder, strict: bool) -> Result<(), Failure> {
    let Conditions { calibration, faults, arrivals, replay } = *conditions;
    folder.write("plan.json", serde_json::to_string_pretty(plan).or_exit(Exit::Bug)?.as_bytes())?;
    for (name, text) in render_configs(plan, &["simulated".to_owned()]) {
        folder.write(&name, text.as_bytes())?;
    }
    let (mut results, mut reasons, mut ended) = (Results::default(), cluster_reasons(plan, model), 0);
    let mut logs = Logs::default();
    for (index, point) in (0_u64..).zip(&plan.load.points) {
        let Some(mut what) = setup(plan, *point, model, calibration) else {
            return Err(Failure::message(Exit::Infeasible, "the plan lacks workers of a phase"));
        };
        what.faults = faults.to_vec();
        if let Some(replay) = replay {
            replay.apply(&mut what);
        }
        let mut drive = drive(plan, *point, index);
        drive.arrivals = arrivals.clone();
        if let (Arrivals::Trace(times), None) = (arrivals, replay) {
            // A trace says when everything comes, so nothing of it is warm-up.
            (drive.point.n_warmup, drive.point.n_requests) = (0, u32::try_from(times.len()).unwrap_or(u32::MAX));
        }
        let mut simulated = run_virtual(&what, &drive).or_exit(Exit::Usage)?;
        simulated.records.iter_mut().for_each(|r| r.point = u32::try_from(index).unwrap_or(u32::MAX));
        // A load point begins when the one before has ended, as in a run.
        let began = ended;
        ended += simulated.records.iter().map(|r| r.end_ns).max().unwrap_or(0);
        logs.add(&simulated.logs, Duration::from_nanos(began));
        let point = drive.point;
        results.add(&folder, artifacts(plan, point, began, arrivals, simulated));
    }
    folder.write("logs/prefill.log", logs.text(Phase::Prefill).as_bytes())?;
    folder.write("logs/decode.log", logs.text(Phase::Decode).as_bytes())?;
    reasons.extend(faults.iter().map(|fault| {
        let message = format!("a fault was injected: {fault:?}");
        Reason { verdict: Verdict::Suspect, code: "injected_fault", message }
    }));
    let context = RunContext {
        kind: RunKind::Simulated,
        recipe: plan.recipe.clone(),
        model: plan.model.served_name.clone(),
        plan_hash: plan.hash(),
        versions: vec![("tandem".to_owned(), env!("CARGO_PKG_VERSION").to_owned())],
        machines: vec!["simulated".to_owned()],
        n_gpus: plan.n_devices(),
        started_wall_ns: 0,
        ended_wall_ns: ended,
        is_partial: false,
        reasons,
    };
    results.conclude(&folder, &context, None, strict)
}

/// The iteration lines of each worker over all load points, in the order of the plan.
#[derive(Default)]
struct Logs {
    workers: Vec<WorkerLog>,
}

impl Logs {
    /// Adds those of a load point that began at `began`: steps are counted on, as in a run.
    fn add(&mut self, logs: &[WorkerLog], began: Duration) {
        for log in logs {
            let known = match self.workers.iter().position(|w| w.name == log.name) {
                Some(at) => &mut self.workers[at],
                None => {
                    self.workers.push(WorkerLog { lines: Vec::new(), ..log.clone() });
                    self.workers.last_mut().expect("one was added")
                }
            };
            let last = known.lines.iter().map(|line| line.iter).max().unwrap_or(0);
            let later = log.lines.iter().map(|line| IterationLine { iter: line.iter + last, begin: line.begin + began, ..*line });
            known.lines.extend(later);
        }
    }

    fn text(&self, phase: Phase) -> String {
        self.workers.iter().filter(|w| w.phase == phase).flat_map(|w| &w.lines).map(|line| format!("{line}\n")).collect()
    }
}

/// The files of a load point that began at `began_ns`.
fn artifacts(plan: &Plan, point: LoadPoint, began_ns: u64, arrivals: &Arrivals, simulated: Simulated) -> PointArtifacts {
    let (concurrency, n_requests, n_warmup) = (point.concurrency, u64::from(point.n_requests), u64::from(point.n_warmup));
    let stimulus = match arrivals {
        Arrivals::Constant { rate } | Arrivals::Gamma { rate, .. } => Stimulus::RequestRate(*rate),
        _ => Stimulus::Concurrency(concurrency),
    };
    let is_closed = *arrivals == Arrivals::ClosedLoop;
    let request_rate = match stimulus {
        Stimulus::RequestRate(rate) => Some(rate),
        _ => None,
    };
    let n_sent = simulated.records.iter().filter(|r| r.phase == tandem_metrics::LoadPhase::Profiling).count() as u64;
    let context = PointContext {
        clock: RunClock { wall_origin_ns: began_ns },
        model: plan.model.served_name.clone(),
        stimulus,
        load: Load {
            streaming: plan.load.streaming,
            concurrency: is_closed.then_some(concurrency),
            request_rate,
            // A trace may hold fewer.
            n_requests: if matches!(arrivals, Arrivals::Trace(_)) { n_sent } else { n_requests },
            isl: Some(plan.load.isl),
            osl: Some(plan.load.osl),
            n_gpus: plan.n_devices(),
            slos: Vec::new(),
        },
        input_config: InputConfig {
            url: "simulated".to_owned(),
            extra: serde_json::Map::new(),
            n_prompts: n_requests,
            n_warmup,
            seed: plan.load.seed,
            artifact_directory: String::new(),
            tokenizer: "none".to_owned(),
            telemetry_urls: Vec::new(),
        },
        payloads: Vec::new(),
        telemetry: None,
        measured: None,
        exchanges: None,
        options: ArtifactOptions::default(),
    };
    render_point(&Arc::new(simulated.records), &context)
}

/// What speaks against a prediction for a cluster.
fn cluster_reasons(plan: &Plan, model: &Model) -> Vec<Reason> {
    if plan.engine != EngineKind::DynamoTrtllm {
        return Vec::new();
    }
    let points = plan.load.points.iter().filter_map(|point| scenario(plan, point));
    let mut messages: Vec<String> = points.flat_map(|s| extrapolates(model, &s)).collect();
    messages.sort_unstable();
    messages.dedup();
    messages.into_iter().map(|message| Reason { verdict: Verdict::Suspect, code: "extrapolates", message }).collect()
}

fn arrivals(args: &SimulateArgs) -> Result<Arrivals, Failure> {
    let positive = |name: &str, value: f64| {
        if value.is_finite() && value > 0.0 { Ok(value) } else { Err(Failure::message(Exit::Usage, format!("--{name} must be positive"))) }
    };
    if let Some(path) = &args.trace {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Artifact)?;
        return trace(&text)
            .map(Arrivals::Trace)
            .ok_or_else(|| Failure::message(Exit::Artifact, format!("{}: each line is a time in seconds, ascending", path.display())));
    }
    match args.rate {
        Some(rate) => Ok(Arrivals::Gamma { rate: positive("rate", rate)?, shape: positive("burstiness", args.burstiness)? }),
        None => Ok(Arrivals::ClosedLoop),
    }
}

/// One time in seconds a line, ascending.
fn trace(text: &str) -> Option<Vec<Nanos>> {
    let time = |line: &str| std::time::Duration::try_from_secs_f64(line.trim().parse().ok()?).ok().map(Nanos::from);
    let times: Vec<Nanos> = text.lines().filter(|l| !l.trim().is_empty()).map(time).collect::<Option<_>>()?;
    times.is_sorted().then_some(times)
}

pub(super) fn read_calibration(path: &Path) -> Result<Calibration, Failure> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Artifact)?;
    let calibration = Calibration::from_json(&text).with_context(|| format!("cannot use {}", path.display())).or_exit(Exit::Artifact)?;
    say(&format!("costs from {}: {}", path.display(), calibration.source));
    Ok(calibration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_ascending_seconds() {
        assert_eq!(trace("0\n0.5\n\n2\n"), Some(vec![Nanos(0), Nanos(500_000_000), Nanos(2_000_000_000)]));
        assert_eq!(trace("1\n0.5\n"), None);
        assert_eq!(trace("soon\n"), None);
    }
}
