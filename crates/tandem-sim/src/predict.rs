//! What a plan will do, with an interval and the reasons for which it may be wrong.

use tandem_plan::{EngineKind, LoadPoint, Phase, Plan, WeightDtype, WorkerPlan};

use crate::des::{Deployment, Lengths, Load};
use crate::evaluate::Metric;
use crate::model::Model;
use crate::predictive::{least_relative_error, outcomes};
use crate::rows::{Kind, Pool, Scenario};

/// A predicted value with the interval in which 80 % of unseen configurations lay, wider where equally likely simulations are further apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The prediction.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// What one load point of a plan will do.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Requests in the system.
    pub concurrency: u32,
    /// Output tokens per second and GPU, over all GPUs.
    pub tokens_per_gpu: Interval,
    /// Output tokens per second.
    pub tokens_per_second: f64,
    /// Median time per output token, seconds.
    pub tpot: Interval,
    /// Median time to first token, seconds.
    pub ttft_median: Interval,
    /// 99th percentile of the time to first token, seconds; of the first burst, unless a warm-up takes it.
    pub ttft_p99: Interval,
    /// Why the prediction may be further off than its interval says.
    pub extrapolates: Vec<String>,
    /// Where each operator's time comes from, in words, when there are measured tables.
    pub operators: Vec<String>,
}

/// Standard deviations within which 80 % of a normal distribution lie.
const NORMAL_80: f64 = 1.2816;

/// Month of the software that predictions assume, counted from the begin of January 2026. Recipes run Dynamo 0.6.1 of November 2025 unless another
/// image is named, and of the measured rows those of mid-December are nearest to it: newer software is faster by up to a quarter.
pub(crate) const ASSUMED_MONTH: f64 = -0.5;

/// Predicts each load point of `plan`; none for plans of the embedded engine, whose costs are not those of a GPU.
#[must_use]
pub fn predict(model: &Model, plan: &Plan) -> Vec<Prediction> {
    if plan.engine != EngineKind::DynamoTrtllm {
        return Vec::new();
    }
    let point = |point: &LoadPoint| Some(predict_point(model, &scenario(plan, point)?, &deployment(model, plan, point)?, point.n_warmup));
    plan.load.points.iter().filter_map(point).collect()
}

/// One load point of a plan for a cluster as the performance model sees it; none without workers of both phases.
#[must_use]
pub fn scenario(plan: &Plan, point: &LoadPoint) -> Option<Scenario> {
    let workers = |phase: Phase| -> Vec<&WorkerPlan> { plan.workers_of(phase).collect() };
    let (prefill, decode) = (workers(Phase::Prefill), workers(Phase::Decode));
    let (first, second) = (prefill.first()?, decode.first()?);
    Some(Scenario {
        kind: Kind::Disaggregated,
        hardware: plan.hardware.gpu_type.table_name().to_owned(),
        stack: "trt".to_owned(),
        months: ASSUMED_MONTH,
        weights: weights_of(plan),
        prefill: pool(first, prefill.len()),
        decode: pool(second, decode.len()),
        mtp: second.mtp_size,
        eplb_slots: second.eplb_slots,
        gpus: plan.workers.iter().map(|w| f64::from(w.layout.world_size())).sum(),
        load: Load {
            concurrency: point.concurrency,
            requests: point.n_requests + point.n_warmup,
            isl: Lengths::Fixed(plan.load.isl),
            osl: Lengths::Fixed(plan.load.osl),
            seed: plan.load.seed,
            stream_interval: second.stream_interval,
        },
        assumed: Vec::new(),
    })
}

/// What the fast simulation runs for a load point of a plan for a cluster.
#[must_use]
pub fn deployment(model: &Model, plan: &Plan, point: &LoadPoint) -> Option<Deployment> {
    let s = scenario(plan, point)?;
    let mut deployment = model.deployment(&s, model.factors(&s));
    // The plan has worked out its own cache.
    let kv = &plan.workers_of(Phase::Decode).next()?.kv;
    deployment.decode.kv_tokens = u64::from(kv.n_blocks) * u64::from(kv.block_size);
    deployment.prefill.chunked = true;
    Some(deployment)
}

fn predict_point(model: &Model, s: &Scenario, deployment: &Deployment, warmup: u32) -> Prediction {
    let (outcome, drawn) = outcomes(model, s, deployment, &s.load, warmup as usize);
    let interval = |metric: Metric, value: f64| {
        let spread = spread(model, s, metric).exp();
        Interval { value, low: value / spread, high: value * spread }
    };
    // Six of the eight draws lie inside, however far they are apart.
    let drawn_interval = |metric: Metric, values: &[f64]| {
        let usual = interval(metric, least_relative_error(values));
        let inner = values.get(1).zip(values.iter().rev().nth(1));
        inner.map_or(usual, |(low, high)| Interval { low: usual.low.min(*low), high: usual.high.max(*high), ..usual })
    };
    let mut reasons = extrapolates(model, s);
    if let Some((low, high)) = drawn.balance() {
        reasons.push(format!("prefill and decode are nearly in balance: a median TTFT between {low:.2} and {high:.1} s is possible"));
    }
    Prediction {
        concurrency: s.load.concurrency,
        tokens_per_gpu: interval(Metric::TokensPerGpu, outcome.output_rate / s.gpus),
        tokens_per_second: outcome.output_rate,
        tpot: interval(Metric::Tpot, outcome.tpot.median),
        ttft_median: drawn_interval(Metric::TtftMedian, &drawn.ttft_median),
        ttft_p99: drawn_interval(Metric::TtftP99, &drawn.ttft_p99),
        extrapolates: reasons,
        operators: model.operators(s).iter().map(ToString::to_string).collect(),
    }
}

/// Half-width of the interval as a logarithm: that of the GPU and stack, else of all, else a factor of two; wider by what is not known
/// of a configuration that resembles no fitted one.
fn spread(model: &Model, s: &Scenario, metric: Metric) -> f64 {
    let spreads = &model.constants.provenance.spread;
    let own = spreads.get(&format!("{} {} {}", metric.name(), s.hardware, s.stack));
    let usual = own.or_else(|| spreads.get(metric.name())).copied().unwrap_or(std::f64::consts::LN_2);
    let [decode, prefill] = model.unknown(s);
    let more = match metric {
        Metric::Tpot => decode,
        Metric::TokensPerGpu => decode.max(prefill),
        Metric::TtftMedian | Metric::TtftP99 => prefill,
    };
    usual.hypot(NORMAL_80 * more)
}

/// What of a scenario lies outside the measurements that the constants come from.
#[must_use]
pub fn extrapolates(model: &Model, s: &Scenario) -> Vec<String> {
    let mut reasons = Vec::new();
    let group = format!("{} {} {}", s.hardware, s.stack, s.weights);
    match model.constants.provenance.support.get(&group) {
        None => reasons.push(format!("no measurement of {group} was fitted")),
        Some(support) => {
            if support.rows < 10 {
                reasons.push(format!("only {} measurements of {group} were fitted", support.rows));
            }
            let batch = s.expected_batch();
            if batch > 1.1 * support.batch.1 {
                reasons.push(format!("{batch:.0} sequences on a decode rank; at most {:.0} were measured on {group}", support.batch.1));
            }
        }
    }
    if !model.is_fitted() {
        reasons.push("no measurement of this architecture was fitted, only of DeepSeek-R1 and V3".to_owned());
    }
    if !model.knows(&s.hardware) {
        reasons.push(format!("GPU {} is not in the hardware table", s.hardware));
    }
    if model.is_changed(&s.hardware) {
        reasons.push(format!("the figures of {} are not those that the constants were fitted with", s.hardware));
    }
    if model.has_tables() != model.constants.provenance.tables {
        reasons.push(
            if model.has_tables() {
                "operators come from measured tables, but the constants were fitted without them (tandem calibrate --tables)"
            } else {
                "the constants were fitted with measured tables of operators, which are not given (--tables)"
            }
            .to_owned(),
        );
    }
    if s.prefill.layout.pp > 1 || s.decode.layout.pp > 1 {
        reasons.push("no measurement with pipeline parallelism was fitted".to_owned());
    }
    reasons
}

fn weights_of(plan: &Plan) -> WeightDtype {
    let stated = plan.knobs.get("WEIGHT_DTYPE").and_then(|knob| knob.value.as_str());
    let named = WeightDtype::ALL.into_iter().find(|d| stated == Some(d.name()));
    named.unwrap_or_else(|| WeightDtype::of_checkpoint(&plan.model.config))
}

fn pool(worker: &WorkerPlan, n: usize) -> Pool {
    Pool {
        workers: u32::try_from(n).unwrap_or(u32::MAX),
        layout: worker.layout,
        max_batch: worker.limits.max_batch_size,
        max_tokens: worker.limits.max_num_tokens,
        memory_fraction: worker.kv.memory_fraction,
    }
}
