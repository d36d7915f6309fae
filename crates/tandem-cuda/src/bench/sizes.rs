//! Which operators, in which sizes, a model has on ranks of different layouts.

use tandem_plan::ModelConfig;

use super::operator::{ExpertsShape, Format, Kind, Operator, Spread};
use crate::kernels::Attention;

/// Ranks over which heads, widths or experts may be split.
const RANKS: [usize; 5] = [1, 2, 4, 8, 16];
/// Ranks over which experts may be spread.
const EXPERT_RANKS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Rows of products.
const MOST_ROWS: usize = 8192;
/// Rows of experts on one rank: their activations take some gigabytes.
const MOST_EXPERT_ROWS: usize = 131_072;
/// Tokens of experts that are split, times the ranks that share them.
const MOST_SPLIT: usize = 16_384;
/// Tokens of all ranks.
const MOST_TOKENS: usize = 65_536;
/// Cached tokens of a batch.
const MOST_CACHED: usize = 1 << 21;
/// Tokens of prompts that are computed at once.
const MOST_PROMPT: usize = 32_768;

/// Powers of two from `low` to `high`; only every second one, but the last, where `quick`.
fn powers(low: usize, high: usize, quick: bool) -> Vec<usize> {
    let all: Vec<usize> = std::iter::successors(Some(low), |x| Some(x * 2)).take_while(|x| *x <= high).collect();
    let last = all.len().saturating_sub(1);
    all.into_iter().enumerate().filter(|(i, _)| !quick || i % 3 == 0 || *i == last).map(|(_, x)| x).collect()
}

/// The operators of `kinds` that a model has; `quick` takes every third size, one rank and eight.
#[must_use]
pub fn operators_of(config: &ModelConfig, kinds: &[Kind], quick: bool) -> Vec<Operator> {
    let ranks: Vec<usize> = if quick { vec![1, 8] } else { RANKS.to_vec() };
    let mut all = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kinds.contains(kind)) {
        match kind {
            Kind::Gemm => all.extend(products(config, &ranks, quick)),
            Kind::MlaBmm => all.extend(absorbed(config, &ranks, quick)),
            Kind::Moe => all.extend(experts(config, quick)),
            Kind::GenerationMla => all.extend(generation(config, &ranks, quick)),
            Kind::ContextMla => all.extend(context(config, &ranks, quick)),
        }
    }
    all
}

/// A width as a size of this machine.
fn wide(x: u32) -> usize {
    usize::try_from(x).unwrap_or(usize::MAX)
}

/// Heads of a rank, for each number of ranks that divides them.
fn heads_of(c: &ModelConfig, ranks: &[usize]) -> Vec<usize> {
    let heads = wide(c.num_attention_heads);
    ranks.iter().filter(|r| heads.is_multiple_of(**r)).map(|r| heads / r).collect()
}

fn products(c: &ModelConfig, ranks: &[usize], quick: bool) -> Vec<Operator> {
    let (hidden, latent) = (wide(c.hidden_size), wide(c.kv_lora_rank));
    let (nope, rope, v) = (wide(c.qk_nope_head_dim), wide(c.qk_rope_head_dim), wide(c.v_head_dim));
    let shared = wide(c.moe_intermediate_size) * wide(c.n_shared_experts.unwrap_or(0));
    let inter = wide(c.intermediate_size);
    // (rows, columns) of the weights on a rank; those of the latents are on every rank.
    let mut weights = match c.q_lora_rank.map(wide) {
        Some(rank) => vec![(rank + latent + rope, hidden)],
        None => vec![(latent + rope, hidden)],
    };
    let queries = c.q_lora_rank.map_or(hidden, wide);
    for heads in heads_of(c, ranks) {
        weights.extend([(heads * (nope + rope), queries), (heads * (nope + v), latent), (hidden, heads * v)]);
    }
    for r in ranks {
        let split = |width: usize| (width > 0 && width.is_multiple_of(*r)).then_some(width / r);
        weights.extend(split(shared).map(|w| [(2 * w, hidden), (hidden, w)]).into_iter().flatten());
        weights.extend(split(inter).map(|w| [(2 * w, hidden), (hidden, w)]).into_iter().flatten());
    }
    let mut seen = std::collections::BTreeSet::new();
    weights.retain(|w| seen.insert(*w));
    let head = |r: &usize| wide(c.vocab_size).is_multiple_of(*r).then_some((wide(c.vocab_size) / r, hidden));
    let mut all = Vec::new();
    let mut add = |format, (n, k)| all.extend(powers(1, MOST_ROWS, quick).into_iter().map(|m| Operator::Gemm { format, m, n, k }));
    for format in [Format::Fp8Block, Format::Bf16] {
        weights.iter().for_each(|w| add(format, *w));
    }
    // The output projection is BF16 in every checkpoint.
    ranks.iter().filter_map(head).for_each(|w| add(Format::Bf16, w));
    all
}

fn absorbed(c: &ModelConfig, ranks: &[usize], quick: bool) -> Vec<Operator> {
    let (latent, nope, v) = (wide(c.kv_lora_rank), wide(c.qk_nope_head_dim), wide(c.v_head_dim));
    let mut all = Vec::new();
    for heads in heads_of(c, ranks) {
        for format in [Format::Fp8, Format::Bf16] {
            for (before, n, k) in [(true, latent, nope), (false, v, latent)] {
                all.extend(powers(1, MOST_ROWS, quick).into_iter().map(|tokens| Operator::Absorbed {
                    before,
                    format,
                    tokens,
                    heads,
                    n,
                    k,
                }));
            }
        }
    }
    all
}

fn experts(c: &ModelConfig, quick: bool) -> Vec<Operator> {
    let Some(experts) = c.n_routed_experts.map(wide).filter(|n| *n > 0) else { return Vec::new() };
    let (inter, topk) = (wide(c.moe_intermediate_size), wide(c.num_experts_per_tok));
    let spread_over: Vec<usize> = if quick { vec![1, 8] } else { EXPERT_RANKS.to_vec() };
    let mut layouts: Vec<(usize, usize)> = spread_over.into_iter().filter(|ep| experts.is_multiple_of(*ep)).map(|ep| (1, ep)).collect();
    let split: &[usize] = if quick { &[] } else { &RANKS[1..] };
    layouts.extend(split.iter().filter(|tp| inter.is_multiple_of(**tp * 128)).map(|tp| (*tp, 1)));
    let mut all = Vec::new();
    for (tp, ep) in layouts {
        for spread in [Spread::Balanced, Spread::PowerLaw] {
            // Without ranks to differ, a skewed load is not asked for.
            if spread == Spread::PowerLaw && ep == 1 {
                continue;
            }
            // Narrow shares of experts spend most of a large batch on moving rows; how long depends on what an engine fuses, so it is not measured.
            let fits = |tokens: &usize| tokens * topk / ep <= MOST_EXPERT_ROWS && (tp == 1 || tokens * tp <= MOST_SPLIT);
            all.extend(powers(1, MOST_TOKENS, quick).into_iter().filter(fits).map(|tokens| {
                Operator::Experts(ExpertsShape { tokens, hidden: wide(c.hidden_size), inter, topk, experts, tp, ep, spread })
            }));
        }
    }
    all
}

/// Whether the attention kernels are made for the model's heads.
fn has_heads_of_deepseek(c: &ModelConfig) -> bool {
    let (latent, rope) = (wide(c.kv_lora_rank), wide(c.qk_rope_head_dim));
    (latent + rope, latent) == (Attention::LATENT_QK, Attention::LATENT_V)
        && (wide(c.qk_nope_head_dim) + rope, wide(c.v_head_dim)) == (Attention::QK, Attention::V)
}

fn generation(c: &ModelConfig, ranks: &[usize], quick: bool) -> Vec<Operator> {
    if !has_heads_of_deepseek(c) {
        return Vec::new();
    }
    let mut all = Vec::new();
    for heads in heads_of(c, ranks) {
        for batch in powers(1, 512, quick) {
            let lengths = powers(128, 131_072, quick).into_iter().filter(|length| batch * length <= MOST_CACHED);
            all.extend(lengths.map(|length| Operator::Generation { heads, batch, length }));
        }
    }
    all
}

fn context(c: &ModelConfig, ranks: &[usize], quick: bool) -> Vec<Operator> {
    if !has_heads_of_deepseek(c) {
        return Vec::new();
    }
    let mut all = Vec::new();
    for heads in heads_of(c, ranks) {
        for batch in powers(1, 8, quick) {
            let lengths = powers(128, MOST_PROMPT, quick).into_iter().filter(|length| batch * length <= MOST_PROMPT);
            all.extend(lengths.map(|length| Operator::Context { heads, batch, length }));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: &str) -> ModelConfig {
        let r1 = r#"{"model_type":"deepseek_v3","vocab_size":129280,"hidden_size":7168,"intermediate_size":18432,"moe_intermediate_size":2048,
            "num_hidden_layers":61,"num_attention_heads":128,"n_shared_experts":1,"n_routed_experts":256,"num_experts_per_tok":8,
            "first_k_dense_replace":3,"q_lora_rank":1536,"kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"v_head_dim":128}"#;
        let mut json: serde_json::Value = serde_json::from_str(r1).unwrap();
        let changes: serde_json::Value = serde_json::from_str(changes).unwrap();
        json.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        ModelConfig::from_json(&json.to_string()).unwrap()
    }

    #[test]
    fn products_are_those_of_the_layers_on_a_rank() {
        let all = operators_of(&config("{}"), &[Kind::Gemm], false);
        let has = |format, n, k| all.contains(&Operator::Gemm { format, m: 8192, n, k });
        for (n, k) in [
            (2112, 7168),
            (24576, 1536),
            (3072, 1536),
            (7168, 16384),
            (7168, 2048),
            (4096, 7168),
            (512, 7168),
            (7168, 256),
            (36864, 7168),
            (4608, 7168),
        ] {
            assert!(has(Format::Fp8Block, n, k) && has(Format::Bf16, n, k), "{n} x {k}");
        }
        assert!(has(Format::Bf16, 129_280, 7168) && has(Format::Bf16, 16_160, 7168) && !has(Format::Fp8Block, 129_280, 7168));
        let mut unique = all.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), all.len(), "nothing is measured twice");
    }

    #[test]
    fn a_model_without_query_latents_or_experts_has_other_operators() {
        let dense = config(r#"{"q_lora_rank": null, "n_routed_experts": null, "n_shared_experts": null}"#);
        let all = operators_of(&dense, &Kind::ALL, false);
        assert!(all.contains(&Operator::Gemm { format: Format::Bf16, m: 1, n: 576, k: 7168 }));
        assert!(all.iter().all(|o| o.kind() != Kind::Moe));
    }

    #[test]
    fn experts_are_spread_or_split_and_fit() {
        let all = operators_of(&config("{}"), &[Kind::Moe], false);
        let of = |tp: usize, ep: usize, spread: Spread| -> Vec<usize> {
            let shapes = all.iter().filter_map(|o| if let Operator::Experts(s) = o { Some(s) } else { None });
            shapes.filter(|s| (s.tp, s.ep, s.spread) == (tp, ep, spread)).map(|s| s.tokens).collect()
        };
        assert_eq!(of(1, 1, Spread::Balanced).last(), Some(&16_384));
        assert_eq!(of(1, 32, Spread::PowerLaw).last(), Some(&65_536));
        assert_eq!([2, 16].map(|tp| of(tp, 1, Spread::Balanced).last().copied()), [Some(8192), Some(1024)]);
        assert!(of(1, 1, Spread::PowerLaw).is_empty());
    }

    #[test]
    fn attention_is_only_measured_where_the_kernels_fit_the_heads() {
        let kinds = [Kind::GenerationMla, Kind::ContextMla];
        let all = operators_of(&config("{}"), &kinds, false);
        assert!(all.contains(&Operator::Generation { heads: 16, batch: 512, length: 4096 }));
        assert!(all.contains(&Operator::Context { heads: 128, batch: 1, length: 32_768 }));
        assert!(operators_of(&config(r#"{"kv_lora_rank": 256}"#), &kinds, false).is_empty());
    }

    #[test]
    fn a_quick_run_is_a_part_of_the_whole_one() {
        let (quick, whole) = (operators_of(&config("{}"), &Kind::ALL, true), operators_of(&config("{}"), &Kind::ALL, false));
        assert!(quick.len() * 5 < whole.len() && quick.iter().all(|o| whole.contains(o)));
    }
}
