//! Plans for tests.

use std::collections::BTreeMap;

use tandem_plan::{
    Address, Bytes, EngineKind, EngineLimits, FrontendPlan, GpuType, Hardware, KvDtype, KvPlan, LoadPlan, MemoryBudget, ModelConfig,
    ModelPlan, ModelSource, ModeledCosts, ParallelLayout, Phase, Plan, RankPlan, Routing, WorkerPlan,
};

/// Longest sequence of the workers.
pub const MAX_SEQ_LEN: u32 = 4096;

/// A deployment of so many workers, served as `nano`.
pub fn plan(n_prefill: u32, n_decode: u32) -> Plan {
    let config = r#"{"model_type":"deepseek_v3","vocab_size":384,"hidden_size":8,"intermediate_size":8,"moe_intermediate_size":8,
        "num_hidden_layers":1,"num_attention_heads":1,"kv_lora_rank":4,"qk_nope_head_dim":2,"qk_rope_head_dim":2,"v_head_dim":2}"#;
    let any_port = || Address { host: "127.0.0.1".into(), port: 0 };
    let prefill = (0..n_prefill).map(|i| worker(Phase::Prefill, i));
    let decode = (0..n_decode).map(|i| worker(Phase::Decode, i));
    Plan {
        schema_version: tandem_plan::plan::PLAN_SCHEMA_VERSION,
        recipe: "test".into(),
        knobs: BTreeMap::new(),
        hardware: Hardware { gpu_type: GpuType::Cpu, devices_per_node: 1, device_memory: Bytes::mib(1) },
        engine: EngineKind::Modeled,
        model: ModelPlan {
            served_name: "nano".into(),
            source: ModelSource::Dummy { seed: 0 },
            tokenizer_dir: None,
            config: ModelConfig::from_json(config).unwrap(),
            modeled: ModeledCosts { step_us: 0.0, prefill_token_us: 0.0, decode_seq_us: 0.0 },
        },
        frontend: FrontendPlan {
            node: 0,
            http: any_port(),
            control: any_port(),
            routing: Routing::RoundRobin,
            max_inflight: 1024,
            max_body_bytes: 4 << 20,
            request_timeout_ms: 15_000,
        },
        workers: prefill.chain(decode).collect(),
        load: LoadPlan { isl: 8, osl: 8, streaming: true, seed: 0, request_timeout_ms: 1000, points: vec![] },
        n_nodes: 1,
    }
}

fn worker(phase: Phase, index: u32) -> WorkerPlan {
    WorkerPlan {
        name: format!("{phase}-{index}"),
        phase,
        index,
        layout: ParallelLayout::SINGLE,
        ranks: vec![RankPlan { rank: 0, node: 0, device: 0 }],
        limits: EngineLimits { max_batch_size: 8, max_num_tokens: 64, max_seq_len: MAX_SEQ_LEN, chunked_prefill: true },
        kv: KvPlan { block_size: 32, n_blocks: 64, dtype: KvDtype::F32, memory_fraction: 0.5 },
        memory: MemoryBudget {
            device: Bytes::mib(1),
            weights: Bytes(0),
            workspace: Bytes(0),
            kv: Bytes(0),
            margin: Bytes(0),
            kv_bytes_per_token: 1,
            sequences: 1,
        },
        stream_interval: 1,
        moe_backend: "CUTLASS".into(),
        mtp_size: 0,
        eplb_slots: 0,
        transceiver_tokens: 64,
        threads: 1,
    }
}
