//! Dimensions of the model as the kernels want them, and which variants can be computed.

use tandem_plan::ModelConfig;

use super::rope::softmax_scale;
use crate::engine::EngineError;

/// Epsilon of the norms of the low-rank projections, whatever `rms_norm_eps` says.
pub(crate) const LORA_EPS: f32 = 1e-6;

/// How router scores become probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scoring {
    Sigmoid,
    Softmax,
}

/// How a group of experts is scored before the best groups are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupScore {
    /// V3: the sum of the group's two best biased scores.
    BestTwo,
    /// V2 `group_limited_greedy`: the best score.
    Best,
    /// `greedy`: groups play no part.
    Ungrouped,
}

/// The router of a mixture-of-experts layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RouterShape {
    pub(crate) n_experts: usize,
    pub(crate) top_k: usize,
    pub(crate) n_group: usize,
    pub(crate) topk_group: usize,
    pub(crate) scoring: Scoring,
    pub(crate) group_score: GroupScore,
    /// `noaux_tc`: a bias takes part in choosing, not in weighing.
    pub(crate) has_bias: bool,
    pub(crate) normalise: bool,
    pub(crate) scale: f32,
}

/// Dimensions of a model.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
    pub(crate) n_layers: usize,
    pub(crate) heads: usize,
    pub(crate) q_lora: Option<usize>,
    /// Width of the latent.
    pub(crate) latent: usize,
    pub(crate) nope: usize,
    pub(crate) rope: usize,
    pub(crate) v: usize,
    pub(crate) dense_width: usize,
    pub(crate) expert_width: usize,
    /// Width of all shared experts together; 0 = none.
    pub(crate) shared_width: usize,
    pub(crate) router: Option<RouterShape>,
    pub(crate) eps: f32,
    pub(crate) softmax_scale: f32,
}

impl Shape {
    /// Reads the dimensions of `config`.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] for a router variant that is not known.
    #[expect(clippy::cast_possible_truncation, reason = "factors and epsilons are applied in f32")]
    pub(crate) fn new(config: &ModelConfig) -> Result<Self, EngineError> {
        let size = |n: u32| n as usize;
        Ok(Self {
            vocab: size(config.vocab_size),
            hidden: size(config.hidden_size),
            n_layers: size(config.num_hidden_layers),
            heads: size(config.num_attention_heads),
            q_lora: config.q_lora_rank.map(size),
            latent: size(config.kv_lora_rank),
            nope: size(config.qk_nope_head_dim),
            rope: size(config.qk_rope_head_dim),
            v: size(config.v_head_dim),
            dense_width: size(config.intermediate_size),
            expert_width: size(config.moe_intermediate_size),
            shared_width: size(config.moe_intermediate_size) * size(config.n_shared_experts.unwrap_or(0)),
            router: config.n_routed_experts.map(|n| router_shape(config, size(n))).transpose()?,
            eps: config.rms_norm_eps as f32,
            softmax_scale: softmax_scale(config),
        })
    }

    /// Width of one query head.
    pub(crate) fn head(&self) -> usize {
        self.nope + self.rope
    }

    /// Values the cache holds per token and layer.
    pub(crate) fn kv_values(&self) -> usize {
        self.latent + self.rope
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the factor is applied in f32")]
fn router_shape(config: &ModelConfig, n_experts: usize) -> Result<RouterShape, EngineError> {
    let unsupported = |reason: String| EngineError::Unsupported { engine: "cpu", reason };
    let scoring = match config.scoring_func.as_str() {
        "sigmoid" => Scoring::Sigmoid,
        "softmax" => Scoring::Softmax,
        other => return Err(unsupported(format!("scoring_func `{other}` is not sigmoid or softmax"))),
    };
    let (group_score, has_bias) = match config.topk_method.as_str() {
        "noaux_tc" => (GroupScore::BestTwo, true),
        "group_limited_greedy" => (GroupScore::Best, false),
        "greedy" => (GroupScore::Ungrouped, false),
        other => return Err(unsupported(format!("topk_method `{other}` is not noaux_tc, group_limited_greedy or greedy"))),
    };
    Ok(RouterShape {
        n_experts,
        top_k: config.num_experts_per_tok as usize,
        n_group: config.n_group as usize,
        topk_group: config.topk_group as usize,
        scoring,
        group_score,
        has_bias,
        normalise: config.norm_topk_prob,
        scale: config.routed_scaling_factor as f32,
    })
}
