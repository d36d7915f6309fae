//! The engine's configuration files and worker environment, from the Plan alone.
//!
//! Keys and their order are those of the published recipe: people diff these files. Rendered by hand, because the order
//! and the block style are part of the format; every value is a number, a boolean or a plain word.
//!
//! Not here: command lines and where files are put (`tandem-launch`).

use std::fmt::Write as _;

use tandem_plan::workspace::GRAPH_BATCH_SIZES;
use tandem_plan::{EngineKind, GpuType, KvDtype, Phase, Plan, WorkerPlan};

/// Where the load balancer's file is, for `moe_config`.
const MOE_LOAD_BALANCER: &str = "moe_load_balancer.yaml";
/// The engine's own block size, which its configuration does not name.
const DEFAULT_BLOCK_SIZE: u32 = 32;

/// The files of `configs/` with their contents, in a fixed order; `machines` are the nodes in list order.
///
/// Paths are relative to the run folder, and so is the one that `decode.yaml` names; use [`render_configs_in`] for an absolute one.
#[must_use]
pub fn render_configs(plan: &Plan, machines: &[String]) -> Vec<(String, String)> {
    render_configs_in("configs", plan, machines)
}

/// As [`render_configs`], for a configuration folder at `dir`.
#[must_use]
pub fn render_configs_in(dir: &str, plan: &Plan, machines: &[String]) -> Vec<(String, String)> {
    let dir = dir.trim_end_matches('/');
    let mut files = vec![(format!("{dir}/deployment.yaml"), deployment(plan))];
    if let Some(worker) = plan.workers_of(Phase::Prefill).next() {
        files.push((format!("{dir}/prefill.yaml"), prefill(plan, worker)));
    }
    if let Some(worker) = plan.workers_of(Phase::Decode).next() {
        files.push((format!("{dir}/decode.yaml"), decode(plan, worker, dir)));
        if worker.eplb_slots > 0 {
            files.push((format!("{dir}/{MOE_LOAD_BALANCER}"), format!("num_slots: {}\nlayer_updates_per_iter: 1\n", worker.eplb_slots)));
        }
    }
    files.push((format!("{dir}/machines.txt"), machines.iter().map(|m| format!("{m}\n")).collect()));
    files
}

fn deployment(plan: &Plan) -> String {
    let n = |phase| plan.workers_of(phase).count();
    format!("num_prefill_servers: {}\nnum_decode_servers: {}\ntotal_gpus: {}\n", n(Phase::Prefill), n(Phase::Decode), plan.n_devices())
}

fn prefill(plan: &Plan, w: &WorkerPlan) -> String {
    let mut yaml = limits(w);
    yaml.push_str("print_iter_log: true\ndisable_overlap_scheduler: true\n");
    line(&mut yaml, "enable_chunked_prefill", w.limits.chunked_prefill);
    kv_cache(&mut yaml, plan, w);
    let _ = writeln!(yaml, "moe_config:\n  backend: {}", w.moe_backend);
    transceiver(&mut yaml, w);
    speculative(&mut yaml, w);
    yaml
}

fn decode(plan: &Plan, w: &WorkerPlan, dir: &str) -> String {
    let mut yaml = limits(w);
    yaml.push_str("cuda_graph_config:\n  enable_padding: true\n  batch_sizes:\n");
    for size in GRAPH_BATCH_SIZES.iter().chain([&w.limits.max_batch_size]) {
        let _ = writeln!(yaml, "  - {size}");
    }
    yaml.push_str("print_iter_log: true\n");
    kv_cache(&mut yaml, plan, w);
    let _ = writeln!(yaml, "moe_config:\n  backend: {}", w.moe_backend);
    if w.eplb_slots > 0 {
        let _ = writeln!(yaml, "  load_balancer: {dir}/{MOE_LOAD_BALANCER}");
    }
    transceiver(&mut yaml, w);
    line(&mut yaml, "stream_interval", w.stream_interval);
    if plan.hardware.gpu_type.kin() == GpuType::Gb200 && w.layout.tp == 8 && !w.layout.attention_dp {
        line(&mut yaml, "allreduce_strategy", "MNNVL");
    }
    speculative(&mut yaml, w);
    yaml
}

/// The seven keys that both files begin with.
fn limits(w: &WorkerPlan) -> String {
    let mut yaml = String::new();
    line(&mut yaml, "max_batch_size", w.limits.max_batch_size);
    line(&mut yaml, "max_num_tokens", w.limits.max_num_tokens);
    line(&mut yaml, "max_seq_len", w.limits.max_seq_len);
    line(&mut yaml, "tensor_parallel_size", w.layout.tp);
    line(&mut yaml, "moe_expert_parallel_size", w.layout.ep);
    line(&mut yaml, "enable_attention_dp", w.layout.attention_dp);
    line(&mut yaml, "pipeline_parallel_size", w.layout.pp);
    yaml
}

fn kv_cache(yaml: &mut String, plan: &Plan, w: &WorkerPlan) {
    // TensorRT-LLM calls the checkpoint's own precision, BF16 here, `auto`.
    let dtype = match (w.kv.dtype, plan.engine) {
        (KvDtype::Fp8, _) => "fp8",
        (KvDtype::Bf16, EngineKind::DynamoTrtllm | EngineKind::TrtllmServe) => "auto",
        (KvDtype::Bf16, _) => "bf16",
        (KvDtype::F32, _) => "f32",
    };
    let _ = writeln!(
        yaml,
        "kv_cache_config:\n  enable_block_reuse: false\n  free_gpu_memory_fraction: {}\n  dtype: {dtype}",
        w.kv.memory_fraction
    );
    if w.kv.block_size != DEFAULT_BLOCK_SIZE {
        let _ = writeln!(yaml, "  tokens_per_block: {}", w.kv.block_size);
    }
}

fn transceiver(yaml: &mut String, w: &WorkerPlan) {
    let _ = writeln!(yaml, "cache_transceiver_config:\n  max_tokens_in_buffer: {}\n  backend: DEFAULT", w.transceiver_tokens);
}

fn speculative(yaml: &mut String, w: &WorkerPlan) {
    if w.mtp_size > 0 {
        let _ = writeln!(yaml, "speculative_config:\n  decoding_type: MTP\n  num_nextn_predict_layers: {}", w.mtp_size);
    }
}

fn line(yaml: &mut String, key: &str, value: impl std::fmt::Display) {
    let _ = writeln!(yaml, "{key}: {value}");
}
