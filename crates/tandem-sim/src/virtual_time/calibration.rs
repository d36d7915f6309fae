//! Step costs and overheads of an engine, from the iteration lines of runs.
//!
//! A step's time is fitted as linear in its prompt tokens, decoding sequences and attended pairs (no negative cost), with bends at which
//! a row costs more or less, by relative least squares that hardly look at outliers; then scaled so that all fitted steps together take as
//! long as measured, because throughput depends on the sum; then corrected by composition (`table`). While other workers compute, a step
//! advances slower.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tandem_plan::Phase;
use tandem_sched::iteration::IterationLine;
use thiserror::Error;

use super::costs::{BENDS, LinearCosts, float};
use super::late::Late;
use super::setup::{Acceptance, Gap, Overheads};
use super::table::{TableCosts, bucket};
use super::worker::REST;
use crate::fit::regress;

/// Version of the file's form.
const SCHEMA: u64 = 4;
/// Steps of a phase below which nothing is fitted.
const MIN_STEPS: usize = 20;
/// Relative error of a step from which on it counts linearly: another process had the core.
const OUTLIER: f64 = 0.1;
/// Penalty of a bend, in units of the whole column's weight.
const BEND_PENALTY: f64 = 1e-4;
/// Decode steps after a rest that are looked at for what they take longer.
const COLD_STEPS: usize = 5;
/// What an engine costs on one machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// Where it comes from, for people.
    pub source: String,
    /// Steps of prefill workers.
    pub prefill: TableCosts,
    /// Steps of decode workers.
    pub decode: TableCosts,
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
    /// Seconds since the step before it ended, and how many requests that had; none for a worker's first.
    pub gap: Option<(f64, u64)>,
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
                let gap = before.map(|b| (line.begin.saturating_sub(b.end()).as_secs_f64(), b.n_requests));
                let step = ObservedStep { line: *line, beside_s: beside(line, others), gap };
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

    /// Steps of a phase.
    fn steps(&self, phase: Phase) -> &[ObservedStep] {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }

    /// Time between two steps of a worker that has work: a line through the gaps that are not waits for a request, by the number of
    /// requests in the step before.
    #[must_use]
    pub fn gap(&self, phase: Phase) -> Gap {
        let gaps: Vec<(f64, f64)> =
            self.steps(phase).iter().filter_map(|s| s.gap).filter(|g| !is_rest(g.0)).map(|(s, n)| (s, float(n))).collect();
        let n = count(gaps.len()).max(1.0);
        let (mean_s, mean_n) = (gaps.iter().map(|g| g.0).sum::<f64>() / n, gaps.iter().map(|g| g.1).sum::<f64>() / n);
        let spread: f64 = gaps.iter().map(|g| (g.1 - mean_n).powi(2)).sum();
        let together: f64 = gaps.iter().map(|g| (g.1 - mean_n) * (g.0 - mean_s)).sum();
        let most = if mean_n > 0.0 { mean_s / mean_n } else { 0.0 };
        let request_s = if spread > 0.0 { (together / spread).clamp(0.0, most) } else { 0.0 };
        Gap { step_s: (mean_s - request_s * mean_n).max(0.0), request_s }
    }

    /// Median time from the end of a prompt's last step to the begin of the next decode step, seconds. Says how long the KV cache
    /// and its commit take only where one request at a time is in flight.
    #[must_use]
    pub fn commit_s(&self) -> Option<f64> {
        let begins = |steps: &[ObservedStep]| {
            let mut begins: Vec<std::time::Duration> = steps.iter().map(|s| s.line.begin).collect();
            begins.sort_unstable();
            begins
        };
        let (prefill, decode) = (begins(&self.prefill), begins(&self.decode));
        let after = |begins: &[std::time::Duration], t| begins.get(begins.partition_point(|b| *b < t)).copied();
        let commit = |s: &ObservedStep| {
            let end = s.line.end();
            let next = after(&decode, end)?;
            let is_last = after(&prefill, end).is_none_or(|chunk| chunk > next);
            is_last.then(|| (next - end).as_secs_f64())
        };
        let mut all: Vec<f64> = self.prefill.iter().filter_map(commit).collect();
        (!all.is_empty()).then(|| crate::des::percentile(&mut all, 0.5))
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
    let (begin, end) = (line.begin, line.end());
    let mut changes = vec![(begin, 0), (end, 0)];
    for lines in others {
        let first = lines.partition_point(|l| l.end() <= begin);
        for other in lines[first..].iter().take_while(|l| l.begin < end) {
            changes.push((other.begin.max(begin), 1));
            changes.push((other.end().min(end), -1));
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
pub fn fit_steps(phase: Phase, steps: &[ObservedStep]) -> Result<(TableCosts, f64), CalibrationError> {
    if steps.len() < MIN_STEPS {
        return Err(CalibrationError::TooFew { n: steps.len(), phase });
    }
    // Steps of prompts are long and often come alone: there a rest is part of what they cost.
    let (cold, warm) = if phase == Phase::Decode { after_rests(steps) } else { (Vec::new(), steps.to_vec()) };
    let (cold, steps) = if warm.len() < MIN_STEPS { (Vec::new(), steps) } else { (cold, warm.as_slice()) };
    let mut costs = fit_at(steps, contention(steps));
    let predicted: f64 = steps.iter().map(|s| seconds(&costs, s)).sum();
    let measured: f64 = steps.iter().map(|s| work(costs.contention, s)).sum();
    let scale = measured / predicted;
    let plain = [&mut costs.step_us, &mut costs.prefill_token_us, &mut costs.decode_seq_us, &mut costs.attended_us];
    plain.into_iter().chain(&mut costs.bends_us).for_each(|cost| *cost *= scale);
    let alone = |s: &ObservedStep| (s.line.n_ctx_tokens, s.line.n_gen_tokens, s.line.n_attended, work(costs.contention, s));
    let mut table = TableCosts::new(costs, steps.iter().map(alone));
    let longer = |s: &ObservedStep| {
        let (n_ctx_tokens, n_gen, n_attended, took) = alone(s);
        took - table.seconds(n_ctx_tokens, n_gen, n_attended)
    };
    let n_rests = cold.iter().filter(|s| s.gap.is_some_and(|gap| is_rest(gap.0))).count();
    table.cold_s = (cold.iter().map(longer).sum::<f64>() / count(n_rests).max(1.0)).max(0.0);
    let off = |s: &ObservedStep| {
        let (n_ctx_tokens, n_gen, n_attended, took) = alone(s);
        (table.seconds(n_ctx_tokens, n_gen, n_attended) / took - 1.0).abs()
    };
    let mut errors: Vec<f64> = steps.iter().map(off).collect();
    Ok((table, crate::des::percentile(&mut errors, 0.5)))
}

fn took(s: &ObservedStep) -> f64 {
    s.line.took.as_secs_f64().max(1e-6)
}

/// Whether a worker that begins its next step so many seconds after the last has waited for a request.
fn is_rest(gap_s: f64) -> bool {
    gap_s > std::time::Duration::from(REST).as_secs_f64()
}

/// The [`COLD_STEPS`] steps after each rest, and all others.
fn after_rests(steps: &[ObservedStep]) -> (Vec<ObservedStep>, Vec<ObservedStep>) {
    let mut since = COLD_STEPS;
    steps.iter().copied().partition(|s| {
        since = if s.gap.is_some_and(|gap| is_rest(gap.0)) { 0 } else { since + 1 };
        since < COLD_STEPS
    })
}

/// Share by which steps are slower while another worker computes: with it steps that had company take as long, alone, as those of about
/// the same composition that had none. Means are compared, since what two workers do to each other are rare long waits as well.
fn contention(steps: &[ObservedStep]) -> f64 {
    /// Steps without company: number and seconds; those with it: number, and seconds beside 0, 1, 2 and more others.
    type Alike = (f64, f64, f64, [f64; 4]);
    let mut alike: BTreeMap<(u64, u64, u64), Alike> = BTreeMap::new();
    for s in steps {
        let (n_alone, alone_s, n_beside, beside_s) =
            alike.entry((s.line.n_ctx_tokens, s.line.n_gen_tokens, bucket(s.line.n_attended))).or_default();
        if s.beside_s[0] > 0.9 * took(s) {
            (*n_alone, *alone_s) = (*n_alone + 1.0, *alone_s + took(s));
        } else {
            *n_beside += 1.0;
            beside_s.iter_mut().zip(s.beside_s).for_each(|(sum, seconds)| *sum += seconds);
        }
    }
    // As many steps of each kind, so that no composition is compared with another.
    let both = alike.values().filter(|(n_alone, _, n_beside, _)| *n_alone > 0.0 && *n_beside > 0.0);
    let (mut alone_s, mut beside_s) = (0.0, [0.0; 4]);
    for (n_alone, alone, n_beside, beside) in both {
        let n = n_alone.min(*n_beside);
        alone_s += n * alone / n_alone;
        beside_s.iter_mut().zip(beside).for_each(|(sum, seconds)| *sum += n * seconds / n_beside);
    }
    let (mut low, mut high) = (0.0_f64, 1.0_f64);
    for _ in 0..40 {
        let c = f64::midpoint(low, high);
        let work: f64 = (0_u32..).zip(beside_s).map(|(others, seconds)| seconds / (1.0 + c * f64::from(others))).sum();
        if work > alone_s { low = c } else { high = c }
    }
    // Nothing to compare, or no slower: the search has gone to the low end.
    if high < 1e-6 { 0.0 } else { f64::midpoint(low, high) }
}

fn seconds(costs: &LinearCosts, s: &ObservedStep) -> f64 {
    costs.seconds(s.line.n_ctx_tokens, s.line.n_gen_tokens, s.line.n_attended)
}

/// Seconds that the step would have taken alone.
fn work(contention: f64, s: &ObservedStep) -> f64 {
    let alone = |(others, seconds): (u32, f64)| seconds / (1.0 + contention * f64::from(others));
    (0_u32..).zip(s.beside_s).map(alone).sum::<f64>().max(1e-6)
}

/// Columns of a fit: step, prompt tokens, sequences, pairs, and each of [`BENDS`].
const COLUMNS: usize = 4 + BENDS.len();

/// Relative least squares at a given contention; of the first four columns those with a negative cost are left out, the worst first.
fn fit_at(steps: &[ObservedStep], contention: f64) -> LinearCosts {
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
    let [step_us, prefill_token_us, decode_seq_us, attended_us, mut bends_us @ ..] = cost;
    // A row more never makes a step shorter, whatever the noise says.
    let mut row_us = prefill_token_us.max(decode_seq_us);
    for bend in &mut bends_us {
        *bend = bend.max(-row_us);
        row_us += *bend;
    }
    LinearCosts { step_us, prefill_token_us, decode_seq_us, attended_us, bends_us, contention }
}

fn count(n: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count of steps")]
    let n = n as f64;
    n
}

impl Calibration {
    /// The steps of a phase.
    #[must_use]
    pub const fn costs(&self, phase: Phase) -> &TableCosts {
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
            "overheads": {
                "request_s": o.request_s, "hop_s": o.hop_s, "dispatch_s": o.dispatch_s, "commit_s": o.commit_s,
                "late": {"token_s": o.late.token_s, "commit_s": o.late.commit_s},
                "prefill_gap": {"step_s": o.prefill_gap.step_s, "request_s": o.prefill_gap.request_s},
                "decode_gap": {"step_s": o.decode_gap.step_s, "request_s": o.decode_gap.request_s},
            },
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
        let gap = |name: &'static str| {
            Ok::<_, CalibrationError>(Gap { step_s: number(&o[name]["step_s"], name)?, request_s: number(&o[name]["request_s"], name)? })
        };
        Ok(Calibration {
            source: json["source"].as_str().unwrap_or_default().to_owned(),
            prefill: TableCosts::from_json(&json["prefill"]).ok_or(CalibrationError::Form("prefill"))?,
            decode: TableCosts::from_json(&json["decode"]).ok_or(CalibrationError::Form("decode"))?,
            overheads: Overheads {
                request_s: number(&o["request_s"], "request_s")?,
                hop_s: number(&o["hop_s"], "hop_s")?,
                late: Late { token_s: number(&o["late"]["token_s"], "late")?, commit_s: number(&o["late"]["commit_s"], "late")? },
                dispatch_s: number(&o["dispatch_s"], "dispatch_s")?,
                commit_s: number(&o["commit_s"], "commit_s")?,
                prefill_gap: gap("prefill_gap")?,
                decode_gap: gap("decode_gap")?,
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
            // Every fourth step, of each composition some, shares its first half of the work.
            let beside_s = if i.is_multiple_of(4) { [alone / 2.0, alone / 2.0 * 1.2, 0.0, 0.0] } else { [alone, 0.0, 0.0, 0.0] };
            let took = Duration::from_secs_f64(beside_s.iter().sum());
            let line = IterationLine { took, n_gen_tokens: n, n_attended: attended, ..IterationLine::default() };
            ObservedStep { line, beside_s, gap: None }
        };
        let steps: Vec<ObservedStep> = (0..200).map(step).collect();
        let (found, error) = fit_steps(Phase::Decode, &steps).unwrap();
        assert!(error < 0.01, "{error}");
        assert!(found.cells.len() > 20, "{} cells", found.cells.len());
        let linear = found.linear;
        assert!((linear.step_us / truth.step_us - 1.0).abs() < 0.01 && (linear.attended_us / 0.05 - 1.0).abs() < 0.05, "{linear:?}");
        assert!((linear.contention - 0.2).abs() < 0.01 && linear.prefill_token_us == 0.0, "{linear:?}");
        assert!(matches!(fit_steps(Phase::Prefill, &steps[..3]), Err(CalibrationError::TooFew { n: 3, .. })));
        let calibration = Calibration {
            source: "a test".into(),
            prefill: found.clone(),
            decode: found,
            overheads: Overheads {
                request_s: 1e-3,
                hop_s: 1e-4,
                late: Late { token_s: 7e-4, commit_s: 3e-4 },
                dispatch_s: 4e-5,
                commit_s: 3e-5,
                prefill_gap: Gap { step_s: 1e-5, request_s: 0.0 },
                decode_gap: Gap { step_s: 2e-5, request_s: 6e-6 },
            },
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
            ObservedStep { line, beside_s: [took.as_secs_f64(), 0.0, 0.0, 0.0], gap: None }
        };
        let steps: Vec<ObservedStep> = (0..600).map(step).collect();
        let costs = fit_at(&steps, 0.0);
        for n in [1, 3, 8, 16, 24] {
            let (found, truth) = (costs.seconds(0, n, 0) * 1e6, truth(f64::from(u32::try_from(n).unwrap())));
            assert!((found / truth - 1.0).abs() < 0.05, "{n}: {found} for {truth}");
        }
    }

    #[test]
    fn what_a_rest_costs_is_found_and_is_no_part_of_the_other_steps() {
        let step = |i: u32| {
            // Every twentieth step comes after a rest and takes 300 us longer, the one after it 100 us.
            let longer = [300.0, 100.0].get(i as usize % 20).copied().unwrap_or(0.0);
            let took = Duration::from_secs_f64((500.0 + longer) * 1e-6);
            let line = IterationLine { took, n_gen_tokens: 1, n_attended: 300, ..IterationLine::default() };
            let gap = Some((if i.is_multiple_of(20) { 2e-3 } else { 2e-5 }, 1));
            ObservedStep { line, beside_s: [took.as_secs_f64(), 0.0, 0.0, 0.0], gap }
        };
        let steps: Vec<ObservedStep> = (0..400).map(step).collect();
        let (costs, _) = fit_steps(Phase::Decode, &steps).unwrap();
        assert!((costs.seconds(0, 1, 300) - 500e-6).abs() < 1e-6, "{}", costs.seconds(0, 1, 300));
        assert!((costs.cold_s - 400e-6).abs() < 5e-6, "{}", costs.cold_s);
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
        let beside: Vec<[f64; 4]> = observed.decode.iter().map(|s| s.beside_s.map(|t| (t * 1e3).round())).collect();
        assert_eq!(beside, [[0.0, 3.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]]);
        assert_eq!(observed.decode[1].gap, Some((0.001, 0)));
        assert_eq!(observed.commit_s(), Some(0.010), "only the first prompt is followed by a decode step");
        assert!((observed.acceptance(6, 1).0 - 1.0).abs() < 1e-6 && observed.acceptance(3, 1).0 < 1e-6);
    }
}
