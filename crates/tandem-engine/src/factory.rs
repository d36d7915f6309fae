//! Builds the engine that a plan asks for.

use tandem_plan::{EngineKind, ParallelLayout, Phase, Plan, WorkerPlan};

use crate::checkpoint;
use crate::cpu::{AttentionForm, CpuEngine, CpuOptions};
use crate::engine::{Engine, EngineError};
use crate::modeled::ModeledEngine;

/// Builds the engine of one worker: loads or generates the weights and allocates the KV cache.
///
/// # Errors
/// [`EngineError::Unsupported`] when the plan asks for what the engine cannot do (several ranks, expert
/// load balancing, an engine that does not run in this process); otherwise as [`checkpoint::open`] and
/// [`CpuEngine::new`].
pub fn build_engine(plan: &Plan, worker: &WorkerPlan) -> Result<Box<dyn Engine>, EngineError> {
    match plan.engine {
        EngineKind::Cpu => Ok(Box::new(build_cpu(plan, worker)?)),
        EngineKind::Modeled => {
            check_single_rank("modeled", worker)?;
            Ok(Box::new(ModeledEngine::new(plan.model.modeled, &worker.kv, plan.model.config.vocab_size)))
        }
        other => Err(EngineError::Unsupported {
            engine: other.name(),
            reason: "its workers are started on a cluster, not in this process".into(),
        }),
    }
}

fn build_cpu(plan: &Plan, worker: &WorkerPlan) -> Result<CpuEngine, EngineError> {
    check_single_rank("cpu", worker)?;
    let unsupported = |reason: String| Err(EngineError::Unsupported { engine: "cpu", reason });
    if worker.eplb_slots > 0 {
        return unsupported(format!(
            "{} has {} expert slots; expert load balancing needs several ranks (set the slots to 0)",
            worker.name, worker.eplb_slots
        ));
    }
    let source = checkpoint::open(&plan.model.source, &plan.model.config)?;
    let options = CpuOptions {
        block_size: worker.kv.block_size as usize,
        n_blocks: worker.kv.n_blocks as usize,
        kv_dtype: worker.kv.dtype,
        threads: worker.threads.max(1) as usize,
        form: AttentionForm::Auto,
        drafts: drafts(plan, worker) as usize,
    };
    CpuEngine::new(&plan.model.config, source.as_ref(), options)
}

/// Tokens that the worker's decode steps draft. A prefill worker whose decode workers draft fills the KV cache of the
/// MTP layer for them, so that both sides have the same layers; it decodes nothing itself.
fn drafts(plan: &Plan, worker: &WorkerPlan) -> u32 {
    match worker.phase {
        Phase::Decode => worker.mtp_size,
        Phase::Prefill => worker.mtp_size.max(u32::from(plan.workers_of(Phase::Decode).any(|w| w.mtp_size > 0))),
    }
}

/// Refuses layouts of several ranks.
fn check_single_rank(engine: &'static str, worker: &WorkerPlan) -> Result<(), EngineError> {
    let ParallelLayout { tp, pp, ep, .. } = worker.layout;
    if (tp, pp, ep) != (1, 1, 1) {
        let reason =
            format!("{} is spread over ranks (TP {tp}, PP {pp}, EP {ep}); this engine runs on one rank (TP 1, PP 1, EP 1)", worker.name);
        return Err(EngineError::Unsupported { engine, reason });
    }
    Ok(())
}
