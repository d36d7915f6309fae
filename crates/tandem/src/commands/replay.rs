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
        let mut sent: Vec<u64> = requests(path).or_exit(Exit::Artifact)?.into_iter().map(|r| r.sent_ns).collect();
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
            let step = |line: IterationLine| ReplayedStep { iter: line.iter, begin: since(line.begin), end: since(line.end()) };
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

/// When a request of a run was sent, and when its first token was seen, wall-clock nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) sent_ns: u64,
    pub(super) first_ns: Option<u64>,
}

/// The requests of a run, those of its warm-up included.
pub(super) fn requests(path: &Path) -> anyhow::Result<Vec<Seen>> {
    let mut requests = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        for name in ["profile_export_warmup.jsonl", "profile_export.jsonl"] {
            let file = entry.as_ref().map(|e| e.path().join(name)).unwrap_or_default();
            let Ok(text) = std::fs::read_to_string(&file) else { continue };
            for line in text.lines() {
                let record: Value = serde_json::from_str(line).with_context(|| format!("{} is not JSON lines", file.display()))?;
                let sent_ns = record["metadata"]["request_start_ns"].as_u64().with_context(|| format!("{} lacks times", file.display()))?;
                let ttft = record["metrics"]["time_to_first_token"]["value"].as_f64();
                let ttft = ttft.and_then(|ms| std::time::Duration::try_from_secs_f64(ms / 1e3).ok()).map(Nanos::from);
                requests.push(Seen { sent_ns, first_ns: ttft.map(|ttft| sent_ns + ttft.0) });
            }
        }
    }
    Ok(requests)
}
