//! How many points a second one core takes through a whole search: knobs, checks of a plan with its memory, conditions, screen; and how
//! many it simulates. `cargo bench -p tandem-explore` prints a line each.

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time; the crate itself has none")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

use tandem_explore::{Axes, Limits, Pricer, Space, band, screen};
use tandem_recipe::{Inputs, RecipeSource, load_recipe};
use tandem_sim::fit::Constants;
use tandem_sim::model::Model;

/// Layouts, ratios, MTP, precision and batches of the published recipe: 114,688 points.
const AXES: [&str; 10] = [
    "NCTX=1..16",
    "NGEN=1..4",
    "CTX_WORLD_SIZE=4,8",
    "GEN_WORLD_SIZE=4,8,16,32",
    "GEN_TENSOR_PARALLEL_SIZE=0,4",
    "GEN_ATTENTION_DP=true,false",
    "GEN_MAX_BATCH_SIZE=8..512:x2",
    "GEN_MTP_SIZE=0..3",
    "WEIGHT_DTYPE=nvfp4,fp8",
    "CONCURRENCY=GEN_MAX_BATCH_SIZE*GEN_WORLD_SIZE",
];

fn read(path: &str) -> std::io::Result<String> {
    Err(std::io::Error::new(std::io::ErrorKind::NotFound, format!("the model ships: {path}")))
}

/// Seconds that this process has computed, which other processes do not lengthen; none where the kernel does not say.
fn computed_s() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/schedstat").ok()?;
    Some(text.split(' ').next()?.parse::<f64>().ok()? / 1e9)
}

/// Runs `work`: its result, seconds by the clock and seconds of computing.
fn timed<T>(work: impl FnOnce() -> T) -> (T, f64, f64) {
    let (began, before) = (Instant::now(), computed_s());
    let result = black_box(work());
    let seconds = began.elapsed().as_secs_f64();
    let computed = before.zip(computed_s()).map_or(seconds, |(a, b)| b - a);
    (result, seconds, computed)
}

fn main() {
    let sets: Vec<String> = AXES.iter().map(|&s| s.to_owned()).collect();
    let axes = Axes::parse(&sets).expect("they are axes");
    let inputs = Inputs {
        recipe: Some(RecipeSource::Builtin("deepseek-r1".to_owned())),
        gpu_type: Some("gb200".to_owned()),
        env: BTreeMap::new(),
        ..Inputs::default()
    };
    let recipe = load_recipe(&inputs).expect("it ships");
    let limits = Limits { slos: vec!["ttft:20000".parse().expect("an SLO")], ..Limits::default() };
    let mut space = Space::new(&recipe, axes, limits).expect("a space");
    let pricer = Pricer { model: Model::deepseek_r1(Constants::shipped()), calibration: None };
    let n = space.len();
    let (screening, seconds, computed) = timed(|| screen(&mut space, &pricer, &read, 0..n));
    let mut out = std::io::stdout().lock();
    #[expect(clippy::cast_precision_loss, reason = "a few hundred thousand points")]
    let rate = n as f64 / computed / 1e3;
    let n_passed = screening.points.len();
    let _ =
        writeln!(out, "search on one core: {n} points in {computed:.2} s of computing ({seconds:.2} s), {rate:.0} k/s, {n_passed} passed");
    let chosen = band(&screening.points, 0.15, 100);
    let plans: Vec<_> =
        chosen.iter().map(|&i| space.variant(screening.points[i].index).expect("it passed").plan(&read).expect("it passed")).collect();
    let (_, _, computed) = timed(|| plans.iter().for_each(|plan| drop(black_box(pricer.predict(plan)))));
    let each = computed * 1e3 / f64::from(u32::try_from(plans.len()).unwrap_or(u32::MAX));
    let _ = writeln!(out, "simulated beside the frontier: {} points, {each:.1} ms of computing each", plans.len());
}
