//! The architecture of a DeepSeek-V2/V3/R1-style model, as its `config.json` states it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Architecture of a multi-head-latent-attention mixture-of-experts model.
///
/// Field names are those of Hugging Face's `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// `deepseek_v3` or `deepseek_v2`.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width of a dense feed-forward layer.
    pub intermediate_size: u32,
    /// Width of one expert.
    pub moe_intermediate_size: u32,
    /// Decoder layers without the MTP layers.
    pub num_hidden_layers: u32,
    /// MTP layers in the checkpoint.
    #[serde(default)]
    pub num_nextn_predict_layers: u32,
    /// Attention heads.
    pub num_attention_heads: u32,
    /// Shared experts (their widths add up).
    #[serde(default)]
    pub n_shared_experts: Option<u32>,
    /// Routed experts; absent in a dense model.
    #[serde(default)]
    pub n_routed_experts: Option<u32>,
    /// Experts a token uses.
    #[serde(default = "one")]
    pub num_experts_per_tok: u32,
    /// Expert groups.
    #[serde(default = "one")]
    pub n_group: u32,
    /// Groups kept by the router.
    #[serde(default = "one")]
    pub topk_group: u32,
    /// Factor of the routed experts' sum.
    #[serde(default = "one_f")]
    pub routed_scaling_factor: f64,
    /// Whether top-k weights are normalised to 1 before scaling.
    #[serde(default)]
    pub norm_topk_prob: bool,
    /// `sigmoid` (V3) or `softmax` (V2).
    #[serde(default = "softmax")]
    pub scoring_func: String,
    /// `noaux_tc` (V3), `group_limited_greedy` or `greedy` (V2).
    #[serde(default = "greedy")]
    pub topk_method: String,
    /// Leading layers with a dense feed-forward.
    #[serde(default)]
    pub first_k_dense_replace: u32,
    /// Every n-th later layer is MoE.
    #[serde(default = "one")]
    pub moe_layer_freq: u32,
    /// Rank of the query projection; none = one full projection (V2-Lite).
    #[serde(default)]
    pub q_lora_rank: Option<u32>,
    /// Rank of the latent KV.
    pub kv_lora_rank: u32,
    /// Unrotated part of a query/key head.
    pub qk_nope_head_dim: u32,
    /// Rotated part of a query/key head.
    pub qk_rope_head_dim: u32,
    /// Value head width.
    pub v_head_dim: u32,
    /// Epsilon of the RMS norms (but those of the low-rank projections, which use 1e-6).
    #[serde(default = "eps")]
    pub rms_norm_eps: f64,
    /// Longest position.
    #[serde(default = "max_positions")]
    pub max_position_embeddings: u32,
    /// Base of the rotary embedding.
    #[serde(default = "theta")]
    pub rope_theta: f64,
    /// YaRN, or none for plain rotary embedding.
    #[serde(default)]
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the output projection is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Token that starts a text.
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    /// Token that ends a text.
    #[serde(default)]
    pub eos_token_id: Option<u32>,
    /// FP8 block quantisation of the weights, if any.
    #[serde(default)]
    pub quantization_config: Option<QuantizationConfig>,
}

/// YaRN rope scaling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    /// `yarn`.
    #[serde(rename = "type", alias = "rope_type")]
    pub kind: String,
    /// Context extension factor.
    pub factor: f64,
    /// Context length of pre-training.
    pub original_max_position_embeddings: u32,
    /// Rotations above which a dimension is left alone.
    pub beta_fast: f64,
    /// Rotations below which a dimension is interpolated.
    pub beta_slow: f64,
    /// Attention factor of the rotated part.
    pub mscale: f64,
    /// Attention factor of the whole head.
    pub mscale_all_dim: f64,
}

/// `quantization_config` of an FP8 or NVFP4 checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuantizationConfig {
    /// `fp8`, or `modelopt` for NVFP4.
    pub quant_method: String,
    /// Rows and columns that share a scale, in FP8.
    #[serde(default = "block")]
    pub weight_block_size: [u32; 2],
    /// `NVFP4`, where a checkpoint states it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quant_algo: Option<String>,
    /// Names of modules that are not quantised, `*` for anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty", alias = "exclude_modules")]
    pub ignore: Vec<String>,
}

impl QuantizationConfig {
    /// Whether its weights have 4 bits.
    #[must_use]
    pub fn is_nvfp4(&self) -> bool {
        self.quant_algo.as_deref().is_some_and(|algo| algo.eq_ignore_ascii_case("nvfp4"))
    }

    /// Whether the attention's output projections are among what is not quantised.
    pub(crate) fn leaves_output_projection(&self) -> bool {
        self.ignore.iter().any(|name| {
            let name = name.trim_end_matches(['*', '.']);
            name.ends_with("o_proj") || name.ends_with("self_attn")
        })
    }
}

/// Why a `config.json` cannot be served.
#[derive(Debug, Error)]
pub enum ModelConfigError {
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("config.json does not describe a DeepSeek-V2/V3-style model")]
    Parse(#[from] serde_json::Error),
    /// A field has a value that the architecture does not allow.
    #[error("config.json: {field}: {reason}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
}

fn one() -> u32 {
    1
}
fn one_f() -> f64 {
    1.0
}
fn softmax() -> String {
    "softmax".into()
}
fn greedy() -> String {
    "greedy".into()
}
fn eps() -> f64 {
    1e-6
}
fn max_positions() -> u32 {
    163_840
}
fn block() -> [u32; 2] {
    [128, 128]
}
fn theta() -> f64 {
    10_000.0
}

/// Brings the spellings of different library versions to one: `rope_parameters` or `rope_scaling`, `rope_type` beside or
/// instead of `type`, the base inside or outside, `default` for no scaling.
fn normalise_rope(json: &mut serde_json::Value) {
    let Some(config) = json.as_object_mut() else { return };
    let newer = config.remove("rope_parameters");
    let older = config.remove("rope_scaling").filter(|rope| !rope.is_null());
    let Some(mut rope) = older.or(newer) else { return };
    let Some(fields) = rope.as_object_mut() else {
        // Not a mapping: put back for the reader to refuse.
        config.insert("rope_scaling".to_owned(), rope);
        return;
    };
    if let Some(kind) = fields.remove("rope_type") {
        fields.entry("type").or_insert(kind);
    }
    if let Some(theta) = fields.remove("rope_theta") {
        config.entry("rope_theta").or_insert(theta);
    }
    if fields.get("type").is_some_and(|kind| kind != "default") {
        config.insert("rope_scaling".to_owned(), rope);
    }
}

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`ModelConfigError`] when it is not such a model.
    pub fn from_json(text: &str) -> Result<Self, ModelConfigError> {
        let mut json = serde_json::from_str(text)?;
        normalise_rope(&mut json);
        let config: ModelConfig = serde_json::from_value(json)?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ModelConfigError> {
        let invalid = |field, reason: String| Err(ModelConfigError::Invalid { field, reason });
        if !matches!(self.model_type.as_str(), "deepseek_v3" | "deepseek_v2") {
            return invalid("model_type", format!("`{}` is not deepseek_v3 or deepseek_v2", self.model_type));
        }
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("kv_lora_rank", self.kv_lora_rank),
            ("qk_nope_head_dim", self.qk_nope_head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("v_head_dim", self.v_head_dim),
            ("moe_layer_freq", self.moe_layer_freq),
            ("n_group", self.n_group),
        ] {
            if value == 0 {
                return invalid(field, "must not be 0".into());
            }
        }
        if !self.qk_rope_head_dim.is_multiple_of(2) {
            return invalid("qk_rope_head_dim", "must be even".into());
        }
        if let Some(scaling) = &self.rope_scaling
            && scaling.kind != "yarn"
        {
            return invalid("rope_scaling", format!("type `{}` is not supported (expected yarn)", scaling.kind));
        }
        let Some(experts) = self.n_routed_experts else { return Ok(()) };
        if !experts.is_multiple_of(self.n_group) {
            return invalid("n_routed_experts", format!("{experts} is not divisible by n_group {}", self.n_group));
        }
        if self.topk_group == 0 || self.topk_group > self.n_group {
            return invalid("topk_group", format!("{} is not between 1 and n_group {}", self.topk_group, self.n_group));
        }
        if self.num_experts_per_tok == 0 || self.num_experts_per_tok > experts / self.n_group * self.topk_group {
            return invalid("num_experts_per_tok", format!("{} experts are not in the kept groups", self.num_experts_per_tok));
        }
        Ok(())
    }

    /// Whether decoder layer `layer` (MTP layers included) has routed experts.
    #[must_use]
    pub fn is_moe_layer(&self, layer: u32) -> bool {
        self.n_routed_experts.is_some()
            && (layer >= self.num_hidden_layers || (layer >= self.first_k_dense_replace && layer.is_multiple_of(self.moe_layer_freq)))
    }

    /// Values that the KV cache holds per token and layer: the latent and the rotated key.
    #[must_use]
    pub const fn kv_values_per_token_layer(&self) -> u32 {
        self.kv_lora_rank + self.qk_rope_head_dim
    }
}
