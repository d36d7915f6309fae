//! Rates of the predictor: static step times, and whole simulated runs. Prints one line each; the targets are in the lines.

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time; the crate itself has none")]

#[path = "../tests/scenarios/mod.rs"]
mod scenarios;

use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

use scenarios::gb200;
use tandem_sim::cost::DecodeLoad;
use tandem_sim::des::{Lengths, Load, simulate};
use tandem_sim::fit::Constants;
use tandem_sim::model::Model;
use tandem_sim::rows::Scenario;
use tandem_sim::screen::screen;

fn main() {
    let mut out = std::io::stdout().lock();
    let model = Model::deepseek_r1(Constants::shipped());
    let scenario = recipe();
    let cost = model.decode_cost(&scenario, model.factors(&scenario).decode);
    let steps = 4_000_000;
    let began = Instant::now();
    let mut sum = 0.0;
    for i in 0..steps {
        let batch = f64::from(1 + i % 256);
        sum += cost.step(DecodeLoad { rank_sequences: batch, rank_context: batch * 8000.0, sequences: batch * 8.0 });
    }
    black_box(sum);
    let rate = f64::from(steps) / began.elapsed().as_secs_f64();
    let _ = writeln!(out, "static decode steps: {:.1} M/s (target: 1 M/s)", rate / 1e6);

    screens(&mut out, &model, &scenario);

    let deployment = model.deployment(&scenario, model.factors(&scenario));
    for (name, lengths) in
        [("fixed", [Lengths::Fixed(8150), Lengths::Fixed(1024)]), ("uniform", [Lengths::Uniform(6554, 8192), Lengths::Uniform(819, 1024)])]
    {
        let load = Load { isl: lengths[0], osl: lengths[1], ..scenario.load };
        let mut times: Vec<f64> = (0..20)
            .map(|_| {
                let began = Instant::now();
                black_box(simulate(&deployment, &load));
                began.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let _ = writeln!(
            out,
            "run of 10,000 requests at concurrency 2,048, {name} lengths: {:.1} ms median, {:.1} ms best (target: 10 ms)",
            times[10], times[0]
        );
    }
}

/// Screened configurations per second: each a new scenario, with the costs of both pools worked out from the constants again.
fn screens(out: &mut impl Write, model: &Model, recipe: &Scenario) {
    let n = 200_000;
    let mut scenario = recipe.clone();
    let mut sum = 0.0;
    let began = Instant::now();
    for i in 0..n {
        scenario.prefill.workers = 1 + i % 16;
        scenario.decode.max_batch = 8 + (i / 16) % 512;
        scenario.load.concurrency = 16 + i % 4096;
        scenario.load.requests = 10 * scenario.load.concurrency;
        // The planner has worked out the cache before: its own benchmark is `tandem explore`.
        let deployment = model.deployment_holding(&scenario, model.factors(&scenario), 2_640_000);
        sum += screen(&deployment, &scenario.load, 2 * scenario.load.concurrency).output_rate;
    }
    let whole = f64::from(n) / began.elapsed().as_secs_f64();
    let deployment = model.deployment(&scenario, model.factors(&scenario));
    let began = Instant::now();
    for i in 0..n {
        scenario.load.concurrency = 16 + i % 4096;
        sum += screen(&deployment, &scenario.load, 2 * scenario.load.concurrency).output_rate;
    }
    let alone = f64::from(n) / began.elapsed().as_secs_f64();
    black_box(sum);
    let _ =
        writeln!(out, "screen: {:.0} k configurations/s, {:.0} k/s when only the load changes (target: 100 k/s)", whole / 1e3, alone / 1e3);
}

/// The published GB200 configuration.
fn recipe() -> Scenario {
    let mut s = gb200(6, 256, 2048);
    s.months = 0.0;
    (s.load.requests, s.load.seed, s.load.stream_interval) = (10_000, 100, 20);
    s
}
