//! What `tandem simulate --replay` takes from a run folder: when requests were sent, and when each step of each worker began and ended.
//!
//! With the times of a real run, all that is left to the simulation are decisions: which requests are in each step. They must be those
//! of the run, unless a message and the begin of a step were so near to each other that their order was chance.

use std::path::Path;

use anyhow::Context;
use serde_json::Value;
use tandem_plan::{EngineKind, Nanos, Plan};
use tandem_sched::iteration::IterationLine;
use tandem_sim::virtual_time::{ReplayedStep, Setup, StepCosts};

use super::recipe::read_plan;
use crate::exit::{Exit, Failure, OrExit};

/// The times of one run.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) plan: Plan,
    /// When each request was sent, since the first.
    pub(super) sent: Vec<Nanos>,
    /// Steps of each worker, in the order of the plan.
    steps: Vec<Vec<ReplayedStep>>,
}

impl Replay {
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let plan = read_plan(&path.join("plan.json"))?;
        if !matches!(plan.engine, EngineKind::Cpu | EngineKind::Modeled) || plan.load.points.len() != 1 {
            return Err(Failure::message(Exit::Artifact, "only runs of the embedded engine with one load point can be replayed"));
        }
        let mut sent = sent(path).or_exit(Exit::Artifact)?;
        sent.sort_unstable();
        let origin = *sent.first().context("the run has no requests").or_exit(Exit::Artifact)?;
        let since = |wall: std::time::Duration| Nanos::from(wall.saturating_sub(std::time::Duration::from_nanos(origin)));
        let mut steps = Vec::new();
        for worker in &plan.workers {
            let log = path.join("logs").join(format!("output_{}_{}.log", worker.phase, worker.index + 1));
            let bytes = std::fs::read(&log).with_context(|| format!("cannot read {}", log.display())).or_exit(Exit::Artifact)?;
            let text = String::from_utf8_lossy(&bytes);
            let lines = text.lines().filter_map(IterationLine::parse);
            // The canary's steps came before the load.
            let lines = lines.filter(|line| line.rank == 0 && line.begin > std::time::Duration::from_nanos(origin));
            let step = |line: IterationLine| ReplayedStep { iter: line.iter, begin: since(line.begin), end: since(line.begin + line.took) };
            steps.push(lines.map(step).collect());
        }
        Ok(Replay { plan, sent: sent.into_iter().map(|ns| Nanos(ns - origin)).collect(), steps })
    }

    /// Makes the workers of `what` take the times of the run.
    pub(super) fn apply(&self, what: &mut Setup) {
        for (worker, steps) in what.workers.iter_mut().zip(&self.steps) {
            worker.costs = StepCosts::Replayed(steps.clone());
        }
    }
}

/// When the requests of the run were sent, wall-clock nanoseconds.
pub(super) fn sent(path: &Path) -> anyhow::Result<Vec<u64>> {
    let mut sent = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        for name in ["profile_export_warmup.jsonl", "profile_export.jsonl"] {
            let file = entry.as_ref().map(|e| e.path().join(name)).unwrap_or_default();
            let Ok(text) = std::fs::read_to_string(&file) else { continue };
            for line in text.lines() {
                let record: Value = serde_json::from_str(line).with_context(|| format!("{} is not JSON lines", file.display()))?;
                sent.push(record["metadata"]["request_start_ns"].as_u64().with_context(|| format!("{} lacks times", file.display()))?);
            }
        }
    }
    Ok(sent)
}
