//! What fits in the memory of a rank: weights, workspace, KV cache and what is left.
//!
//! The KV cache gets a fraction of what is free after loading weights and reserving the workspace, as the recipe
//! defines `free_gpu_memory_fraction`. Pipeline stages differ (the first holds the embedding and the dense layers, the
//! last the head), and a sequence needs its blocks on all of them: the fullest stage binds and every stage gets its block count.
//!
//! What the workspace is made of is in `workspace`.
//!
//! Not here: measured memory (`tandem-telemetry`), or what to change (`tandem-recipe` names the knobs).

use serde::{Deserialize, Serialize};

use crate::facts::{Loaded, WeightDtype, host_copies, kv_bytes_per_token, rank_weights};
use crate::layout::ParallelLayout;
use crate::model::ModelConfig;
use crate::plan::{EngineKind, EngineLimits, KvDtype, MemoryBudget, Phase};
use crate::units::Bytes;
use crate::workspace::gpu_workspace;
pub use crate::workspace::{GPU_RESERVE, GPU_RUNTIME, MoeBackend, Workspace};

/// Everything that decides the memory of one worker's ranks.
#[derive(Debug, Clone, Copy)]
pub struct MemoryQuestion<'a> {
    /// Architecture.
    pub config: &'a ModelConfig,
    /// What computes.
    pub engine: EngineKind,
    /// Parallel degrees of the worker.
    pub layout: ParallelLayout,
    /// Limits of one step.
    pub limits: EngineLimits,
    /// Memory of one device.
    pub device: Bytes,
    /// Number format of the weights in memory.
    pub weight_dtype: WeightDtype,
    /// MTP and expert slots.
    pub loaded: Loaded,
    /// Number format of the KV cache.
    pub kv_dtype: KvDtype,
    /// Tokens of one KV block.
    pub block_size: u32,
    /// Fraction of the free memory that the KV cache gets, above 0 and at most 1.
    pub memory_fraction: f64,
    /// What the worker does.
    pub phase: Phase,
    /// How the engine computes routed experts.
    pub moe_backend: MoeBackend,
    /// Tokens that the KV transceiver can buffer.
    pub transceiver_tokens: u32,
}

/// Whether a worker can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// The KV cache holds a full batch of the longest sequences.
    Fits,
    /// It runs, but the KV cache holds fewer of the longest sequences than `max_batch_size`.
    KvStarved,
    /// Weights and workspace alone exceed the device.
    OutOfMemory {
        /// Bytes that are missing.
        missing: Bytes,
    },
}

/// The memory of one pipeline stage's ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageMemory {
    /// Weights of the fullest rank.
    pub weights: Bytes,
    /// Bytes left after weights and workspace.
    pub free: Bytes,
    /// KV bytes of one token.
    pub kv_bytes_per_token: u64,
    /// Blocks that the stage alone could hold.
    pub n_blocks: u32,
}

/// The answer to a [`MemoryQuestion`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemoryAnswer {
    /// Each pipeline stage.
    pub stages: Vec<StageMemory>,
    /// The stage with the fewest blocks, which binds.
    pub binding_stage: u32,
    /// Blocks of every rank.
    pub n_blocks: u32,
    /// Blocks that one sequence of `max_seq_len` takes.
    pub blocks_per_sequence: u32,
    /// Where the workspace goes.
    pub workspace: Workspace,
    /// The budget of the binding stage's fullest rank.
    pub budget: MemoryBudget,
    /// Whether it fits.
    pub verdict: Verdict,
}

/// Works out where the memory of one rank goes.
#[must_use]
pub fn memory(q: &MemoryQuestion<'_>) -> MemoryAnswer {
    let parts = workspace(q);
    let workspace = parts.total();
    let stages: Vec<StageMemory> = (0..q.layout.pp).map(|stage| stage_memory(q, stage, workspace)).collect();
    let binding = (0..stages.len()).min_by_key(|&i| (stages[i].n_blocks, stages[i].free)).expect("a layout has at least one stage");
    let stage = stages[binding];
    let blocks_per_sequence = q.limits.max_seq_len.div_ceil(q.block_size).max(1);
    let sequences = stage.n_blocks / blocks_per_sequence;
    let kv = Bytes(u64::from(stage.n_blocks) * u64::from(q.block_size) * stage.kv_bytes_per_token);
    let needed = stage.weights.0 + workspace.0;
    let verdict = if needed >= q.device.0 {
        Verdict::OutOfMemory { missing: Bytes(needed - q.device.0) }
    } else if sequences < q.limits.max_batch_size {
        Verdict::KvStarved
    } else {
        Verdict::Fits
    };
    let budget = MemoryBudget {
        device: q.device,
        weights: stage.weights,
        workspace,
        kv,
        margin: Bytes(stage.free.0 - kv.0),
        kv_bytes_per_token: stage.kv_bytes_per_token,
        sequences,
    };
    MemoryAnswer {
        n_blocks: stage.n_blocks,
        binding_stage: u32::try_from(binding).expect("stages are counted by a u32"),
        stages,
        blocks_per_sequence,
        workspace: parts,
        budget,
        verdict,
    }
}

impl MemoryAnswer {
    /// The fraction that would give the KV cache room for `sequences` sequences of `tokens` tokens; none when it is above 0.95.
    #[must_use]
    pub fn fraction_for(&self, q: &MemoryQuestion<'_>, sequences: u32, tokens: u32) -> Option<f64> {
        let stage = self.stages[self.binding_stage as usize];
        let blocks = u64::from(tokens.div_ceil(q.block_size));
        let bytes = u64::from(sequences) * blocks * u64::from(q.block_size) * stage.kv_bytes_per_token;
        // Rounded up to a whole percent, so that the suggestion really fits.
        let percent = (bytes as f64 / stage.free.0 as f64 * 100.0).ceil();
        (stage.free.0 > 0 && percent <= 95.0).then_some(percent / 100.0)
    }
}

fn stage_memory(q: &MemoryQuestion<'_>, stage: u32, workspace: Bytes) -> StageMemory {
    // A mocker loads nothing, and what an external server loads is its own affair.
    let loads = q.engine.is_on_gpu() || q.engine.is_embedded();
    let mut weights = if loads { rank_weights(q.config, q.weight_dtype, &q.layout, stage, q.loaded) } else { Bytes(0) };
    if q.engine.is_embedded() {
        weights.0 += host_copies(q.config, q.weight_dtype, &q.layout, stage).0;
    }
    let kv_bytes_per_token = kv_bytes_per_token(q.config, q.kv_dtype, &q.layout, stage, q.loaded.mtp);
    let free = q.device.0.saturating_sub(weights.0).saturating_sub(workspace.0);
    let pool = free as f64 * q.memory_fraction;
    let block = kv_bytes_per_token * u64::from(q.block_size);
    // A stage of an odd split may hold no layer; then it does not limit the blocks.
    let blocks = if block == 0 { f64::from(u32::MAX) } else { (pool / block as f64).floor() };
    // `as` saturates: a pool of more than u32::MAX blocks is beyond any device.
    #[expect(clippy::cast_possible_truncation, reason = "float to integer casts saturate, and blocks are not negative")]
    StageMemory { weights, free: Bytes(free), kv_bytes_per_token, n_blocks: blocks as u32 }
}

/// Memory that neither weights nor KV cache may use.
fn workspace(q: &MemoryQuestion<'_>) -> Workspace {
    match q.engine {
        EngineKind::DynamoMocker | EngineKind::External => Workspace::default(),
        engine if engine.is_on_gpu() => {
            let kv = (0..q.layout.pp).map(|stage| kv_bytes_per_token(q.config, q.kv_dtype, &q.layout, stage, q.loaded.mtp)).max();
            gpu_workspace(q, kv.unwrap_or(0))
        }
        _ => Workspace { activations: host_workspace(q.config, &q.limits), ..Workspace::default() },
    }
}

/// Buffers of the embedded engine in f32: the widest layer for every token of a step, the expanded keys and values of one
/// context, one row of logits a sequence, and 4 MiB for code, queues and sockets.
fn host_workspace(config: &ModelConfig, limits: &EngineLimits) -> Bytes {
    let heads = u64::from(config.num_attention_heads);
    let qk = u64::from(config.qk_nope_head_dim + config.qk_rope_head_dim);
    let v = u64::from(config.v_head_dim);
    let attention = heads * (qk + v) + u64::from(config.q_lora_rank.unwrap_or(0)) + u64::from(config.kv_values_per_token_layer());
    let experts = u64::from(config.num_experts_per_tok + config.n_shared_experts.unwrap_or(0)) * u64::from(config.moe_intermediate_size);
    let ffn = 2 * experts.max(u64::from(config.intermediate_size));
    let per_token = 4 * u64::from(config.hidden_size) + attention.max(ffn);
    let values = u64::from(limits.max_num_tokens) * per_token
        + u64::from(limits.max_seq_len) * heads * (qk + v)
        + u64::from(limits.max_batch_size) * u64::from(config.vocab_size);
    Bytes(4 * values + Bytes::mib(4).0)
}
