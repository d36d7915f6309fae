//! Weighted ridge regression with a robust loss, small and dense.

/// One equation: features, value, weight.
#[derive(Debug, Clone)]
pub(super) struct Equation {
    pub(super) x: Vec<f64>,
    /// Coordinates for a field; a ridge regression does not look at them.
    pub(super) at: Vec<f64>,
    pub(super) y: f64,
    pub(super) weight: f64,
}

/// Coefficients that minimise `Σ weight·huber(y − x·w) + Σ lambda_j w_j²`.
pub(super) fn solve(equations: &[Equation], lambda: &[f64], huber: f64) -> Vec<f64> {
    let mut w = vec![0.0; lambda.len()];
    for pass in 0..6 {
        let robust = |e: &Equation| {
            let r = (e.y - dot(&e.x, &w)).abs();
            if pass == 0 || r <= huber { 1.0 } else { huber / r }
        };
        let next = weighted(equations, lambda, robust);
        let moved = next.iter().zip(&w).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        w = next;
        if moved < 1e-6 {
            break;
        }
    }
    w
}

/// Coefficients with which each row times them is nearest to 1, residuals beyond `huber` counted linearly; penalties are in units of a
/// column's own weight.
pub(crate) fn regress(rows: &[Vec<f64>], penalties: &[f64], huber: f64) -> Vec<f64> {
    // Columns of one size, or a penalty would fall on the small ones alone.
    let size = |j: usize| rows.iter().map(|r| r[j] * r[j]).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    let sizes: Vec<f64> = (0..penalties.len()).map(size).collect();
    let scaled = |r: &Vec<f64>| Equation { x: r.iter().zip(&sizes).map(|(x, s)| x / s).collect(), at: Vec::new(), y: 1.0, weight: 1.0 };
    let w = solve(&rows.iter().map(scaled).collect::<Vec<_>>(), penalties, huber);
    w.iter().zip(&sizes).map(|(w, s)| w / s).collect()
}

/// Loss of `w` without its penalty.
pub(super) fn loss(equations: &[Equation], w: &[f64], huber: f64) -> f64 {
    let each = |e: &Equation| {
        let r = (e.y - dot(&e.x, w)).abs();
        e.weight * if r <= huber { r * r / 2.0 } else { huber * (r - huber / 2.0) }
    };
    equations.iter().map(each).sum()
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn weighted(equations: &[Equation], lambda: &[f64], robust: impl Fn(&Equation) -> f64) -> Vec<f64> {
    let n = lambda.len();
    let mut a = vec![vec![0.0; n]; n];
    let mut b = vec![0.0; n];
    for e in equations {
        let weight = e.weight * robust(e);
        for i in (0..n).filter(|&i| e.x[i] != 0.0) {
            b[i] += weight * e.x[i] * e.y;
            for (entry, x) in a[i].iter_mut().zip(&e.x[..=i]) {
                *entry += weight * e.x[i] * x;
            }
        }
    }
    for i in 0..n {
        a[i][i] += lambda[i].max(1e-9);
    }
    cholesky_solve(a, b)
}

/// Solves `a x = b` for a symmetric positive definite `a` given by its lower triangle.
pub(super) fn cholesky_solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| a[i][k] * a[j][k]).sum();
            a[i][j] = if i == j { (a[i][i] - sum).max(1e-12).sqrt() } else { (a[i][j] - sum) / a[j][j] };
        }
        let sum: f64 = (0..i).map(|k| a[i][k] * b[k]).sum();
        b[i] = (b[i] - sum) / a[i][i];
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|k| a[k][i] * b[k]).sum();
        b[i] = (b[i] - sum) / a[i][i];
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_and_an_outlier_does_not_bend_it() {
        let mut equations: Vec<Equation> =
            (0..20).map(|i| Equation { x: vec![1.0, f64::from(i)], y: 2.0 + 0.5 * f64::from(i), weight: 1.0, at: Vec::new() }).collect();
        equations[7].y = 100.0;
        let w = solve(&equations, &[1e-6, 1e-6], 0.1);
        assert!((w[0] - 2.0).abs() < 0.1 && (w[1] - 0.5).abs() < 0.01, "{w:?}");
    }
}
