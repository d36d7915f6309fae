//! From a plan to what is simulated.

use tandem_plan::{EngineKind, LoadPoint, Phase, Plan, WorkerPlan};
use tandem_sched::SchedConfig;
use tandem_sched::pacing::Arrivals;

use super::calibration::Calibration;
use super::costs::{LinearCosts, StepCosts};
use super::late::Late;
use super::setup::{Acceptance, Drive, Flow, Gap, Link, Overheads, Setup, WorkerSetup};
use crate::des::Deployment;
use crate::model::Model;
use crate::predict::deployment;

/// Overheads of the embedded engine where no run was calibrated: about what calibrations of it find on a machine with nothing else to do.
const EMBEDDED: Overheads = Overheads {
    request_s: 0.15e-3,
    hop_s: 0.1e-3,
    late: Late { token_s: 0.0, commit_s: 0.0 },
    dispatch_s: 0.03e-3,
    prefill_gap: GAP,
    decode_gap: GAP,
    commit_s: 0.05e-3,
};
const GAP: Gap = Gap { step_s: 0.05e-3, request_s: 0.0 };
/// Bytes/s of a KV transfer over loopback.
const LOOPBACK: f64 = 4e9;

/// The client of load point `point` (number `index`) of a plan: a closed loop as `tandem run` drives it.
#[must_use]
pub fn drive(plan: &Plan, point: LoadPoint, index: u64) -> Drive {
    #[expect(clippy::cast_precision_loss, reason = "a timeout")]
    let request_timeout_s = plan.load.request_timeout_ms as f64 / 1e3;
    Drive {
        isl: plan.load.isl,
        osl: plan.load.osl,
        streaming: plan.load.streaming,
        point,
        arrivals: Arrivals::ClosedLoop,
        seed: plan.load.seed.wrapping_add(index),
        request_timeout_s,
    }
}

/// What a load point of `plan` runs on. Plans for a cluster are priced by `model`, those of the modeled engine by their own costs
/// or `calibration`, those of the CPU engine by `calibration` only: none without it.
#[must_use]
pub fn setup(plan: &Plan, point: LoadPoint, model: &Model, calibration: Option<&Calibration>) -> Option<Setup> {
    if plan.engine == EngineKind::DynamoTrtllm {
        return cluster(plan, model, &deployment(model, plan, &point)?);
    }
    let modeled = plan.engine == EngineKind::Modeled;
    let own = modeled.then(|| LinearCosts::from(plan.model.modeled));
    // The modeled engine sleeps for what its plan says, so only what is around its steps is to be measured.
    let costs = |phase: Phase| own.map(StepCosts::Linear).or_else(|| calibration.map(|c| StepCosts::Measured(c.costs(phase).clone())));
    let worker = |w: &WorkerPlan| Some(worker(w, 1, costs(w.phase)?));
    let first = plan.workers.first()?;
    #[expect(clippy::cast_precision_loss, reason = "bytes of one token")]
    let bytes_per_token = first.memory.kv_bytes_per_token as f64;
    let overheads = calibration.map_or(EMBEDDED, |c| c.overheads);
    Some(Setup {
        workers: plan.workers.iter().map(worker).collect::<Option<_>>()?,
        routing: plan.frontend.routing,
        max_inflight: plan.frontend.max_inflight,
        flow: Flow::ReserveFirst,
        overheads,
        link: Link {
            bytes_per_token,
            bandwidth: LOOPBACK,
            latency_s: overheads.commit_s,
            overlap: 1.0 - 1.0 / f64::from(plan.model.config.num_hidden_layers.max(1)),
        },
        // The modeled engine drafts nothing.
        acceptance: if modeled { Acceptance(0.0) } else { calibration.map_or(Acceptance(0.0), |c| c.acceptance) },
        faults: Vec::new(),
    })
}

fn cluster(plan: &Plan, model: &Model, d: &Deployment) -> Option<Setup> {
    let costs = |phase: Phase| match phase {
        Phase::Prefill => StepCosts::Prefill { cost: d.prefill.cost.clone(), burst: d.prefill.burst },
        Phase::Decode => StepCosts::Decode(d.decode.cost.clone()),
    };
    Some(Setup {
        workers: plan.workers.iter().map(|w| worker(w, w.layout.attention_dp_size(), costs(w.phase))).collect(),
        routing: plan.frontend.routing,
        max_inflight: plan.frontend.max_inflight,
        flow: Flow::PrefillFirst,
        overheads: Overheads { request_s: d.request_s, ..Overheads::default() },
        link: Link {
            bytes_per_token: d.transfer.bytes_per_token,
            bandwidth: d.transfer.bandwidth,
            latency_s: d.transfer.latency_s,
            overlap: 0.0,
        },
        acceptance: Acceptance(model.constants.coefficients.acceptance),
        faults: Vec::new(),
    })
}

fn worker(w: &WorkerPlan, n_ranks: u32, costs: StepCosts) -> WorkerSetup {
    let n_drafts = if w.phase == Phase::Decode { w.mtp_size } else { 0 };
    WorkerSetup {
        name: w.name.clone(),
        phase: w.phase,
        index: w.index,
        sched: SchedConfig::new(&w.limits, &w.kv, n_drafts),
        n_ranks,
        stream_interval: w.stream_interval,
        costs,
    }
}
