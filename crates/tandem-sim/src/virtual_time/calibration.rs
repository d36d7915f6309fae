//! Step costs and overheads of an engine, from the iteration lines of runs.
//!
//! A step's time is fitted as linear in its prompt tokens, decoding sequences and attended pairs, with relative least squares and no
//! negative cost; then scaled so that all fitted steps together take as long as measured, because throughput depends on the sum.

use serde_json::{Value, json};
use tandem_plan::Phase;
use tandem_sched::iteration::IterationLine;
use thiserror::Error;

use super::costs::LinearCosts;
use super::setup::{Acceptance, Overheads};

/// Version of the file's form.
const SCHEMA: u64 = 1;
/// Steps of a phase below which nothing is fitted.
const MIN_STEPS: usize = 20;
/// Shares of contention that are tried.
const CONTENTION: [f64; 16] = [0.0, 0.02, 0.05, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0];

/// What an engine costs on one machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// Where it comes from, for people.
    pub source: String,
    /// Steps of prefill workers.
    pub prefill: LinearCosts,
    /// Steps of decode workers.
    pub decode: LinearCosts,
    /// Around the steps.
    pub overheads: Overheads,
    /// Of drafted tokens.
    pub acceptance: Acceptance,
    /// Median relative error of single steps of the fitted runs, prefill and decode.
    pub step_error: [f64; 2],
}

/// Why a calibration cannot be made or read.
#[derive(Debug, Error)]
pub enum CalibrationError {
    /// Too little was logged.
    #[error("{n} {phase} steps with a time were found, {MIN_STEPS} are needed")]
    TooFew {
        /// Steps.
        n: usize,
        /// Of which phase.
        phase: Phase,
    },
    /// Not JSON.
    #[error("a calibration is JSON")]
    Json(#[from] serde_json::Error),
    /// Another form.
    #[error("this is no calibration of schema {SCHEMA}: `{0}` is missing or unusable")]
    Form(&'static str),
}

/// A step with what went on beside it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ObservedStep {
    /// The step.
    pub line: IterationLine,
    /// Other workers that computed when it began.
    pub others: u32,
    /// Seconds since the step before it ended; none for a worker's first.
    pub gap_s: Option<f64>,
}

/// Steps of all workers of one run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Of prefill workers.
    pub prefill: Vec<ObservedStep>,
    /// Of decode workers.
    pub decode: Vec<ObservedStep>,
}

impl Observed {
    /// From the lines of each worker, in order.
    #[must_use]
    pub fn new(workers: &[(Phase, Vec<IterationLine>)]) -> Self {
        let mut observed = Observed::default();
        for (own, (phase, lines)) in workers.iter().enumerate() {
            let mut before: Option<&IterationLine> = None;
            for line in lines {
                let computes = |other: &[IterationLine]| {
                    let next = other.partition_point(|l| l.begin <= line.begin);
                    next > 0 && other[next - 1].begin + other[next - 1].took > line.begin
                };
                let others = workers.iter().enumerate().filter(|(i, (_, lines))| *i != own && computes(lines)).count();
                let gap_s = before.map(|b| line.begin.saturating_sub(b.begin + b.took).as_secs_f64());
                let step = ObservedStep { line: *line, others: u32::try_from(others).unwrap_or(u32::MAX), gap_s };
                match phase {
                    Phase::Prefill => observed.prefill.push(step),
                    Phase::Decode => observed.decode.push(step),
                }
                before = Some(line);
            }
        }
        observed
    }

    /// Adds the steps of another run.
    pub fn extend(&mut self, other: Observed) {
        self.prefill.extend(other.prefill);
        self.decode.extend(other.decode);
    }

    /// Mean time between two steps of a decode worker that has work, seconds: of the gaps that are not waits for a request.
    #[must_use]
    pub fn step_gap_s(&self) -> f64 {
        let mut gaps: Vec<f64> = self.decode.iter().filter_map(|s| s.gap_s).collect();
        if gaps.is_empty() {
            return 0.0;
        }
        let usual = crate::des::percentile(&mut gaps, 0.5);
        let working: Vec<f64> = gaps.into_iter().filter(|g| *g <= 5.0 * usual + 1e-5).collect();
        working.iter().sum::<f64>() / count(working.len()).max(1.0)
    }

    /// Probability that makes decode steps yield `n_tokens` tokens in all with `n_drafts` drafts each.
    #[must_use]
    pub fn acceptance(&self, n_tokens: u64, n_drafts: u32) -> Acceptance {
        let entries: u64 = self.decode.iter().map(|s| s.line.n_gen_tokens).sum();
        if n_drafts == 0 || entries == 0 {
            return Acceptance(0.0);
        }
        #[expect(clippy::cast_precision_loss, reason = "counts of a run")]
        let per_step = n_tokens as f64 / entries as f64 - 1.0;
        let (mut low, mut high) = (0.0_f64, 1.0_f64);
        for _ in 0..40 {
            let p = f64::midpoint(low, high);
            let accepted: f64 = (1..=n_drafts).map(|i| p.powf(f64::from(i))).sum();
            if accepted < per_step { low = p } else { high = p }
        }
        Acceptance(f64::midpoint(low, high))
    }
}

/// Fits the steps of one phase; the costs and the median relative error of a step.
///
/// # Errors
/// [`CalibrationError::TooFew`].
pub fn fit_steps(phase: Phase, steps: &[ObservedStep]) -> Result<(LinearCosts, f64), CalibrationError> {
    if steps.len() < MIN_STEPS {
        return Err(CalibrationError::TooFew { n: steps.len(), phase });
    }
    let shared = steps.iter().any(|s| s.others > 0) && steps.iter().any(|s| s.others == 0);
    let tried = if shared { &CONTENTION[..] } else { &CONTENTION[..1] };
    let fits = tried.iter().map(|&contention| fit_at(steps, contention));
    let (mut costs, _) = fits.min_by(|a, b| a.1.total_cmp(&b.1)).expect("at least one share is tried");
    let predicted: f64 = steps.iter().map(|s| seconds(&costs, s)).sum();
    let measured: f64 = steps.iter().map(|s| s.line.took.as_secs_f64()).sum();
    let scale = measured / predicted;
    for cost in [&mut costs.step_us, &mut costs.prefill_token_us, &mut costs.decode_seq_us, &mut costs.attended_us] {
        *cost *= scale;
    }
    let mut errors: Vec<f64> = steps.iter().map(|s| (seconds(&costs, s) / took(s) - 1.0).abs()).collect();
    Ok((costs, crate::des::percentile(&mut errors, 0.5)))
}

fn took(s: &ObservedStep) -> f64 {
    s.line.took.as_secs_f64().max(1e-6)
}

fn seconds(costs: &LinearCosts, s: &ObservedStep) -> f64 {
    costs.seconds(s.line.n_ctx_tokens, s.line.n_gen_tokens, s.line.n_attended, s.others)
}

/// Relative least squares at a given contention; columns with a negative cost are left out, the worst first.
fn fit_at(steps: &[ObservedStep], contention: f64) -> (LinearCosts, f64) {
    let row = |s: &ObservedStep| {
        let scale = (1.0 + contention * f64::from(s.others)) * 1e-6 / took(s);
        let [tokens, sequences, attended] = [s.line.n_ctx_tokens, s.line.n_gen_tokens, s.line.n_attended].map(|n| {
            #[expect(clippy::cast_precision_loss, reason = "counts of a step")]
            let n = n as f64;
            n
        });
        [scale, scale * tokens, scale * sequences, scale * attended]
    };
    let rows: Vec<[f64; 4]> = steps.iter().map(row).collect();
    let mut used: Vec<usize> = (0..4).filter(|&j| rows.iter().any(|r| r[j] != 0.0)).collect();
    let weights = loop {
        let solution = crate::fit::least_squares(&rows.iter().map(|r| used.iter().map(|&j| r[j]).collect()).collect::<Vec<_>>());
        let worst = (0..used.len()).min_by(|&a, &b| solution[a].total_cmp(&solution[b]));
        match worst {
            Some(i) if solution[i] < 0.0 && used.len() > 1 => {
                used.remove(i);
            }
            _ => break solution,
        }
    };
    let mut cost = [0.0; 4];
    for (&j, w) in used.iter().zip(&weights) {
        cost[j] = w.max(0.0);
    }
    let [step_us, prefill_token_us, decode_seq_us, attended_us] = cost;
    let costs = LinearCosts { step_us, prefill_token_us, decode_seq_us, attended_us, contention };
    let loss = steps.iter().map(|s| (seconds(&costs, s) / took(s) - 1.0).powi(2)).sum();
    (costs, loss)
}

fn count(n: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count of steps")]
    let n = n as f64;
    n
}

impl Calibration {
    /// The steps of a phase.
    #[must_use]
    pub const fn costs(&self, phase: Phase) -> &LinearCosts {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }

    /// The file's text.
    #[must_use]
    pub fn to_json(&self) -> String {
        let o = &self.overheads;
        let json = json!({
            "schema": SCHEMA,
            "kind": "engine",
            "source": self.source,
            "prefill": self.prefill.to_json(),
            "decode": self.decode.to_json(),
            "overheads": {"request_s": o.request_s, "hop_s": o.hop_s, "step_gap_s": o.step_gap_s},
            "acceptance": self.acceptance.0,
            "step_error": {"prefill": self.step_error[0], "decode": self.step_error[1]},
        });
        serde_json::to_string_pretty(&json).expect("a JSON value has a text") + "\n"
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`CalibrationError`] naming what is wrong.
    pub fn from_json(text: &str) -> Result<Self, CalibrationError> {
        let json: Value = serde_json::from_str(text)?;
        if json["schema"].as_u64() != Some(SCHEMA) || json["kind"] != "engine" {
            return Err(CalibrationError::Form("kind"));
        }
        let number = |v: &Value, name: &'static str| v.as_f64().filter(|v| v.is_finite() && *v >= 0.0).ok_or(CalibrationError::Form(name));
        let o = &json["overheads"];
        Ok(Calibration {
            source: json["source"].as_str().unwrap_or_default().to_owned(),
            prefill: LinearCosts::from_json(&json["prefill"]).ok_or(CalibrationError::Form("prefill"))?,
            decode: LinearCosts::from_json(&json["decode"]).ok_or(CalibrationError::Form("decode"))?,
            overheads: Overheads {
                request_s: number(&o["request_s"], "request_s")?,
                hop_s: number(&o["hop_s"], "hop_s")?,
                step_gap_s: number(&o["step_gap_s"], "step_gap_s")?,
            },
            acceptance: Acceptance(number(&json["acceptance"], "acceptance")?),
            step_error: [number(&json["step_error"]["prefill"], "step_error")?, number(&json["step_error"]["decode"], "step_error")?],
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn known_costs_are_found_again_and_survive_their_file() {
        let truth = LinearCosts { step_us: 900.0, prefill_token_us: 0.0, decode_seq_us: 70.0, attended_us: 0.05, contention: 0.2 };
        let step = |i: u32| {
            let (n, attended, others) = (u64::from(1 + i % 9), u64::from(200 * (1 + i % 9) + 37 * (i % 5)), u32::from(i.is_multiple_of(3)));
            let took = Duration::from_secs_f64(truth.seconds(0, n, attended, others));
            let line = IterationLine { took, n_gen_tokens: n, n_attended: attended, ..IterationLine::default() };
            ObservedStep { line, others, gap_s: None }
        };
        let steps: Vec<ObservedStep> = (0..200).map(step).collect();
        let (found, error) = fit_steps(Phase::Decode, &steps).unwrap();
        assert!(error < 1e-3, "{error}");
        assert!((found.step_us / truth.step_us - 1.0).abs() < 0.01 && (found.attended_us / 0.05 - 1.0).abs() < 0.05, "{found:?}");
        assert!((found.contention - 0.2).abs() < 1e-9 && found.prefill_token_us == 0.0, "{found:?}");
        assert!(matches!(fit_steps(Phase::Prefill, &steps[..3]), Err(CalibrationError::TooFew { n: 3, .. })));
        let calibration = Calibration {
            source: "a test".into(),
            prefill: found,
            decode: found,
            overheads: Overheads { request_s: 1e-3, hop_s: 1e-4, step_gap_s: 2e-5 },
            acceptance: Acceptance(0.5),
            step_error: [error, error],
        };
        assert_eq!(Calibration::from_json(&calibration.to_json()).unwrap(), calibration);
        assert!(Calibration::from_json("{}").is_err());
    }

    #[test]
    fn neighbours_and_gaps_come_from_the_times() {
        let at = |begin_ms: u64, took_ms: u64| IterationLine {
            begin: Duration::from_millis(begin_ms),
            took: Duration::from_millis(took_ms),
            n_gen_tokens: 1,
            ..IterationLine::default()
        };
        let workers = [(Phase::Prefill, vec![at(0, 10), at(30, 10)]), (Phase::Decode, vec![at(5, 3), at(9, 3), at(20, 3)])];
        let observed = Observed::new(&workers);
        assert_eq!(observed.decode.iter().map(|s| s.others).collect::<Vec<_>>(), [1, 1, 0]);
        assert_eq!(observed.decode[1].gap_s, Some(0.001));
        assert!((observed.acceptance(6, 1).0 - 1.0).abs() < 1e-6 && observed.acceptance(3, 1).0 < 1e-6);
    }
}
