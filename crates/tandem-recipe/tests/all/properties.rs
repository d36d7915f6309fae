//! Properties of every plan that the planner accepts.

use std::collections::HashSet;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use tandem_plan::{Phase, Plan};
use tandem_recipe::planner::{memory_answer, plan_each};
use tandem_recipe::{load_recipe, plan_table, render_configs};

use crate::common::{inputs, no_files};

/// Settings around the published configurations, feasible and not.
fn settings() -> impl Strategy<Value = (String, Vec<String>)> {
    let gpu = prop::sample::select(vec!["gb200", "b200", "h100"]);
    let world = prop::sample::select(vec![1u32, 2, 3, 4, 6, 8, 12, 16, 24, 32]);
    let engine = prop::sample::select(vec!["modeled", "dynamo-trtllm"]);
    let deployment = (1u32..5, world.clone(), 1u32..4, world, any::<bool>(), any::<bool>(), engine, 0u32..4);
    let load = (1u32..10_000, 1u32..2000, 1u32..300, 1u32..20, 1u32..65, 0u16..3);
    (gpu, deployment, load).prop_map(
        |(gpu, (nctx, ctx, ngen, decode, ctx_dp, gen_dp, engine, mtp), (isl, osl, batch, rounds, block, port))| {
            let sets = [
                format!("NCTX={nctx}"),
                format!("CTX_WORLD_SIZE={ctx}"),
                format!("NGEN={ngen}"),
                format!("GEN_WORLD_SIZE={decode}"),
                format!("CTX_ATTENTION_DP={ctx_dp}"),
                format!("GEN_ATTENTION_DP={gen_dp}"),
                format!("ENGINE={engine}"),
                format!("GEN_MTP_SIZE={mtp}"),
                format!("ISL={isl}"),
                format!("OSL={osl}"),
                format!("GEN_MAX_BATCH_SIZE={batch}"),
                format!("MULTI_ROUND={rounds}"),
                format!("KV_BLOCK_SIZE={block}"),
                format!("CONTROL_PORT={}", 8000 + port),
                "CONCURRENCY=1,7".to_owned(),
            ];
            (format!("deepseek-r1/{gpu}"), sets.to_vec())
        },
    )
}

fn plan_of(recipe: &str, sets: &[String]) -> Option<Plan> {
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let recipe = load_recipe(&inputs(recipe, &sets)).expect("each value alone is valid");
    plan_each(&recipe, &no_files).pop().and_then(Result::ok)
}

fn check(plan: &Plan) {
    let mut places = HashSet::new();
    for worker in &plan.workers {
        assert_eq!(worker.layout.tp * worker.layout.pp, worker.layout.world_size());
        assert_eq!(worker.ranks.len(), worker.layout.world_size() as usize);
        assert_eq!(worker.layout.tp % worker.layout.ep, 0);
        let nodes: HashSet<u32> = worker.ranks.iter().map(|r| r.node).collect();
        assert_eq!(
            nodes.len(),
            worker.layout.world_size().div_ceil(plan.hardware.devices_per_node) as usize,
            "{} straddles nodes",
            worker.name
        );
        for (i, rank) in worker.ranks.iter().enumerate() {
            assert_eq!(rank.rank as usize, i);
            assert!(rank.node < plan.n_nodes && rank.device < plan.hardware.devices_per_node);
            assert!(places.insert((rank.node, rank.device)), "two ranks on node {} device {}", rank.node, rank.device);
        }
        let m = worker.memory;
        assert_eq!(m.weights.0 + m.workspace.0 + m.kv.0 + m.margin.0, m.device.0);
        let answer = memory_answer(plan, worker).expect("the plan says all that the memory model asks");
        assert_eq!(answer.n_blocks, worker.kv.n_blocks);
    }
    let used: HashSet<u32> = places.iter().map(|p| p.0).collect();
    assert_eq!(used.len(), plan.n_nodes as usize, "a node is empty");
    let (http, control) = (plan.frontend.http.port, plan.frontend.control.port);
    assert!(plan.engine == tandem_plan::EngineKind::DynamoTrtllm || http == 0 || http != control);
    let names: HashSet<&str> = plan.workers.iter().map(|w| w.name.as_str()).collect();
    assert_eq!(names.len(), plan.workers.len());
    assert!(plan.workers.is_sorted_by_key(|w| (w.phase == Phase::Decode, w.index)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn plans_never_overlap_and_survive_json((recipe, sets) in settings()) {
        let Some(plan) = plan_of(&recipe, &sets) else { return Ok(()) };
        check(&plan);
        let json = serde_json::to_string(&plan).unwrap();
        let back: Plan = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&back, &plan);
        prop_assert_eq!(back.hash(), plan.hash());
        prop_assert_eq!(plan_of(&recipe, &sets).unwrap().hash(), plan.hash());
        prop_assert!(plan_table(&plan).contains("prefill-0"));
        prop_assert_eq!(render_configs(&plan, &[]), render_configs(&back, &[]));
    }

    #[test]
    fn any_text_as_a_set_is_a_value_or_an_error(name in prop::sample::select(tandem_recipe::KNOBS.iter().map(|k| k.name).collect::<Vec<_>>()), text in "[ -~]{0,12}") {
        let set = format!("{name}={text}");
        let _ = load_recipe(&inputs("nano", &[&set]));
    }

    #[test]
    fn any_text_as_a_file_is_a_recipe_or_an_error(text in "(base: nano\n)?([A-Z_]{1,8}: [ -~]{0,10}\n){0,3}[ -~\n]{0,20}") {
        let _ = load_recipe(&crate::common::file_inputs(&text));
    }
}

#[test]
fn the_strategy_reaches_feasible_plans() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let feasible = (0..200).filter(|_| {
        let (recipe, sets) = settings().new_tree(&mut runner).unwrap().current();
        plan_of(&recipe, &sets).is_some()
    });
    let n = feasible.count();
    assert!(n > 20, "{n} of 200 are feasible: the properties would test little");
}
