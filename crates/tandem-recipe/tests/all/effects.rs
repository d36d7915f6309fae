//! No knob is only parsed: each one, when changed, changes what is deployed, how it is driven, a rendered file or the cluster's facts.

use tandem_plan::Plan;
use tandem_recipe::knobs::Scope;
use tandem_recipe::{Cluster, KNOBS, Value, knob_reference_markdown, render_configs};

use crate::common::plan;

/// `(knob, recipe, other settings, another value)`.
const CHANGES: &[(&str, &str, &[&str], &str)] = &[
    ("ISL", "nano", &[], "100"),
    ("OSL", "nano", &[], "100"),
    ("NCTX", "nano", &[], "3"),
    ("CTX_WORLD_SIZE", "deepseek-r1/gb200", &[], "8"),
    ("CTX_MAX_BATCH_SIZE", "nano", &[], "2"),
    ("CTX_MAX_NUM_TOKENS", "nano", &[], "64"),
    ("CTX_GPU_MEMORY_FRACTION", "nano", &[], "0.5"),
    ("CTX_ATTENTION_DP", "deepseek-r1/h100", &[], "false"),
    ("CTX_CHUNKED_PREFILL", "nano", &["CTX_MAX_NUM_TOKENS=512"], "false"),
    ("CTX_TENSOR_PARALLEL_SIZE", "deepseek-r1/b200", &[], "4"),
    ("CTX_EXPERT_PARALLEL_SIZE", "deepseek-r1/b200", &[], "4"),
    ("NGEN", "nano", &[], "2"),
    ("GEN_WORLD_SIZE", "deepseek-r1/gb200", &[], "16"),
    ("GEN_MAX_BATCH_SIZE", "nano", &[], "4"),
    ("GEN_MAX_NUM_TOKENS", "nano", &[], "16"),
    ("GEN_GPU_MEMORY_FRACTION", "nano", &[], "0.5"),
    ("GEN_ATTENTION_DP", "deepseek-r1/h100", &[], "false"),
    ("GEN_TENSOR_PARALLEL_SIZE", "deepseek-r1/b200", &["GEN_MAX_BATCH_SIZE=64"], "4"),
    ("GEN_EXPERT_PARALLEL_SIZE", "deepseek-r1/b200", &["GEN_MAX_BATCH_SIZE=64"], "4"),
    ("GEN_EPLB_NUM_SLOTS", "deepseek-r1/gb200", &[], "288"),
    ("GEN_MTP_SIZE", "deepseek-r1/gb200", &[], "1"),
    ("CONCURRENCY", "nano", &[], "4"),
    ("MULTI_ROUND", "nano", &[], "4"),
    ("WARMUP_ROUNDS", "nano", &[], "0"),
    ("STREAMING", "nano", &[], "false"),
    ("SEED", "nano", &[], "7"),
    ("REQUEST_TIMEOUT_S", "nano", &[], "7"),
    ("GPU_TYPE", "deepseek-r1/gb200", &[], "b200"),
    ("MODEL", "nano", &[], "tiny"),
    ("SERVED_MODEL_NAME", "nano", &[], "other"),
    ("TOKENIZER", "nano", &[], "/tokenizer"),
    ("LOAD_FORMAT", "nano", &[], "dummy"),
    ("DUMMY_LAYERS", "tiny", &[], "1"),
    ("WEIGHT_SEED", "tiny", &[], "1"),
    ("WEIGHT_DTYPE", "deepseek-r1/gb200", &["GEN_MAX_BATCH_SIZE=64"], "fp8"),
    ("DEVICE_MEMORY", "nano", &[], "128MiB"),
    ("KV_DTYPE", "nano", &[], "fp8"),
    ("KV_BLOCK_SIZE", "nano", &[], "64"),
    ("ENGINE", "nano", &[], "modeled"),
    ("THREADS", "nano", &[], "2"),
    ("MODELED_STEP_US", "nano", &[], "1.5"),
    ("MODELED_PREFILL_TOKEN_US", "nano", &[], "1.5"),
    ("MODELED_DECODE_SEQ_US", "nano", &[], "1.5"),
    ("STREAM_INTERVAL", "nano", &[], "10"),
    ("ROUTING", "nano", &[], "round-robin"),
    ("MAX_INFLIGHT", "nano", &[], "100"),
    ("MAX_BODY_SIZE", "nano", &[], "1MiB"),
    ("FRONTEND_HOST", "nano", &[], "0.0.0.0"),
    ("DYNAMO_FRONTEND_PORT", "nano", &[], "8123"),
    ("CONTROL_PORT", "nano", &[], "8124"),
    ("ETCD_SERVER_PORT", "deepseek-r1/h100", &[], "2380"),
    ("NATS_SERVER_PORT", "deepseek-r1/h100", &[], "4223"),
    ("RUN_CONF_IMAGE", "deepseek-r1/h100", &[], "/x.sqsh"),
    ("LLMB_INSTALL", "deepseek-r1/h100", &[], "/install"),
    ("LLMB_WORKLOAD", "deepseek-r1/h100", &[], "/workload"),
    ("SBATCH_PARTITION", "deepseek-r1/h100", &[], "batch"),
    ("SBATCH_ACCOUNT", "deepseek-r1/h100", &[], "me"),
    ("SBATCH_TIMELIMIT", "deepseek-r1/h100", &[], "2:00:00"),
    ("SBATCH_GPUS_PER_NODE", "deepseek-r1/h100", &[], "16"),
    ("ENGINE_PYTHON", "deepseek-r1/h100", &[], "/venv/bin/python"),
    ("ENGINE_DIALECT", "deepseek-r1/h100", &[], "1"),
    ("ENGINE_DISCOVERY", "deepseek-r1/h100", &[], "etcd"),
    ("ENGINE_REQUEST_PLANE", "deepseek-r1/h100", &[], "nats"),
    ("FRONTEND_DEDICATED_NODE", "deepseek-r1/h100", &[], "true"),
    ("CLIENT_DEDICATED_NODE", "deepseek-r1/h100", &[], "true"),
    ("ENGINE_URL", "nano", &["ENGINE=external"], "http://127.0.0.1:8000"),
    ("ENGINE_SPEEDUP", "nano", &[], "100"),
];

/// The plan without its record of knobs, and all that is rendered from it.
fn effects(plan: &Plan) -> (Plan, Vec<(String, String)>) {
    let mut bare = plan.clone();
    bare.knobs.clear();
    let mut files = render_configs(plan, &["n0".to_owned()]);
    // How an engine is started is in its knobs; the launcher's own tests show what each does.
    files.extend(plan.knobs.iter().filter(|(name, _)| name.starts_with("ENGINE_")).map(|(name, k)| (name.clone(), k.value.to_string())));
    (bare, files)
}

#[test]
fn every_knob_has_an_effect() {
    for knob in KNOBS {
        let Some((_, recipe, others, value)) = CHANGES.iter().find(|(name, ..)| *name == knob.name) else {
            panic!("{} is not in the list of changes", knob.name);
        };
        let set = format!("{}={value}", knob.name);
        let changed: Vec<&str> = others.iter().copied().chain([set.as_str()]).collect();
        // `--gpu-type` is above `--set`, so a recipe's own GPU type is left out when GPU_TYPE changes.
        let (before, after) = match knob.name {
            "GPU_TYPE" => (plan(recipe, others), plan("deepseek-r1", &changed)),
            _ => (plan(recipe, others), plan(recipe, &changed)),
        };
        let of_cluster = Cluster::of(&before) != Cluster::of(&after);
        match knob.scope {
            Scope::Cluster => assert!(of_cluster, "{} changes no fact of the cluster", knob.name),
            _ => assert_ne!(effects(&before), effects(&after), "{} changes nothing", knob.name),
        }
        match knob.scope {
            Scope::Deployment => {
                assert_ne!(before.deployment_hash(), after.deployment_hash(), "{} is no part of the deployment", knob.name)
            }
            Scope::Load | Scope::Point => {
                assert_eq!(before.deployment_hash(), after.deployment_hash(), "{} changes the deployment", knob.name)
            }
            Scope::Cluster => {}
        }
        assert!(after.knobs[knob.name].layer.starts_with("command line"), "{}", knob.name);
    }
    assert_eq!(CHANGES.len(), KNOBS.len());
}

#[test]
fn names_are_upper_case_and_environment_names_are_unique() {
    let mut variables: Vec<String> = KNOBS.iter().map(tandem_recipe::Knob::env_name).collect();
    variables.sort();
    variables.dedup();
    assert_eq!(variables.len(), KNOBS.len());
    assert!(KNOBS.iter().all(|k| k.name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')));
}

#[test]
fn what_a_value_prints_it_reads() {
    for knob in KNOBS {
        for text in CHANGES.iter().filter(|(name, ..)| *name == knob.name).map(|c| c.3).chain([knob.default]) {
            let value = knob.kind.parse(text).unwrap();
            if !matches!(value, Value::Size(_)) {
                assert_eq!(knob.kind.parse(&value.to_string()).unwrap(), value, "{}", knob.name);
            }
        }
    }
}

#[test]
fn the_reference_has_every_knob() {
    let text = knob_reference_markdown();
    for knob in KNOBS {
        assert!(text.contains(&format!("\n## {}\n\n{}", knob.name, knob.doc)), "{}", knob.name);
    }
    assert!(text.contains("deepseek-r1 on gb200 2048; deepseek-r1 on b200 2048; deepseek-r1 on h100 1024"));
}
