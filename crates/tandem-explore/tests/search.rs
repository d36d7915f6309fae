//! Whole searches over the published recipe, without files.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::collections::BTreeMap;

use tandem_explore::{
    Axes, Corner, Exploration, Expression, ExpressionError, Limits, Measured, Pricer, Screening, Simulated, Space, State, band, csv,
    explored, hypervolume, json, nearest, propose, screen as screen_range, terminal,
};
use tandem_recipe::{Inputs, RecipeSource, load_recipe};
use tandem_sim::fit::Constants;
use tandem_sim::model::Model;

fn read(path: &str) -> std::io::Result<String> {
    unreachable!("the model ships: {path}")
}

fn pricer() -> Pricer {
    Pricer { model: Model::deepseek_r1(Constants::shipped()), calibration: None }
}

fn space(gpus: &str, sets: &[&str], limits: Limits) -> Space {
    try_space(gpus, sets, limits).unwrap()
}

fn try_space(gpus: &str, sets: &[&str], limits: Limits) -> Result<Space, ExpressionError> {
    let axes = Axes::parse(&sets.iter().map(|&s| s.to_owned()).collect::<Vec<_>>()).unwrap();
    let recipe = load_recipe(&Inputs {
        recipe: Some(RecipeSource::Builtin("deepseek-r1".to_owned())),
        gpu_type: Some(gpus.to_owned()),
        env: BTreeMap::new(),
        sets: axes.rest.clone(),
        ..Inputs::default()
    })
    .unwrap();
    Space::new(&recipe, axes, limits)
}

fn screen(space: &mut Space) -> Screening {
    let n = space.len();
    screen_range(space, &pricer(), &read, 0..n)
}

fn simulate(space: &mut Space, screening: &Screening, chosen: &[usize]) -> Vec<Simulated> {
    let pricer = pricer();
    let one = |&i: &usize| {
        let screened = screening.points[i];
        let variant = space.variant(screened.index).unwrap().clone();
        let plan = variant.plan(&read).unwrap();
        let prediction = pricer.predict(&plan).remove(0);
        let knobs = space.knobs(&variant);
        Simulated { screened, knobs, key: State::key(&plan), prediction, meets: true, on_frontier: false }
    };
    let all = chosen.iter().map(one).collect();
    explored(all, &space.limits)
}

#[test]
fn stretches_of_a_space_make_the_whole() {
    // Some points meet it, some do not.
    let limits = Limits { max_gpus: Some(40), slos: vec!["tpot:15".parse().unwrap()], ..Limits::default() };
    let mut space = space("gb200", &WIDE, limits);
    let whole = screen(&mut space);
    let n = space.len();
    let parts = [0..1, 1..n / 3, n / 3..n];
    let mut merged = Screening::default();
    parts.into_iter().for_each(|part| merged.merge(screen_range(&mut space, &pricer(), &read, part)));
    assert!(!whole.points.is_empty() && whole.refusals.len() > 1, "{whole:?}");
    assert_eq!((merged.n, merged.points), (whole.n, whole.points));
    assert_eq!((merged.refusals, merged.nearest_slo, merged.nearest_budget), (whole.refusals, whole.nearest_slo, whole.nearest_budget));
}

const WIDE: [&str; 5] =
    ["NCTX=1..6", "NGEN=1,2", "GEN_WORLD_SIZE=8,16", "GEN_MAX_BATCH_SIZE=32,128", "CONCURRENCY=GEN_MAX_BATCH_SIZE*GEN_WORLD_SIZE/2"];

fn corners(points: &[Simulated]) -> Vec<Corner> {
    points.iter().filter(|p| p.on_frontier).map(Simulated::corner).collect()
}

#[test]
fn simulating_the_band_finds_the_frontier_of_simulating_everything() {
    let mut space = space("gb200", &WIDE, Limits::default());
    let screening = screen(&mut space);
    assert_eq!(screening.points.len() + screening.refusals.values().map(|r| r.n).sum::<usize>(), space.len());
    let all: Vec<usize> = (0..screening.points.len()).collect();
    let near = band(&screening.points, 0.15, 200);
    assert!(near.len() < all.len(), "the band is everything: {} of {}", near.len(), all.len());
    let whole = hypervolume(&corners(&simulate(&mut space, &screening, &all)));
    let found = hypervolume(&corners(&simulate(&mut space, &screening, &near)));
    assert!(found > 0.993 * whole && found <= whole * 1.002, "{found} of {whole}");
}

#[test]
fn a_band_that_is_too_large_keeps_the_whole_width_of_the_frontier() {
    let mut space = space("gb200", &WIDE, Limits::default());
    let screening = screen(&mut space);
    let few = band(&screening.points, 10.0, 12);
    assert_eq!(few.len(), 12);
    let users = |chosen: &[usize]| {
        let xs: Vec<f64> = chosen.iter().map(|&i| screening.points[i].per_user).collect();
        (xs.iter().copied().fold(f64::INFINITY, f64::min), xs.iter().copied().fold(0.0, f64::max))
    };
    let (low, high) = users(&few);
    let (least, most) = users(&(0..screening.points.len()).collect::<Vec<_>>());
    assert!(high / low > 0.5 * most / least, "{low} to {high} of {least} to {most}");
}

#[test]
fn limits_count_under_their_own_reasons() {
    // Knobs are written in capitals: what is not is a word, and a word is no number.
    let small = Limits { conditions: vec![Expression::parse("gen_gpus <= 16").unwrap()], ..Limits::default() };
    assert!(try_space("gb200", &WIDE, small).is_err());
    let condition = Expression::parse("GEN_GPUS <= 16 && NCTX >= NGEN").unwrap();
    let limits = Limits { max_gpus: Some(24), conditions: vec![condition], slos: vec!["tpot:20".parse().unwrap()] };
    let mut space = space("gb200", &WIDE, limits);
    let screening = screen(&mut space);
    for reason in ["more GPUs than the budget", "condition `GEN_GPUS <= 16 && NCTX >= NGEN`", "misses the SLO tpot"] {
        assert!(screening.refusals.contains_key(reason), "{reason}: {:?}", screening.refusals.keys());
    }
    for point in &screening.points {
        assert!(point.gpus <= 24 && point.per_user >= 1000.0 / 20.0, "{point:?}");
    }
}

#[test]
fn memory_rules_points_out_and_a_derived_knob_follows() {
    let mut space = space("h100", &["GEN_MAX_BATCH_SIZE=64,512", "GEN_MTP_SIZE=0,1"], Limits::default());
    assert_eq!(space.derived[0].0.name, "GEN_MAX_NUM_TOKENS");
    assert_eq!(space.variant(1).unwrap().value("GEN_MAX_NUM_TOKENS").to_string(), "128");
    let screening = screen(&mut space);
    assert!(screening.refusals.keys().any(|r| r.starts_with("KV cache too small")), "{:?}", screening.refusals);
    let example = &screening.refusals.values().next().unwrap().example;
    assert!(example.contains("hint: lower GEN_MAX_BATCH_SIZE"), "{example}");
}

#[test]
fn an_empty_frontier_names_the_nearest_change() {
    let advice = |sets: &[&str], limits: Limits| {
        let mut space = space("gb200", sets, limits);
        let screening = screen(&mut space);
        nearest(&mut space, &screening)
    };
    let slo = |text: &str| Limits { slos: vec![text.parse().unwrap()], ..Limits::default() };
    assert_eq!(advice(&["NCTX=1,2"], Limits::default()), None);
    let text = advice(&["NCTX=4,6"], slo("tpot:1")).unwrap();
    assert!(text.starts_with("--slo tpot:") && text.contains("NCTX="), "{text}");
    // Taking the advice leaves something.
    let limit: f64 = text.trim_start_matches("--slo tpot:").split(' ').next().unwrap().parse().unwrap();
    assert_eq!(advice(&["NCTX=4,6"], slo(&format!("tpot:{}", limit * 1.001))), None);
    let text = advice(&["NCTX=4,6"], Limits { max_gpus: Some(8), ..Limits::default() }).unwrap();
    assert!(text.contains("--max-gpus 24"), "{text}");
    let text = advice(&["GEN_MAX_BATCH_SIZE=4000,5000"], Limits::default()).unwrap();
    assert!(text.contains("KV cache too small") && text.contains("hint"), "{text}");
}

#[test]
fn proposals_add_area_and_leave_out_what_is_measured() {
    let mut space = space("gb200", &WIDE, Limits::default());
    let screening = screen(&mut space);
    let near = band(&screening.points, 0.15, 60);
    let simulated = simulate(&mut space, &screening, &near);
    let first = propose(&simulated, &[], 4);
    assert_eq!(first.len(), 4);
    assert!(first.windows(2).skip(1).all(|w| w[0].gain >= w[1].gain), "{first:?}");
    assert_eq!(first, propose(&simulated, &[], 4));
    let best = &simulated[first[0].simulated];
    let measured = Measured {
        name: "run".to_owned(),
        corner: best.corner(),
        ttft_s: None,
        gpus: best.screened.gpus,
        is_simulated: false,
        key: Some(best.key.clone()),
    };
    let next = propose(&simulated, std::slice::from_ref(&measured), 4);
    assert!(next.iter().all(|p| simulated[p.simulated].key != best.key));
    // A measurement far beyond the model leaves nothing to gain, and a simulated run is no measurement.
    let beyond = Measured { corner: Corner { x: 1e4, y: 1e5 }, ..measured.clone() };
    assert!(propose(&simulated, std::slice::from_ref(&beyond), 4).is_empty());
    assert_eq!(propose(&simulated, &[Measured { is_simulated: true, ..beyond }], 4), first);

    let result = Exploration {
        recipe: "r".to_owned(),
        about: Vec::new(),
        slos: Vec::new(),
        screening,
        simulated,
        measured: vec![measured],
        proposals: next,
        cut_short: Some("half of it".to_owned()),
    };
    let document = json(&result);
    assert_eq!(document["frontier"].as_array().unwrap().len(), result.frontier().len());
    assert!(document["measured"][0]["predicted"]["tokens_per_gpu"]["value"].is_number());
    assert_eq!(csv(&result).lines().count(), 1 + result.simulated.len());
    assert!(terminal(&result).contains("Measure next") && terminal(&result).contains("note: half of it"));
}

#[test]
fn the_state_gives_back_what_it_was_given() {
    let mut space = space("gb200", &["NCTX=4,6"], Limits::default());
    let screening = screen(&mut space);
    let points = simulate(&mut space, &screening, &[0, 1]);
    let (mut state, mut text) = (State::new(&pricer()), String::new());
    for p in &points {
        text += &state.put(&p.key, p.prediction.clone());
    }
    let mut again = State::new(&pricer());
    // The last line was cut off when the machine went down.
    assert_eq!(again.read(&(text.clone() + "{\"model\": \"x")), 2);
    assert_eq!(again.get(&points[0].key), Some(&points[0].prediction));
    let other = Pricer { model: Model::deepseek_r1(Constants::uncorrected()), calibration: None };
    assert_eq!(State::new(&other).read(&text), 0);
}
