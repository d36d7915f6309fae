//! Metamorphic laws of whole plans: the same recipe through planner, screen, fast simulation and virtual time.
//!
//! `tandem-sim`'s `laws.rs` has them for each of these alone, at deployments that no planner has seen. Draws are seeded, so a failure repeats.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use tandem_explore::{Axes, Limits, Pricer, Space, screen};
use tandem_metrics::LoadPhase;
use tandem_plan::{Bytes, Phase, Plan};
use tandem_recipe::{Inputs, RecipeSource, load_recipe};
use tandem_sim::fit::Constants;
use tandem_sim::model::Model;
use tandem_sim::screen::Bound;
use tandem_sim::virtual_time::{drive, setup, simulate};

/// Plans drawn for each law.
const N: usize = 60;
/// Requests in flight up to which a plan is run in virtual time too: it takes each step by itself.
const MAX_VIRTUAL: u32 = 128;

type Sets = Vec<(&'static str, String)>;

fn read(path: &str) -> std::io::Result<String> {
    unreachable!("the model ships: {path}")
}

fn pick<'a>(rng: &mut impl Rng, from: &[&'a str]) -> &'a str {
    from[rng.random_range(0..from.len())]
}

/// A plan of one GPU type, without pipelines and drafts; laws add those.
fn draw(rng: &mut impl Rng) -> (&'static str, Sets) {
    let gpu = pick(rng, &["gb200", "b200", "h200", "b300", "gb300"]);
    let worlds: &[&str] = if gpu.starts_with("gb") { &["8", "16"] } else { &["8"] };
    let batch = pick(rng, &["8", "32", "64"]);
    let mut sets: Sets = vec![("GEN_MAX_BATCH_SIZE", batch.to_owned()), ("GEN_MAX_NUM_TOKENS", batch.to_owned())];
    for (name, values) in [
        ("NCTX", &["1", "2", "3", "4"][..]),
        ("NGEN", &["1", "2"]),
        ("CTX_WORLD_SIZE", &["8"]),
        ("GEN_WORLD_SIZE", worlds),
        ("CTX_MAX_NUM_TOKENS", &["2048", "4096", "8448"]),
        ("ISL", &["512", "1024", "4096", "8150"]),
        ("OSL", &["128", "512"]),
        ("CONCURRENCY", &["16", "64", "256", "512"]),
        ("GEN_EPLB_NUM_SLOTS", &["0", "0", "288"]),
        ("MULTI_ROUND", &["8"]),
    ] {
        sets.push((name, pick(rng, values).to_owned()));
    }
    (gpu, sets)
}

/// `sets` with some values in place of others.
fn with(sets: &Sets, changes: &[(&'static str, String)]) -> Sets {
    let kept = sets.iter().filter(|(name, _)| !changes.iter().any(|(other, _)| other == name)).cloned();
    kept.chain(changes.iter().cloned()).collect()
}

fn number(sets: &Sets, name: &str) -> u32 {
    sets.iter().find(|(n, _)| *n == name).unwrap().1.parse().unwrap()
}

/// What each way of looking at a plan says of it: tokens/s/GPU, and TPOT in seconds.
#[derive(Debug)]
struct Seen {
    plan: Plan,
    bound: Bound,
    screened: [f64; 2],
    /// Mean TTFT of the screen, seconds.
    ttft: f64,
    simulated: [f64; 2],
    /// Tokens/s/GPU in virtual time, of plans with a small load.
    stepped: Option<f64>,
}

/// Looks at one plan; none when it cannot work.
fn see(model: &Model, gpu: &str, sets: &Sets) -> Option<Seen> {
    let recipe = load_recipe(&Inputs {
        recipe: Some(RecipeSource::Builtin("deepseek-r1".to_owned())),
        gpu_type: Some(gpu.to_owned()),
        sets: sets.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        ..Inputs::default()
    })
    .unwrap();
    let mut space = Space::new(&recipe, Axes::default(), Limits::default()).unwrap();
    let pricer = Pricer { model: model.clone(), calibration: None };
    let point = *screen(&mut space, &pricer, &read, 0..1).points.first()?;
    let plan = space.variant(0).unwrap().plan(&read).unwrap();
    let prediction = pricer.predict(&plan).remove(0);
    let load = plan.load.points[0];
    let stepped = (load.concurrency <= MAX_VIRTUAL).then(|| {
        let run = simulate(&setup(&plan, load, model, None).unwrap(), &drive(&plan, load, 0)).unwrap();
        let kept: Vec<_> = run.records.iter().filter(|r| r.phase == LoadPhase::Profiling).collect();
        let tokens: u32 = kept.iter().filter_map(|r| r.osl.server).sum();
        let (from, to) = kept.iter().fold((u64::MAX, 0), |(from, to), r| (from.min(r.start_ns), to.max(r.end_ns)));
        f64::from(tokens) / ((to - from) as f64 * 1e-9) / f64::from(plan.n_devices())
    });
    Some(Seen {
        bound: point.bound,
        screened: [point.per_gpu, 1.0 / point.per_user],
        ttft: point.ttft_s,
        simulated: [prediction.tokens_per_gpu.value, prediction.tpot.value],
        stepped,
        plan,
    })
}

/// The ratio of two plans in each way of looking at them that both have.
fn ratios(after: &Seen, before: &Seen) -> Vec<f64> {
    let stepped = after.stepped.zip(before.stepped).map(|(a, b)| a / b);
    [after.screened[0] / before.screened[0], after.simulated[0] / before.simulated[0]].into_iter().chain(stepped).collect()
}

fn shipped() -> Model {
    Model::deepseek_r1(Constants::shipped())
}

/// Without corrections, which were measured where drafts are accepted and there are no pipelines.
fn plain(acceptance: f64) -> Model {
    let mut constants = Constants::uncorrected();
    constants.coefficients.acceptance = acceptance;
    Model::deepseek_r1(constants)
}

/// Draws plans and counts those that work; enough of them must.
fn each(seed: u64, mut law: impl FnMut(usize, &'static str, &Sets) -> bool) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut n_tried = 0;
    for i in 0..N {
        let (gpu, sets) = draw(&mut rng);
        n_tried += usize::from(law(i, gpu, &sets));
    }
    assert!(n_tried * 2 > N, "{n_tried} of {N} plans could be tried");
}

#[test]
fn more_memory_never_lowers_capacity_or_throughput() {
    let model = shipped();
    each(1, |i, gpu, sets| {
        let mut before: Option<Seen> = None;
        // From where hardly anything fits; the largest step of the load is asked for, so that memory binds somewhere.
        let sets = with(sets, &[("GEN_MAX_BATCH_SIZE", "64".to_owned()), ("GEN_MAX_NUM_TOKENS", "64".to_owned())]);
        for gib in [95, 110, 125, 140, 170, 250] {
            let now = see(&model, gpu, &with(&sets, &[("DEVICE_MEMORY", format!("{gib}GiB"))]));
            let Some(earlier) = &before else {
                before = now;
                continue;
            };
            let now = now.unwrap_or_else(|| panic!("{i}: {gib} GiB do not fit where less did: {gpu} {sets:?}"));
            for (old, new) in earlier.plan.workers.iter().zip(&now.plan.workers) {
                assert!(new.kv.n_blocks >= old.kv.n_blocks && new.memory.sequences >= old.memory.sequences, "{i}: {gib} GiB, {}", new.name);
                assert_eq!(new.memory.weights, old.memory.weights);
            }
            for (ratio, least) in ratios(&now, earlier).into_iter().zip([1.0 - 1e-5, 0.98, 0.95]) {
                assert!(ratio >= least, "{i}: {ratio} with {gib} GiB: {gpu} {sets:?}");
            }
            before = Some(now);
        }
        before.is_some()
    });
}

#[test]
fn twice_of_everything_gives_the_same_per_gpu() {
    let model = shipped();
    each(2, |i, gpu, sets| {
        let Some(one) = see(&model, gpu, sets) else { return false };
        let twice = |name| (name, (2 * number(sets, name)).to_string());
        // Concurrency is that of each decode server, so it doubles with them.
        let two = see(&model, gpu, &with(sets, &[twice("NCTX"), twice("NGEN")])).unwrap();
        assert_eq!(
            (two.plan.n_devices(), two.plan.load.points[0].concurrency),
            (2 * one.plan.n_devices(), 2 * one.plan.load.points[0].concurrency)
        );
        // Waiting is shorter where there are more servers to wait for; where whole requests are spread over workers, a few make steps.
        for (ratio, range) in ratios(&two, &one).into_iter().zip([0.985..1.125, 0.925..1.15, 0.90..1.20]) {
            assert!(range.contains(&ratio), "{i}: {ratio} of {gpu} {sets:?}");
        }
        true
    });
}

#[test]
fn drafts_that_are_never_accepted_are_never_faster() {
    let model = plain(0.0);
    each(3, |i, gpu, sets| {
        let drafts = 1 + u32::try_from(i % 3).unwrap();
        let tokens = (number(sets, "GEN_MAX_BATCH_SIZE") * (1 + drafts)).to_string();
        // As many tokens a step in both, so that memory is all that differs.
        let without = see(&model, gpu, &with(sets, &[("GEN_MAX_NUM_TOKENS", tokens.clone())]));
        let with_drafts = see(&model, gpu, &with(sets, &[("GEN_MAX_NUM_TOKENS", tokens), ("GEN_MTP_SIZE", drafts.to_string())]));
        let (Some(without), Some(with_drafts)) = (without, with_drafts) else { return false };
        for (ratio, most) in ratios(&with_drafts, &without).into_iter().zip([1.0 + 1e-5, 1.10, 1.10]) {
            assert!(ratio <= most, "{i}: {ratio} with {drafts} drafts: {gpu} {sets:?}");
        }
        assert!(with_drafts.screened[1] >= without.screened[1] * (1.0 - 1e-5), "{i}: {gpu} {sets:?}");
        assert!(with_drafts.simulated[1] >= without.simulated[1] * 0.97, "{i}: {gpu} {sets:?}");
        true
    });
}

#[test]
fn a_pipeline_creates_no_throughput() {
    let model = plain(0.7);
    let mut n_saturated = 0;
    each(4, |i, gpu, sets| {
        // The same GPUs as servers of 8 ranks, or as half as many of two stages with 8 ranks each and twice the slots.
        let even = |name| 2 * number(sets, name);
        let tp = [("CTX_TENSOR_PARALLEL_SIZE", "8".to_owned()), ("GEN_TENSOR_PARALLEL_SIZE", "8".to_owned())];
        let batch = 2 * number(sets, "GEN_MAX_BATCH_SIZE");
        let servers = with(
            sets,
            &[&tp[..], &[("GEN_WORLD_SIZE", "8".to_owned()), ("NCTX", even("NCTX").to_string()), ("NGEN", even("NGEN").to_string())]]
                .concat(),
        );
        let staged = with(
            sets,
            &[
                &tp[..],
                &[
                    ("GEN_WORLD_SIZE", "16".to_owned()),
                    ("CTX_WORLD_SIZE", "16".to_owned()),
                    ("GEN_MAX_BATCH_SIZE", batch.to_string()),
                    ("GEN_MAX_NUM_TOKENS", batch.to_string()),
                    ("CONCURRENCY", even("CONCURRENCY").to_string()),
                ],
            ]
            .concat(),
        );
        let (Some(servers), Some(staged)) = (see(&model, gpu, &servers), see(&model, gpu, &staged)) else { return false };
        assert_eq!(servers.plan.n_devices(), staged.plan.n_devices());
        assert_eq!(servers.plan.load.points, staged.plan.load.points);
        assert!(staged.plan.workers_of(Phase::Decode).all(|w| w.layout.pp == 2 && w.layout.tp == 8));
        let is_saturated = servers.bound != Bound::Concurrency;
        n_saturated += u32::from(is_saturated);
        // Where the servers limit, nothing is won. Where the load does, the chunks of one prompt overlap in a pipeline.
        let most = if is_saturated { 1.06 } else { 2.0 };
        for ratio in ratios(&staged, &servers) {
            assert!(ratio <= most, "{i}: {ratio} of {gpu} {sets:?}, {:?}", servers.bound);
        }
        true
    });
    assert!(n_saturated > 15, "{n_saturated} draws were limited by their servers");
}

#[test]
fn littles_law_holds_for_every_plan() {
    let model = shipped();
    each(5, |i, gpu, sets| {
        let Some(seen) = see(&model, gpu, sets) else { return false };
        let (osl, concurrency) = (f64::from(seen.plan.load.osl), f64::from(seen.plan.load.points[0].concurrency));
        let rate = seen.screened[0] * f64::from(seen.plan.n_devices()) / osl;
        let in_flight = rate * (seen.ttft + seen.screened[1] * (osl - 1.0));
        assert!((0.80..1.02).contains(&(in_flight / concurrency)), "{i}: {in_flight} of {concurrency} in flight: {gpu} {sets:?}");
        // No more tokens than all sequences in flight can gain, whoever says so.
        for [per_gpu, tpot] in [seen.screened, seen.simulated] {
            assert!(per_gpu * f64::from(seen.plan.n_devices()) * tpot <= concurrency * 1.02, "{i}: {per_gpu}, {tpot}: {gpu} {sets:?}");
        }
        true
    });
}

/// The three ways of looking at a plan are of one system.
#[test]
fn screen_simulation_and_virtual_time_agree() {
    let model = shipped();
    let mut off: [Vec<f64>; 2] = Default::default();
    each(6, |_, gpu, sets| {
        let Some(seen) = see(&model, gpu, sets) else { return false };
        off[0].push((seen.screened[0] / seen.simulated[0]).ln().abs());
        off[1].extend(seen.stepped.map(|stepped| (stepped / seen.simulated[0]).ln().abs()));
        true
    });
    for (what, mut all, [median, p90]) in [("screen", off[0].clone(), [0.02, 0.10]), ("virtual time", off[1].clone(), [0.04, 0.15])] {
        all.sort_by(f64::total_cmp);
        println!(
            "{what} beside the fast simulation, {} plans: median {:.4}, p90 {:.4}",
            all.len(),
            all[all.len() / 2],
            all[all.len() * 9 / 10]
        );
        assert!(all[all.len() / 2] < median && all[all.len() * 9 / 10] < p90, "{what}: {all:?}");
    }
}

/// Memory is that of the plan, wherever it is asked for.
#[test]
fn every_gpu_has_the_memory_of_its_table() {
    let gpus = tandem_sim::hardware::shipped();
    for gpu in tandem_plan::GpuType::ALL.into_iter().filter_map(tandem_plan::GpuType::hardware) {
        let table = tandem_sim::hardware::find(&gpus, gpu.gpu_type.name()).unwrap();
        assert!((gpu.device_memory.0 as f64 / table.memory - 1.0).abs() < 0.002, "{}", table.name);
        assert_eq!(gpu.devices_per_node, table.gpus_per_node);
        assert!(gpu.device_memory > Bytes::gib(1));
    }
}
