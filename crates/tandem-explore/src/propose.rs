//! Which points to measure next: those whose measurement is expected to move the frontier most.
//!
//! The gain of a point is the area that it adds to what the measured points dominate (hypervolume improvement), averaged over its
//! interval: tokens/s/GPU and tokens/s/user are taken as independent and lognormal, with 80 % inside the interval. After each choice its
//! predicted value counts as measured ("kriging believer"), so the next one goes elsewhere. Source: expected hypervolume improvement,
//! Emmerich et al. 2006; believer, Ginsbourger et al. 2010.

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use tandem_sim::predict::Interval;

use crate::frontier::{Corner, hypervolume, pareto};
use crate::search::{Measured, Simulated};

/// Draws from the interval of each candidate.
const DRAWS: usize = 128;
/// Half of the normal distribution's central 80 %, in standard deviations.
const Z80: f64 = 1.2816;

/// Points nearer to each other than this in both directions, as logarithms, are one point.
const ALIKE: f64 = 0.02;

/// A point to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// Which of the simulated points.
    pub simulated: usize,
    /// Expected growth of the dominated area, as a share of the area before; of the area itself while nothing is measured.
    pub gain: f64,
}

/// The next `n` points, best first; points that were measured are left out, and so are those that promise nothing.
#[must_use]
pub fn propose(simulated: &[Simulated], measured: &[Measured], n: usize) -> Vec<Proposal> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(17);
    let normal: Vec<(f64, f64)> = (0..DRAWS).map(|_| normals(&mut rng)).collect();
    let is_measured = |p: &Simulated| measured.iter().any(|m| !m.is_simulated && m.key.as_deref() == Some(&p.key));
    let mut left: Vec<usize> = (0..simulated.len()).filter(|&i| simulated[i].meets && !is_measured(&simulated[i])).collect();
    let mut known: Vec<Corner> = measured.iter().filter(|m| !m.is_simulated).map(|m| m.corner).collect();
    let mut proposals = Vec::new();
    while proposals.len() < n {
        known = pareto(&known).into_iter().map(|i| known[i]).collect();
        let before = hypervolume(&known);
        let scored = left.iter().map(|&i| (expected_gain(&known, before, &simulated[i], &normal), i));
        // Of equal gains the first point, so that equal inputs give equal proposals.
        let Some((gain, i)) = scored.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1))) else { break };
        if gain <= 0.0 {
            break;
        }
        proposals.push(Proposal { simulated: i, gain: if before > 0.0 { gain / before } else { 1.0 } });
        // What the model takes for the same point, such as twice the servers with twice the load, teaches nothing new.
        let chosen = simulated[i].corner();
        let is_alike = |c: Corner| (c.x / chosen.x).ln().abs() < ALIKE && (c.y / chosen.y).ln().abs() < ALIKE;
        left.retain(|&j| !is_alike(simulated[j].corner()));
        known.push(chosen);
    }
    proposals
}

fn expected_gain(known: &[Corner], before: f64, point: &Simulated, normal: &[(f64, f64)]) -> f64 {
    let sigma = |i: &Interval| if i.value > 0.0 && i.high > i.value { (i.high / i.value).ln() / Z80 } else { 0.0 };
    let (sx, sy) = (sigma(&point.per_user()), sigma(&point.prediction.tokens_per_gpu));
    let middle = point.corner();
    let mut corners = known.to_vec();
    corners.push(middle);
    let last = corners.len() - 1;
    let total: f64 = normal
        .iter()
        .map(|(zx, zy)| {
            corners[last] = Corner { x: middle.x * (sx * zx).exp(), y: middle.y * (sy * zy).exp() };
            hypervolume(&corners) - before
        })
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "a hundred draws")]
    let n = normal.len() as f64;
    total / n
}

/// Two independent standard normal numbers (Box and Muller).
fn normals(rng: &mut impl Rng) -> (f64, f64) {
    let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    let radius = (-2.0 * u.ln()).sqrt();
    let angle = std::f64::consts::TAU * v;
    (radius * angle.cos(), radius * angle.sin())
}
