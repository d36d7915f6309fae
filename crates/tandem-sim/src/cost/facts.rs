//! Bytes and operations of a model's parts, and the shape of one worker.

use std::sync::Arc;

use tandem_plan::work::pair_flops;
use tandem_plan::{ModelConfig, ParallelLayout, Phase, WeightDtype};

use crate::hardware::GpuSpec;
use crate::tables::Operators;

/// What a step reads and computes, per decoder layer or per token; weights as counts, since their width depends on the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelFacts {
    /// Decoder layers.
    pub layers: f64,
    /// Decoder layers with routed experts.
    pub moe_layers: f64,
    /// Decoder layers with a dense feed-forward.
    pub dense_layers: f64,
    /// Attention weights of a layer that TP splits.
    pub attention_split: f64,
    /// Attention weights of a layer that every rank holds (latent down-projections).
    pub attention_whole: f64,
    /// Of those that TP splits, the output projection's.
    pub attention_output: f64,
    /// Weights of one routed expert.
    pub expert: f64,
    /// Routed experts of a layer.
    pub experts: f64,
    /// Routed experts that a token uses.
    pub top_k: f64,
    /// Weights of a layer's shared experts.
    pub shared: f64,
    /// Weights of a dense feed-forward.
    pub dense: f64,
    /// Weights of the output projection.
    pub head: f64,
    /// Width of the residual stream.
    pub hidden: f64,
    /// Values in the KV cache per token and layer.
    pub kv_values: f64,
    /// Operations per query token and cached token of a layer in the absorbed form of decode.
    pub decode_pair_flops: f64,
    /// Operations per query token and earlier token of a layer in prefill.
    pub prefill_pair_flops: f64,
}

impl ModelFacts {
    /// The facts of the model that `config` describes.
    #[must_use]
    pub fn new(config: &ModelConfig) -> Self {
        let f = f64::from;
        #[expect(clippy::cast_precision_loss, reason = "operations of a pair are far below 2^53")]
        let whole = |n: u64| n as f64;
        let (hidden, heads) = (f(config.hidden_size), f(config.num_attention_heads));
        let (nope, rope, v) = (f(config.qk_nope_head_dim), f(config.qk_rope_head_dim), f(config.v_head_dim));
        let latent = f(config.kv_lora_rank);
        let (q_whole, q_split) = match config.q_lora_rank.map(f) {
            Some(rank) => (hidden * rank, rank * heads * (nope + rope)),
            None => (0.0, hidden * heads * (nope + rope)),
        };
        let moe_layers = f((0..config.num_hidden_layers).map(|layer| u32::from(config.is_moe_layer(layer))).sum::<u32>());
        let expert = 3.0 * hidden * f(config.moe_intermediate_size);
        ModelFacts {
            layers: f(config.num_hidden_layers),
            moe_layers,
            dense_layers: f(config.num_hidden_layers) - moe_layers,
            attention_split: q_split + latent * heads * (nope + v) + heads * v * hidden,
            attention_whole: q_whole + hidden * (latent + rope),
            attention_output: heads * v * hidden,
            expert,
            experts: f(config.n_routed_experts.unwrap_or(0)),
            top_k: f(config.num_experts_per_tok),
            shared: expert * f(config.n_shared_experts.unwrap_or(0)),
            dense: 3.0 * hidden * f(config.intermediate_size),
            head: f(config.vocab_size) * hidden,
            hidden,
            kv_values: f(config.kv_values_per_token_layer()),
            decode_pair_flops: whole(pair_flops(config, Phase::Decode)),
            prefill_pair_flops: whole(pair_flops(config, Phase::Prefill)),
        }
    }
}

/// One worker: its GPUs, how the model is spread over them and in which number formats.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// The GPU of every rank.
    pub gpu: GpuSpec,
    /// Parallel degrees.
    pub layout: ParallelLayout,
    /// Number format of the checkpoint.
    pub weights: WeightDtype,
    /// Bytes of one value in the KV cache.
    pub kv_value_bytes: f64,
    /// Tokens drafted per step; 0 = off.
    pub mtp: u32,
    /// Expert slots of the load balancer; 0 = off.
    pub eplb_slots: u32,
    /// Measured operators, which take the place of the roofline's terms.
    pub measured: Option<Arc<Operators>>,
}

impl Shape {
    /// Bytes of one attention weight.
    #[must_use]
    pub fn attention_bytes(&self) -> f64 {
        match self.weights {
            WeightDtype::Fp8 => 1.0,
            WeightDtype::Nvfp4 | WeightDtype::Nvfp4V2 | WeightDtype::Bf16 => 2.0,
            WeightDtype::F32 => 4.0,
        }
    }

    /// Bytes of one feed-forward weight, scales included.
    #[must_use]
    pub fn ffn_bytes(&self) -> f64 {
        match self.weights {
            WeightDtype::Fp8 => 1.0,
            WeightDtype::Nvfp4 | WeightDtype::Nvfp4V2 => 0.5625,
            WeightDtype::Bf16 => 2.0,
            WeightDtype::F32 => 4.0,
        }
    }

    /// Bytes of one weight of attention's output projection.
    #[must_use]
    pub fn output_bytes(&self) -> f64 {
        if self.weights == WeightDtype::Nvfp4V2 { self.ffn_bytes() } else { self.attention_bytes() }
    }

    /// Peak rate of attention's output projection, FLOP/s.
    #[must_use]
    pub fn output_rate(&self) -> f64 {
        if self.weights == WeightDtype::Nvfp4V2 { self.ffn_rate() } else { self.attention_rate() }
    }

    /// Peak rate of attention's matrix products, FLOP/s.
    #[must_use]
    pub fn attention_rate(&self) -> f64 {
        if self.weights == WeightDtype::Fp8 { self.gpu.fp8 } else { self.gpu.bf16 }
    }

    /// Peak rate of the feed-forward's matrix products, FLOP/s.
    #[must_use]
    pub fn ffn_rate(&self) -> f64 {
        match self.weights {
            WeightDtype::Fp8 => self.gpu.fp8,
            WeightDtype::Nvfp4 | WeightDtype::Nvfp4V2 => self.gpu.fp4,
            WeightDtype::Bf16 | WeightDtype::F32 => self.gpu.bf16,
        }
    }

    /// Ranks that attention's heads are split over.
    #[must_use]
    pub fn head_split(&self) -> f64 {
        if self.layout.attention_dp { 1.0 } else { f64::from(self.layout.tp) }
    }

    /// Seconds that one byte leaving a rank takes at full rate, on average over its targets.
    #[must_use]
    pub fn seconds_per_byte(&self) -> f64 {
        let ranks = self.layout.tp;
        if ranks <= self.gpu.nvlink_domain {
            return 1.0 / self.gpu.nvlink;
        }
        // Targets are uniform: the part outside the domain goes through the network card.
        let outside = f64::from(ranks - self.gpu.nvlink_domain) / f64::from(ranks);
        (1.0 - outside) / self.gpu.nvlink + outside / self.gpu.scale_out
    }

    /// Bytes that the layers' all-to-all or all-reduce moves per token of a rank and MoE layer.
    #[must_use]
    pub fn comm_bytes_per_token(&self, facts: &ModelFacts) -> f64 {
        let ranks = f64::from(self.layout.tp);
        if ranks <= 1.0 {
            return 0.0;
        }
        if self.layout.attention_dp {
            // Distinct target ranks of a token's experts; dispatch in the experts' format, combine in BF16.
            let targets = ranks * (1.0 - (1.0 - 1.0 / ranks).powf(facts.top_k));
            let dispatch = if self.weights == WeightDtype::Bf16 { 2.0 } else { self.ffn_bytes().min(1.0) };
            targets * (ranks - 1.0) / ranks * facts.hidden * (dispatch + 2.0)
        } else {
            // Two all-reduces in BF16.
            2.0 * 2.0 * (ranks - 1.0) / ranks * 2.0 * facts.hidden
        }
    }
}
