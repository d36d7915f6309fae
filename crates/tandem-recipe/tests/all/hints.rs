//! Hints of plans that do not fit are tried: each of them leads to a plan, or at least to another server's problem.

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use tandem_plan::Plan;
use tandem_recipe::error::Problem;
use tandem_recipe::{PlanError, load_recipe, plans};

use crate::common::inputs;

fn plan(gpu: &str, sets: &[String]) -> Result<Plan, PlanError> {
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let recipe = load_recipe(&inputs(&format!("deepseek-r1/{gpu}"), &sets)).expect("valid values");
    plans(&recipe, &|path| unreachable!("the model ships: {path}")).map(|mut plans| plans.remove(0))
}

/// The settings that a hint asks for, one list for each alternative; none for words without numbers.
fn asked(hint: &str) -> Vec<Vec<String>> {
    let alternative = |text: &str| {
        let text = text.trim_start_matches("lower ").trim_start_matches("raise ");
        if let Some(world) = text.strip_suffix(" fits") {
            return Some(vec![world.replace(' ', "")]);
        }
        let (names, value) = text.rsplit_once(" to ")?;
        let names = names.split(" (and ").map(|name| name.trim_end_matches(')'));
        let sets: Vec<String> = names.map(|name| format!("{name}={value}")).collect();
        value.parse::<f64>().is_ok().then_some(sets)
    };
    hint.split(", or ").filter_map(alternative).collect()
}

#[test]
fn what_a_hint_asks_for_fits() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut n = [0_u32; 5];
    for _ in 0..4000 {
        let mut pick = |from: &[&str]| from[rng.random_range(0..from.len())].to_owned();
        let gpu = pick(&["gb200", "b200", "h100", "h200", "b300", "gb300"]);
        let sets: Vec<String> = [
            ("CTX_WORLD_SIZE", &["4", "8", "16"][..]),
            ("GEN_WORLD_SIZE", &["4", "8", "16"]),
            ("CTX_MAX_NUM_TOKENS", &["2048", "8448", "40000", "150000"]),
            ("CTX_MAX_BATCH_SIZE", &["1", "64", "500"]),
            ("GEN_MAX_BATCH_SIZE", &["32", "256", "700"]),
            ("GEN_MAX_NUM_TOKENS", &["700", "3000", "60000"]),
            ("GEN_GPU_MEMORY_FRACTION", &["0.5", "0.8", "0.93"]),
            ("CTX_CHUNKED_PREFILL", &["true", "false"]),
            ("ISL", &["1024", "8150", "30000"]),
            ("WEIGHT_DTYPE", &["fp8", "nvfp4", "nvfp4-v2"]),
        ]
        .into_iter()
        .map(|(name, values)| format!("{name}={}", pick(values)))
        .collect();
        let Err(error) = plan(&gpu, &sets) else { continue };
        if !matches!(error.problem, Problem::OutOfMemory { .. } | Problem::KvStarved { .. }) {
            continue;
        }
        let hint = error.hint().expect("memory problems come with advice");
        for change in asked(&hint) {
            n[if change[0].contains("WORLD_SIZE") {
                0
            } else if change[0].contains("FRACTION") {
                1
            } else if change.len() == 2 || change[0].contains("CTX_MAX_BATCH") {
                2
            } else if change[0].starts_with("CTX_MAX_NUM") {
                3
            } else {
                4
            }] += 1;
            let mut all = sets.clone();
            all.extend(change.iter().cloned());
            if let Err(next) = plan(&gpu, &all) {
                let phase = |e: &PlanError| e.blame.knob.split('_').next().map(str::to_owned);
                assert_ne!(phase(&next), phase(&error), "{gpu} {sets:?}\n{error}: {hint}\n{change:?}: {next}");
            }
        }
    }
    // Larger server, larger fraction, smaller batch, smaller steps of prefill and of decode.
    assert!(n.iter().all(|n| *n > 20), "{n:?}");
}
