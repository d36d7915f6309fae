//! The time of one decode step.

use std::sync::Arc;

use super::{Coefficients, ModelFacts, Shape};
use crate::tables::Operators;

/// Who takes part in a decode step of one worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeLoad {
    /// Sequences of the fullest attention rank.
    pub rank_sequences: f64,
    /// Cached tokens that the rank with the most of them reads.
    pub rank_context: f64,
    /// Sequences of all ranks.
    pub sequences: f64,
}

/// Batches at which a correction is given: 1, 2, 4, … 1024 sequences of an attention rank.
pub const CORRECTION_BATCHES: usize = 11;

/// What a fit multiplies step times by: logarithms at mean batches of an attention rank, linear in the logarithm of the batch between.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Correction(pub [f64; CORRECTION_BATCHES]);

impl Correction {
    /// The same factor for all batches.
    #[must_use]
    pub fn constant(factor: f64) -> Self {
        Correction([factor.ln(); CORRECTION_BATCHES])
    }

    /// The same, longer by a factor whose logarithm is `ln`.
    #[must_use]
    pub fn shifted(&self, ln: f64) -> Self {
        Correction(self.0.map(|own| own + ln))
    }

    /// The factor at a mean batch; beyond 1 to 1024 that of the end.
    #[must_use]
    pub fn factor(&self, batch: f64) -> f64 {
        let position = batch.clamp(1.0, 1024.0).log2();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 10")]
        let low = (position as usize).min(CORRECTION_BATCHES - 2);
        let share = position - f64::from(u8::try_from(low).unwrap_or_default());
        let (a, b) = (self.0[low], self.0[low + 1]);
        (a + share * (b - a)).clamp(-2.0, 2.0).exp()
    }
}

/// Step time of one worker in decode, compiled for fast evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodeCost {
    fixed: f64,
    /// Depth relative to the main model: MTP layers add to it.
    depth: f64,
    dense_mem: f64,
    dense_token: f64,
    context_mem: f64,
    context_token: f64,
    expert_mem: f64,
    expert_token: f64,
    untouched_base: f64,
    comm_token: f64,
    sequence: f64,
    tokens_per_sequence: f64,
    micro: f64,
    accepted: f64,
    ranks: f64,
    correction: Correction,
    measured: Option<Arc<Operators>>,
}

impl DecodeCost {
    /// Compiles the costs of a worker.
    #[must_use]
    pub fn new(facts: &ModelFacts, shape: &Shape, c: &Coefficients, correction: Correction) -> Self {
        let split = shape.head_split();
        let ranks = f64::from(shape.layout.tp);
        let hbm = 1.0 / (c.hbm * shape.gpu.hbm);
        let attention_flops = 1.0 / (c.decode_tensor * shape.attention_rate());
        let ffn_flops = 1.0 / (c.decode_tensor * shape.ffn_rate());
        let attention = facts.layers * (facts.attention_whole + facts.attention_split / split);
        let ffn = (facts.moe_layers * facts.shared + facts.dense_layers * facts.dense) / split;
        let head = facts.head / split;
        // What of attention has another format than the rest.
        let output = facts.layers * facts.attention_output / split;
        let output_mem = (shape.output_bytes() - shape.attention_bytes()) * output;
        let output_flops = (1.0 / (c.decode_tensor * shape.output_rate()) - attention_flops) * output;
        let doublings = ranks.log2();
        let imbalance = if shape.layout.ep > 1 { 1.0 + (c.imbalance - 1.0) * eplb_relief(facts, shape) } else { 1.0 };
        let drafts = f64::from(shape.mtp);
        let tokens = 1.0 + drafts;
        let experts = facts.experts.max(1.0);
        DecodeCost {
            fixed: (facts.layers * (c.layer_s + c.sync_s * doublings) + c.host_step_s),
            depth: 1.0 + drafts / facts.layers,
            dense_mem: hbm * (shape.attention_bytes() * attention + shape.ffn_bytes() * ffn + 2.0 * head + output_mem),
            dense_token: 2.0 * (attention_flops * attention + ffn_flops * ffn + head / (c.decode_tensor * shape.gpu.bf16) + output_flops),
            context_mem: hbm * facts.layers * facts.kv_values * shape.kv_value_bytes,
            context_token: facts.layers * facts.decode_pair_flops / split / (c.decode_attention * shape.attention_rate()),
            expert_mem: hbm * shape.ffn_bytes() * facts.moe_layers * facts.expert * facts.experts / ranks,
            expert_token: 2.0 * ffn_flops * facts.moe_layers * facts.top_k * facts.expert / ranks * imbalance,
            untouched_base: (1.0 - facts.top_k.min(experts) / experts).max(f64::MIN_POSITIVE).ln(),
            comm_token: facts.moe_layers * shape.comm_bytes_per_token(facts) * shape.seconds_per_byte() / c.comm,
            sequence: c.host_seq_s,
            tokens_per_sequence: tokens,
            micro: f64::from(shape.layout.pp),
            accepted: accepted(shape.mtp, c.acceptance),
            ranks: f64::from(shape.layout.attention_dp_size()),
            correction,
            measured: shape.measured.clone(),
        }
    }

    /// Tokens that a sequence gains per step.
    #[must_use]
    pub const fn tokens_per_step(&self) -> f64 {
        self.accepted
    }

    /// Seconds of a step in which every sequence of the worker takes part once.
    ///
    /// With a pipeline, each stage works on another micro-batch: a step of one sequence passes all stages, each with its share
    /// of the batch. Sequences in flight = throughput × step time, so stages hide nothing and create nothing.
    #[must_use]
    pub fn step(&self, load: DecodeLoad) -> f64 {
        let (sequences, context) = (load.rank_sequences / self.micro, load.rank_context / self.micro);
        let rank_tokens = sequences * self.tokens_per_sequence;
        let tokens = load.sequences / self.micro * self.tokens_per_sequence;
        let touched = 1.0 - (self.untouched_base * tokens).exp();
        let table = self.measured.as_deref();
        let dense = match table.and_then(|t| t.decode_dense.as_ref()) {
            Some(measured) => measured.seconds(rank_tokens),
            None => self.dense_mem.max(self.dense_token * rank_tokens),
        };
        let attention = match table.and_then(|t| t.decode_attention.as_ref()) {
            Some(measured) => measured.seconds(sequences, context / sequences, context, context * self.tokens_per_sequence),
            None => (self.context_mem * context).max(self.context_token * context * self.tokens_per_sequence),
        };
        let experts = match table.and_then(|t| t.experts.as_ref()) {
            Some(measured) => measured.seconds_of_experts(tokens, touched),
            None => (self.expert_mem * touched).max(self.expert_token * tokens),
        };
        let comm = match table.and_then(|t| t.comm.as_ref()) {
            Some(measured) => measured.seconds(rank_tokens),
            None => self.comm_token * rank_tokens,
        };
        let whole = (self.fixed + dense + attention + experts + comm) * self.depth + self.sequence * sequences;
        whole * self.correction.factor(load.sequences / self.ranks)
    }
}

/// What spare expert slots leave of the imbalance: none at all with twice as many slots as experts.
fn eplb_relief(facts: &ModelFacts, shape: &Shape) -> f64 {
    if shape.eplb_slots == 0 {
        return 1.0;
    }
    let spare = (f64::from(shape.eplb_slots) / facts.experts.max(1.0) - 1.0).max(0.0);
    (0.5 - 0.5 * spare).max(0.0)
}

/// Tokens per step with `drafts` drafted tokens of which each is accepted with probability `p` if the ones before were.
fn accepted(drafts: u32, p: f64) -> f64 {
    (1..=drafts).map(|i| p.powf(f64::from(i))).sum::<f64>() + 1.0
}
