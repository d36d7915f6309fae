//! The frontier of throughput per GPU against throughput per user.

use tandem_metrics::Verdict;
use tandem_metrics::metrics::{output_throughput_per_gpu, output_throughput_per_user};

use crate::data::run::Run;

/// A load point in the plane of the frontier.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spot {
    pub(crate) run: usize,
    pub(crate) point: usize,
    /// Tokens/s/user.
    pub(crate) per_user: f64,
    /// Tokens/s/GPU.
    pub(crate) per_gpu: f64,
    pub(crate) verdict: Verdict,
    /// Whether no trustworthy point is at least as good in both and better in one.
    pub(crate) is_on_frontier: bool,
}

/// All load points that have both figures. Invalid ones are never on the frontier, and push nothing off it.
pub(crate) fn spots(runs: &[Run]) -> Vec<Spot> {
    let mut spots = Vec::new();
    for (run, data) in runs.iter().enumerate() {
        for (point, (saved, _)) in data.points().enumerate() {
            let per_user = saved.stat(&output_throughput_per_user::METRIC, "avg");
            let per_gpu = saved.stat(&output_throughput_per_gpu::METRIC, "avg");
            if let (Some(per_user), Some(per_gpu)) = (per_user, per_gpu) {
                // A run that is invalid as a whole (cut short, a process died) has no point to rely on.
                let verdict = saved.validity.max(if data.verdict() == Verdict::Invalid && data.result.partial {
                    Verdict::Invalid
                } else {
                    Verdict::Valid
                });
                spots.push(Spot { run, point, per_user, per_gpu, verdict, is_on_frontier: false });
            }
        }
    }
    mark(&mut spots);
    spots
}

/// The points of the frontier from the lowest throughput per user to the highest.
pub(crate) fn line(spots: &[Spot]) -> Vec<&Spot> {
    let mut line: Vec<&Spot> = spots.iter().filter(|spot| spot.is_on_frontier).collect();
    line.sort_by(|a, b| a.per_user.total_cmp(&b.per_user).then(b.per_gpu.total_cmp(&a.per_gpu)));
    line
}

fn mark(spots: &mut [Spot]) {
    let trusted: Vec<(f64, f64)> = spots.iter().filter(|s| s.verdict != Verdict::Invalid).map(|s| (s.per_user, s.per_gpu)).collect();
    for spot in spots.iter_mut().filter(|spot| spot.verdict != Verdict::Invalid) {
        let (x, y) = (spot.per_user, spot.per_gpu);
        spot.is_on_frontier = !trusted.iter().any(|&(a, b)| a >= x && b >= y && (a > x || b > y));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(per_user: f64, per_gpu: f64, verdict: Verdict) -> Spot {
        Spot { run: 0, point: 0, per_user, per_gpu, verdict, is_on_frontier: false }
    }

    #[test]
    fn only_what_nothing_trustworthy_beats_is_on_the_frontier() {
        let mut spots = [
            spot(10.0, 100.0, Verdict::Valid),
            spot(20.0, 80.0, Verdict::Suspect),
            spot(15.0, 80.0, Verdict::Valid),
            spot(99.0, 99.0, Verdict::Invalid),
            spot(20.0, 80.0, Verdict::Valid),
        ];
        mark(&mut spots);
        assert_eq!(spots.iter().map(|s| s.is_on_frontier).collect::<Vec<_>>(), [true, true, false, false, true]);
        assert_eq!(line(&spots).iter().map(|s| s.per_user).collect::<Vec<_>>(), [10.0, 20.0, 20.0]);
    }
}
