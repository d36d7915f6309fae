//! Building engines from plans: what is refused and with which words; broken checkpoints.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Sequence, repo};
use tandem_engine::checkpoint::builtin_model;
use tandem_engine::{Batch, BatchEntry, CpuEngine, EngineError, NoObserver, Sampling, build_engine};
use tandem_plan::plan::PLAN_SCHEMA_VERSION;
use tandem_plan::{
    Address, Bytes, EngineKind, EngineLimits, FrontendPlan, GpuType, Hardware, KvDtype, KvPlan, LoadPlan, MemoryBudget, ModelConfig,
    ModelPlan, ModelSource, ModeledCosts, ParallelLayout, Phase, Plan, RankPlan, Routing, WorkerPlan,
};

fn worker() -> WorkerPlan {
    let memory = MemoryBudget {
        device: Bytes::gib(1),
        weights: Bytes::mib(16),
        workspace: Bytes::mib(16),
        kv: Bytes::mib(16),
        margin: Bytes::mib(16),
        kv_bytes_per_token: 4032,
        sequences: 1,
    };
    WorkerPlan {
        name: "decode-0".into(),
        phase: Phase::Decode,
        index: 0,
        layout: ParallelLayout::SINGLE,
        ranks: vec![RankPlan { rank: 0, node: 0, device: 0 }],
        limits: EngineLimits { max_batch_size: 4, max_num_tokens: 256, max_seq_len: 512, chunked_prefill: true },
        kv: KvPlan { block_size: 16, n_blocks: 32, dtype: KvDtype::F32, memory_fraction: 0.5 },
        memory,
        stream_interval: 1,
        moe_backend: "cpu".into(),
        mtp_size: 0,
        eplb_slots: 0,
        transceiver_tokens: 512,
        threads: 1,
    }
}

fn plan(source: ModelSource, config: ModelConfig) -> Plan {
    let address = |port| Address { host: "127.0.0.1".into(), port };
    Plan {
        schema_version: PLAN_SCHEMA_VERSION,
        recipe: "test".into(),
        knobs: BTreeMap::new(),
        hardware: Hardware { gpu_type: GpuType::Cpu, devices_per_node: 1, device_memory: Bytes::gib(1) },
        engine: EngineKind::Cpu,
        model: ModelPlan {
            served_name: "test".into(),
            source,
            tokenizer_dir: None,
            config,
            modeled: ModeledCosts { step_us: 1.0, prefill_token_us: 1.0, decode_seq_us: 1.0 },
        },
        frontend: FrontendPlan {
            node: 0,
            http: address(0),
            control: address(0),
            routing: Routing::RoundRobin,
            max_inflight: 1,
            max_body_bytes: 1,
            request_timeout_ms: 1,
        },
        workers: vec![worker()],
        load: LoadPlan { isl: 1, osl: 1, streaming: true, seed: 0, request_timeout_ms: 1, points: Vec::new() },
        n_nodes: 1,
    }
}

fn nano_config() -> ModelConfig {
    ModelConfig::from_json(builtin_model("nano").unwrap().config_json).unwrap()
}

fn nano() -> Plan {
    plan(ModelSource::Builtin { name: "nano".into() }, nano_config())
}

/// The message of the error with those of its causes.
fn refusal(plan: &Plan, worker: &WorkerPlan) -> String {
    let error: EngineError = build_engine(plan, worker).err().expect("the plan is refused");
    let cause = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
    format!("{error}{cause}")
}

#[test]
fn the_built_in_model_runs_from_a_plan() {
    let plan = nano();
    let mut engine = build_engine(&plan, &plan.workers[0]).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(repo("models/nano/golden.json")).unwrap()).unwrap();
    let prompt: Vec<u32> = serde_json::from_value(golden["docs"]["prompt"].clone()).unwrap();
    let entry = BatchEntry { tokens: prompt, start: 0, blocks: (0..8).collect(), sampling: Some(Sampling::GREEDY), decode: false };
    let output = engine.step(&Batch { entries: vec![entry] }, &mut NoObserver).unwrap();
    assert_eq!(serde_json::json!(output.tokens[0][0]), golden["docs"]["greedy"][0]);
}

#[test]
fn both_phases_have_the_mtp_layer_when_decoding_drafts() {
    let mut plan = nano();
    let layers = |plan: &Plan, phase| {
        build_engine(plan, &WorkerPlan { phase, mtp_size: plan.workers[0].mtp_size, ..worker() }).unwrap().info().n_kv_layers
    };
    assert_eq!(layers(&plan, Phase::Decode), 7);
    plan.workers[0].mtp_size = 2;
    assert_eq!(layers(&plan, Phase::Decode), 8);
    let prefill = WorkerPlan { phase: Phase::Prefill, ..worker() };
    assert_eq!(build_engine(&plan, &prefill).unwrap().info().n_kv_layers, 8);
    plan.model.config.num_nextn_predict_layers = 0;
    assert!(refusal(&plan, &plan.workers[0]).contains("no MTP layer"));
}

#[test]
fn what_one_rank_cannot_do_is_refused_by_name() {
    let plan = nano();
    for (tp, pp, ep) in [(2, 1, 1), (1, 2, 1), (4, 1, 4)] {
        let worker = WorkerPlan { layout: ParallelLayout { tp, pp, ep, attention_dp: false }, ..worker() };
        assert!(refusal(&plan, &worker).contains(&format!("TP {tp}, PP {pp}, EP {ep}")));
    }
    assert!(refusal(&plan, &WorkerPlan { eplb_slots: 8, ..worker() }).contains("8 expert slots"));
    assert!(refusal(&Plan { engine: EngineKind::DynamoTrtllm, ..plan.clone() }, &worker()).contains("cluster"));
    let mut odd = plan.clone();
    odd.model.config.scoring_func = "tanh".into();
    assert!(refusal(&odd, &worker()).contains("scoring_func `tanh`"));
    let mut unknown = plan;
    unknown.model.source = ModelSource::Builtin { name: "pico".into() };
    assert!(refusal(&unknown, &worker()).contains("no built-in model `pico`"));
}

fn copy_variant(name: &str, to: &Path) -> ModelConfig {
    for file in std::fs::read_dir(repo("tests/data/variants").join(name)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    ModelConfig::from_json(&std::fs::read_to_string(to.join("config.json")).unwrap()).unwrap()
}

/// The refusal of variant `name` after `spoil` has changed its files.
fn spoiled(name: &str, spoil: impl Fn(&Path, &mut ModelConfig)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut config = copy_variant(name, dir.path());
    spoil(dir.path(), &mut config);
    refusal(&plan(ModelSource::Checkpoint { path: dir.path().display().to_string() }, config), &worker())
}

/// Replaces text in a safetensors header by text of the same length.
fn edit_header(dir: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let path = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect("the header holds the text");
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn broken_checkpoints_are_refused_naming_tensor_and_file() {
    let missing = spoiled("v2-lite", |dir, _| edit_header(dir, "model.norm.weight", "model.worm.weight"));
    assert!(missing.contains("tensor model.norm.weight is missing"), "{missing}");

    let scales = spoiled("fp8-partial", |dir, _| {
        edit_header(dir, "layers.0.self_attn.o_proj.weight_scale_inv", "layers.0.self_attn.o_proj.weight_scale_xyz")
    });
    assert!(
        scales.contains("model.layers.0.self_attn.o_proj.weight_scale_inv is missing") && scales.contains("model.safetensors"),
        "{scales}"
    );

    let shape = spoiled("v2-lite", |dir, config| {
        config.v_head_dim += 1;
        std::fs::write(dir.join("config.json"), serde_json::to_string(config).unwrap()).unwrap();
    });
    assert!(shape.contains("kv_b_proj.weight has shape [220, 32], expected [225, 32]") && shape.contains("model.safetensors"), "{shape}");

    let block = spoiled("fp8-partial", |dir, config| {
        config.quantization_config.as_mut().unwrap().weight_block_size = [64, 64];
        std::fs::write(dir.join("config.json"), serde_json::to_string(config).unwrap()).unwrap();
    });
    assert!(block.contains("scale_inv has shape") && block.contains("for 64x64 blocks"), "{block}");

    let truncated = spoiled("tied-plain", |dir, _| {
        let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
        std::fs::write(dir.join("model.safetensors"), &bytes[..bytes.len() - 5]).unwrap();
    });
    assert!(truncated.contains("model.safetensors"), "{truncated}");

    let other = spoiled("v2-lite", |_, config| config.rope_theta = 1.0e6);
    assert!(other.contains("config.json") && other.contains("not the model of the plan"), "{other}");

    let shard = spoiled("v2-groups", |dir, _| std::fs::remove_file(dir.join("model-00002-of-00002.safetensors")).unwrap());
    assert!(shard.contains("cannot read") && shard.contains("model-00002-of-00002.safetensors"), "{shard}");

    let empty = spoiled("v2-lite", |dir, _| std::fs::remove_file(dir.join("model.safetensors")).unwrap());
    assert!(empty.contains("holds neither"), "{empty}");

    let dtype = spoiled("tied-plain", |dir, _| edit_header(dir, "\"dtype\": \"F32\"", "\"dtype\": \"I32\""));
    assert!(dtype.contains("dtype I32, expected"), "{dtype}");
}

#[test]
fn dummy_weights_compute_finite_logits_that_threads_hardly_change() {
    let config = nano_config();
    let logits = |seed, threads| {
        let source = tandem_engine::checkpoint::open(&ModelSource::Dummy { seed }, &config).unwrap();
        let mut engine = CpuEngine::new(&config, source.as_ref(), tandem_engine::CpuOptions { threads, ..common::options() }).unwrap();
        let mut sequence = Sequence::new(&[5, 6, 7, 8, 9], &engine, 0, 1);
        common::prefill(&mut engine, &mut sequence, 10)
    };
    let one = logits(1, 1);
    assert!(one.iter().all(|l| l.is_finite()) && one.iter().any(|l| l.abs() > 0.1));
    assert_eq!(one, logits(1, 1));
    assert!(common::difference(&logits(1, 2), &one) < 1e-5, "threads change more than roundings");
    assert!(common::difference(&logits(2, 1), &one) > 0.1, "the seed matters");
}

#[test]
fn batches_that_break_a_rule_are_refused_and_leave_the_engine_usable() {
    let plan = nano();
    let mut engine = build_engine(&plan, &plan.workers[0]).unwrap();
    let good = BatchEntry { tokens: vec![1, 2, 3], start: 0, blocks: vec![3], sampling: Some(Sampling::GREEDY), decode: false };
    let want = engine.step(&Batch { entries: vec![good.clone()] }, &mut NoObserver).unwrap();
    let sampling = |f: fn(&mut Sampling)| {
        let mut s = Sampling::GREEDY;
        f(&mut s);
        Some(s)
    };
    let bad: Vec<(Vec<BatchEntry>, &str)> = vec![
        (vec![BatchEntry { tokens: vec![], ..good.clone() }], "no tokens"),
        (vec![BatchEntry { tokens: vec![384], ..good.clone() }], "outside the vocabulary"),
        (vec![BatchEntry { blocks: vec![], ..good.clone() }], "need 1 blocks"),
        (vec![BatchEntry { blocks: vec![32], ..good.clone() }], "block 32 is out of range"),
        (vec![BatchEntry { start: 15, ..good.clone() }], "need 2 blocks"),
        (vec![BatchEntry { decode: true, ..good.clone() }], "decodes 3 tokens"),
        (vec![good.clone(), good.clone()], "both write block 3"),
        (vec![good.clone(), BatchEntry { start: 16, blocks: vec![3, 4], ..good.clone() }], "reads block 3"),
        (vec![BatchEntry { sampling: sampling(|s| s.temperature = f32::NAN), ..good.clone() }], "temperature"),
        (vec![BatchEntry { sampling: sampling(|s| s.top_p = 1.5), ..good.clone() }], "top_p"),
        (vec![BatchEntry { sampling: sampling(|s| s.banned = (0..400).collect()), ..good.clone() }], "every token is banned"),
    ];
    for (entries, reason) in bad {
        let error = engine.step(&Batch { entries }, &mut NoObserver).unwrap_err().to_string();
        assert!(error.contains(reason), "{error} does not say {reason}");
    }
    assert!(engine.kv_write(0, &[3], 0..3, &[0; 7]).is_err());
    assert!(engine.kv_write(99, &[3], 0..3, &[0; 3 * 144 * 4]).is_err());
    assert!(engine.kv_write(0, &[32], 0..3, &[0; 3 * 144 * 4]).is_err());
    assert_eq!(engine.step(&Batch { entries: vec![good] }, &mut NoObserver).unwrap(), want);
    assert_eq!(engine.step(&Batch::default(), &mut NoObserver).unwrap().tokens.len(), 0);
}
