//! Metamorphic laws over configurations drawn at random, for the screen, the fast simulation and the deployment in virtual time.
//!
//! `metamorphic.rs` has the same laws at chosen points. Draws are seeded, so a failure repeats.

mod scenarios;

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use scenarios::{Draws, ROUNDS, draw, pick};
use tandem_metrics::LoadPhase;
use tandem_plan::{LoadPoint, Phase, Routing};
use tandem_sched::SchedConfig;
use tandem_sched::pacing::Arrivals;
use tandem_sim::des::{Deployment, Load, Outcome, WorkerChoice, simulate};
use tandem_sim::fit::Constants;
use tandem_sim::model::Model;
use tandem_sim::rows::Scenario;
use tandem_sim::screen::{Bound, Estimate, screen};
use tandem_sim::virtual_time::{
    Acceptance, Drive, Flow, Gap, Late, LinearCosts, Link, Overheads, Setup, Simulated, StepCosts, WorkerSetup, simulate as run_virtual,
};

/// Deployments drawn for each law.
const N: usize = 120;
/// Without pipelines and drafts; laws add those.
const DRAWS: Draws =
    Draws { workers: 5, pipelines: 0.0, drafts: &[0], batches: &[8, 32, 128], concurrency: &[16, 64, 256, 1024], osl: &[128, 512, 1024] };

fn rng(seed: u64) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

fn model() -> Model {
    Model::deepseek_r1(Constants::shipped())
}

fn deployment(model: &Model, s: &Scenario) -> Deployment {
    let mut deployment = model.deployment(s, model.factors(s));
    deployment.prefill.chunked = true;
    // Routing at random, which some measured systems show, obeys no law exactly.
    deployment.decode.routing = WorkerChoice::LeastLoaded;
    deployment
}

fn warmup(load: &Load) -> u32 {
    load.concurrency * ROUNDS.0
}

fn screened(d: &Deployment, load: &Load) -> Estimate {
    screen(d, load, warmup(load))
}

fn simulated(d: &Deployment, load: &Load) -> Outcome {
    simulate(d, load).after(warmup(load) as usize)
}

/// Twice the requests in flight and in all.
fn doubled(load: &Load) -> Load {
    Load { concurrency: 2 * load.concurrency, requests: 2 * load.requests, ..*load }
}

#[test]
fn more_memory_never_lowers_capacity_or_throughput() {
    let (model, mut rng) = (model(), rng(1));
    for i in 0..N {
        let mut s = draw(&mut rng, &DRAWS);
        let fractions = [0.3, 0.5, 0.7, 0.9];
        let tokens = fractions.map(|fraction| {
            s.decode.memory_fraction = fraction;
            model.kv_tokens(&s)
        });
        assert!(tokens.is_sorted(), "{i}: {tokens:?} of {s:?}");
        // The cache alone, from a few sequences to more than the load needs.
        let sequence = u64::from(s.load.isl.max() + s.load.osl.max() + 256);
        let mut d = deployment(&model, &s);
        let (mut before, mut before_simulated) = (0.0, 0.0);
        for sequences in [2, 5, 12, 40, 200] {
            d.decode.kv_tokens = sequences * sequence;
            let (quick, whole) = (screened(&d, &s.load).output_rate, simulated(&d, &s.load).output_rate);
            assert!(quick >= before * (1.0 - 1e-5), "{i}: {sequences} sequences: {before} before, {quick} now, {s:?}");
            // The screen's bisection ends at a millionth; a larger batch may end a run with a longer tail: within 2 %.
            assert!(whole >= before_simulated * 0.98, "{i}: {sequences} sequences: {before_simulated} before, {whole} now, {s:?}");
            (before, before_simulated) = (quick, whole);
        }
    }
}

#[test]
fn twice_of_everything_gives_twice_the_throughput() {
    let (model, mut rng) = (model(), rng(2));
    for i in 0..N {
        let s = draw(&mut rng, &DRAWS);
        let one = deployment(&model, &s);
        let mut two = one.clone();
        two.prefill.workers *= 2;
        two.decode.workers *= 2;
        let load = doubled(&s.load);
        let quick = screened(&two, &load).output_rate / screened(&one, &s.load).output_rate;
        let whole = simulated(&two, &load).output_rate / simulated(&one, &s.load).output_rate;
        // Waiting is shorter where there are more servers to wait for; where whole requests are spread over workers, a few make steps.
        assert!((1.97..2.25).contains(&quick), "{i}: {quick} in the screen of {s:?}");
        assert!((1.85..2.30).contains(&whole), "{i}: {whole} in the simulation of {s:?}");
    }
}

#[test]
fn drafts_that_are_never_accepted_are_never_faster() {
    let mut model = model();
    model.constants.coefficients.acceptance = 0.0;
    let (mut rng, mut gain) = (rng(3), 0.0);
    for i in 0..N {
        let mut s = draw(&mut rng, &DRAWS);
        // What was measured of drafts holds for those that are accepted: corrections are those without.
        let factors = model.factors(&s);
        let tokens = model.kv_tokens(&s);
        let plain = model.deployment_holding(&s, factors, tokens);
        s.mtp = rng.random_range(1..=3);
        let drafting = model.deployment_holding(&s, factors, tokens);
        let (a, b) = (screened(&plain, &s.load), screened(&drafting, &s.load));
        assert!(b.output_rate <= a.output_rate * (1.0 + 1e-5) && b.tpot >= a.tpot * (1.0 - 1e-5), "{i}: {a:?} {b:?} {s:?}");
        let (a, b) = (simulated(&plain, &s.load), simulated(&drafting, &s.load));
        // Requests that meet in other batches make a run a little longer or shorter.
        let (rates, tpots) = (b.output_rate / a.output_rate, b.tpot.median / a.tpot.median);
        assert!(rates <= 1.10 && tpots >= 0.97, "{i}: rates {rates}, TPOT {tpots}, {s:?}");
        gain += rates.ln();
    }
    assert!(gain < 0.0, "over all draws it must cost something: {gain}");
}

#[test]
fn a_pipeline_creates_no_throughput() {
    let (model, mut rng, mut n_saturated) = (model(), rng(4), 0);
    for i in 0..N {
        let s = draw(&mut rng, &DRAWS);
        // Two stages take twice the GPUs: no better than twice the servers at the same load.
        let mut stages = s.clone();
        stages.prefill.layout.pp = 2;
        stages.decode.layout.pp = 2;
        // The costs of the layouts alone: the same corrections, caches that do not limit, and as many slots.
        let (factors, endless) = (model.factors(&s), 1 << 40);
        stages.decode.max_batch *= 2;
        let staged = model.deployment_holding(&stages, factors, endless);
        let mut servers = model.deployment_holding(&s, factors, endless);
        servers.prefill.workers *= 2;
        servers.decode.workers *= 2;
        let load = doubled(&s.load);
        let (a, b) = (screened(&servers, &load), screened(&staged, &load));
        let quick = b.output_rate / a.output_rate;
        let whole = simulated(&staged, &load).output_rate / simulated(&servers, &load).output_rate;
        // Where the servers are what limits, nothing is won. Where the load does, a pipeline may answer sooner, since the chunks of one
        // prompt overlap in it, but never in less than half of the time.
        let is_saturated = a.bound != Bound::Concurrency;
        n_saturated += u32::from(is_saturated);
        let most = if is_saturated { 1.06 } else { 2.0 };
        assert!(quick <= most, "{i}: {quick} in the screen of {s:?}, {:?}", a.bound);
        assert!(whole <= most, "{i}: {whole} in the simulation of {s:?}, {:?}", a.bound);
    }
    assert!(n_saturated > 30, "{n_saturated} draws were limited by their servers");
}

/// Mean number of requests in flight while `from..to`, counted from the times of each, and what Little's law makes of them.
#[test]
fn littles_law_holds_on_every_output() {
    let (model, mut rng) = (model(), rng(5));
    for i in 0..N {
        let s = draw(&mut rng, &DRAWS);
        let d = deployment(&model, &s);
        let concurrency = f64::from(s.load.concurrency);
        let quick = screened(&d, &s.load);
        // Rate times latency is what is in flight; the rate holds the end of the run, which is not full.
        let latency = quick.ttft + quick.tpot * (s.load.osl.mean() - 1.0);
        let in_flight = quick.output_rate / s.load.osl.mean() * latency;
        assert!((0.80..1.02).contains(&(in_flight / concurrency)), "{i}: {in_flight} of {concurrency} in flight, {quick:?}, {s:?}");

        let whole = simulate(&d, &s.load);
        // Requests in flight at a hundred moments, against rate times mean latency.
        let end = whole.requests.iter().map(|r| r.end).fold(0.0, f64::max);
        let moments = 400;
        let counted: usize = (0..moments)
            .map(|k| (f64::from(k) + 0.5) / f64::from(moments) * end)
            .map(|t| whole.requests.iter().filter(|r| r.sent <= t && t < r.end).count())
            .sum();
        let counted = counted as f64 / f64::from(moments);
        let latency: f64 = whole.requests.iter().map(|r| r.end - r.sent).sum::<f64>() / whole.requests.len() as f64;
        let by_law = whole.requests.len() as f64 / end * latency;
        assert!((counted / by_law - 1.0).abs() < 0.03, "{i}: {counted} counted, {by_law} by the law, {s:?}");
        assert!(counted <= concurrency + 1e-9, "{i}: {counted} of {concurrency}");
    }
}

/// A small deployment of an engine with linear costs.
fn draw_setup(rng: &mut impl Rng) -> (Setup, Drive) {
    let (isl, osl) = (pick(rng, &[64, 256, 700]), pick(rng, &[16, 64, 150]));
    let concurrency = rng.random_range(1..=24);
    let costs = LinearCosts {
        step_us: pick(rng, &[500.0, 3000.0, 10_000.0]),
        prefill_token_us: pick(rng, &[5.0, 40.0]),
        decode_seq_us: pick(rng, &[20.0, 300.0]),
        attended_us: pick(rng, &[0.0, 0.002]),
        ..LinearCosts::default()
    };
    let chunked_prefill = rng.random_bool(0.7);
    let mut worker = |phase: Phase, index: u32| {
        let is_prefill = phase == Phase::Prefill;
        let sched = SchedConfig {
            max_batch_size: pick(rng, &[2, 4, 16]),
            max_num_tokens: if is_prefill { if chunked_prefill { 256 } else { 2048 } } else { 64 },
            max_seq_len: 1024,
            chunked_prefill,
            block_size: 32,
            n_blocks: 2000,
            n_drafts: 0,
        };
        let costs = StepCosts::Linear(costs);
        WorkerSetup { name: format!("{phase}-{index}"), phase, index, sched, n_ranks: 1, stream_interval: 1, costs }
    };
    let mut workers = vec![worker(Phase::Prefill, 0), worker(Phase::Decode, 0)];
    // Workers of a phase are alike.
    let copies = [rng.random_range(0..=2), rng.random_range(0..=2)];
    for (phase, n) in [(Phase::Prefill, copies[0]), (Phase::Decode, copies[1])] {
        let first = workers.iter().find(|w| w.phase == phase).expect("one of each").clone();
        workers.extend((1..=n).map(|index| WorkerSetup { name: format!("{phase}-{index}"), index, ..first.clone() }));
    }
    workers.sort_by_key(|w| (w.phase == Phase::Decode, w.index));
    // Requests go out together: one by one, which of them share a step depends on microseconds, and that moves throughput either way. With
    // 10 us between them one of the cases is faster with memory for two sequences than for four: five requests in a closed loop over
    // two decode workers. Scarce memory keeps their prompts apart (1.1 a step instead of 1.5), so that decode gets them evenly.
    let gap = Gap { step_s: 5e-5, request_s: 0.0 };
    let setup = Setup {
        workers,
        routing: pick(rng, &[Routing::LeastLoaded, Routing::RoundRobin]),
        max_inflight: 1000,
        flow: pick(rng, &[Flow::ReserveFirst, Flow::PrefillFirst]),
        overheads: Overheads {
            request_s: 1e-3,
            hop_s: 1e-4,
            late: Late::default(),
            dispatch_s: 0.0,
            prefill_gap: gap,
            decode_gap: gap,
            commit_s: 1e-4,
        },
        link: Link { bytes_per_token: 1000.0, bandwidth: 1e9, latency_s: 1e-4, overlap: 0.5 },
        acceptance: Acceptance(0.0),
        faults: Vec::new(),
    };
    let point = LoadPoint { concurrency, n_requests: 8 * concurrency, n_warmup: 2 * concurrency };
    let drive = Drive { isl, osl, point, streaming: true, arrivals: Arrivals::ClosedLoop, seed: rng.random(), request_timeout_s: 600.0 };
    (setup, drive)
}

fn virtually(setup: &Setup, drive: &Drive) -> Simulated {
    run_virtual(setup, drive).expect("it can work")
}

/// Output tokens per second of the measured requests, from the first that was sent to the last that ended.
fn rate(simulated: &Simulated) -> f64 {
    let kept: Vec<_> = simulated.records.iter().filter(|r| r.phase == LoadPhase::Profiling).collect();
    let tokens: u32 = kept.iter().filter_map(|r| r.osl.server).sum();
    let (from, to) = kept.iter().fold((u64::MAX, 0), |(from, to), r| (from.min(r.start_ns), to.max(r.end_ns)));
    f64::from(tokens) / ((to - from) as f64 * 1e-9)
}

#[test]
fn in_virtual_time_more_blocks_never_lower_throughput() {
    let mut rng = rng(6);
    for i in 0..N {
        let (mut setup, drive) = draw_setup(&mut rng);
        let blocks = (drive.isl + drive.osl).div_ceil(32) + 1;
        let rates = [1, 2, 4, 16, 64].map(|sequences| {
            setup.workers.iter_mut().for_each(|w| w.sched.n_blocks = sequences * blocks);
            rate(&virtually(&setup, &drive))
        });
        // Requests that meet in other batches make a run a little longer or shorter.
        assert!(rates.windows(2).all(|w| w[1] >= 0.95 * w[0]), "{i}: {rates:?} of {setup:?} {drive:?}");
    }
}

#[test]
fn in_virtual_time_twice_of_everything_gives_twice_the_throughput() {
    let mut rng = rng(7);
    for i in 0..N {
        let (setup, mut drive) = draw_setup(&mut rng);
        // Whole requests are spread over workers: enough of them that each has its share.
        drive.point = LoadPoint { concurrency: 24, n_requests: 24 * 10, n_warmup: 24 * 2 };
        let mut two = setup.clone();
        for (phase, n) in [Phase::Prefill, Phase::Decode].map(|p| (p, setup.workers.iter().filter(|w| w.phase == p).count())) {
            let n = u32::try_from(n).expect("a few");
            let more = setup.workers.iter().filter(|w| w.phase == phase).map(|w| {
                let index = w.index + n;
                WorkerSetup { name: format!("{phase}-{index}"), index, ..w.clone() }
            });
            two.workers.extend(more);
        }
        two.workers.sort_by_key(|w| (w.phase == Phase::Decode, w.index));
        let mut double = drive.clone();
        double.point = LoadPoint { concurrency: 48, n_requests: 48 * 10, n_warmup: 48 * 2 };
        let ratio = rate(&virtually(&two, &double)) / rate(&virtually(&setup, &drive));
        assert!((1.85..2.2).contains(&ratio), "{i}: {ratio} of {setup:?} {drive:?}");
    }
}

#[test]
fn in_virtual_time_drafts_that_are_never_accepted_are_never_faster() {
    let mut rng = rng(8);
    for i in 0..N {
        let (setup, drive) = draw_setup(&mut rng);
        let mut drafting = setup.clone();
        for worker in drafting.workers.iter_mut().filter(|w| w.phase == Phase::Decode) {
            worker.sched.n_drafts = rng.random_range(1..=3);
        }
        let (plain, drafting) = (rate(&virtually(&setup, &drive)), rate(&virtually(&drafting, &drive)));
        assert!(drafting <= plain * (1.0 + 1e-9), "{i}: {drafting} with drafts, {plain} without, {setup:?}");
    }
}

#[test]
fn in_virtual_time_littles_law_holds_for_requests_and_for_batches() {
    let mut rng = rng(9);
    for i in 0..N {
        let (setup, drive) = draw_setup(&mut rng);
        let run = virtually(&setup, &drive);
        let end = run.records.iter().map(|r| r.end_ns).max().expect("requests") as f64 * 1e-9;
        let seconds = |ns: u64| ns as f64 * 1e-9;
        // Never more in flight than asked for, at the moment each request is sent.
        for r in &run.records {
            let n = run.records.iter().filter(|o| o.start_ns <= r.start_ns && r.start_ns < o.end_ns).count();
            assert!(n <= drive.point.concurrency as usize, "{i}: {n} in flight");
        }
        // Sequences in decode: time-weighted batches of the iteration lines, against rate times residence from the records.
        let in_steps: f64 = run
            .logs
            .iter()
            .filter(|log| log.phase == Phase::Decode)
            .flat_map(|log| &log.lines)
            .map(|line| line.n_gen_tokens as f64 * line.took.as_secs_f64())
            .sum::<f64>()
            / end;
        let resident: f64 = run.records.iter().map(|r| seconds(r.end_ns - r.chunks.first().expect("streamed").at_ns)).sum::<f64>() / end;
        // A sequence waits for a slot, for its first step and between steps, so it is there longer than it computes.
        let slots: u32 = setup.workers.iter().filter(|w| w.phase == Phase::Decode).map(|w| w.sched.max_batch_size).sum();
        let resident_in_slots = resident.min(f64::from(slots));
        // Where the first token comes with the first step of decode, that step is before the residence.
        let steps = f64::from(drive.osl) / f64::from(drive.osl - 1);
        assert!(in_steps <= resident * steps * 1.02 + 0.02, "{i}: {in_steps} in steps, {resident} resident, {setup:?}");
        assert!(in_steps >= resident_in_slots * 0.4, "{i}: {in_steps} in steps, {resident} resident, {slots} slots, {setup:?} {drive:?}");
    }
}
