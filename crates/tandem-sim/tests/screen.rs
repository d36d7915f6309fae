//! The screen beside the simulator, on deployments drawn at random.

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use tandem_plan::{ParallelLayout, WeightDtype};
use tandem_sim::des::{Lengths, Load, WorkerChoice, simulate};
use tandem_sim::fit::Constants;
use tandem_sim::model::Model;
use tandem_sim::rows::{Kind, Pool, Scenario};
use tandem_sim::screen::{Bound, Estimate, screen};

/// Deployments that are compared.
const N: usize = 600;
/// Rounds of warm-up and of measurement, as in the recipes.
const ROUNDS: (u32, u32) = (2, 8);

fn pick<T: Copy>(rng: &mut impl Rng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

/// What a user might explore: both generations of GPUs, 1 to 8 servers a phase of 4 to 16 ranks, any mix of limits and loads.
fn draw(rng: &mut impl Rng) -> Scenario {
    let (hardware, weights) = pick(rng, &[("h100", WeightDtype::Fp8), ("b200", WeightDtype::Nvfp4), ("gb200", WeightDtype::Nvfp4)]);
    let isl = pick(rng, &[512, 1024, 2048, 4096, 8150]);
    let osl = pick(rng, &[128, 512, 1024, 2048]);
    let mut pool = |batches: &[u32], tokens: &[u32]| {
        let tp = pick(rng, &[4, 8, 16]);
        let attention_dp = rng.random_bool(0.6);
        let pp = if rng.random_bool(0.15) { 2 } else { 1 };
        Pool {
            workers: rng.random_range(1..=8),
            layout: ParallelLayout { tp, pp, ep: if attention_dp { tp } else { pick(rng, &[1, tp]) }, attention_dp },
            max_batch: pick(rng, batches),
            max_tokens: pick(rng, tokens),
            memory_fraction: 0.8,
        }
    };
    let prefill = pool(&[1, 2, 8], &[2048, 8448, 16_384]);
    let decode = pool(&[8, 32, 128, 256], &[512]);
    let concurrency = pick(rng, &[4, 16, 64, 256, 1024, 2048]);
    Scenario {
        kind: Kind::Disaggregated,
        hardware: hardware.to_owned(),
        stack: "trt".to_owned(),
        months: 2.0,
        weights,
        mtp: pick(rng, &[0, 0, 1, 3]),
        eplb_slots: pick(rng, &[0, 0, 288]),
        gpus: prefill.gpus() + decode.gpus(),
        prefill,
        decode,
        load: Load {
            concurrency,
            requests: concurrency * (ROUNDS.0 + ROUNDS.1),
            isl: Lengths::Fixed(isl),
            osl: Lengths::Fixed(osl),
            seed: rng.random(),
            stream_interval: 1,
        },
        assumed: Vec::new(),
    }
}

/// Median and 90th percentile of |ln(a / b)|, and the mean of ln(a / b).
#[derive(Debug, Clone, Copy)]
struct Errors {
    median: f64,
    p90: f64,
    bias: f64,
}

fn errors(ratios: &[f64]) -> Errors {
    let mut sizes: Vec<f64> = ratios.iter().map(|r| r.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let bias = ratios.iter().sum::<f64>() / ratios.len() as f64;
    Errors { median: sizes[sizes.len() / 2], p90: sizes[sizes.len() * 9 / 10], bias }
}

#[test]
fn it_agrees_with_the_simulator_within_the_stated_errors() {
    let model = Model::deepseek_r1(Constants::shipped());
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(5);
    let mut logs: [Vec<f64>; 3] = Default::default();
    for _ in 0..N {
        let s = draw(&mut rng);
        let mut deployment = model.deployment(&s, model.factors(&s));
        deployment.prefill.chunked = true;
        // The screen knows no other.
        deployment.decode.routing = WorkerChoice::LeastLoaded;
        let warmup = s.load.concurrency * ROUNDS.0;
        let whole = simulate(&deployment, &s.load).after(warmup as usize);
        let quick = screen(&deployment, &s.load, warmup);
        // The median TTFT of a run whose slots are full jumps with the order in which they fill; the mean is what Little's law gives.
        let ln = [(quick.output_rate / whole.output_rate).ln(), (quick.tpot / whole.tpot.median).ln(), (quick.ttft / whole.ttft.mean).ln()];
        logs.iter_mut().zip(ln).for_each(|(all, one)| all.push(one));
    }
    let [rate, tpot, ttft] = logs.map(|l| errors(&l));
    println!("screen beside simulator, {N} deployments, |ln ratio|: output rate {rate:.3?}, TPOT {tpot:.3?}, mean TTFT {ttft:.3?}");
    assert!(rate.median < 0.015 && rate.p90 < 0.07 && rate.bias.abs() < 0.03, "{rate:?}");
    assert!(tpot.median < 0.005 && tpot.p90 < 0.03 && tpot.bias.abs() < 0.03, "{tpot:?}");
    assert!(ttft.median < 0.02 && ttft.p90 < 0.30 && ttft.bias.abs() < 0.10, "{ttft:?}");
}

/// The recipe's shape with `workers` times as many servers of both phases.
fn scaled(times: u32, concurrency: u32, max_batch: u32) -> Scenario {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut s = draw(&mut rng);
    let layout = ParallelLayout { tp: 8, pp: 1, ep: 8, attention_dp: true };
    s.prefill = Pool { workers: 2 * times, layout, max_batch: 1, max_tokens: 8448, memory_fraction: 0.8 };
    s.decode = Pool { workers: times, layout, max_batch, max_tokens: 512, memory_fraction: 0.8 };
    s.load.concurrency = concurrency * times;
    s.load.requests = 10 * concurrency * times;
    (s.load.isl, s.load.osl) = (Lengths::Fixed(8150), Lengths::Fixed(1024));
    s
}

fn estimate(s: &Scenario) -> Estimate {
    let model = Model::deepseek_r1(Constants::shipped());
    screen(&model.deployment(s, model.factors(s)), &s.load, 2 * s.load.concurrency)
}

#[test]
fn twice_of_everything_gives_twice_the_tokens() {
    for concurrency in [16, 256, 2048] {
        let (one, two) = (estimate(&scaled(1, concurrency, 64)), estimate(&scaled(2, concurrency, 64)));
        // Waiting at two servers is somewhat shorter than at one.
        let ratio = two.output_rate / one.output_rate;
        assert!((1.98..2.15).contains(&ratio), "{concurrency}: {ratio}");
    }
}

#[test]
fn it_says_what_limits() {
    assert_eq!(estimate(&scaled(1, 4, 64)).bound, Bound::Concurrency);
    assert_eq!(estimate(&scaled(1, 4096, 8)).bound, Bound::DecodeSlots);
    let mut held = scaled(1, 16_384, 65_536);
    held.prefill.workers = 32;
    assert_eq!(estimate(&held).bound, Bound::KvCache);
    let mut starved = scaled(1, 512, 512);
    starved.load.osl = Lengths::Fixed(16);
    assert_eq!(estimate(&starved).bound, Bound::Prefill);
}
