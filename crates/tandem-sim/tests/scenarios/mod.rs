//! Scenarios that several tests and the benchmark share.

#![allow(dead_code, reason = "each test uses some of it")]

use rand::Rng;
use tandem_plan::{ParallelLayout, WeightDtype};
use tandem_sim::des::{Lengths, Load};
use tandem_sim::rows::{Kind, Pool, Scenario};

/// Rounds of warm-up and of measurement in what is drawn, as in the recipes.
pub(crate) const ROUNDS: (u32, u32) = (2, 8);

/// Servers of `tp` ranks with attention data parallelism.
pub(crate) fn pool(workers: u32, tp: u32, max_batch: u32, max_tokens: u32) -> Pool {
    let layout = ParallelLayout { tp, pp: 1, ep: tp, attention_dp: true };
    Pool { workers, layout, max_batch, max_tokens, memory_fraction: 0.8 }
}

/// The published GB200 configuration with other numbers of servers, another batch and load.
pub(crate) fn gb200(n_prefill: u32, max_batch: u32, concurrency: u32) -> Scenario {
    Scenario {
        kind: Kind::Disaggregated,
        hardware: "gb200".to_owned(),
        stack: "trt".to_owned(),
        months: 2.0,
        weights: WeightDtype::Nvfp4,
        prefill: pool(n_prefill, 4, 1, 8448),
        decode: pool(1, 8, max_batch, max_batch),
        mtp: 0,
        eplb_slots: 0,
        gpus: f64::from(4 * n_prefill + 8),
        load: Load {
            concurrency,
            requests: concurrency * 6,
            isl: Lengths::Fixed(8150),
            osl: Lengths::Fixed(1024),
            seed: 3,
            stream_interval: 1,
        },
        assumed: Vec::new(),
    }
}

/// What deployments are drawn from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draws {
    /// Servers of a phase, at most.
    pub(crate) workers: u32,
    /// Share of pools with two pipeline stages.
    pub(crate) pipelines: f64,
    /// Drafted tokens.
    pub(crate) drafts: &'static [u32],
    /// Batches of a decode rank.
    pub(crate) batches: &'static [u32],
    /// Requests in flight.
    pub(crate) concurrency: &'static [u32],
    /// Output tokens.
    pub(crate) osl: &'static [u32],
}

pub(crate) fn pick<T: Copy>(rng: &mut impl Rng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

/// A deployment at random: both generations of GPUs, servers of 4 to 16 ranks, any mix of limits and loads.
pub(crate) fn draw(rng: &mut impl Rng, draws: &Draws) -> Scenario {
    let gpus = [("h100", WeightDtype::Fp8), ("h200", WeightDtype::Fp8), ("b200", WeightDtype::Nvfp4), ("gb200", WeightDtype::Nvfp4)];
    let (hardware, weights) = pick(rng, &gpus);
    let mut pool = |batches: &[u32], tokens: &[u32]| {
        let (tp, attention_dp) = (pick(rng, &[4, 8, 16]), rng.random_bool(0.6));
        let pp = if draws.pipelines > 0.0 && rng.random_bool(draws.pipelines) { 2 } else { 1 };
        Pool {
            workers: rng.random_range(1..=draws.workers),
            layout: ParallelLayout { tp, pp, ep: if attention_dp { tp } else { pick(rng, &[1, tp]) }, attention_dp },
            max_batch: pick(rng, batches),
            max_tokens: pick(rng, tokens),
            memory_fraction: 0.8,
        }
    };
    let prefill = pool(&[1, 2, 8], &[2048, 8448, 16_384]);
    let decode = pool(draws.batches, &[512]);
    let concurrency = pick(rng, draws.concurrency);
    Scenario {
        hardware: hardware.to_owned(),
        weights,
        mtp: if draws.drafts.len() > 1 { pick(rng, draws.drafts) } else { 0 },
        eplb_slots: pick(rng, &[0, 0, 288]),
        gpus: prefill.gpus() + decode.gpus(),
        prefill,
        decode,
        load: Load {
            concurrency,
            requests: concurrency * (ROUNDS.0 + ROUNDS.1),
            isl: Lengths::Fixed(pick(rng, &[512, 1024, 4096, 8150])),
            osl: Lengths::Fixed(pick(rng, draws.osl)),
            seed: rng.random(),
            stream_interval: 1,
        },
        ..gb200(1, 8, 1)
    }
}
