//! Chooses experts for a token from its router logits.
//!
//! V3 (`noaux_tc`): sigmoid scores; a bias takes part in choosing but not in weighing; groups
//! are ranked by the sum of their two best. V2: softmax scores; groups ranked by their best,
//! or no groups. Ties go to the lowest index everywhere. Experts outside the kept groups are
//! out of the running whatever their (possibly negative) biased score.

use super::shape::{GroupScore, RouterShape, Scoring};

/// Buffers of one choosing thread.
#[derive(Debug, Default)]
pub(crate) struct RouterScratch {
    choice: Vec<f32>,
    groups: Vec<f32>,
    kept: Vec<usize>,
}

/// Chooses `top_k` experts: their ids in ascending order and the weights of their outputs.
/// `logits` is overwritten by the scores.
pub(crate) fn choose_experts(
    s: &RouterShape,
    logits: &mut [f32],
    bias: &[f32],
    scratch: &mut RouterScratch,
    ids: &mut [u32],
    weights: &mut [f32],
) {
    score(s.scoring, logits);
    let choice = &mut scratch.choice;
    choice.clear();
    choice.extend(logits.iter().zip(bias).map(|(score, b)| score + b));
    if s.group_score != GroupScore::Ungrouped && s.topk_group < s.n_group {
        let size = s.n_experts / s.n_group;
        scratch.groups.clear();
        scratch.groups.extend(choice.chunks(size).map(|group| group_score(s.group_score, group)));
        best(&scratch.groups, s.topk_group, &mut scratch.kept);
        for (g, group) in choice.chunks_mut(size).enumerate() {
            if !scratch.kept.contains(&g) {
                group.fill(f32::NEG_INFINITY);
            }
        }
    }
    best(choice, s.top_k, &mut scratch.kept);
    scratch.kept.sort_unstable();
    for ((id, weight), &expert) in ids.iter_mut().zip(weights.iter_mut()).zip(&scratch.kept) {
        *id = u32::try_from(expert).expect("expert counts fit 32 bits");
        *weight = logits[expert];
    }
    let sum = if s.normalise { weights.iter().sum::<f32>() + 1e-20 } else { 1.0 };
    weights.iter_mut().for_each(|w| *w = *w / sum * s.scale);
}

fn score(scoring: Scoring, logits: &mut [f32]) {
    match scoring {
        Scoring::Sigmoid => logits.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp())),
        Scoring::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            logits.iter_mut().for_each(|x| *x = (*x - max).exp());
            let sum: f32 = logits.iter().sum();
            logits.iter_mut().for_each(|x| *x /= sum);
        }
    }
}

fn group_score(kind: GroupScore, group: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &v in group {
        if v > first {
            (first, second) = (v, first);
        } else if v > second {
            second = v;
        }
    }
    if kind == GroupScore::BestTwo && group.len() > 1 { first + second } else { first }
}

/// Indices of the `n` largest values, largest first, lowest index first among equals.
fn best(values: &[f32], n: usize, out: &mut Vec<usize>) {
    out.clear();
    for (i, v) in values.iter().enumerate() {
        let at = out.iter().position(|&o| *v > values[o]).unwrap_or(out.len());
        if at < n {
            out.truncate(n - 1);
            out.insert(at, i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> RouterShape {
        RouterShape {
            n_experts: 8,
            top_k: 2,
            n_group: 4,
            topk_group: 2,
            scoring: Scoring::Sigmoid,
            group_score: GroupScore::BestTwo,
            has_bias: true,
            normalise: true,
            scale: 2.0,
        }
    }

    fn choose(s: &RouterShape, logits: &[f32], bias: &[f32]) -> (Vec<u32>, Vec<f32>) {
        let (mut ids, mut weights) = (vec![0; s.top_k], vec![0.0; s.top_k]);
        choose_experts(s, &mut logits.to_vec(), bias, &mut RouterScratch::default(), &mut ids, &mut weights);
        (ids, weights)
    }

    #[test]
    fn the_bias_chooses_but_does_not_weigh() {
        let mut bias = [0.0; 8];
        bias[6] = 5.0;
        let (ids, weights) = choose(&shape(), &[0.0, 1.0, -1.0, 0.5, 0.0, 0.0, -2.0, 0.0], &bias);
        assert_eq!(ids[1], 6);
        assert!((weights.iter().sum::<f32>() - 2.0).abs() < 1e-6);
        assert!(weights[1] < weights[0], "a low score keeps its low weight");
    }

    #[test]
    fn kept_groups_win_even_when_all_their_choices_are_negative() {
        let (ids, _) = choose(&shape(), &[0.0; 8], &[-0.9, -0.9, -5.0, -5.0, -0.8, -0.8, -5.0, -5.0]);
        assert_eq!(ids, [4, 5]);
    }

    #[test]
    fn ties_go_to_the_lowest_index() {
        assert_eq!(choose(&shape(), &[0.0; 8], &[0.0; 8]).0, [0, 1]);
        let greedy = RouterShape { group_score: GroupScore::Ungrouped, scoring: Scoring::Softmax, top_k: 3, ..shape() };
        assert_eq!(choose(&greedy, &[0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0], &[0.0; 8]).0, [1, 2, 3]);
    }

    #[test]
    fn group_limited_greedy_ranks_groups_by_their_best() {
        let s = RouterShape {
            group_score: GroupScore::Best,
            scoring: Scoring::Softmax,
            normalise: false,
            scale: 1.0,
            topk_group: 1,
            ..shape()
        };
        let (ids, weights) = choose(&s, &[0.0, 0.0, 2.0, -3.0, 1.9, 1.9, 0.0, 0.0], &[0.0; 8]);
        assert_eq!(ids, [2, 3]);
        let sum: f32 = [0.0f32, 0.0, 2.0, -3.0, 1.9, 1.9, 0.0, 0.0].iter().map(|x| x.exp()).sum();
        assert!((weights[0] - 2f32.exp() / sum).abs() < 1e-6);
    }
}
