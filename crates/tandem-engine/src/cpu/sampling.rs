//! Chooses the next token from logits.
//!
//! The random choice depends on the request's seed and the token's index in the output alone,
//! never on the batch or the worker. Order: banned tokens, temperature, `top_k`, `top_p`.

use std::borrow::Cow;

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::engine::Sampling;

/// Chooses token `output_index` of the output; greedy ties go to the lowest id. At least one token must be allowed.
pub(crate) fn choose(logits: &[f32], sampling: &Sampling, output_index: u32) -> u32 {
    let mut allowed = Cow::Borrowed(logits);
    for &token in &sampling.banned {
        if (token as usize) < logits.len() {
            allowed.to_mut()[token as usize] = f32::NEG_INFINITY;
        }
    }
    let index = if sampling.temperature == 0.0 { argmax(&allowed) } else { draw(&allowed, sampling, output_index) };
    u32::try_from(index).expect("a vocabulary has fewer than 2^32 tokens")
}

/// The first index of the largest value; NaN is never chosen over a number.
pub(crate) fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] || values[best].is_nan() {
            best = i;
        }
    }
    best
}

fn draw(logits: &[f32], sampling: &Sampling, output_index: u32) -> usize {
    let mut candidates: Vec<usize> = (0..logits.len()).filter(|&i| logits[i] > f32::NEG_INFINITY).collect();
    if candidates.is_empty() {
        return argmax(logits);
    }
    let descending = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    let top_k = sampling.top_k as usize;
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, descending);
        candidates.truncate(top_k);
    }
    candidates.sort_unstable_by(descending);
    let largest = logits[candidates[0]];
    let weights: Vec<f64> = candidates.iter().map(|&i| (f64::from(logits[i] - largest) / f64::from(sampling.temperature)).exp()).collect();
    let mut total: f64 = weights.iter().sum();
    let mut kept = weights.len();
    if sampling.top_p < 1.0 {
        // The smallest set of most likely tokens whose probability reaches top_p; at least one.
        let threshold = f64::from(sampling.top_p) * total;
        let mut sum = 0.0;
        kept = weights
            .iter()
            .position(|w| {
                sum += w;
                sum >= threshold
            })
            .map_or(kept, |i| i + 1);
        total = weights[..kept].iter().sum();
    }
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(sampling.seed ^ u64::from(output_index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut left = rng.random::<f64>() * total;
    for (&candidate, weight) in candidates.iter().zip(&weights[..kept]) {
        left -= weight;
        if left < 0.0 {
            return candidate;
        }
    }
    candidates[kept - 1]
}

#[cfg(test)]
mod tests {
    use super::Sampling;

    fn choose(logits: &[f32], sampling: &Sampling) -> u32 {
        super::choose(logits, sampling, sampling.output_index)
    }

    fn sampling(temperature: f32, top_k: u32, top_p: f32) -> Sampling {
        Sampling { temperature, top_k, top_p, ..Sampling::GREEDY }
    }

    #[test]
    fn greedy_takes_the_lowest_index_of_equal_logits() {
        assert_eq!(choose(&[0.0, 3.0, 3.0, 1.0], &Sampling::GREEDY), 1);
        assert_eq!(choose(&[f32::NAN, -3.0, f32::NAN], &Sampling::GREEDY), 1);
    }

    #[test]
    fn banned_tokens_are_not_chosen() {
        let banned = Sampling { banned: vec![1, 99], ..Sampling::GREEDY };
        assert_eq!(choose(&[0.0, 3.0, 2.0], &banned), 2);
        for output_index in 0..50 {
            let banned = Sampling { banned: vec![1], output_index, ..sampling(5.0, 0, 1.0) };
            assert_ne!(choose(&[0.0, 3.0, 2.0], &banned), 1);
        }
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        let total: f32 = logits.iter().map(|l| l.exp()).sum();
        let mut counts = [0u32; 4];
        for seed in 0..20_000 {
            let s = Sampling { seed, output_index: 3, ..sampling(1.0, 0, 1.0) };
            let token = choose(&logits, &s);
            assert_eq!(token, choose(&logits, &s), "the same seed chooses the same token");
            counts[token as usize] += 1;
        }
        for (count, logit) in counts.iter().zip(logits) {
            let expected = 20_000.0 * logit.exp() / total;
            assert!((*count as f32 - expected).abs() < 5.0 * expected.sqrt(), "{count} against {expected}");
        }
        let by_index: std::collections::HashSet<u32> =
            (0..40).map(|output_index| choose(&logits, &Sampling { output_index, ..sampling(1.0, 0, 1.0) })).collect();
        assert!(by_index.len() > 1, "the index matters");
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [1.0, 1.0, 5.0, 4.5, 1.0];
        for seed in 0..300 {
            assert!([2, 3].contains(&choose(&logits, &Sampling { seed, ..sampling(10.0, 2, 1.0) })));
            assert_eq!(choose(&logits, &Sampling { seed, ..sampling(1.0, 0, 0.5) }), 2);
            assert_eq!(choose(&logits, &Sampling { seed, ..sampling(1.0, 1, 1.0) }), 2);
            assert_eq!(choose(&logits, &Sampling { seed, ..sampling(1.0, 0, 0.0) }), 2);
        }
    }
}
