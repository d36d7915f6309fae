//! Minimises a function of a few variables without derivatives (Nelder and Mead).

/// The best point found from `start` with initial steps of `scale`, after at most `evaluations`.
pub(super) fn minimise(start: &[f64], scale: &[f64], evaluations: usize, mut f: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    let n = start.len();
    let mut simplex: Vec<(f64, Vec<f64>)> = Vec::with_capacity(n + 1);
    simplex.push((f(start), start.to_vec()));
    for i in 0..n {
        let mut point = start.to_vec();
        point[i] += scale[i];
        simplex.push((f(&point), point));
    }
    let mut used = n + 1;
    while used < evaluations {
        simplex.sort_by(|a, b| a.0.total_cmp(&b.0));
        if simplex[n].0 - simplex[0].0 < 1e-9 {
            break;
        }
        #[expect(clippy::cast_precision_loss, reason = "a handful of dimensions")]
        let centre: Vec<f64> = (0..n).map(|j| simplex[..n].iter().map(|p| p.1[j]).sum::<f64>() / n as f64).collect();
        let towards = |t: f64, worst: &[f64]| -> Vec<f64> { centre.iter().zip(worst).map(|(c, w)| c + t * (c - w)).collect() };
        let worst = simplex[n].1.clone();
        let reflected = towards(1.0, &worst);
        let value = f(&reflected);
        used += 1;
        if value < simplex[0].0 {
            let expanded = towards(2.0, &worst);
            let further = f(&expanded);
            used += 1;
            simplex[n] = if further < value { (further, expanded) } else { (value, reflected) };
        } else if value < simplex[n - 1].0 {
            simplex[n] = (value, reflected);
        } else {
            let contracted = towards(if value < simplex[n].0 { 0.5 } else { -0.5 }, &worst);
            let nearer = f(&contracted);
            used += 1;
            if nearer < simplex[n].0.min(value) {
                simplex[n] = (nearer, contracted);
            } else {
                let best = simplex[0].1.clone();
                for vertex in &mut simplex[1..] {
                    vertex.1 = vertex.1.iter().zip(&best).map(|(v, b)| b + 0.5 * (v - b)).collect();
                    vertex.0 = f(&vertex.1);
                    used += 1;
                }
            }
        }
    }
    simplex.sort_by(|a, b| a.0.total_cmp(&b.0));
    simplex.swap_remove(0).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bottom_of_a_curved_valley_is_found() {
        let rosenbrock = |p: &[f64]| (1.0 - p[0]).powi(2) + 100.0 * (p[1] - p[0] * p[0]).powi(2);
        let best = minimise(&[-1.2, 1.0], &[0.5, 0.5], 2_000, rosenbrock);
        assert!((best[0] - 1.0).abs() < 1e-2 && (best[1] - 1.0).abs() < 1e-2, "{best:?}");
    }
}
