//! What a point will do, whichever engine it runs on.
//!
//! Plans for a cluster are priced by the performance model. Those of the embedded engines, which run on this machine, are run in virtual
//! time: the modeled engine with the step times that its plan states, the CPU engine with those of a calibration.

use tandem_metrics::metrics::{output_throughput, tpot, ttft};
use tandem_metrics::{Load, Metric, RequestRecord, Summary};
use tandem_plan::{EngineKind, LoadPoint, Phase, Plan, WorkerPlan};
use tandem_recipe::planner::ReadFile;
use tandem_recipe::{Sketch, Variant};
use tandem_sim::model::Model;
use tandem_sim::predict::{Interval, Prediction, predict};
use tandem_sim::screen::{Bound, screen_sketch};
use tandem_sim::virtual_time::{Calibration, Setup, StepCosts, WorkerSetup, drive, setup, simulate};

use crate::screening::Screened;

/// Relative half-widths that held 8 of 10 differences between runs of the modeled engine and their simulation, twice as wide because
/// they come from one machine (docs/results/2026-11-24-agreement): tokens/s and TPOT, median TTFT; that of p99 is an assumption.
const MODELED_SPREAD: Spread = Spread { rate: 0.01, ttft: 0.03, ttft_p99: 0.25 };
/// The aims for a calibrated engine; what its calibration says of itself widens them.
const CALIBRATED_SPREAD: Spread = Spread { rate: 0.05, ttft: 0.10, ttft_p99: 0.25 };
/// From a median error to one that 8 of 10 do not exceed, if errors are normal.
const MEDIAN_TO_80: f64 = 1.9;

/// Relative half-widths of intervals.
#[derive(Debug, Clone, Copy)]
struct Spread {
    rate: f64,
    ttft: f64,
    ttft_p99: f64,
}

/// Seconds by which times around the steps may be wrong, of a first token and of a further one: all of them until a run was calibrated.
#[derive(Debug, Clone, Copy, Default)]
struct Unsure {
    ttft_s: f64,
    tpot_s: f64,
}

/// Prices points: the performance model, and what a calibration knows of the engines of this machine.
#[derive(Debug, Clone)]
pub struct Pricer {
    /// The model of clusters.
    pub model: Model,
    /// Costs of an engine on this machine; the CPU engine has none without it.
    pub calibration: Option<Calibration>,
}

impl Pricer {
    /// What each load point of `plan` will do; none for engines whose costs are not known.
    #[must_use]
    pub fn predict(&self, plan: &Plan) -> Vec<Prediction> {
        if plan.engine == EngineKind::DynamoTrtllm {
            return predict(&self.model, plan);
        }
        let points = (0_u64..).zip(&plan.load.points);
        points.filter_map(|(index, point)| Some(self.run(plan, *point, index, &self.setup(plan, *point)?)?.0)).collect()
    }

    /// What limits a variant; none for one that has no plan, or whose costs are not known.
    #[must_use]
    pub fn bound(&self, variant: &mut Variant, read: ReadFile<'_>) -> Option<Bound> {
        let sketch = variant.sketch(read).ok()?;
        Some(self.screen(variant, &sketch, 0, read).ok()?.bound)
    }

    /// Screens a variant of which `sketch` is known; an error says why its costs are not.
    pub(crate) fn screen(&self, variant: &Variant, sketch: &Sketch, index: usize, read: ReadFile<'_>) -> Result<Screened, String> {
        let gpus = sketch.gpus();
        if let Some(sketched) = screen_sketch(&self.model, sketch) {
            let e = sketched.estimate;
            let per_user = if e.tpot > 0.0 { 1.0 / e.tpot } else { 0.0 };
            return Ok(Screened { index, gpus, per_gpu: e.output_rate / sketched.scenario.gpus, per_user, ttft_s: e.ttft, bound: e.bound });
        }
        let unknown = || match sketch.engine {
            EngineKind::Cpu => "the CPU engine has no costs until a run of it was calibrated (--calibration)".to_owned(),
            _ => "costs are known of ENGINE=dynamo-trtllm, modeled, and cpu with --calibration".to_owned(),
        };
        let plan = variant.plan(read).map_err(|error| error.to_string())?;
        let point = *plan.load.points.first().ok_or_else(unknown)?;
        let setup = self.setup(&plan, point).ok_or_else(unknown)?;
        let (prediction, ttft_s) = self.run(&plan, point, 0, &setup).ok_or_else(unknown)?;
        let tpot = prediction.tpot.value;
        Ok(Screened {
            index,
            gpus,
            per_gpu: prediction.tokens_per_gpu.value,
            per_user: if tpot > 0.0 { 1.0 / tpot } else { 0.0 },
            ttft_s,
            bound: bound(&plan, point, &setup, prediction.tokens_per_second),
        })
    }

    fn setup(&self, plan: &Plan, point: LoadPoint) -> Option<Setup> {
        let is_embedded = matches!(plan.engine, EngineKind::Modeled | EngineKind::Cpu);
        if is_embedded { setup(plan, point, &self.model, self.calibration.as_ref()) } else { None }
    }

    /// A load point in virtual time, and its mean TTFT in seconds.
    fn run(&self, plan: &Plan, point: LoadPoint, index: u64, setup: &Setup) -> Option<(Prediction, f64)> {
        let simulated = simulate(setup, &drive(plan, point, index)).ok()?;
        let summary = summary(plan, point, &simulated.records);
        let seconds = |metric: &Metric, percent: u32| Some(summary.stats(metric)?.percentile(percent)? / 1e3);
        let (spread, mut reasons) = self.spread(plan);
        let rate = summary.avg(&output_throughput::METRIC)?;
        if self.calibration.is_none() {
            reasons.push("the times around its steps are those of another machine: tandem calibrate --from-run measures them".to_owned());
        }
        let o = &setup.overheads;
        // Client, frontend, prefill and back; a step and its message.
        let all = Unsure { ttft_s: o.request_s + 4.0 * o.hop_s, tpot_s: o.decode_gap.step_s + o.hop_s };
        let unsure = if self.calibration.is_none() { all } else { Unsure::default() };
        let around = |value: f64, spread: f64, more: f64| Interval {
            value,
            low: (value / (1.0 + spread) - more).max(0.0),
            high: value * (1.0 + spread) + more,
        };
        let (tpot, first) = (seconds(&tpot::METRIC, 50).unwrap_or(0.0), seconds(&ttft::METRIC, 50)?);
        let further = f64::from(plan.load.osl.saturating_sub(1));
        let latency = first + further * tpot;
        let rate_spread = spread.rate + (unsure.ttft_s + further * unsure.tpot_s) / latency.max(1e-9);
        let prediction = Prediction {
            concurrency: point.concurrency,
            tokens_per_gpu: around(rate / f64::from(plan.n_devices()), rate_spread, 0.0),
            tokens_per_second: rate,
            tpot: around(tpot, spread.rate, unsure.tpot_s),
            ttft_median: around(first, spread.ttft, unsure.ttft_s),
            ttft_p99: around(seconds(&ttft::METRIC, 99)?, spread.ttft_p99, unsure.ttft_s),
            extrapolates: reasons,
            operators: Vec::new(),
        };
        Some((prediction, summary.avg(&ttft::METRIC)? / 1e3))
    }

    fn spread(&self, plan: &Plan) -> (Spread, Vec<String>) {
        match &self.calibration {
            Some(c) if plan.engine == EngineKind::Cpu => {
                let [prefill, decode] = c.step_error.map(|error| error * MEDIAN_TO_80);
                let s = CALIBRATED_SPREAD;
                let spread = Spread { rate: s.rate.max(decode), ttft: s.ttft.max(prefill), ttft_p99: s.ttft_p99.max(prefill) };
                (spread, vec![format!("costs hold on the machine of the calibration, as busy as it was then: {}", c.source)])
            }
            _ => (MODELED_SPREAD, Vec::new()),
        }
    }
}

fn summary(plan: &Plan, point: LoadPoint, records: &[RequestRecord]) -> Summary {
    let load = Load {
        streaming: plan.load.streaming,
        concurrency: Some(point.concurrency),
        request_rate: None,
        n_requests: u64::from(point.n_requests),
        isl: Some(plan.load.isl),
        osl: Some(plan.load.osl),
        n_gpus: plan.n_devices(),
        slos: Vec::new(),
    };
    Summary::of(records, &load)
}

/// What limits a load point on an engine whose step times are linear in what a step holds.
fn bound(plan: &Plan, point: LoadPoint, setup: &Setup, tokens_per_second: f64) -> Bound {
    let decode: Vec<&WorkerPlan> = plan.workers_of(Phase::Decode).collect();
    let blocks = |w: &WorkerPlan| (plan.load.isl + plan.load.osl).div_ceil(w.kv.block_size.max(1)).max(1);
    let batch: u32 = decode.iter().map(|w| w.limits.max_batch_size).sum();
    let held: u32 = decode.iter().map(|w| w.kv.n_blocks / blocks(w)).sum();
    if point.concurrency > batch.min(held) {
        return if held < batch { Bound::KvCache } else { Bound::DecodeSlots };
    }
    let prefill = setup.workers.iter().filter(|w| w.phase == Phase::Prefill);
    let capacity: f64 = prefill.map(|w| prompts_per_second(w, plan.load.isl)).sum();
    let needed = tokens_per_second / f64::from(plan.load.osl.max(1));
    if needed > 0.9 * capacity { Bound::Prefill } else { Bound::Concurrency }
}

/// Prompts per second of a prefill worker that always has some.
fn prompts_per_second(worker: &WorkerSetup, isl: u32) -> f64 {
    let StepCosts::Linear(costs) = worker.costs else { return f64::INFINITY };
    let (isl, tokens) = (u64::from(isl.max(1)), u64::from(worker.sched.max_num_tokens.max(1)));
    // Whole prompts that share a step, or steps that share a prompt.
    let (prompts, steps) = ((tokens / isl).clamp(1, u64::from(worker.sched.max_batch_size.max(1))), isl.div_ceil(tokens));
    let first = costs.seconds(prompts * isl, 0, prompts * isl * isl / 2);
    let further = f64::from(u32::try_from(steps - 1).unwrap_or(u32::MAX)) * costs.seconds(0, 0, 0);
    f64::from(u32::try_from(prompts).unwrap_or(u32::MAX)) / (first + further)
}
