//! Differences between two runs, load point by load point, with intervals where the records allow one.
//!
//! Points belong together when their loads are equal. A change is the candidate's figure over the baseline's, minus one.
//! Reading order: `bootstrap` (intervals), `gate` (conditions that fail a build).

mod bootstrap;
pub(crate) mod gate;

use tandem_metrics::Verdict;
use tandem_metrics::metrics::{
    Better, Metric, error_rate, goodput, output_throughput_per_gpu, output_throughput_per_user, request_latency, tpot, ttft,
};

use crate::data::Digest;
use crate::data::result_file::{LoadFacts, SavedPoint};
use crate::data::run::Run;
use bootstrap::{Resamples, Statistic};

/// What a comparison shows, in this order.
static COMPARED: [(&Metric, &str); 10] = [
    (&output_throughput_per_gpu::METRIC, "avg"),
    (&output_throughput_per_user::METRIC, "avg"),
    (&ttft::METRIC, "avg"),
    (&ttft::METRIC, "p99"),
    (&tpot::METRIC, "avg"),
    (&tpot::METRIC, "p99"),
    (&request_latency::METRIC, "avg"),
    (&request_latency::METRIC, "p99"),
    (&goodput::METRIC, "avg"),
    (&error_rate::METRIC, "avg"),
];

/// Two runs side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Name of the run that the other is measured against.
    pub baseline: String,
    /// Name of the other.
    pub candidate: String,
    /// What makes the comparison less than a fair one.
    pub warnings: Vec<String>,
    /// Load points that both have, in the baseline's order.
    pub points: Vec<MatchedPoint>,
    /// Load points that only one of them has.
    pub unmatched: Vec<String>,
}

/// The same load in both runs.
#[derive(Debug, Clone, PartialEq)]
pub struct MatchedPoint {
    /// The load in a few words.
    pub load: String,
    /// Index of the point in each run.
    pub indices: (usize, usize),
    /// What changed.
    pub changes: Vec<Change>,
}

/// One figure in both runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Name of the metric.
    pub metric: &'static str,
    /// Which statistic of it.
    pub stat: &'static str,
    /// Unit of both values.
    pub unit: &'static str,
    /// The baseline's value.
    pub baseline: f64,
    /// The candidate's value.
    pub candidate: f64,
    /// Relative change; none when the baseline is zero.
    pub relative: Option<f64>,
    /// 95 % interval of the relative change, if the records are there and enough.
    pub interval: Option<(f64, f64)>,
    better: Better,
}

/// What a change means for a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    Better,
    Worse,
    /// The interval holds zero.
    Unclear,
    /// There is no interval, or neither direction is better.
    Unjudged,
}

impl Change {
    pub(crate) fn reading(&self) -> Reading {
        match (self.interval, self.better) {
            (None, _) | (_, Better::Neither) => Reading::Unjudged,
            (Some((low, high)), _) if low <= 0.0 && high >= 0.0 => Reading::Unclear,
            (Some((low, _)), better) => {
                if (low > 0.0) == (better == Better::Higher) {
                    Reading::Better
                } else {
                    Reading::Worse
                }
            }
        }
    }
}

impl Reading {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Reading::Better => "better",
            Reading::Worse => "worse",
            Reading::Unclear => "no clear change",
            Reading::Unjudged => "–",
        }
    }
}

/// Compares `candidate` with `baseline`. Intervals come from a fixed seed: the same runs give the same comparison.
#[must_use]
pub fn compare(baseline: &Run, candidate: &Run) -> Comparison {
    // Where figures must not be used nothing is better or worse, so there is no interval either.
    let is_judged = baseline.verdict() != Verdict::Invalid && candidate.verdict() != Verdict::Invalid;
    let mut taken = vec![false; candidate.points().len()];
    let (mut points, mut unmatched) = (Vec::new(), Vec::new());
    for (i, (a, a_digest)) in baseline.points().enumerate() {
        let found = candidate.points().enumerate().find(|(j, (b, _))| !taken[*j] && a.load.is_comparable(&b.load));
        let Some((j, (b, b_digest))) = found else {
            unmatched.push(only_in(&a.load, baseline));
            continue;
        };
        taken[j] = true;
        points.push(MatchedPoint {
            load: a.load.label(),
            indices: (i, j),
            changes: changes((a, a_digest.filter(|_| is_judged)), (b, b_digest.filter(|_| is_judged))),
        });
    }
    let left = candidate.points().zip(&taken).filter(|(_, taken)| !**taken);
    unmatched.extend(left.map(|((point, _), _)| only_in(&point.load, candidate)));
    Comparison {
        baseline: baseline.name.clone(),
        candidate: candidate.name.clone(),
        warnings: warnings(baseline, candidate),
        points,
        unmatched,
    }
}

fn only_in(load: &LoadFacts, run: &Run) -> String {
    format!("{} ({}) only in {}", load.label(), load.lengths(), run.name)
}

fn warnings(a: &Run, b: &Run) -> Vec<String> {
    let mut warnings = Vec::new();
    for run in [a, b].into_iter().filter(|run| run.verdict() != Verdict::Valid) {
        let consequence = if run.verdict() == Verdict::Invalid { "; changes are shown, not judged" } else { "" };
        warnings.push(format!("{} is {}: {}{consequence}", run.name, run.verdict(), first_reason(run)));
    }
    let mut differ = |what: &str, x: &str, y: &str| {
        if x != y {
            warnings.push(format!("{what} differs: {x} in {}, {y} in {}", a.name, b.name));
        }
    };
    differ("the model", &a.result.model, &b.result.model);
    differ("the kind", &a.result.kind, &b.result.kind);
    differ("the set of machines", &a.result.machines.join(", "), &b.result.machines.join(", "));
    let engine = |run: &Run| run.plan.as_ref().map_or_else(|| "unknown".to_owned(), |plan| plan.engine.clone());
    differ("the engine", &engine(a), &engine(b));
    warnings
}

fn first_reason(run: &Run) -> String {
    run.result.validity_reasons.first().map_or_else(|| "no reason given".to_owned(), |reason| reason.message.clone())
}

/// A load point and its requests.
type Side<'a> = (&'a SavedPoint, Option<&'a Digest>);

fn changes(a: Side<'_>, b: Side<'_>) -> Vec<Change> {
    let resampled = resamples(a, 1).zip(resamples(b, 2));
    let change = |&(metric, stat): &(&'static Metric, &'static str)| {
        let (baseline, candidate) = (a.0.stat(metric, stat)?, b.0.stat(metric, stat)?);
        let statistic = Statistic::of(metric, stat);
        // Of nothing there is no relative change.
        let resampled = resampled.as_ref().filter(|_| baseline != 0.0);
        let interval =
            resampled.zip(statistic).and_then(|((a, b), statistic)| Resamples::interval_of_change(a, b, statistic, candidate / baseline));
        Some(Change {
            metric: metric.name,
            stat,
            unit: metric.unit.as_str(),
            baseline,
            candidate,
            relative: (baseline != 0.0).then(|| candidate / baseline - 1.0),
            interval,
            better: metric.better,
        })
    };
    COMPARED.iter().filter_map(change).collect()
}

fn resamples((point, digest): Side<'_>, stream: u64) -> Option<Resamples<'_>> {
    Resamples::of(digest?, point.load.concurrency, stream)
}
