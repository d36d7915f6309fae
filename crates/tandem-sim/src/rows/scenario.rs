//! From a row to a configuration: what the row leaves open gets a documented default, which the scenario names.
//!
//! Defaults: a missing count of servers is one server with all GPUs of its pool; a TP of 1 beside a larger world size is the world size
//! (the two columns disagree in older rows); missing limits do not bind; SGLang states batch and chunk limits of all attention ranks
//! together, TensorRT-LLM of each; drafted tokens `>=1` are 2, unknown ones 0.

use tandem_plan::{ParallelLayout, WeightDtype};

use super::row::{Kind, Row, Side};
use crate::des::{Lengths, Load};

/// Requests beyond which a simulated run gains nothing but time.
const MAX_REQUESTS: f64 = 200_000.0;
/// A limit that does not bind.
const UNLIMITED: u32 = 1 << 20;

/// One pool with everything decided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pool {
    /// Servers.
    pub workers: u32,
    /// Parallel degrees of one.
    pub layout: ParallelLayout,
    /// Sequences of one attention rank.
    pub max_batch: u32,
    /// Tokens of one attention rank and iteration.
    pub max_tokens: u32,
    /// Fraction of the free memory for the KV cache.
    pub memory_fraction: f64,
}

impl Pool {
    /// Attention ranks of all servers.
    #[must_use]
    pub fn attention_ranks(&self) -> f64 {
        f64::from(self.workers) * f64::from(self.layout.attention_dp_size())
    }

    /// Whether the row states no batch limit.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.max_batch >= UNLIMITED
    }

    /// GPUs of all servers.
    #[must_use]
    pub fn gpus(&self) -> f64 {
        f64::from(self.workers) * f64::from(self.layout.world_size())
    }
}

/// A row as something that can be simulated.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// Whether phases are separate.
    pub kind: Kind,
    /// GPU name.
    pub hardware: String,
    /// Software stack.
    pub stack: String,
    /// Months since January 2026 at which the stack was built, roughly.
    pub months: f64,
    /// Number format of the weights.
    pub weights: WeightDtype,
    /// Prefill servers; in aggregated rows the same as `decode`.
    pub prefill: Pool,
    /// Decode servers.
    pub decode: Pool,
    /// Drafted tokens.
    pub mtp: u32,
    /// Expert slots; 0 = off.
    pub eplb_slots: u32,
    /// GPUs by which throughput is divided.
    pub gpus: f64,
    /// The load.
    pub load: Load,
    /// What was not in the row and what was taken instead.
    pub assumed: Vec<&'static str>,
}

impl Scenario {
    /// Decides what `row` leaves open. Every row has a scenario.
    #[must_use]
    pub fn new(row: &Row) -> Self {
        let mut assumed = row.assumed.clone();
        let per_rank = row.stack != "trt";
        let mut decode = pool(&row.decode, row, 2048, per_rank, &mut assumed);
        let prefill = if row.kind == Kind::Aggregated { decode } else { pool(&row.prefill, row, 16_384, per_rank, &mut assumed) };
        let slots = decode.attention_ranks() * f64::from(decode.max_batch);
        if row.knob_match == "cfgonly" && slots < 0.8 * f64::from(row.concurrency) {
            assumed.push("decode batch limit of another run of the configuration: ignored");
            decode.max_batch = UNLIMITED;
        }
        let mtp = drafted(&row.mtp, &mut assumed);
        let pools = if row.kind == Kind::Aggregated { decode.gpus() } else { prefill.gpus() + decode.gpus() };
        Scenario {
            kind: row.kind,
            hardware: row.hardware.clone(),
            stack: row.stack.clone(),
            months: row.months,
            weights: match row.precision.as_str() {
                "fp4" | "nvfp4" => WeightDtype::Nvfp4,
                "bf16" => WeightDtype::Bf16,
                _ => WeightDtype::Fp8,
            },
            prefill,
            decode,
            mtp,
            eplb_slots: row.eplb_slots.unwrap_or(0),
            gpus: row.gpus.unwrap_or(pools),
            load: load(row),
            assumed,
        }
    }

    /// Sequences that a decode rank would have if nothing but its limit bound.
    #[must_use]
    pub fn expected_batch(&self) -> f64 {
        let even = f64::from(self.load.concurrency) / self.decode.attention_ranks();
        even.min(f64::from(self.decode.max_batch)).max(1.0)
    }
}

fn pool(side: &Side, row: &Row, default_tokens: u32, shared_limits: bool, assumed: &mut Vec<&'static str>) -> Pool {
    let tp = side.tp.unwrap_or(1);
    let world = side.world.unwrap_or_else(|| {
        assumed.push("world size: taken from the TP degree");
        tp * side.pp.unwrap_or(1)
    });
    let workers = side.workers.unwrap_or_else(|| {
        assumed.push("number of servers: one");
        1
    });
    let pp = side.pp.unwrap_or(1);
    let disagree = tp * pp != world;
    if disagree {
        assumed.push("TP degree: the world size");
    }
    let tp = if disagree { (world / pp).max(1) } else { tp };
    let attention_dp = side.attention_dp.unwrap_or(false) && !mislabelled(row);
    // Older rows leave EP at 1 where attention is data parallel over many ranks; experts are spread there nevertheless.
    let ep = if attention_dp { tp } else { side.ep.unwrap_or(1).min(tp).max(1) };
    let ranks = if attention_dp && shared_limits { tp } else { 1 };
    let limit = |value: Option<u32>, default: u32| value.map_or(default, |v| (v / ranks).max(1));
    if side.max_batch.is_none() {
        assumed.push("batch limit: none");
    }
    if side.max_tokens.is_none() {
        assumed.push("token limit: default");
    }
    Pool {
        workers,
        layout: ParallelLayout { tp, pp, ep, attention_dp },
        max_batch: limit(side.max_batch, UNLIMITED),
        max_tokens: limit(side.max_tokens, default_tokens),
        memory_fraction: side.memory_fraction.unwrap_or(0.85),
    }
}

/// Older rows with a TP of 1 beside a larger world size call small latency-bound servers data parallel, which they are not.
fn mislabelled(row: &Row) -> bool {
    let d = &row.decode;
    row.kind == Kind::Disaggregated && d.tp == Some(1) && d.world.is_some_and(|w| w > 1 && w <= 4)
}

fn drafted(text: &str, assumed: &mut Vec<&'static str>) -> u32 {
    if let Ok(n) = text.parse::<f64>() {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        return n.clamp(0.0, 16.0) as u32;
    }
    if text.starts_with(">=") {
        assumed.push("drafted tokens: 2");
        return 2;
    }
    assumed.push("drafted tokens: 0");
    0
}

fn load(row: &Row) -> Load {
    let lengths = |nominal: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "lengths are positive and far below 2^32")]
        let at = |fraction: f64| (nominal * fraction).round() as u32;
        row.length_range.map_or(Lengths::Fixed(at(1.0)), |(a, b)| Lengths::Uniform(at(a), at(b)))
    };
    let wanted = f64::from(row.concurrency) * row.rounds;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded above and positive")]
    let requests = wanted.min(MAX_REQUESTS.max(f64::from(row.concurrency) * 2.0)) as u32;
    Load { concurrency: row.concurrency, requests, isl: lengths(row.isl), osl: lengths(row.osl), seed: 100, stream_interval: 1 }
}
