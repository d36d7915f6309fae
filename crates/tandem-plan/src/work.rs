//! Exact arithmetic on what a token costs: operations by part, attended pairs, bytes between ranks and between servers.
//!
//! One multiplication and one addition are two operations. Bytes are what leaves one rank; targets of experts are taken as uniform.
//! Sources: the matrices of `facts`; DeepSeek-V3 (arXiv 2412.19437) for the absorbed form of decode.
//!
//! Not here: how long any of it takes (`tandem-sim`).

use serde::{Deserialize, Serialize};

use crate::facts::{Parameters, WeightDtype, parameters};
use crate::layout::ParallelLayout;
use crate::model::ModelConfig;
use crate::plan::{KvDtype, Phase};

/// Operations of one token in all layers, without attended pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenFlops {
    /// Attention's projections.
    pub attention: u64,
    /// Dense feed-forward layers.
    pub dense_ffn: u64,
    /// The routed experts that a token uses.
    pub routed_experts: u64,
    /// Shared experts.
    pub shared_experts: u64,
    /// Routers.
    pub router: u64,
    /// Output projection; only tokens that are sampled from need it.
    pub head: u64,
}

impl TokenFlops {
    /// Everything but the head.
    #[must_use]
    pub const fn layers(&self) -> u64 {
        self.attention + self.dense_ffn + self.routed_experts + self.shared_experts + self.router
    }
}

/// Operations of one token, attended pairs aside.
#[must_use]
pub fn token_flops(config: &ModelConfig) -> TokenFlops {
    let p: Parameters = parameters(config);
    let experts = u64::from(config.n_routed_experts.unwrap_or(1));
    // A tied head is computed all the same.
    let head = u64::from(config.vocab_size) * u64::from(config.hidden_size);
    TokenFlops {
        attention: 2 * p.attention,
        dense_ffn: 2 * p.dense_ffn,
        routed_experts: 2 * (p.routed_experts / experts * u64::from(config.num_experts_per_tok)),
        shared_experts: 2 * p.shared_experts,
        router: 2 * p.router,
        head: 2 * head,
    }
}

/// Operations of one layer for one pair of a query token and a token that it attends to.
///
/// Prefill multiplies keys and values of every head; decode works on the latent of which they are made (absorbed form).
#[must_use]
pub fn pair_flops(config: &ModelConfig, phase: Phase) -> u64 {
    let heads = u64::from(config.num_attention_heads);
    let [nope, rope, v, latent] = [config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim, config.kv_lora_rank].map(u64::from);
    match phase {
        Phase::Prefill => 2 * heads * (nope + rope + v),
        Phase::Decode => 2 * heads * (2 * latent + rope),
    }
}

/// Operations of attention for a whole prompt of `isl` tokens in all layers: each token attends to itself and those before it.
#[must_use]
pub fn prompt_attention_flops(config: &ModelConfig, isl: u32) -> u64 {
    let isl = u64::from(isl);
    u64::from(config.num_hidden_layers) * pair_flops(config, Phase::Prefill) * (isl * (isl + 1) / 2)
}

/// Bytes that a rank sends for one of its tokens in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LayerTraffic {
    /// All-reduces after attention and feed-forward, BF16; none under attention data parallelism.
    pub all_reduce: f64,
    /// To the ranks of a token's experts, in the format that experts read; MoE layers only.
    pub dispatch: f64,
    /// Back from them, BF16.
    pub combine: f64,
}

/// Bytes that a token causes between the ranks of a server, per layer.
///
/// An all-reduce over T ranks sends 2 (T − 1) / T of the vector, twice a layer. Under attention data parallelism a token goes to the
/// `ranks × (1 − (1 − 1 / ranks)^top_k)` ranks that hold its experts, of which (ranks − 1) / ranks are others.
#[must_use]
pub fn layer_traffic(config: &ModelConfig, layout: &ParallelLayout, dtype: WeightDtype) -> LayerTraffic {
    let (ranks, hidden) = (f64::from(layout.tp), f64::from(config.hidden_size));
    let others = (ranks - 1.0) / ranks;
    if layout.tp <= 1 {
        return LayerTraffic { all_reduce: 0.0, dispatch: 0.0, combine: 0.0 };
    }
    if !layout.attention_dp {
        return LayerTraffic { all_reduce: 2.0 * 2.0 * others * 2.0 * hidden, dispatch: 0.0, combine: 0.0 };
    }
    let targets = expert_targets(config, layout.tp) * others;
    let value = match dtype {
        WeightDtype::Fp8 => 1.0,
        WeightDtype::Nvfp4 | WeightDtype::Nvfp4V2 => 0.5625,
        WeightDtype::Bf16 => 2.0,
        WeightDtype::F32 => 4.0,
    };
    LayerTraffic { all_reduce: 0.0, dispatch: targets * hidden * value, combine: targets * hidden * 2.0 }
}

/// Distinct ranks that hold the experts of a token, on average.
#[must_use]
pub fn expert_targets(config: &ModelConfig, ranks: u32) -> f64 {
    let ranks = f64::from(ranks);
    ranks * (1.0 - (1.0 - 1.0 / ranks).powf(f64::from(config.num_experts_per_tok)))
}

/// Bytes of the KV cache that a prompt of `isl` tokens hands from prefill to decode: all layers, each once.
#[must_use]
pub fn handoff_bytes(config: &ModelConfig, dtype: KvDtype, isl: u32) -> u64 {
    u64::from(isl) * u64::from(config.num_hidden_layers) * u64::from(config.kv_values_per_token_layer()) * dtype.bytes()
}
