//! What a rank needs besides weights and KV cache: activations of a step, graphs, buffers of communication and of the KV hand-off.
//!
//! Shapes are exact where the engine's are known (TensorRT-LLM allocates the experts' rows, the collectives' and the transceiver's
//! buffers for the largest step), and stated assumptions where they are not (context and libraries, one captured graph). Published configurations
//! leave 4 GB for all of it besides the context; so much is kept in any case, and more where the parts need more.

use serde::{Deserialize, Serialize};

use crate::facts::WeightDtype;
use crate::memory::MemoryQuestion;
use crate::plan::Phase;
use crate::units::Bytes;

/// CUDA context, libraries and NCCL's own channels of a GPU rank.
pub const GPU_RUNTIME: Bytes = Bytes(4_000_000_000);
/// The least that is kept for everything else, as published configurations do.
pub const GPU_RESERVE: Bytes = Bytes(4_000_000_000);
/// Bytes of one layer in one captured graph: 0.6 GB for 67 graphs of 80 layers, as vLLM prints for Llama-3 70B; an assumption elsewhere.
const GRAPH_BYTES_PER_LAYER: u64 = 120_000;
/// Batch sizes for which decode servers capture graphs, before the batch limit itself.
pub const GRAPH_BATCH_SIZES: [u32; 13] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 2048];
/// BF16.
const HALF: u64 = 2;

/// The engine's implementation of routed experts, which decides how many rows of activations exist at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MoeBackend {
    /// Grouped matrix products over rows that are gathered from all ranks and repeated for each of their experts.
    Cutlass,
    /// Fused kernels, which keep neither the repeated input nor the halves of the gated activation.
    TrtLlm,
    /// All-to-all with buffers for the largest step of every rank.
    WideEp,
    /// The embedded engine.
    Cpu,
}

impl MoeBackend {
    /// Every backend.
    pub const ALL: [MoeBackend; 4] = [MoeBackend::Cutlass, MoeBackend::TrtLlm, MoeBackend::WideEp, MoeBackend::Cpu];

    /// The engine's name for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            MoeBackend::Cutlass => "CUTLASS",
            MoeBackend::TrtLlm => "TRTLLM",
            MoeBackend::WideEp => "WIDEEP",
            MoeBackend::Cpu => "CPU",
        }
    }

    /// The backend of that name.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        MoeBackend::ALL.into_iter().find(|b| b.name() == name)
    }
}

/// The parts of a rank's workspace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workspace {
    /// CUDA context and libraries.
    pub runtime: Bytes,
    /// Activations of attention or of a dense feed-forward, whichever is larger, and the logits.
    pub activations: Bytes,
    /// Rows of the routed experts.
    pub experts: Bytes,
    /// Buffers of the collectives between the ranks of a server.
    pub communication: Bytes,
    /// Captured graphs of decode steps.
    pub graphs: Bytes,
    /// Send and receive buffer of the KV hand-off.
    pub transceiver: Bytes,
    /// What the reserve leaves beyond these parts.
    pub slack: Bytes,
}

impl Workspace {
    /// All parts together.
    #[must_use]
    pub const fn total(&self) -> Bytes {
        Bytes(self.runtime.0 + self.step().0 + self.graphs.0 + self.transceiver.0 + self.slack.0)
    }

    /// What grows with `max_num_tokens`.
    #[must_use]
    pub const fn step(&self) -> Bytes {
        Bytes(self.activations.0 + self.experts.0 + self.communication.0)
    }

    /// Names and sizes, in the order of the fields.
    #[must_use]
    pub const fn parts(&self) -> [(&'static str, Bytes); 7] {
        [
            ("runtime", self.runtime),
            ("activations", self.activations),
            ("experts", self.experts),
            ("communication", self.communication),
            ("graphs", self.graphs),
            ("transceiver", self.transceiver),
            ("slack", self.slack),
        ]
    }
}

/// The workspace of a GPU rank whose fullest stage caches `kv_bytes_per_token` a token.
pub(crate) fn gpu_workspace(q: &MemoryQuestion<'_>, kv_bytes_per_token: u64) -> Workspace {
    let tokens = u64::from(q.limits.max_num_tokens);
    let mut parts = Workspace {
        runtime: GPU_RUNTIME,
        activations: Bytes(tokens * token_activations(q) + logits(q)),
        experts: Bytes(expert_rows(q) * expert_row_bytes(q)),
        communication: Bytes(communication(q)),
        graphs: Bytes(graphs(q)),
        // One buffer to send from and one to receive into.
        transceiver: Bytes(2 * u64::from(q.transceiver_tokens) * kv_bytes_per_token),
        slack: Bytes(0),
    };
    let needed = parts.total().0 - parts.runtime.0;
    parts.slack = Bytes(GPU_RESERVE.0.saturating_sub(needed));
    parts
}

/// Ranks that attention's heads and dense columns are split over.
fn split(q: &MemoryQuestion<'_>) -> u64 {
    u64::from(if q.layout.attention_dp { 1 } else { q.layout.tp.max(1) })
}

/// Bytes of activations that a token has while the widest part of a layer is computed.
fn token_activations(q: &MemoryQuestion<'_>) -> u64 {
    let c = q.config;
    let heads = u64::from(c.num_attention_heads).div_ceil(split(q));
    let [nope, rope, v, latent] = [c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim, c.kv_lora_rank].map(u64::from);
    // Residual, normed input, output, and one more while they are exchanged.
    let stream = 4 * u64::from(c.hidden_size);
    let attention = match q.phase {
        // Queries, keys, values and outputs of every head.
        Phase::Prefill => heads * (2 * (nope + rope) + 2 * v),
        // Queries, the same against the latent, latent outputs and outputs.
        Phase::Decode => heads * (nope + rope + latent + rope + latent + v),
    };
    let dense = 2 * u64::from(c.intermediate_size).div_ceil(split(q));
    HALF * (stream + attention.max(dense))
}

/// Logits of every sequence in F32, and in BF16 before.
fn logits(q: &MemoryQuestion<'_>) -> u64 {
    let rows = u64::from(q.limits.max_batch_size.min(q.limits.max_num_tokens));
    rows * u64::from(q.config.vocab_size).div_ceil(split(q)) * (4 + HALF)
}

/// Tokens whose experts a rank may have to compute in one step.
fn gathered_tokens(q: &MemoryQuestion<'_>) -> u64 {
    u64::from(q.limits.max_num_tokens) * u64::from(q.layout.attention_dp_size())
}

/// Rows of expert activations: each token once for each of its experts that the rank may hold.
fn expert_rows(q: &MemoryQuestion<'_>) -> u64 {
    let Some(experts) = q.config.n_routed_experts else { return 0 };
    let slots = if q.loaded.expert_slots == 0 { experts } else { q.loaded.expert_slots };
    let per_token = match q.moe_backend {
        // Only what was sent to this rank's own experts arrives.
        MoeBackend::WideEp => q.config.num_experts_per_tok.min(slots.div_ceil(q.layout.ep.max(1))),
        _ => q.config.num_experts_per_tok,
    };
    gathered_tokens(q) * u64::from(per_token)
}

/// Bytes of one such row.
fn expert_row_bytes(q: &MemoryQuestion<'_>) -> u64 {
    let hidden = u64::from(q.config.hidden_size);
    let inner = u64::from(q.config.moe_intermediate_size).div_ceil(u64::from((q.layout.tp / q.layout.ep.max(1)).max(1)));
    let (output, activated) = (HALF * hidden, quantised(q, inner));
    match q.moe_backend {
        MoeBackend::TrtLlm => activated + output,
        _ => quantised(q, hidden) + 2 * HALF * inner + activated + output,
    }
}

/// Bytes of `n` values in the format that experts read.
fn quantised(q: &MemoryQuestion<'_>, n: u64) -> u64 {
    match q.weight_dtype {
        WeightDtype::Fp8 => n,
        // Four bits, and a scale of one byte for 16 of them.
        WeightDtype::Nvfp4 | WeightDtype::Nvfp4V2 => n.div_ceil(2) + n.div_ceil(16),
        WeightDtype::Bf16 => HALF * n,
        WeightDtype::F32 => 4 * n,
    }
}

/// Buffers of the collectives: inputs of all ranks and outputs for them under attention DP, three rounds of the all-reduce without it.
fn communication(q: &MemoryQuestion<'_>) -> u64 {
    let hidden = u64::from(q.config.hidden_size);
    if q.layout.tp <= 1 {
        return 0;
    }
    let token = if q.layout.attention_dp { quantised(q, hidden) + HALF * hidden } else { 3 * HALF * hidden };
    gathered_tokens(q) * token
}

/// Graphs of decode steps, for the batch sizes up to the limit and for the limit.
fn graphs(q: &MemoryQuestion<'_>) -> u64 {
    if q.phase == Phase::Prefill {
        return 0;
    }
    let n = GRAPH_BATCH_SIZES.iter().filter(|&&size| size < q.limits.max_batch_size).count() as u64 + 1;
    let layers = u64::from(q.config.num_hidden_layers).div_ceil(u64::from(q.layout.pp.max(1)));
    n * layers * GRAPH_BYTES_PER_LAYER
}
