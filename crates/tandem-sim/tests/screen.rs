//! The screen beside the simulator, on deployments drawn at random.

mod scenarios;

use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;
use scenarios::{Draws, ROUNDS, draw, gb200, pool};
use tandem_sim::des::{Lengths, WorkerChoice, simulate};
use tandem_sim::fit::Constants;
use tandem_sim::model::Model;
use tandem_sim::rows::Scenario;
use tandem_sim::screen::{Bound, Estimate, screen};

/// Deployments that are compared.
const N: usize = 600;
/// What a user might explore.
const DRAWS: Draws = Draws {
    workers: 8,
    pipelines: 0.15,
    drafts: &[0, 0, 1, 3],
    batches: &[8, 32, 128, 256],
    concurrency: &[4, 16, 64, 256, 1024, 2048],
    osl: &[128, 512, 1024, 2048],
};

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
        let s = draw(&mut rng, &DRAWS);
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

/// The recipe's shape with `times` as many servers of both phases.
fn scaled(times: u32, concurrency: u32, max_batch: u32) -> Scenario {
    let mut s = gb200(2 * times, max_batch, concurrency * times);
    s.prefill = pool(2 * times, 8, 1, 8448);
    s.decode = pool(times, 8, max_batch, 512);
    s.gpus = s.prefill.gpus() + s.decode.gpus();
    s.load.requests = 10 * concurrency * times;
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
