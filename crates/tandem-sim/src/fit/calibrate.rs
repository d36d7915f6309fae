//! The whole fit: decode constants and correction, prefill constants and correction, aggregated correction.

use std::collections::BTreeMap;

use super::constants::Constants;
use super::coordinates::{DECODE_PRIOR, PREFILL_PRIOR, decode_coordinates, prefill_coordinates};
use super::features::{DECODE, PREFILL, aggregated_features, decode_features, prefill_features};
use super::field::posterior;
use super::nelder_mead::minimise;
use super::ridge::{Equation, dot, loss, solve};
use super::routing::{routing_of, routings};
use super::targets::{PrefillTarget, Target};
use crate::cost::{Coefficients, Correction, DecodeCost, PrefillCost, PrefillLoad};
use crate::des::WorkerChoice;
use crate::model::Model;
use crate::rows::{Kind, Scenario};

/// Residual beyond which an error counts linearly, as a logarithm.
const HUBER: f64 = 0.12;
/// How many names of [`Coefficients`] the decode fit moves; the rest but the last belong to prefill.
const DECODE_CONSTANTS: std::ops::Range<usize> = 0..10;
const PREFILL_CONSTANTS: std::ops::Range<usize> = 10..13;

/// How hard the fit is held back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Penalty of a decode weight.
    pub decode_penalty: f64,
    /// Penalty of a prefill weight.
    pub prefill_penalty: f64,
    /// Evaluations of the decode and prefill objectives.
    pub evaluations: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { decode_penalty: 0.3, prefill_penalty: 0.2, evaluations: 600 }
    }
}

/// Fits constants to `targets`, whose prefill factors are relative to [`Coefficients::START`].
#[must_use]
pub fn calibrate(base: &Model, targets: &[&Target], options: &Options) -> Constants {
    let mut constants = Constants::uncorrected();
    constants.provenance.tables = base.has_tables();
    let disaggregated: Vec<&Target> = targets.iter().copied().filter(|t| t.scenario.kind == Kind::Disaggregated && t.trusted).collect();
    let penalties = |n: usize, each: f64| {
        let mut lambda = vec![each; n];
        lambda[0] = 1e-3;
        lambda
    };

    constants.routing = routings(&disaggregated);
    let routing = constants.routing.clone();
    let decode_lambda = penalties(DECODE.len(), options.decode_penalty);
    constants.coefficients = fit(constants.coefficients, DECODE_CONSTANTS, options.evaluations, |c| {
        let equations = decode_equations(base, &disaggregated, c, &routing);
        penalised(&equations, &decode_lambda)
    });
    (constants.decode, constants.decode_field) =
        posterior(&decode_equations(base, &disaggregated, &constants.coefficients, &routing), &decode_lambda, &DECODE_PRIOR);

    let prefill_lambda = penalties(PREFILL.len(), options.prefill_penalty);
    constants.coefficients = fit(constants.coefficients, PREFILL_CONSTANTS, options.evaluations / 3, |c| {
        penalised(&prefill_equations(base, &disaggregated, c, &routing), &prefill_lambda)
    });
    (constants.prefill, constants.prefill_field) =
        posterior(&prefill_equations(base, &disaggregated, &constants.coefficients, &routing), &prefill_lambda, &PREFILL_PRIOR);

    let aggregated: Vec<&Target> = targets.iter().copied().filter(|t| t.scenario.kind == Kind::Aggregated).collect();
    let mut with_both = base.clone();
    with_both.constants = constants.clone();
    constants.aggregated = solve(&aggregated_equations(&with_both, &aggregated), &decode_lambda, HUBER);
    constants
}

/// Loss with its best correction, the correction's penalty included.
fn penalised(equations: &[Equation], lambda: &[f64]) -> f64 {
    let w = solve(equations, lambda, HUBER);
    let penalty: f64 = w.iter().zip(lambda).map(|(w, l)| l * w * w).sum();
    loss(equations, &w, HUBER) + penalty / 2.0
}

/// Moves the constants of `range` by factors, softly held at where they started.
fn fit(start: Coefficients, range: std::ops::Range<usize>, evaluations: usize, objective: impl Fn(&Coefficients) -> f64) -> Coefficients {
    let moved = |logs: &[f64]| {
        let mut c = start;
        for (index, ln) in range.clone().zip(logs) {
            c.set(index, start.get(index) * ln.clamp(-2.5, 2.5).exp());
        }
        // Fractions of a peak cannot exceed it, nor a probability 1.
        for (name, cap) in [("hbm", 0.95), ("acceptance", 0.95), ("comm", 0.95), ("decode_tensor", 0.9), ("decode_attention", 0.9)] {
            if let Some(index) = Coefficients::names().iter().position(|n| *n == name) {
                c.set(index, c.get(index).min(cap));
            }
        }
        c.imbalance = c.imbalance.max(1.0);
        c
    };
    let n = range.len();
    let best =
        minimise(&vec![0.0; n], &vec![0.3; n], evaluations, |logs| objective(&moved(logs)) + 0.1 * logs.iter().map(|l| l * l).sum::<f64>());
    moved(&best)
}

fn decode_equations(base: &Model, targets: &[&Target], c: &Coefficients, routing: &BTreeMap<String, WorkerChoice>) -> Vec<Equation> {
    let equation = |t: &&Target| {
        let (load, tpot) = (t.decode_load?, t.measured.tpot?);
        let s = &t.scenario;
        let cost = DecodeCost::new(base.facts(), &base.shape(s, &s.decode, s.eplb_slots), c, Correction::default());
        let y = (tpot * cost.tokens_per_step() / cost.step(load)).ln() + of_routing(t, routing).map_or(0.0, |p| p.tpot);
        Some(Equation { x: decode_features(s, t.batch()), at: decode_coordinates(s, t.batch()), y, weight: weight(t) })
    };
    targets.iter().filter_map(equation).collect()
}

/// What a target says of prefill under the routing of its group.
fn of_routing(t: &Target, routings: &BTreeMap<String, WorkerChoice>) -> Option<PrefillTarget> {
    let chosen = routing_of(routings, &t.scenario);
    t.prefill[WorkerChoice::ALL.iter().position(|r| *r == chosen)?]
}

/// Residuals of the decode correction, as logarithms of measured over predicted step time, by target.
#[must_use]
pub fn decode_residuals(model: &Model, targets: &[&Target]) -> Vec<Option<f64>> {
    let residual = |t: &&Target| {
        let (load, tpot) = (t.decode_load?, t.measured.tpot?);
        let s = &t.scenario;
        let cost = model.decode_cost(s, model.factors(s).decode);
        Some((tpot * cost.tokens_per_step() / cost.step(load)).ln())
    };
    targets.iter().map(residual).collect()
}

fn weight(t: &Target) -> f64 {
    let surely = if t.measured.tokens_per_gpu.is_some() { 1.0 } else { 0.5 };
    surely * f64::from(t.repeats).sqrt()
}

fn prefill_equations(base: &Model, targets: &[&Target], c: &Coefficients, routing: &BTreeMap<String, WorkerChoice>) -> Vec<Equation> {
    let equation = |t: &&Target| {
        let s = &t.scenario;
        let PrefillTarget { ln, weight, .. } = of_routing(t, routing)?;
        let shape = base.shape(s, &s.prefill, 0);
        let load = typical_iteration(s);
        let at = |c: &Coefficients| PrefillCost::new(base.facts(), &shape, c, 1.0).iteration(load);
        let y = ln + (at(&Coefficients::START) / at(c)).ln();
        Some(Equation { x: prefill_features(s), at: prefill_coordinates(s), y, weight: weight * f64::from(t.repeats).sqrt() })
    };
    targets.iter().filter_map(equation).collect()
}

/// An iteration as it occurs when prompts wait, or with one prompt when the load is small.
pub(crate) fn typical_iteration(s: &Scenario) -> PrefillLoad {
    let pool = &s.prefill;
    let prompt = s.load.isl.mean();
    let each = (f64::from(s.load.concurrency) / pool.attention_ranks()).max(1.0);
    let prompts = each.min(f64::from(pool.max_batch)).min((f64::from(pool.max_tokens) / prompt).max(1.0));
    let rank_tokens = (prompts * prompt).min(f64::from(pool.max_tokens).max(prompt.min(f64::from(pool.max_tokens))));
    let busy = f64::from(pool.layout.attention_dp_size()).min(f64::from(s.load.concurrency) / f64::from(pool.workers)).max(1.0);
    PrefillLoad { rank_tokens, rank_pairs: rank_tokens * prompt / 2.0, tokens: rank_tokens * busy }
}

fn aggregated_equations(model: &Model, targets: &[&Target]) -> Vec<Equation> {
    let equation = |t: &&Target| {
        let tpot = t.measured.tpot?;
        let predicted = crate::aggregated::time_per_token(model, &t.scenario);
        Some(Equation { x: aggregated_features(&t.scenario), at: Vec::new(), y: (tpot / predicted).ln(), weight: weight(t) })
    };
    targets.iter().filter_map(equation).collect()
}

/// What an aggregated correction adds, as a logarithm.
pub(crate) fn aggregated_correction(constants: &Constants, s: &Scenario) -> f64 {
    dot(&constants.aggregated, &aggregated_features(s)).clamp(-2.0, 2.0)
}
