//! Step costs and overheads of an engine, from the iteration lines of runs.
//!
//! A step's time is fitted as linear in its prompt tokens, decoding sequences and attended pairs (no negative cost), with bends at which
//! a row costs more or less, by relative least squares that hardly look at outliers; then scaled so that all fitted steps together take as
//! long as measured, because throughput depends on the sum. While other workers compute, a step advances slower.

use serde_json::{Value, json};
use tandem_plan::Phase;
use tandem_sched::iteration::IterationLine;
use thiserror::Error;

use super::costs::{BENDS, LinearCosts};
use super::setup::{Acceptance, Overheads};
use crate::fit::regress;

/// Version of the file's form.
const SCHEMA: u64 = 2;
/// Steps of a phase below which nothing is fitted.
const MIN_STEPS: usize = 20;
/// Relative error of a step from which on it counts linearly: another process had the core.
const OUTLIER: f64 = 0.1;
/// Penalty of a bend, in units of the whole column's weight.
const BEND_PENALTY: f64 = 1e-4;
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
    /// Seconds of it during which 0, 1, 2, and 3 or more other workers computed.
    pub beside_s: [f64; 4],
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
                let others = workers.iter().enumerate().filter(|(i, _)| *i != own).map(|(_, (_, lines))| lines.as_slice());
                let gap_s = before.map(|b| line.begin.saturating_sub(b.begin + b.took).as_secs_f64());
                let step = ObservedStep { line: *line, beside_s: beside(line, others), gap_s };
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

/// Seconds of `line` during which so many of `others` computed.
fn beside<'a>(line: &IterationLine, others: impl Iterator<Item = &'a [IterationLine]>) -> [f64; 4] {
    let (begin, end) = (line.begin, line.begin + line.took);
    let mut changes = vec![(begin, 0), (end, 0)];
    for lines in others {
        let first = lines.partition_point(|l| l.begin + l.took <= begin);
        for other in lines[first..].iter().take_while(|l| l.begin < end) {
            changes.push((other.begin.max(begin), 1));
            changes.push(((other.begin + other.took).min(end), -1));
        }
    }
    changes.sort_unstable();
    let (mut seconds, mut n) = ([0.0; 4], 0_i32);
    for pair in changes.windows(2) {
        n += pair[0].1;
        seconds[usize::try_from(n).unwrap_or(0).min(3)] += (pair[1].0 - pair[0].0).as_secs_f64();
    }
    seconds
}

/// Fits the steps of one phase; the costs and the median relative error of a step.
///
/// # Errors
/// [`CalibrationError::TooFew`].
pub fn fit_steps(phase: Phase, steps: &[ObservedStep]) -> Result<(LinearCosts, f64), CalibrationError> {
    if steps.len() < MIN_STEPS {
        return Err(CalibrationError::TooFew { n: steps.len(), phase });
    }
    let share = |s: &ObservedStep| s.beside_s[0] / took(s);
    let shared = steps.iter().any(|s| share(s) < 0.7) && steps.iter().any(|s| share(s) > 0.9);
    let tried = if shared { &CONTENTION[..] } else { &CONTENTION[..1] };
    let fits = tried.iter().map(|&contention| fit_at(steps, contention));
    let (mut costs, _) = fits.min_by(|a, b| a.1.total_cmp(&b.1)).expect("at least one share is tried");
    let predicted: f64 = steps.iter().map(|s| seconds(&costs, s)).sum();
    let measured: f64 = steps.iter().map(|s| work(costs.contention, s)).sum();
    let scale = measured / predicted;
    let plain = [&mut costs.step_us, &mut costs.prefill_token_us, &mut costs.decode_seq_us, &mut costs.attended_us];
    plain.into_iter().chain(&mut costs.bends_us).for_each(|cost| *cost *= scale);
    let mut errors: Vec<f64> = steps.iter().map(|s| error(&costs, s).abs()).collect();
    Ok((costs, crate::des::percentile(&mut errors, 0.5)))
}

fn took(s: &ObservedStep) -> f64 {
    s.line.took.as_secs_f64().max(1e-6)
}

fn seconds(costs: &LinearCosts, s: &ObservedStep) -> f64 {
    costs.seconds(s.line.n_ctx_tokens, s.line.n_gen_tokens, s.line.n_attended)
}

/// Seconds that the step would have taken alone.
fn work(contention: f64, s: &ObservedStep) -> f64 {
    let alone = |(others, seconds): (u32, f64)| seconds / (1.0 + contention * f64::from(others));
    (0_u32..).zip(s.beside_s).map(alone).sum::<f64>().max(1e-6)
}

fn error(costs: &LinearCosts, s: &ObservedStep) -> f64 {
    seconds(costs, s) / work(costs.contention, s) - 1.0
}

/// Columns of a fit: step, prompt tokens, sequences, pairs, and each of [`BENDS`].
const COLUMNS: usize = 4 + BENDS.len();

/// Relative least squares at a given contention; of the first four columns those with a negative cost are left out, the worst first.
fn fit_at(steps: &[ObservedStep], contention: f64) -> (LinearCosts, f64) {
    let row = |s: &ObservedStep| {
        let scale = 1e-6 / work(contention, s);
        let [tokens, sequences, attended] = [s.line.n_ctx_tokens, s.line.n_gen_tokens, s.line.n_attended].map(|n| {
            #[expect(clippy::cast_precision_loss, reason = "counts of a step")]
            let n = n as f64;
            n
        });
        let plain = [1.0, tokens, sequences, attended];
        let bends = BENDS.map(|bend| (tokens + sequences - bend).max(0.0));
        plain.into_iter().chain(bends).map(|x| x * scale).collect::<Vec<f64>>()
    };
    let rows: Vec<Vec<f64>> = steps.iter().map(row).collect();
    let mut used: Vec<usize> = (0..COLUMNS).filter(|&j| rows.iter().any(|r| r[j] != 0.0)).collect();
    let weights = loop {
        let columns: Vec<Vec<f64>> = rows.iter().map(|r| used.iter().map(|&j| r[j]).collect()).collect();
        // A bend must earn its place; the others need none of it.
        let penalties: Vec<f64> = used.iter().map(|&j| if j < 4 { 1e-9 } else { BEND_PENALTY }).collect();
        let solution = regress(&columns, &penalties, OUTLIER);
        let plain = (0..used.len()).filter(|&i| used[i] < 4);
        match plain.min_by(|&a, &b| solution[a].total_cmp(&solution[b])) {
            Some(i) if solution[i] < 0.0 && used.iter().filter(|j| **j < 4).count() > 1 => {
                used.remove(i);
            }
            _ => break solution,
        }
    };
    let mut cost = [0.0; COLUMNS];
    for (&j, w) in used.iter().zip(&weights) {
        cost[j] = if j < 4 { w.max(0.0) } else { *w };
    }
    let [step_us, prefill_token_us, decode_seq_us, attended_us, bends_us @ ..] = cost;
    let costs = LinearCosts { step_us, prefill_token_us, decode_seq_us, attended_us, bends_us, contention };
    let huber = |e: f64| if e.abs() <= OUTLIER { e * e / 2.0 } else { OUTLIER * (e.abs() - OUTLIER / 2.0) };
    let loss = steps.iter().map(|s| huber(error(&costs, s))).sum();
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
        let truth = LinearCosts { step_us: 900.0, decode_seq_us: 70.0, attended_us: 0.05, contention: 0.2, ..LinearCosts::default() };
        let step = |i: u32| {
            let (n, attended) = (u64::from(1 + i % 9), u64::from(200 * (1 + i % 9) + 37 * (i % 5)));
            let alone = truth.seconds(0, n, attended);
            // Every third step shares its first half of the work.
            let beside_s = if i.is_multiple_of(3) { [alone / 2.0, alone / 2.0 * 1.2, 0.0, 0.0] } else { [alone, 0.0, 0.0, 0.0] };
            let took = Duration::from_secs_f64(beside_s.iter().sum());
            let line = IterationLine { took, n_gen_tokens: n, n_attended: attended, ..IterationLine::default() };
            ObservedStep { line, beside_s, gap_s: None }
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
    fn a_row_that_is_cheaper_in_company_is_found_and_a_disturbed_step_is_not_believed() {
        // 100 us for one row, 20 us for each further one up to 8, 5 us beyond.
        let truth = |n: f64| 80.0 + 20.0 * n.min(8.0) + 5.0 * (n - 8.0).max(0.0);
        let step = |i: u32| {
            let n = [1_u32, 2, 4, 8, 12, 24][i as usize % 6];
            let disturbed = if i.is_multiple_of(17) { 5.0 } else { 1.0 };
            let took = Duration::from_secs_f64(truth(f64::from(n)) * disturbed * 1e-6);
            let line = IterationLine { took, n_gen_tokens: u64::from(n), ..IterationLine::default() };
            ObservedStep { line, beside_s: [took.as_secs_f64(), 0.0, 0.0, 0.0], gap_s: None }
        };
        let steps: Vec<ObservedStep> = (0..600).map(step).collect();
        let (costs, _) = fit_at(&steps, 0.0);
        for n in [1, 3, 8, 16, 24] {
            let (found, truth) = (costs.seconds(0, n, 0) * 1e6, truth(f64::from(u32::try_from(n).unwrap())));
            assert!((found / truth - 1.0).abs() < 0.05, "{n}: {found} for {truth}");
        }
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
        let beside: Vec<Vec<i64>> = observed.decode.iter().map(|s| s.beside_s.map(|t| (t * 1e3).round() as i64).to_vec()).collect();
        assert_eq!(beside, [[0, 3, 0, 0], [2, 1, 0, 0], [3, 0, 0, 0]]);
        assert_eq!(observed.decode[1].gap_s, Some(0.001));
        assert!((observed.acceptance(6, 1).0 - 1.0).abs() < 1e-6 && observed.acceptance(3, 1).0 < 1e-6);
    }
}
