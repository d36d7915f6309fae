//! Pareto frontiers in the plane of tokens/s/user (x) and tokens/s/GPU (y), both better when larger.

/// A point of the plane.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Corner {
    /// Tokens/s/user.
    pub x: f64,
    /// Tokens/s/GPU.
    pub y: f64,
}

/// Indices of the points that no other beats in both directions, x descending; of equal points the first.
#[must_use]
pub fn pareto(points: &[Corner]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|&a, &b| points[b].x.total_cmp(&points[a].x).then(points[b].y.total_cmp(&points[a].y)).then(a.cmp(&b)));
    let mut best = f64::NEG_INFINITY;
    order.retain(|&i| {
        let is_better = points[i].y > best;
        best = best.max(points[i].y);
        is_better
    });
    order
}

/// Relative difference below which two points are equally fast for a user: simulations of alike configurations differ by as much.
const SAME: f64 = 0.002;

/// Of a frontier (x descending, as [`pareto`] gives it) the points that are worth naming: without those that a point of clearly more
/// tokens/s/GPU equals for the user.
#[must_use]
pub fn distinct(points: &[Corner], frontier: &[usize]) -> Vec<usize> {
    let is_equalled = |k: usize| frontier.get(k + 1).is_some_and(|&next| points[next].x >= points[frontier[k]].x * (1.0 - SAME));
    (0..frontier.len()).filter(|&k| !is_equalled(k)).map(|k| frontier[k]).collect()
}

/// The area that the points dominate, from the origin.
#[must_use]
pub fn hypervolume(points: &[Corner]) -> f64 {
    // From the right: each step of the staircase adds what it is higher than the one before, over its whole width.
    let mut below = 0.0;
    pareto(points)
        .into_iter()
        .map(|i| {
            let area = points[i].x * (points[i].y - below);
            below = points[i].y;
            area
        })
        .sum()
}

/// The factor by which a point would have to be better in both directions to reach the frontier; 1 on it, less beyond it.
pub(crate) fn gap(frontier: &[Corner], point: Corner) -> f64 {
    frontier.iter().map(|c| (c.x / point.x).min(c.y / point.y)).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corners(points: &[(f64, f64)]) -> Vec<Corner> {
        points.iter().map(|&(x, y)| Corner { x, y }).collect()
    }

    #[test]
    fn only_what_nothing_beats_is_on_the_frontier() {
        let points = corners(&[(1.0, 5.0), (2.0, 4.0), (1.5, 3.0), (3.0, 1.0), (2.0, 4.0), (3.0, 0.5)]);
        assert_eq!(pareto(&points), [3, 1, 0]);
    }

    #[test]
    fn a_point_that_another_equals_for_the_user_is_not_named() {
        let points = corners(&[(10.0, 5.0), (9.999, 8.0), (9.998, 9.0), (5.0, 12.0)]);
        assert_eq!(distinct(&points, &pareto(&points)), [2, 3]);
        assert_eq!(distinct(&points, &[]), [0; 0]);
    }

    #[test]
    fn the_area_is_that_of_the_union_of_boxes() {
        assert_eq!(hypervolume(&corners(&[(2.0, 1.0), (1.0, 3.0)])), 4.0);
        assert_eq!(hypervolume(&corners(&[(2.0, 1.0), (1.0, 3.0), (0.5, 0.5)])), 4.0);
        assert_eq!(hypervolume(&[]), 0.0);
    }

    #[test]
    fn the_gap_is_a_factor_in_both_directions() {
        let frontier = corners(&[(2.0, 1.0), (1.0, 2.0)]);
        assert_eq!(gap(&frontier, Corner { x: 1.0, y: 1.0 }), 1.0);
        assert_eq!(gap(&frontier, Corner { x: 0.5, y: 1.0 }), 2.0);
        assert_eq!(gap(&frontier, Corner { x: 4.0, y: 1.0 }), 0.5);
    }
}
