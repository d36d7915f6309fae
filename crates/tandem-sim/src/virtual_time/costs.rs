//! How long one step of a worker takes.

use serde_json::{Value, json};
use tandem_plan::{ModeledCosts, Nanos, Phase};
use tandem_sched::Step;

use super::table::TableCosts;
use crate::cost::{DecodeCost, DecodeLoad, PrefillCost, PrefillLoad};

/// Step times of one worker.
#[derive(Debug, Clone, PartialEq)]
pub enum StepCosts {
    /// Linear in what the step holds: the modeled engine.
    Linear(LinearCosts),
    /// An engine whose log was fitted.
    Measured(TableCosts),
    /// The very steps of a worker of a real run: they begin and end when those did, whatever they hold.
    Replayed(Vec<ReplayedStep>),
    /// Prefill on a GPU; iterations that end a prompt of the first burst take `burst` times as long.
    Prefill {
        /// Iteration times.
        cost: PrefillCost,
        /// Factor on the first burst.
        burst: f64,
    },
    /// Decode on a GPU.
    Decode(DecodeCost),
}

/// When a step of a real run was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayedStep {
    /// Its number in the log of its worker.
    pub iter: u64,
    /// Its begin, since that of the load.
    pub begin: Nanos,
    /// Its end.
    pub end: Nanos,
}

/// Numbers of rows (prompt tokens and decoding sequences together) at which the cost of a row may change.
pub const BENDS: [f64; 9] = [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// `step + prefill_token·tokens + decode_seq·sequences + attended·pairs`, microseconds, and what a row costs more or less beyond each of
/// [`BENDS`]: matrix products of more rows use the machine better.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LinearCosts {
    /// Every step.
    pub step_us: f64,
    /// Each prompt token.
    pub prefill_token_us: f64,
    /// Each decoding sequence.
    pub decode_seq_us: f64,
    /// Each pair of a query token and a token at or before it.
    pub attended_us: f64,
    /// Each row beyond [`BENDS`].
    pub bends_us: [f64; BENDS.len()],
    /// Share by which a worker is slower while another computes: cores and memory that both need.
    pub contention: f64,
}

impl From<ModeledCosts> for LinearCosts {
    fn from(c: ModeledCosts) -> Self {
        LinearCosts { step_us: c.step_us, prefill_token_us: c.prefill_token_us, decode_seq_us: c.decode_seq_us, ..LinearCosts::default() }
    }
}

impl LinearCosts {
    /// Seconds of a step with so many prompt tokens, decoding sequences and pairs, while no other worker computes.
    #[must_use]
    pub fn seconds(&self, n_ctx_tokens: u64, n_gen: u64, n_attended: u64) -> f64 {
        let rows = float(n_ctx_tokens + n_gen);
        let bends: f64 = BENDS.iter().zip(&self.bends_us).map(|(bend, us)| us * (rows - bend).max(0.0)).sum();
        let us = self.step_us
            + self.prefill_token_us * float(n_ctx_tokens)
            + self.decode_seq_us * float(n_gen)
            + self.attended_us * float(n_attended)
            + bends;
        us.max(0.0) * 1e-6
    }

    /// As a JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "step_us": self.step_us, "prefill_token_us": self.prefill_token_us, "decode_seq_us": self.decode_seq_us,
            "attended_us": self.attended_us, "bends_us": self.bends_us, "contention": self.contention,
        })
    }

    /// From a JSON object; none when a number is missing.
    #[must_use]
    pub fn from_json(json: &Value) -> Option<Self> {
        let number = |name: &str| json[name].as_f64().filter(|v| v.is_finite());
        let bends = json["bends_us"].as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>()?;
        Some(LinearCosts {
            step_us: number("step_us")?,
            prefill_token_us: number("prefill_token_us")?,
            decode_seq_us: number("decode_seq_us")?,
            attended_us: number("attended_us")?,
            bends_us: bends.try_into().ok()?,
            contention: number("contention")?,
        })
    }
}

/// How long a step keeps its worker, and how long its results take; they differ in pipelines only.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Duration {
    /// Seconds until the next step may begin.
    pub(super) busy_s: f64,
    /// Seconds from then until the results are there.
    pub(super) drain_s: f64,
}

impl StepCosts {
    /// Share by which the worker is slower while another computes.
    pub(super) const fn contention(&self) -> f64 {
        match self {
            StepCosts::Linear(c) => c.contention,
            StepCosts::Measured(c) => c.linear.contention,
            StepCosts::Replayed(_) | StepCosts::Prefill { .. } | StepCosts::Decode(_) => 0.0,
        }
    }

    /// Seconds that the first step after a rest takes longer.
    pub(super) const fn cold_s(&self) -> f64 {
        match self {
            StepCosts::Measured(c) => c.cold_s,
            _ => 0.0,
        }
    }

    /// Time of a step of all ranks, `steps[rank]`, while no other worker computes; ranks wait for each other. `is_burst`: it ends a
    /// prompt of the first burst. Replayed steps have their times from `Worker::replayed`.
    pub(super) fn duration(&self, steps: &[Option<Step>], is_burst: bool) -> Duration {
        let whole = |busy_s| Duration { busy_s, drain_s: 0.0 };
        match self {
            StepCosts::Linear(c) => {
                let each = |s: &Step| c.seconds(u64::from(s.n_ctx_tokens), u64::from(s.n_gen_tokens), s.n_attended());
                whole(steps.iter().flatten().map(each).fold(0.0, f64::max))
            }
            StepCosts::Measured(c) => {
                let each = |s: &Step| c.seconds(u64::from(s.n_ctx_tokens), u64::from(s.n_gen_tokens), s.n_attended());
                whole(steps.iter().flatten().map(each).fold(0.0, f64::max))
            }
            StepCosts::Replayed(_) => whole(0.0),
            StepCosts::Prefill { cost, burst } => {
                let mut load = PrefillLoad { rank_tokens: 0.0, rank_pairs: 0.0, tokens: 0.0 };
                for step in steps.iter().flatten() {
                    let tokens = f64::from(step.n_ctx_tokens);
                    load.rank_tokens = load.rank_tokens.max(tokens);
                    load.rank_pairs = load.rank_pairs.max(float(step.n_attended()));
                    load.tokens += tokens;
                }
                let factor = if is_burst { *burst } else { 1.0 };
                let busy_s = cost.interval(load) * factor;
                Duration { busy_s, drain_s: (cost.iteration(load) * factor - busy_s).max(0.0) }
            }
            StepCosts::Decode(cost) => {
                let mut load = DecodeLoad { rank_sequences: 0.0, rank_context: 0.0, sequences: 0.0 };
                for step in steps.iter().flatten() {
                    let context: u64 = step.entries.iter().filter(|e| e.phase == Phase::Decode).map(|e| u64::from(e.start)).sum();
                    load.rank_sequences = load.rank_sequences.max(f64::from(step.n_gen_tokens));
                    load.rank_context = load.rank_context.max(float(context));
                    load.sequences += f64::from(step.n_gen_tokens);
                }
                whole(cost.step(load))
            }
        }
    }
}

pub(super) fn float(n: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let n = n as f64;
    n
}
