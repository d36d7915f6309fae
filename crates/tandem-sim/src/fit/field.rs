//! What the named features of a correction leave over, as a Gaussian process over the coordinates of configurations.
//!
//! The correction of a configuration is `features · weights + Σ weight_i · k(distance to centre i)` with the Matérn kernel of smoothness
//! 5/2 (Rasmussen and Williams 2006, chapters 2 and 4). A centre is a fitted configuration: near it the correction follows what was
//! measured there, far from all of them only the features are left.
//!
//! Most coordinates of a configuration do not change with its load. Searches ask for many loads of few configurations, so values are
//! tabled along the load and remembered.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::ridge::{Equation, cholesky_solve, dot};

/// Nodes of a table along the load.
pub(crate) const NODES: usize = 14;
/// Configurations that are remembered; more than a search has, so that it never forgets.
const REMEMBERED: usize = 20_000;
/// Passes of the robust solution.
const PASSES: usize = 5;

/// Values at the nodes of a load axis.
pub(crate) type Table = [f64; NODES];

/// What was assumed of the correction before any row was seen, as standard deviations of logarithms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Prior {
    /// Of the smooth part.
    pub(crate) amplitude: f64,
    /// Of a row of weight 1.
    pub(crate) noise: f64,
    /// Of a feature's weight whose penalty is 1.
    pub(crate) feature: f64,
    /// Residual beyond which an error counts linearly.
    pub(crate) huber: f64,
}

/// Fitted configurations and their weights.
#[derive(Debug, Default)]
pub struct Field {
    /// Scaled coordinates, one centre after the other.
    centres: Vec<f64>,
    weights: Vec<f64>,
    memo: Mutex<BTreeMap<Vec<u64>, Table>>,
}

impl Clone for Field {
    fn clone(&self) -> Self {
        Field { centres: self.centres.clone(), weights: self.weights.clone(), memo: Mutex::default() }
    }
}

impl PartialEq for Field {
    fn eq(&self, other: &Self) -> bool {
        self.centres == other.centres && self.weights == other.weights
    }
}

impl Field {
    fn dims(&self) -> usize {
        self.centres.len() / self.weights.len().max(1)
    }

    fn parts(&self) -> impl Iterator<Item = (&[f64], f64)> {
        self.centres.chunks_exact(self.dims().max(1)).zip(self.weights.iter().copied())
    }

    /// Value at the coordinates `fixed` and each of `nodes`, which are the last ones of a centre.
    pub(crate) fn table<const LOAD: usize>(&self, fixed: &[f64], nodes: &[[f64; LOAD]; NODES]) -> Table {
        let key: Vec<u64> = fixed.iter().map(|v| v.to_bits()).collect();
        let mut memo = self.memo.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = memo.get(&key) {
            return *known;
        }
        let mut table = [0.0; NODES];
        for (centre, weight) in self.parts() {
            let (there, load) = centre.split_at(centre.len() - LOAD);
            let apart = square_distance(there, fixed);
            for (value, node) in table.iter_mut().zip(nodes) {
                *value += weight * kernel(apart + square_distance(load, node));
            }
        }
        if memo.len() < REMEMBERED {
            memo.insert(key, table);
        }
        table
    }

    /// Value at `at`.
    #[cfg(test)]
    pub(crate) fn value(&self, at: &[f64]) -> f64 {
        self.parts().map(|(centre, weight)| weight * kernel(square_distance(centre, at))).sum()
    }

    /// Kernel between `at` and the nearest centre: 1 at a fitted configuration, 0 far from all.
    pub(crate) fn nearness(&self, at: &[f64]) -> f64 {
        self.parts().map(|(centre, _)| kernel(square_distance(centre, at))).fold(0.0, f64::max)
    }

    /// Adds the centres of another field to this one.
    pub(super) fn extend(&mut self, other: &Field) {
        self.centres.extend_from_slice(&other.centres);
        self.weights.extend_from_slice(&other.weights);
        self.memo = Mutex::default();
    }

    /// One text a centre: its weight, then its coordinates.
    pub(crate) fn to_lines(&self) -> Vec<String> {
        let line = |(centre, weight): (&[f64], f64)| {
            let words: Vec<String> = centre.iter().map(|c| format!("{}", (c * 1e3).round() / 1e3)).collect();
            format!("{weight:.5} {}", words.join(" "))
        };
        self.parts().map(line).collect()
    }

    /// From such texts, each with `dims` coordinates.
    pub(crate) fn from_lines<'a>(lines: impl Iterator<Item = &'a str>, dims: usize) -> Option<Self> {
        let mut field = Field::default();
        for line in lines {
            let mut numbers = line.split_whitespace().map(|w| w.parse::<f64>().ok());
            field.weights.push(numbers.next()??);
            let coordinates = numbers.collect::<Option<Vec<f64>>>().filter(|c| c.len() == dims)?;
            field.centres.extend(coordinates);
        }
        Some(field)
    }
}

fn square_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// Matérn 5/2 of a squared distance.
fn kernel(square: f64) -> f64 {
    let r = (5.0 * square).sqrt();
    (1.0 + r + r * r / 3.0) * (-r).exp()
}

/// Weights of features and the field that together are most probable for `equations`, under `prior` and the features' penalties.
pub(super) fn posterior(equations: &[Equation], penalties: &[f64], prior: &Prior) -> (Vec<f64>, Field) {
    let n = equations.len();
    let variance: Vec<f64> = penalties.iter().map(|p| prior.feature * prior.feature / p.max(1e-9)).collect();
    let smooth = prior.amplitude * prior.amplitude;
    let lower: Vec<Vec<f64>> = equations
        .iter()
        .enumerate()
        .map(|(i, a)| {
            let scaled: Vec<f64> = a.x.iter().zip(&variance).map(|(x, v)| x * v).collect();
            equations[..=i].iter().map(|b| dot(&scaled, &b.x) + smooth * kernel(square_distance(&a.at, &b.at))).collect()
        })
        .collect();
    let y: Vec<f64> = equations.iter().map(|e| e.y).collect();
    let mut doubt = vec![1.0; n];
    let mut weights = vec![0.0; n];
    for _ in 0..PASSES {
        let noise: Vec<f64> =
            equations.iter().zip(&doubt).map(|(e, doubt)| prior.noise * prior.noise * doubt / e.weight.max(1e-3)).collect();
        let mut system = lower.clone();
        for i in 0..n {
            system[i][i] += noise[i];
        }
        weights = cholesky_solve(system, y.clone());
        // What the solution leaves of a row is its noise times its weight.
        for i in 0..n {
            doubt[i] = ((noise[i] * weights[i]).abs() / prior.huber).max(1.0);
        }
    }
    let feature = |j: usize| variance[j] * equations.iter().zip(&weights).map(|(e, w)| e.x[j] * w).sum::<f64>();
    let field = Field {
        centres: equations.iter().flat_map(|e| e.at.iter().copied()).collect(),
        weights: weights.iter().map(|w| w * smooth).collect(),
        memo: Mutex::default(),
    };
    ((0..penalties.len()).map(feature).collect(), field)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIOR: Prior = Prior { amplitude: 0.3, noise: 0.01, feature: 0.1, huber: 0.1 };
    const NODES_AT_0: [[f64; 2]; NODES] = [[0.0; 2]; NODES];

    fn equations() -> Vec<Equation> {
        let at = |x: f64, y: f64| Equation { x: vec![1.0], y, weight: 1.0, at: vec![x, 0.0, 0.0] };
        vec![at(0.0, 0.5), at(0.3, 0.4), at(3.0, -0.2), at(3.2, -0.2), at(10.0, 0.1)]
    }

    #[test]
    fn a_field_passes_through_what_it_was_fitted_to_and_fades_away_from_it() {
        let (w, field) = posterior(&equations(), &[1.0], &PRIOR);
        for e in equations() {
            let there = w[0] + field.table(&e.at[..1], &NODES_AT_0)[0];
            assert!((there - e.y).abs() < 0.02, "{there} for {}", e.y);
        }
        assert!(field.table(&[100.0], &NODES_AT_0)[0].abs() < 1e-9);
        assert!(field.nearness(&[0.0; 3]) > 0.999 && field.nearness(&[100.0, 0.0, 0.0]) < 1e-9);
    }

    #[test]
    fn an_outlier_among_neighbours_does_not_win() {
        let mut rows: Vec<Equation> = (0..9).map(|_| Equation { x: vec![1.0], y: 0.1, weight: 1.0, at: vec![0.0; 3] }).collect();
        rows[4].y = 3.0;
        let (w, field) = posterior(&rows, &[1.0], &PRIOR);
        let there = w[0] + field.table(&[0.0], &NODES_AT_0)[0];
        assert!((there - 0.1).abs() < 0.05, "{there}");
    }

    #[test]
    fn a_remembered_table_is_the_computed_one() {
        let (_, field) = posterior(&equations(), &[1.0], &PRIOR);
        let nodes = std::array::from_fn(|i| [f64::from(u32::try_from(i).unwrap()) / 10.0, 0.0]);
        let first = field.table(&[0.2], &nodes);
        assert_eq!(field.table(&[0.2], &nodes), first);
        assert_eq!(field.clone().table(&[0.2], &nodes), first);
    }

    #[test]
    fn lines_keep_a_field() {
        let (_, field) = posterior(&equations(), &[1.0], &PRIOR);
        let lines = field.to_lines();
        let read = Field::from_lines(lines.iter().map(String::as_str), 3).unwrap();
        assert_eq!(read.to_lines(), lines);
        assert!(Field::from_lines(lines.iter().map(String::as_str), 4).is_none());
    }
}
