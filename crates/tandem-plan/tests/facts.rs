//! The model arithmetic against published figures and a real checkpoint file.

use std::fs;

use proptest::prelude::*;
use tandem_plan::facts::{Loaded, active_parameters, checkpoint_bytes, kv_bytes_per_token, parameters, rank_weights};
use tandem_plan::memory::{MemoryQuestion, Verdict, memory};
use tandem_plan::{Bytes, EngineKind, EngineLimits, GpuType, KvDtype, ModelConfig, ParallelLayout, WeightDtype};

const NONE: Loaded = Loaded { mtp: false, expert_slots: 0 };

fn r1() -> ModelConfig {
    ModelConfig::from_json(
        r#"{"model_type":"deepseek_v3","vocab_size":129280,"hidden_size":7168,"intermediate_size":18432,"moe_intermediate_size":2048,
        "num_hidden_layers":61,"num_nextn_predict_layers":1,"num_attention_heads":128,"n_shared_experts":1,"n_routed_experts":256,
        "num_experts_per_tok":8,"n_group":8,"topk_group":4,"scoring_func":"sigmoid","topk_method":"noaux_tc","first_k_dense_replace":3,
        "q_lora_rank":1536,"kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"v_head_dim":128}"#,
    )
    .expect("R1's architecture is valid")
}

fn dep(tp: u32, pp: u32) -> ParallelLayout {
    ParallelLayout { tp, pp, ep: tp, attention_dp: true }
}

fn gb(bytes: Bytes) -> f64 {
    (bytes.0 as f64 / 1e8).round() / 10.0
}

#[test]
fn r1_has_the_published_parameter_counts() {
    let p = parameters(&r1());
    assert_eq!(p.attention, 61 * 187_105_280);
    assert_eq!(p.dense_ffn, 3 * 396_361_728);
    assert_eq!(p.routed_experts, 58 * 256 * 44_040_192);
    assert_eq!(p.shared_experts, 58 * 44_040_192);
    assert_eq!(p.embedding, 129_280 * 7168);
    assert_eq!(p.head, p.embedding);
    // The published total of the main model.
    assert_eq!(p.main(), 671_026_419_200);
    assert_eq!((p.mtp as f64 / 1e7).round() / 100.0, 11.61);
    // About 36.62 billion are active a token, head included.
    assert!((active_parameters(&r1()) as f64 / 1e9 - 36.62).abs() < 0.01);
}

#[test]
fn r1_weights_of_a_rank_are_the_published_gigabytes() {
    let config = r1();
    let check = |dtype, layout: ParallelLayout, expected: f64| {
        let mean = (0..layout.pp).map(|s| rank_weights(&config, dtype, &layout, s, NONE).0).sum::<u64>() / u64::from(layout.pp);
        assert!((mean as f64 / 1e9 - expected).abs() < 0.06, "{dtype} {layout:?}: {mean}, expected {expected} GB");
    };
    check(WeightDtype::Nvfp4, dep(8, 1), 74.8);
    check(WeightDtype::Nvfp4, dep(4, 1), 120.8);
    check(WeightDtype::Nvfp4, dep(16, 1), 51.8);
    check(WeightDtype::Nvfp4, dep(32, 1), 40.3);
    check(WeightDtype::Fp8, dep(8, 1), 100.8);
    check(WeightDtype::Fp8, dep(8, 2), 50.4);
    // One device would need the whole checkpoint.
    check(WeightDtype::Fp8, ParallelLayout::SINGLE, 673.2);
    check(WeightDtype::Nvfp4, ParallelLayout::SINGLE, 396.7);
}

#[test]
fn r1_kv_is_35136_bytes_a_token_in_fp8() {
    let config = r1();
    assert_eq!(kv_bytes_per_token(&config, KvDtype::Fp8, &dep(8, 1), 0, false), 35_136);
    assert_eq!(kv_bytes_per_token(&config, KvDtype::Bf16, &dep(8, 1), 0, false), 70_272);
    // By layer under PP (31 + 30), replicated under TP.
    assert_eq!(kv_bytes_per_token(&config, KvDtype::Fp8, &dep(8, 2), 0, false), 31 * 576);
    assert_eq!(kv_bytes_per_token(&config, KvDtype::Fp8, &dep(8, 2), 1, false), 30 * 576);
    let tp = ParallelLayout { tp: 8, pp: 1, ep: 8, attention_dp: false };
    assert_eq!(kv_bytes_per_token(&config, KvDtype::Fp8, &tp, 0, false), 35_136);
}

/// The three published decode servers: `(GPU, dtype, layout, batch)`.
fn published() -> [(GpuType, WeightDtype, ParallelLayout, u32); 3] {
    [
        (GpuType::H100, WeightDtype::Fp8, dep(8, 2), 128),
        (GpuType::Gb200, WeightDtype::Nvfp4, dep(8, 1), 256),
        (GpuType::B200, WeightDtype::Nvfp4, dep(8, 1), 256),
    ]
}

/// The published estimate spreads weights and KV evenly over pipeline stages, leaves the block scales out of the weights and
/// rounds: 134, 281 and 268 sequences of 9,374 tokens.
#[test]
fn published_decode_capacities_follow_from_the_even_spread_formula() {
    let config = r1();
    let sequences = published().map(|(gpu, dtype, layout, _)| {
        let device = gpu.hardware().unwrap().device_memory.0 as f64;
        let pp = f64::from(layout.pp);
        let p = parameters(&config);
        let experts = p.routed_experts as f64 / f64::from(layout.ep);
        let plain = 2.0 * (p.embedding + p.head + p.router) as f64;
        let weights = match dtype {
            WeightDtype::Nvfp4 => 0.5625 * (experts + (p.shared_experts + p.dense_ffn) as f64) + 2.0 * p.attention as f64 + plain,
            _ => experts + (p.shared_experts + p.dense_ffn + p.attention) as f64 + plain,
        } / pp;
        let kv = 35_136.0 / pp;
        (0.8 * (device - weights - 8e9) / kv / 9374.0).round()
    });
    assert_eq!(sequences, [134.0, 281.0, 268.0]);
}

#[test]
fn published_decode_servers_fit_stage_by_stage() {
    let config = r1();
    let sequences = published().map(|(gpu, weight_dtype, layout, batch)| {
        let q = MemoryQuestion {
            config: &config,
            engine: EngineKind::DynamoTrtllm,
            layout,
            limits: EngineLimits { max_batch_size: batch, max_num_tokens: batch, max_seq_len: 9374, chunked_prefill: true },
            device: gpu.hardware().unwrap().device_memory,
            weight_dtype,
            loaded: NONE,
            kv_dtype: KvDtype::Fp8,
            block_size: 32,
            memory_fraction: 0.8,
        };
        let answer = memory(&q);
        assert_eq!(answer.verdict, Verdict::Fits);
        answer.budget.sequences
    });
    // The last of H100's two stages has 30 MoE layers and the head, which costs it three sequences against an even spread.
    assert_eq!(sequences, [131, 281, 268]);
}

#[test]
fn mtp_adds_its_layer_to_the_last_stage_only() {
    let config = r1();
    let with = Loaded { mtp: true, expert_slots: 0 };
    let layout = dep(8, 2);
    let delta = |stage| {
        rank_weights(&config, WeightDtype::Fp8, &layout, stage, with).0 - rank_weights(&config, WeightDtype::Fp8, &layout, stage, NONE).0
    };
    assert_eq!(delta(0), 0);
    // An eighth of the experts, attention, shared expert, projection, and the embedding that the stage did not have.
    assert_eq!(gb(Bytes(delta(1))), 3.7);
    assert_eq!(kv_bytes_per_token(&config, KvDtype::Fp8, &layout, 1, true), 31 * 576);
}

#[test]
fn expert_slots_add_copies_of_experts() {
    let config = r1();
    let slots = |n| rank_weights(&config, WeightDtype::Fp8, &dep(8, 1), 0, Loaded { mtp: false, expert_slots: n }).0;
    assert_eq!(slots(0), slots(256));
    let expert = 44_040_192 + 3 * 4 * 16 * 56;
    assert_eq!(slots(288) - slots(256), 58 * 4 * expert);
}

#[test]
fn nano_checkpoint_file_has_exactly_the_computed_bytes() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/nano");
    let config = ModelConfig::from_json(&fs::read_to_string(format!("{dir}/config.json")).unwrap()).unwrap();
    let file = fs::read(format!("{dir}/model.safetensors")).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap());
    assert_eq!(checkpoint_bytes(&config, WeightDtype::Fp8).0, file.len() as u64 - 8 - header);
}

proptest! {
    #[test]
    fn stages_cover_every_layer_once(layers in 1u32..200, pp in 1u32..16) {
        let layout = ParallelLayout { tp: 1, pp, ep: 1, attention_dp: false };
        let all: Vec<u32> = (0..pp).flat_map(|s| layout.stage_layers(layers, s)).collect();
        prop_assert_eq!(all, (0..layers).collect::<Vec<_>>());
    }

    #[test]
    fn more_memory_never_holds_fewer_sequences(gib in 40u64..200, more in 1u64..40, fraction in 0.1f64..1.0, pp in 1u32..4, batch in 1u32..512) {
        let config = r1();
        let ask = |gib| memory(&MemoryQuestion {
            config: &config,
            engine: EngineKind::DynamoTrtllm,
            layout: dep(8, pp),
            limits: EngineLimits { max_batch_size: batch, max_num_tokens: batch, max_seq_len: 9374, chunked_prefill: true },
            device: Bytes::gib(gib),
            weight_dtype: WeightDtype::Fp8,
            loaded: NONE,
            kv_dtype: KvDtype::Fp8,
            block_size: 32,
            memory_fraction: fraction,
        });
        let (small, large) = (ask(gib), ask(gib + more));
        prop_assert!(large.budget.sequences >= small.budget.sequences);
        prop_assert!(large.n_blocks >= small.n_blocks);
        for answer in [&small, &large] {
            let b = answer.budget;
            if !matches!(answer.verdict, Verdict::OutOfMemory { .. }) {
                prop_assert_eq!(b.weights.0 + b.workspace.0 + b.kv.0 + b.margin.0, b.device.0);
            }
        }
    }

    #[test]
    fn ranks_together_hold_at_least_the_whole_model(tp in 0u32..4, pp in 1u32..5, attention_dp: bool) {
        let config = r1();
        let tp = 1 << tp;
        let layout = ParallelLayout { tp, pp, ep: tp, attention_dp };
        let whole = rank_weights(&config, WeightDtype::Bf16, &ParallelLayout::SINGLE, 0, NONE).0;
        let all: u64 = (0..pp).map(|s| u64::from(tp) * rank_weights(&config, WeightDtype::Bf16, &layout, s, NONE).0).sum();
        prop_assert!(all >= whole);
    }
}
