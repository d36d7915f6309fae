//! The time of one prefill iteration.

use std::sync::Arc;

use super::{Coefficients, ModelFacts, Shape};
use crate::tables::Operators;

/// What an iteration of one worker computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrefillLoad {
    /// Prompt tokens of the fullest attention rank.
    pub rank_tokens: f64,
    /// Query-key pairs of the rank with the most of them.
    pub rank_pairs: f64,
    /// Prompt tokens of all ranks.
    pub tokens: f64,
}

/// Iteration time of one worker in prefill, compiled for fast evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct PrefillCost {
    factor: f64,
    /// 1 − (experts per token) / experts, as a logarithm.
    untouched_base: f64,
    fixed: f64,
    dense_mem: f64,
    dense_token: f64,
    pair: f64,
    expert_mem: f64,
    expert_token: f64,
    comm_token: f64,
    stages: f64,
    measured: Option<Arc<Operators>>,
}

impl PrefillCost {
    /// Compiles the costs of a worker; `factor` multiplies the whole iteration (a correction by GPU and stack).
    #[must_use]
    pub fn new(facts: &ModelFacts, shape: &Shape, c: &Coefficients, factor: f64) -> Self {
        let split = shape.head_split();
        let ranks = f64::from(shape.layout.tp);
        let hbm = 1.0 / (c.hbm * shape.gpu.hbm);
        let attention = facts.layers * (facts.attention_whole + facts.attention_split / split);
        let ffn = (facts.moe_layers * facts.shared + facts.dense_layers * facts.dense) / split;
        let attention_flops = 1.0 / (c.prefill_tensor * shape.attention_rate());
        let ffn_flops = 1.0 / (c.prefill_tensor * shape.ffn_rate());
        // What of attention has another format than the rest.
        let output = facts.layers * facts.attention_output / split;
        let output_mem = (shape.output_bytes() - shape.attention_bytes()) * output;
        let output_flops = (1.0 / (c.prefill_tensor * shape.output_rate()) - attention_flops) * output;
        let imbalance = if shape.layout.ep > 1 { c.imbalance } else { 1.0 };
        let experts = facts.experts.max(1.0);
        PrefillCost {
            factor,
            untouched_base: (1.0 - facts.top_k.min(experts) / experts).max(f64::MIN_POSITIVE).ln(),
            fixed: factor * c.prefill_step_s,
            dense_mem: factor * hbm * (shape.attention_bytes() * attention + shape.ffn_bytes() * ffn + output_mem),
            dense_token: factor * 2.0 * (attention_flops * attention + ffn_flops * ffn + output_flops),
            pair: factor * facts.layers * facts.prefill_pair_flops / split / (c.prefill_attention * shape.gpu.bf16),
            expert_mem: factor * hbm * shape.ffn_bytes() * facts.moe_layers * facts.expert * facts.experts / ranks,
            expert_token: factor * 2.0 * ffn_flops * facts.moe_layers * facts.top_k * facts.expert / ranks * imbalance,
            comm_token: factor * facts.moe_layers * shape.comm_bytes_per_token(facts) * shape.seconds_per_byte() / c.comm,
            stages: f64::from(shape.layout.pp),
            measured: shape.measured.clone(),
        }
    }

    /// Seconds from the start of an iteration to its last layer.
    #[must_use]
    pub fn iteration(&self, load: PrefillLoad) -> f64 {
        let table = self.measured.as_deref();
        let (tokens, pairs) = (load.rank_tokens, load.rank_pairs);
        let dense = match table.and_then(|t| t.prefill_dense.as_ref()) {
            Some(measured) => self.factor * measured.seconds(tokens),
            None => self.dense_mem.max(self.dense_token * tokens),
        };
        let experts = match table.and_then(|t| t.experts.as_ref()) {
            Some(measured) => self.factor * measured.seconds_of_experts(load.tokens, 1.0 - (self.untouched_base * load.tokens).exp()),
            None => self.expert_mem.max(self.expert_token * load.tokens),
        };
        let attention = match table.and_then(|t| t.prefill_attention.as_ref()) {
            // Prompts whose tokens and pairs these are.
            Some(measured) if tokens > 0.0 => {
                let prompt = 2.0 * pairs / tokens;
                self.factor * measured.seconds(tokens / prompt.max(1.0), prompt, 0.0, pairs)
            }
            _ => self.pair * pairs,
        };
        let comm = match table.and_then(|t| t.comm.as_ref()) {
            Some(measured) => self.factor * measured.seconds(tokens),
            None => self.comm_token * tokens,
        };
        self.fixed + dense + experts + attention + comm
    }

    /// Seconds after which the next iteration can start: pipeline stages work on different iterations.
    ///
    /// A bubble of one stage's share remains for each change of batch size.
    #[must_use]
    pub fn interval(&self, load: PrefillLoad) -> f64 {
        let whole = self.iteration(load);
        if self.stages <= 1.0 { whole } else { whole / self.stages * 1.08 }
    }
}
