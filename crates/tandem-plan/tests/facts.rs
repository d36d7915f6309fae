//! The model arithmetic against published figures and a real checkpoint file.

use std::fs;

use proptest::prelude::*;
use tandem_plan::facts::{Loaded, active_parameters, checkpoint_bytes, kv_bytes_per_token, parameters, part_bytes, rank_weights};
use tandem_plan::memory::{MemoryQuestion, MoeBackend, Verdict, Workspace, memory};
use tandem_plan::work::{expert_targets, handoff_bytes, layer_traffic, pair_flops, prompt_attention_flops, token_flops};
use tandem_plan::{Bytes, EngineKind, EngineLimits, GpuType, KvDtype, ModelConfig, ParallelLayout, Phase, WeightDtype};

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
            phase: Phase::Decode,
            moe_backend: MoeBackend::Cutlass,
            transceiver_tokens: 8448,
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
fn bytes_by_part_are_those_of_the_whole_model() {
    let config = r1();
    for dtype in WeightDtype::ALL {
        let bytes = part_bytes(&config, dtype);
        let copies = if dtype == WeightDtype::F32 { 4 } else { 2 } * 2 * 129_280 * 7168;
        assert_eq!(bytes.main() + bytes.mtp + copies, checkpoint_bytes(&config, dtype).0, "{dtype}");
        assert_eq!(bytes.main(), rank_weights(&config, dtype, &ParallelLayout::SINGLE, 0, NONE).0, "{dtype}");
    }
    // Later NVFP4 checkpoints have the output projection, 117.4 M weights a layer, in 4 bits too.
    let [first, second] = [WeightDtype::Nvfp4, WeightDtype::Nvfp4V2].map(|dtype| part_bytes(&config, dtype));
    assert_eq!((gb(Bytes(first.attention)), gb(Bytes(second.attention))), (22.8, 12.5));
    assert_eq!((gb(Bytes(first.main())), gb(Bytes(second.main()))), (396.7, 386.4));
    assert_eq!(first.routed_experts, 58 * 256 * 44_040_192 / 16 * 9);
}

#[test]
fn a_checkpoint_says_its_format() {
    let of = |quantisation: &str| {
        let mut json: serde_json::Value = serde_json::to_value(r1()).unwrap();
        json["quantization_config"] = serde_json::from_str(quantisation).unwrap();
        WeightDtype::of_checkpoint(&ModelConfig::from_json(&json.to_string()).unwrap())
    };
    assert_eq!(of("null"), WeightDtype::Bf16);
    assert_eq!(of(r#"{"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}"#), WeightDtype::Fp8);
    let modelopt = |ignore: &str| of(&format!(r#"{{"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": [{ignore}]}}"#));
    assert_eq!(modelopt(r#""lm_head", "model.layers.0.self_attn*""#), WeightDtype::Nvfp4);
    assert_eq!(modelopt(r#""model.layers.0.self_attn.o_proj""#), WeightDtype::Nvfp4);
    assert_eq!(modelopt(r#""lm_head", "model.layers.0.self_attn.q_a_proj""#), WeightDtype::Nvfp4V2);
}

/// Operations, published or worked out by hand: 71.40 GF a token in the layers, 1.85 in the head, 16.99 MF a context token in decode,
/// 4.997 MF a pair in prefill, 0.748 PF for a request of 8150 tokens.
#[test]
fn r1_operations_are_the_published_ones() {
    let config = r1();
    let flops = token_flops(&config);
    let giga = |n: u64| (n as f64 / 1e7).round() / 100.0;
    assert_eq!((giga(flops.attention), giga(flops.dense_ffn), giga(flops.router)), (22.83, 2.38, 0.21));
    assert_eq!(giga(flops.routed_experts + flops.shared_experts), 45.98);
    assert_eq!((giga(flops.layers()), giga(flops.head)), (71.4, 1.85));
    assert_eq!(flops.layers() + flops.head, 2 * active_parameters(&config) - 2 * parameters(&config).norms - 2 * 58 * 256 + 2 * 58 * 256);
    assert_eq!(61 * pair_flops(&config, Phase::Prefill), 4_997_120);
    assert_eq!(61 * pair_flops(&config, Phase::Decode), 16_990_208);
    let request = 8150 * flops.layers() + prompt_attention_flops(&config, 8150);
    assert!((request as f64 / 1e15 - 0.748).abs() < 5e-4, "{request}");
}

#[test]
fn r1_traffic_is_the_published_one() {
    let config = r1();
    let targets = [4, 8, 16, 32, 72].map(|ranks| (expert_targets(&config, ranks) * 100.0).round() / 100.0);
    assert_eq!(targets, [3.6, 5.25, 6.45, 7.18, 7.62]);
    let fp8 = layer_traffic(&config, &dep(8, 1), WeightDtype::Fp8);
    assert_eq!(((fp8.dispatch / 1e3).round(), (fp8.combine / 1e3).round(), fp8.all_reduce), (33.0, 66.0, 0.0));
    let nvfp4 = layer_traffic(&config, &dep(8, 1), WeightDtype::Nvfp4);
    assert_eq!((nvfp4.dispatch, nvfp4.combine), (0.5625 * fp8.dispatch, fp8.combine));
    let tp = ParallelLayout { tp: 8, pp: 1, ep: 1, attention_dp: false };
    assert_eq!(layer_traffic(&config, &tp, WeightDtype::Fp8).all_reduce, 2.0 * (2.0 * 7.0 / 8.0 * 14_336.0));
    assert_eq!(layer_traffic(&config, &ParallelLayout::SINGLE, WeightDtype::Fp8).combine, 0.0);
    assert_eq!(handoff_bytes(&config, KvDtype::Fp8, 8150), 8150 * 35_136);
}

/// The workspace of the published GB200 servers with one thing changed.
fn workspace(phase: Phase, change: impl FnOnce(&mut MemoryQuestion<'_>)) -> Workspace {
    let (tokens, batch, layout) = if phase == Phase::Prefill { (4096, 1, dep(4, 1)) } else { (256, 256, dep(8, 1)) };
    let config = r1();
    let mut q = MemoryQuestion {
        config: &config,
        engine: EngineKind::DynamoTrtllm,
        layout,
        limits: EngineLimits { max_batch_size: batch, max_num_tokens: tokens, max_seq_len: 9374, chunked_prefill: true },
        device: GpuType::Gb200.hardware().expect("it is a GPU").device_memory,
        weight_dtype: WeightDtype::Nvfp4,
        loaded: NONE,
        kv_dtype: KvDtype::Fp8,
        block_size: 32,
        memory_fraction: 0.8,
        phase,
        moe_backend: MoeBackend::Cutlass,
        transceiver_tokens: 8448,
    };
    change(&mut q);
    memory(&q).workspace
}

#[test]
fn the_workspace_of_the_published_servers_by_hand() {
    let prefill = workspace(Phase::Prefill, |_| {});
    // 4 ranks gather 4096 tokens each; each token is a row for each of its 8 experts: input and activation in 4.5 bits, the two halves of
    // the gated activation and the output in BF16.
    let row = 7168 * 9 / 16 + 2 * 2 * 2048 + 2048 * 9 / 16 + 2 * 7168;
    assert_eq!(prefill.experts, Bytes(4 * 4096 * 8 * row));
    assert_eq!(prefill.communication, Bytes(4 * 4096 * (7168 * 9 / 16 + 2 * 7168)));
    assert_eq!(prefill.activations, Bytes(4096 * 2 * (4 * 7168 + 128 * (2 * 192 + 2 * 128)) + 129_280 * 6));
    assert_eq!(prefill.transceiver, Bytes(2 * 8448 * 35_136));
    assert_eq!((prefill.graphs, prefill.slack), (Bytes(0), Bytes(0)));
    // A decode step is small: the reserve of the published configurations is what binds.
    let decode = workspace(Phase::Decode, |_| {});
    assert_eq!(decode.total(), Bytes(8_000_000_000));
    assert_eq!(decode.graphs, Bytes(9 * 61 * 120_000));
    assert!(decode.slack.0 > 2_000_000_000, "{decode:?}");
}

#[test]
fn what_grows_with_tokens_backend_layout_and_batch_grows_the_workspace() {
    let experts = |backend, tp| {
        workspace(Phase::Decode, |q| (q.moe_backend, q.layout, q.limits.max_num_tokens) = (backend, dep(tp, 1), 1024)).experts.0
    };
    assert!(experts(MoeBackend::TrtLlm, 8) < experts(MoeBackend::Cutlass, 8));
    // 256 experts on 64 ranks: no more than four rows a token can arrive.
    assert_eq!(2 * experts(MoeBackend::WideEp, 64), experts(MoeBackend::Cutlass, 64));
    let total = |tokens| workspace(Phase::Prefill, |q| q.limits.max_num_tokens = tokens).total().0;
    assert!(total(8192) > total(4096) + 4_000_000_000);
    let graphs = |batch| workspace(Phase::Decode, |q| q.limits.max_batch_size = batch).graphs.0;
    assert!(graphs(512) > graphs(64));
    let split = workspace(Phase::Prefill, |q| q.layout.attention_dp = false);
    assert!(split.experts < workspace(Phase::Prefill, |_| {}).experts);
    let half = workspace(Phase::Decode, |q| q.layout = dep(8, 2));
    assert_eq!(half.transceiver, Bytes(2 * 8448 * 31 * 576));
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
            phase: Phase::Decode,
            moe_backend: MoeBackend::Cutlass,
            transceiver_tokens: 8448,
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

    /// Nothing that asks for more leaves room for more.
    #[test]
    fn larger_steps_never_hold_more_sequences(tokens in 32u32..60_000, more in 1u32..60_000, tp in 1u32..6, backend in 0usize..3, phase: bool) {
        let config = r1();
        let ask = |tokens| memory(&MemoryQuestion {
            config: &config,
            engine: EngineKind::DynamoTrtllm,
            layout: dep(1 << tp, 1),
            limits: EngineLimits { max_batch_size: 16, max_num_tokens: tokens, max_seq_len: 9374, chunked_prefill: true },
            device: Bytes::gib(288),
            weight_dtype: WeightDtype::Nvfp4,
            loaded: NONE,
            kv_dtype: KvDtype::Fp8,
            block_size: 32,
            memory_fraction: 0.8,
            phase: if phase { Phase::Prefill } else { Phase::Decode },
            moe_backend: MoeBackend::ALL[backend],
            transceiver_tokens: 8448,
        });
        let (small, large) = (ask(tokens), ask(tokens + more));
        prop_assert!(large.n_blocks <= small.n_blocks);
        prop_assert!(large.workspace.total() >= small.workspace.total());
        prop_assert_eq!(small.budget.workspace, small.workspace.total());
        // No part is left out of the sum.
        prop_assert_eq!(small.workspace.parts().iter().map(|(_, b)| b.0).sum::<u64>(), small.workspace.total().0);
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
