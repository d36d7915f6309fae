//! Tokens over experts: how many rows each expert has, and which tokens they are.

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::operator::{ExpertsShape, Spread};

/// Exponent of the power law; 1.01 as in AIConfigurator's tables, so that rows of both mean the same.
const EXPONENT: f64 = 1.01;
/// First rows of groups are multiples of this: copies of scales want 16 bytes.
const ALIGNED: usize = 8;

/// Rows of each of all experts; a token has each expert once at most.
pub(super) fn rows_of_experts(s: &ExpertsShape) -> Vec<usize> {
    let total = s.tokens * s.topk;
    match s.spread {
        Spread::Balanced => (0..s.experts).map(|e| total * (e + 1) / s.experts - total * e / s.experts).collect(),
        Spread::PowerLaw => power_law(s.experts, total, s.tokens),
    }
}

/// Shares drawn by inverse transform from x^−1.01 on `[1, 0.8 · tokens]` (on `[0.01, 2]` where most experts get nothing), rounded so that the
/// sum holds.
fn power_law(experts: usize, total: usize, tokens: usize) -> Vec<usize> {
    let real = super::real;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(0x7a6d);
    let (low, high) = if total > experts { (1.0, 0.8 * real(tokens)) } else { (0.01, 2.0) };
    let power = 1.0 - EXPONENT;
    let (from, to) = (f64::powf(low, power), f64::powf(high, power));
    let drawn: Vec<f64> = (0..experts).map(|_| ((to - from) * rng.random::<f64>() + from).powf(1.0 / power)).collect();
    let sum: f64 = drawn.iter().sum();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between zero and the number of tokens")]
    let mut rows: Vec<usize> = drawn.iter().map(|x| ((x / sum * real(total)).round() as usize).min(tokens)).collect();
    let mut order: Vec<usize> = (0..experts).collect();
    order.sort_by(|a, b| drawn[*b].total_cmp(&drawn[*a]));
    // What rounding and the limit of a row a token left over, from the largest expert on.
    let mut next = order.iter().copied().cycle();
    loop {
        let placed: usize = rows.iter().sum();
        let e = next.next().expect("a cycle never ends");
        match placed.cmp(&total) {
            std::cmp::Ordering::Equal => return rows,
            std::cmp::Ordering::Less => rows[e] += usize::from(rows[e] < tokens),
            std::cmp::Ordering::Greater => rows[e] -= usize::from(rows[e] > 0),
        }
    }
}

/// One rank's share.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Share {
    /// First row and rows of each expert of the rank.
    pub(super) groups: Vec<(usize, usize)>,
    /// The rank's token of each row; none between groups.
    pub(super) source: Vec<Option<usize>>,
    /// Rows of each of the rank's tokens.
    pub(super) rows_of: Vec<Vec<usize>>,
}

impl Share {
    /// Rows that are computed.
    pub(super) fn n_rows(&self) -> usize {
        self.groups.iter().map(|(_, rows)| rows).sum()
    }

    /// Experts that have any.
    pub(super) fn n_touched(&self) -> usize {
        self.groups.iter().filter(|(_, rows)| *rows > 0).count()
    }
}

/// The fullest rank's share.
pub(super) fn fullest(s: &ExpertsShape) -> Share {
    let rows = rows_of_experts(s);
    let local = s.experts / s.ep;
    let load = |rank: &usize| rows[rank * local..(rank + 1) * local].iter().sum::<usize>();
    let rank = (0..s.ep).rev().max_by_key(load).unwrap_or(0);
    // Experts take tokens in turn, so a token has `topk` different ones in all.
    let mut next: usize = rows[..rank * local].iter().sum();
    let mut names = std::collections::BTreeMap::new();
    let (mut groups, mut source, mut rows_of): (Vec<_>, Vec<Option<usize>>, Vec<Vec<usize>>) = Default::default();
    for &n in &rows[rank * local..(rank + 1) * local] {
        groups.push((source.len(), n));
        for _ in 0..n {
            let token = *names.entry(next % s.tokens).or_insert_with(|| {
                rows_of.push(Vec::new());
                rows_of.len() - 1
            });
            rows_of[token].push(source.len());
            source.push(Some(token));
            next += 1;
        }
        source.resize(source.len().next_multiple_of(ALIGNED), None);
    }
    Share { groups, source, rows_of }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(tokens: usize, ep: usize, spread: Spread) -> ExpertsShape {
        ExpertsShape { tokens, hidden: 7168, inter: 2048, topk: 8, experts: 256, tp: 1, ep, spread }
    }

    #[test]
    fn every_row_is_placed_and_no_token_has_an_expert_twice() {
        for tokens in [1, 2, 7, 64, 1000, 4096] {
            for spread in [Spread::Balanced, Spread::PowerLaw] {
                let rows = rows_of_experts(&shape(tokens, 1, spread));
                assert_eq!(rows.iter().sum::<usize>(), tokens * 8, "{tokens} {spread:?}");
                assert!(rows.iter().all(|n| *n <= tokens));
                let share = fullest(&shape(tokens, 1, spread));
                assert_eq!(share.n_rows(), tokens * 8);
                assert_eq!(share.rows_of.len(), tokens);
                assert!(share.rows_of.iter().all(|rows| rows.len() == 8));
                for (first, n) in &share.groups {
                    let mut tokens: Vec<_> = share.source[*first..first + n].iter().map(|t| t.unwrap()).collect();
                    tokens.sort_unstable();
                    tokens.dedup();
                    assert_eq!((tokens.len(), first % 8), (*n, 0));
                }
            }
        }
    }

    #[test]
    fn balanced_experts_differ_by_a_row_at_most_and_skewed_ones_by_far_more() {
        let even = rows_of_experts(&shape(1000, 8, Spread::Balanced));
        assert!(even.iter().max().unwrap() - even.iter().min().unwrap() <= 1);
        let skewed = rows_of_experts(&shape(1000, 8, Spread::PowerLaw));
        assert!(skewed.iter().max().unwrap() > &(4 * 1000 * 8 / 256));
        assert!(fullest(&shape(1000, 8, Spread::PowerLaw)).n_rows() > fullest(&shape(1000, 8, Spread::Balanced)).n_rows() * 5 / 4);
    }

    #[test]
    fn the_fullest_rank_of_one_token_has_its_share_of_experts() {
        let share = fullest(&shape(1, 32, Spread::Balanced));
        assert_eq!((share.n_rows(), share.n_touched(), share.rows_of.len()), (1, 1, 1));
        assert_eq!(fullest(&shape(1, 4, Spread::Balanced)).n_rows(), 2);
    }
}
