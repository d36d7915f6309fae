//! How much later others hear of a computed prompt when its worker goes on computing at once.

use std::time::Duration;

use super::calibration::{Observed, ObservedStep};

/// Seconds by which others hear later of a computed prompt whose worker goes on computing at once: on a machine whose cores all compute,
/// a thread that is woken waits for a core's tick, or not at all. These are means.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Late {
    /// The first token, at the client.
    pub token_s: f64,
    /// The KV cache, at a decode worker that rests.
    pub commit_s: f64,
}

impl Late {
    /// From runs with one worker of each phase: their steps, and when each first token was seen. The step that made a token is taken to be
    /// the last one that had ended. `hop_s` and `commit_s` are what the ways take where nobody is late.
    #[must_use]
    pub fn of(runs: &[(&Observed, Vec<Duration>)], hop_s: f64, commit_s: f64) -> Self {
        let (mut token, mut commit) = (Vec::new(), Vec::new());
        for (Observed { prefill, decode }, seen) in runs {
            for first in seen {
                let n_ended = prefill.partition_point(|s| s.line.end() <= *first);
                let Some(end) = n_ended.checked_sub(1).map(|i| prefill[i].line.end()) else { continue };
                let goes_on = |until: Duration| prefill.get(n_ended).is_some_and(|next| next.line.begin < until);
                if goes_on(*first) {
                    token.push((*first - end).as_secs_f64());
                }
                let n_begun = decode.partition_point(|s| s.line.begin < end);
                let rests = n_begun.checked_sub(1).is_none_or(|last: usize| decode[last].line.end() < end);
                let next = decode.get(n_begun).map(|s: &ObservedStep| s.line.begin);
                commit.extend(next.filter(|begin| rests && goes_on(*begin)).map(|begin| (begin - end).as_secs_f64()));
            }
        }
        Late { token_s: longer(&token, hop_s), commit_s: longer(&commit, commit_s) }
    }
}

/// By how much the mean is above `usual_s`.
fn longer(times: &[f64], usual_s: f64) -> f64 {
    let n = u32::try_from(times.len()).map_or(f64::INFINITY, f64::from);
    if times.is_empty() { 0.0 } else { (times.iter().sum::<f64>() / n - usual_s).max(0.0) }
}

#[cfg(test)]
mod tests {
    use tandem_plan::Phase;
    use tandem_sched::iteration::IterationLine;

    use super::*;

    #[test]
    fn only_what_waits_behind_a_busy_worker_is_late() {
        let at = |begin_us, took_us| IterationLine {
            begin: Duration::from_micros(begin_us),
            took: Duration::from_micros(took_us),
            ..IterationLine::default()
        };
        // The first prompt is followed by another at once, the second by nothing. Decode rests when either ends.
        let prefill = vec![at(0, 10_000), at(10_020, 10_000)];
        let decode = vec![at(11_100, 2000), at(20_120, 2000)];
        let observed = Observed::new(&[(Phase::Prefill, prefill), (Phase::Decode, decode)]);
        let seen = [12_500, 20_100].map(Duration::from_micros).to_vec();
        let late = Late::of(&[(&observed, seen)], 1e-4, 2e-4);
        assert!((late.token_s - 2.4e-3).abs() < 1e-9, "{late:?}");
        assert!((late.commit_s - 0.9e-3).abs() < 1e-9, "{late:?}");
        assert_eq!(Late::of(&[], 1e-4, 2e-4), Late::default());
    }
}
