//! Conditions under which a comparison fails: `tokens_per_gpu<-3%`, `ttft.p99>10%`, `tpot>0.5`.
//!
//! With `%` the relative change of the candidate is judged, without it the difference in the metric's unit. A gate looks at every
//! load point that both runs have. What cannot be judged does not pass: a missing figure, an invalid run, no common load.

use std::fmt;
use std::str::FromStr;

use tandem_metrics::Verdict;
use tandem_metrics::metrics::{self, Metric};
use thiserror::Error;

use super::Comparison;
use crate::data::run::Run;
use crate::numbers::{number, percent};

/// Short names of metrics that people write.
const ALIASES: [(&str, &str); 5] = [
    ("tokens_per_gpu", "output_throughput_per_gpu"),
    ("tokens_per_user", "output_throughput_per_user"),
    ("tokens_per_second", "output_throughput"),
    ("requests_per_second", "request_throughput"),
    ("latency", "request_latency"),
];

/// Statistics that a figure may have.
const STATS: [&str; 14] = ["avg", "p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p99.9", "min", "max", "std"];

/// Why a condition cannot be understood.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GateError {
    /// No comparison in it.
    #[error("'{0}' has no < or >: a condition looks like tokens_per_gpu<-3%")]
    NoOperator(String),
    /// What stands left of it.
    #[error("'{0}' is no metric")]
    UnknownMetric(String),
    /// What stands after the point.
    #[error("'{0}' is no statistic: avg, min, max, std, p1 … p99, p99.9")]
    UnknownStat(String),
    /// What stands right of it.
    #[error("'{0}' is no number, with or without %")]
    Number(String),
}

/// A condition on the change of a figure; when it holds, the comparison fails.
#[derive(Debug, Clone)]
pub struct Gate {
    text: String,
    metric: &'static Metric,
    stat: &'static str,
    operator: Operator,
    threshold: f64,
    is_relative: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// What a gate says of two runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Why the build fails, one sentence a load point or cause; empty if it does not.
    pub failures: Vec<String>,
    /// What was in order, one sentence a load point.
    pub passes: Vec<String>,
}

impl FromStr for Gate {
    type Err = GateError;

    fn from_str(text: &str) -> Result<Self, GateError> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let at = text.find(['<', '>']).ok_or_else(|| GateError::NoOperator(text.clone()))?;
        let (left, rest) = text.split_at(at);
        let (operator, right) = Operator::split(rest);
        let (name, stat) = left.split_once('.').unwrap_or((left, "avg"));
        let full_name = ALIASES.iter().find(|(short, _)| *short == name).map_or(name, |(_, full)| full);
        let metric = metrics::by_name(full_name).ok_or_else(|| GateError::UnknownMetric(name.to_owned()))?;
        let stat = STATS.into_iter().find(|known| *known == stat).ok_or_else(|| GateError::UnknownStat(stat.to_owned()))?;
        let (digits, is_relative) = right.strip_suffix('%').map_or((right, false), |digits| (digits, true));
        let threshold: f64 = digits.parse().ok().filter(|v: &f64| v.is_finite()).ok_or_else(|| GateError::Number(right.to_owned()))?;
        let threshold = if is_relative { threshold / 100.0 } else { threshold };
        Ok(Gate { metric, stat, operator, threshold, is_relative, text: text.clone() })
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Operator {
    fn split(text: &str) -> (Self, &str) {
        let table = [("<=", Self::LessOrEqual), (">=", Self::GreaterOrEqual), ("<", Self::Less), (">", Self::Greater)];
        let found = table.into_iter().find_map(|(symbol, operator)| text.strip_prefix(symbol).map(|rest| (operator, rest)));
        found.expect("the text begins with < or >")
    }

    fn holds(self, value: f64, threshold: f64) -> bool {
        match self {
            Self::Less => value < threshold,
            Self::LessOrEqual => value <= threshold,
            Self::Greater => value > threshold,
            Self::GreaterOrEqual => value >= threshold,
        }
    }
}

impl Gate {
    /// Judges `candidate` against `baseline`; `comparison` is theirs.
    #[must_use]
    pub fn judge(&self, baseline: &Run, candidate: &Run, comparison: &Comparison) -> Judgement {
        let mut judgement = Judgement::default();
        for run in [baseline, candidate].into_iter().filter(|run| run.verdict() == Verdict::Invalid) {
            judgement.fail(format!("{self}: {} is invalid, so nothing follows from its figures", run.name));
        }
        if comparison.points.is_empty() {
            judgement.fail(format!("{self}: {} and {} have no load point in common", baseline.name, candidate.name));
        }
        for point in &comparison.points {
            let (a, b) = point.indices;
            let value = |run: &Run, index: usize| run.result.points.get(index).and_then(|point| point.stat(self.metric, self.stat));
            self.judge_point(&point.load, value(baseline, a), value(candidate, b), &mut judgement);
        }
        judgement
    }

    fn judge_point(&self, load: &str, baseline: Option<f64>, candidate: Option<f64>, judgement: &mut Judgement) {
        let (Some(a), Some(b)) = (baseline, candidate) else {
            return judgement.fail(format!("{self}: at {load} there is no {} of {}", self.stat, self.metric.name));
        };
        let change = if self.is_relative { b / a - 1.0 } else { b - a };
        let unit = self.metric.unit.as_str();
        let shown = if self.is_relative { percent(change) } else { format!("{} {unit}", number(change)) };
        let values = format!("{} → {} {unit}", number(a), number(b));
        // From zero there is no relative change; equal zeros are none at all.
        if !change.is_finite() && a != b {
            return judgement.fail(format!("{self}: at {load} the baseline is zero ({values})"));
        }
        if self.operator.holds(if change.is_finite() { change } else { 0.0 }, self.threshold) {
            judgement.fail(format!("{self}: at {load} it is {shown} ({values})"));
        } else {
            judgement.passes.push(format!("{self}: passed at {load}, {shown} ({values})"));
        }
    }
}

impl Judgement {
    /// Whether the build fails.
    #[must_use]
    pub fn fails(&self) -> bool {
        !self.failures.is_empty()
    }

    fn fail(&mut self, message: String) {
        self.failures.push(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(text: &str) -> Gate {
        text.parse().unwrap()
    }

    fn fails(text: &str, a: Option<f64>, b: Option<f64>) -> bool {
        let mut judgement = Judgement::default();
        gate(text).judge_point("concurrency 1", a, b, &mut judgement);
        judgement.fails()
    }

    #[test]
    fn conditions_are_read() {
        let gate = gate(" ttft.p99.9 >= 2.5 % ");
        assert_eq!((gate.metric.name, gate.stat, gate.operator), ("ttft", "p99.9", Operator::GreaterOrEqual));
        assert!((gate.threshold - 0.025).abs() < 1e-12 && gate.is_relative);
        assert_eq!("tokens_per_gpu<-3%".parse::<Gate>().unwrap().metric.name, "output_throughput_per_gpu");
    }

    #[test]
    fn what_is_wrong_with_a_condition_is_said() {
        let error = |text: &str| text.parse::<Gate>().unwrap_err();
        assert_eq!(error("ttft"), GateError::NoOperator("ttft".into()));
        assert_eq!(error("tft<1"), GateError::UnknownMetric("tft".into()));
        assert_eq!(error("ttft.p98<1"), GateError::UnknownStat("p98".into()));
        assert_eq!(error("ttft<x%"), GateError::Number("x%".into()));
        assert_eq!(error("ttft<inf"), GateError::Number("inf".into()));
    }

    #[test]
    fn relative_and_absolute_changes_are_judged_at_the_threshold() {
        assert!(fails("tokens_per_gpu<-3%", Some(100.0), Some(96.9)));
        assert!(!fails("tokens_per_gpu<-3%", Some(100.0), Some(97.1)));
        assert!(fails("tpot>0.5", Some(10.0), Some(10.6)));
        assert!(!fails("tpot>0.5", Some(10.0), Some(10.4)));
    }

    #[test]
    fn what_cannot_be_judged_does_not_pass() {
        assert!(fails("ttft>10%", None, Some(1.0)));
        assert!(fails("error_rate>10%", Some(0.0), Some(1.0)));
        assert!(!fails("error_rate>10%", Some(0.0), Some(0.0)));
    }
}
