//! Constants for one's own cluster from a few of its runs: what the constants at hand leave over there becomes an offset and a field.
//!
//! Of each run two numbers are sought, a factor on decode steps and one on prefill iterations, with which its simulation has the measured
//! TPOT, throughput and TTFT. Their distance from what the constants say is the leftover. The offset moves all predictions, so the result is
//! for this cluster. Intervals come from predicting each run with constants refitted to the others.

use super::constants::Constants;
use super::coordinates::{decode_coordinates, prefill_coordinates};
use super::field::{Prior, posterior};
use super::ridge::Equation;
use crate::cost::Correction;
use crate::des::{Outcome, simulate};
use crate::evaluate::Metric;
use crate::model::{Factors, Model};
use crate::predictive::{least_relative_error, outcomes};
use crate::rows::{Measured, Scenario};

/// Rounds in which the two factors are sought in turn.
const ROUNDS: usize = 3;
/// Factors on prefill that are tried around the best so far, as logarithms; each round halves them.
const SCAN: [f64; 7] = [-0.6, -0.35, -0.15, 0.0, 0.15, 0.35, 0.6];
/// How much a cluster may differ from the rows that the constants come from, and how exactly a run tells it.
const OWN: Prior = Prior { amplitude: 0.1, noise: 0.03, feature: 0.3, huber: 0.5 };
/// The narrowest interval, as a logarithm: runs of equal configuration differ by less than 1 %, but few runs tell little.
const FLOOR: f64 = 0.02;
/// Standard deviations within which 80 % of a normal distribution lie.
const NORMAL_80: f64 = 1.2816;

/// One load point of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnRun {
    /// What ran.
    pub scenario: Scenario,
    /// What it measured.
    pub measured: Measured,
    /// Requests of the load before measurement.
    pub warmup: u32,
    /// Tokens that the KV cache of a decode rank holds.
    pub kv_tokens: u64,
}

/// Constants that fit one's own runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Refitted {
    /// The constants.
    pub constants: Constants,
    /// Relative errors of each run in the order of [`Metric::ALL`] before the refit.
    pub before: Vec<[Option<f64>; 4]>,
    /// The same with constants refitted to the other runs; empty with a single run.
    pub left_out: Vec<[Option<f64>; 4]>,
}

/// Leftovers of a run, as logarithms.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Leftover {
    decode: f64,
    prefill: f64,
    /// How surely the run tells the prefill factor (0 to 1).
    sharpness: f64,
}

/// Refits the constants of `model` to `runs`.
#[must_use]
pub fn refit(model: &Model, runs: &[OwnRun]) -> Refitted {
    let leftovers: Vec<Leftover> = runs.iter().map(|run| leftover(model, run)).collect();
    let all: Vec<usize> = (0..runs.len()).collect();
    let before = runs.iter().map(|run| errors(model, run)).collect();
    let without = |i: usize| {
        let others: Vec<usize> = all.iter().copied().filter(|&j| j != i).collect();
        let mut other = model.clone();
        other.constants = fitted(model, runs, &leftovers, &others);
        errors(&other, &runs[i])
    };
    let left_out: Vec<[Option<f64>; 4]> = if runs.len() > 1 { all.iter().map(|&i| without(i)).collect() } else { Vec::new() };
    let mut constants = fitted(model, runs, &leftovers, &all);
    record(&mut constants, runs, &left_out);
    Refitted { constants, before, left_out }
}

fn fitted(model: &Model, runs: &[OwnRun], leftovers: &[Leftover], used: &[usize]) -> Constants {
    let mut constants = model.constants.clone();
    let equation = |at: Vec<f64>, y: f64, weight: f64| Equation { x: vec![1.0], at, y, weight };
    let decode: Vec<Equation> =
        used.iter().map(|&i| equation(decode_coordinates(&runs[i].scenario, batch(&runs[i])), leftovers[i].decode, 1.0)).collect();
    let prefill: Vec<Equation> =
        used.iter().map(|&i| equation(prefill_coordinates(&runs[i].scenario), leftovers[i].prefill, leftovers[i].sharpness)).collect();
    let (offset, field) = posterior(&decode, &[1.0], &OWN);
    constants.decode[0] += offset[0];
    constants.decode_field.extend(&field);
    let (offset, field) = posterior(&prefill, &[1.0], &OWN);
    constants.prefill[0] += offset[0];
    constants.prefill_field.extend(&field);
    constants
}

/// Sequences of a decode rank by Little's law, or as many as the load brings.
fn batch(run: &OwnRun) -> f64 {
    let s = &run.scenario;
    let in_decode =
        run.measured.tokens_per_gpu.zip(run.measured.tpot).map(|(rate, tpot)| rate * s.gpus * tpot / s.decode.attention_ranks());
    in_decode.map_or_else(|| s.expected_batch(), |b| b.clamp(1.0, s.expected_batch()))
}

fn run_with(model: &Model, run: &OwnRun, decode: Correction, prefill: f64) -> Outcome {
    let deployment = model.deployment_holding(&run.scenario, Factors { decode, prefill }, run.kv_tokens);
    simulate(&deployment, &run.scenario.load).after(run.warmup as usize)
}

fn off(predicted: f64, measured: Option<f64>) -> f64 {
    measured.map_or(0.0, |m| (predicted / m).ln().abs().min(1.5))
}

fn leftover(model: &Model, run: &OwnRun) -> Leftover {
    let usual = model.factors(&run.scenario);
    let m = &run.measured;
    let (mut decode, mut prefill, mut sharpness) = (0.0, 0.0, 0.0);
    let simulated = |decode: f64, prefill: f64| run_with(model, run, usual.decode.shifted(decode), usual.prefill * prefill.exp());
    let mut reach = 1.0;
    for _ in 0..ROUNDS {
        for _ in 0..2 {
            let tpot = simulated(decode, prefill).tpot.median;
            if let (Some(measured), true) = (m.tpot, tpot > 0.0) {
                decode = (decode + (measured / tpot).ln()).clamp(-1.5, 1.5);
            }
        }
        let misfit = |ln: f64| {
            let outcome = simulated(decode, ln);
            let median =
                if m.ttft_median.is_none() { off(outcome.ttft.mean, m.ttft_mean) } else { off(outcome.ttft.median, m.ttft_median) };
            off(outcome.ttft.p99, m.ttft_p99) + 0.5 * median + 2.0 * off(outcome.output_rate / run.scenario.gpus, m.tokens_per_gpu)
        };
        let tried = SCAN.map(|step| (misfit(prefill + reach * step), prefill + reach * step));
        let best = tried.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("the scan is not empty");
        prefill = best.1;
        sharpness = ((misfit(prefill - 0.3).min(misfit(prefill + 0.3)) - best.0) / 0.25).clamp(0.0, 1.0);
        reach /= 2.0;
    }
    Leftover { decode, prefill, sharpness }
}

fn errors(model: &Model, run: &OwnRun) -> [Option<f64>; 4] {
    let s = &run.scenario;
    let deployment = model.deployment_holding(s, model.factors(s), run.kv_tokens);
    let (outcome, drawn) = outcomes(model, s, &deployment, &s.load, run.warmup as usize);
    let m = &run.measured;
    let ratio = |predicted: f64, measured: Option<f64>| measured.map(|m| predicted / m - 1.0);
    Metric::ALL.map(|metric| match metric {
        Metric::Tpot => ratio(outcome.tpot.median, m.tpot),
        Metric::TokensPerGpu => ratio(outcome.output_rate / s.gpus, m.tokens_per_gpu),
        Metric::TtftMedian => ratio(least_relative_error(&drawn.ttft_median), m.ttft_median),
        Metric::TtftP99 => ratio(least_relative_error(&drawn.ttft_p99), m.ttft_p99),
    })
}

/// Intervals and support of the GPUs and stacks of the runs.
fn record(constants: &mut Constants, runs: &[OwnRun], left_out: &[[Option<f64>; 4]]) {
    for run in runs {
        let s = &run.scenario;
        let entry = constants.provenance.support.entry(format!("{} {} {}", s.hardware, s.stack, s.weights)).or_default();
        let batch = batch(run);
        entry.batch = if entry.rows == 0 { (batch, batch) } else { (entry.batch.0.min(batch), entry.batch.1.max(batch)) };
        entry.rows += 1;
        entry.latest = entry.latest.max(s.months);
        // Two runs that predict each other may do so by chance.
        if left_out.len() < 3 {
            continue;
        }
        for (i, metric) in Metric::ALL.into_iter().enumerate() {
            let squares: Vec<f64> = left_out.iter().filter_map(|e| Some((1.0 + e[i]?).max(1e-3).ln().powi(2))).collect();
            #[expect(clippy::cast_precision_loss, reason = "a count of runs")]
            let n = squares.len() as f64;
            if n >= 3.0 {
                let deviation = (squares.iter().sum::<f64>() / n * (n + 1.0) / n).sqrt();
                constants
                    .provenance
                    .spread
                    .insert(format!("{} {} {}", metric.name(), s.hardware, s.stack), FLOOR.max(NORMAL_80 * deviation));
            }
        }
    }
    constants.provenance.source += &format!("; refitted to {} load points of own runs", runs.len());
}
