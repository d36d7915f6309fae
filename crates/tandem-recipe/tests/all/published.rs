//! The published configurations, and the configuration files that follow from a plan, against golden files.

use tandem_plan::{Phase, Plan};
use tandem_recipe::{Cluster, plan_table, render_configs};

use crate::common::{plan, snapshot};

/// All files of a plan in one text.
fn files(plan: &Plan) -> String {
    let machines: Vec<String> = (0..plan.n_nodes).map(|n| format!("node{n}")).collect();
    let mut text = String::new();
    for (path, content) in render_configs(plan, &machines) {
        text.push_str(&format!("==> {path} <==\n{content}\n"));
    }
    text
}

#[test]
fn configuration_files_are_the_recipes() {
    for (golden, recipe, sets) in [
        ("gb200", "deepseek-r1/gb200", &[][..]),
        ("b200", "deepseek-r1/b200", &[]),
        ("h100", "deepseek-r1/h100", &[]),
        ("gb200-mtp", "deepseek-r1/gb200", &["GEN_MTP_SIZE=3", "GEN_MAX_NUM_TOKENS=1024"]),
        ("gb200-eplb", "deepseek-r1/gb200", &["GEN_WORLD_SIZE=16", "GEN_EPLB_NUM_SLOTS=288"]),
        ("gb200-no-attention-dp", "deepseek-r1/gb200", &["CTX_ATTENTION_DP=false", "GEN_ATTENTION_DP=false"]),
        ("b200-no-attention-dp", "deepseek-r1/b200", &["CTX_ATTENTION_DP=false", "GEN_ATTENTION_DP=false"]),
        ("h100-no-attention-dp", "deepseek-r1/h100", &["GEN_ATTENTION_DP=false"]),
        ("gb200-tp16", "deepseek-r1/gb200", &["GEN_WORLD_SIZE=16"]),
        ("nano", "nano", &[]),
    ] {
        snapshot(golden, &files(&plan(recipe, sets)));
    }
}

/// `(GPU, nodes, prefill servers x devices, decode devices, concurrency, requests)` as published.
#[test]
fn published_configurations_have_their_sizes() {
    for (gpu, nodes, n_ctx, ctx_world, gen_world, concurrency, requests) in
        [("gb200", 8, 6, 4, 8, 2048, 16_384), ("b200", 4, 3, 8, 8, 2048, 16_384), ("h100", 6, 2, 16, 16, 1024, 8192)]
    {
        let plan = plan(&format!("deepseek-r1/{gpu}"), &[]);
        assert_eq!(plan.n_nodes, nodes, "{gpu}");
        let worlds = |phase| plan.workers_of(phase).map(|w| w.layout.world_size()).collect::<Vec<_>>();
        assert_eq!(worlds(Phase::Prefill), vec![ctx_world; n_ctx]);
        assert_eq!(worlds(Phase::Decode), [gen_world]);
        let point = plan.load.points[0];
        assert_eq!((point.concurrency, point.n_requests, point.n_warmup), (concurrency, requests, 2 * concurrency));
        assert_eq!((plan.load.isl, plan.load.osl, plan.load.streaming, plan.load.seed), (8150, 1024, true, 100));
        assert_eq!(plan.frontend.http.port, 8000);
        let cluster = Cluster::of(&plan);
        assert_eq!((cluster.etcd_port, cluster.nats_port, cluster.time_limit.as_str()), (2379, 4222, "1:00:00"));
        // Prefill servers come first, each on its own nodes.
        let first_node = plan.worker("decode-0").map(|w| w.ranks[0].node);
        assert_eq!(first_node, Some(nodes - gen_world / plan.hardware.devices_per_node));
    }
}

#[test]
fn plan_tables_show_servers_memory_and_load() {
    for (golden, recipe, sets) in [
        ("table-nano", "nano", &[][..]),
        ("table-h100", "deepseek-r1/h100", &[]),
        ("table-gb200-mtp", "deepseek-r1/gb200", &["GEN_MTP_SIZE=3", "CONCURRENCY=256,4096"]),
    ] {
        let plan = plan(recipe, sets);
        // The hash covers every knob's name, so it changes with each new knob.
        let table = plan_table(&plan).replace(&plan.hash()[..12], "HASH");
        snapshot(golden, &table);
    }
}
