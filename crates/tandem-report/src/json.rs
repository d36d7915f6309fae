//! The report for programs. Schema version 1.
//!
//! `runs` in the order given, each with verdict, reasons, load points with all saved figures, knobs that were set, and what could not be
//! read; `prediction` of a point stands beside its figures (`off`: prediction over measurement, minus one); `frontier`; `comparisons` of later runs with the first. Changes are fractions: 0.03 is three percent more.

use serde_json::{Map, Value, json};

use crate::compare::{Change, Comparison, MatchedPoint};
use crate::data::gpus::EnergyRow;
use crate::data::prediction::{Beside, Predicted};
use crate::data::result_file::{LoadFacts, SavedFigure, SavedPoint, SavedReason};
use crate::data::run::Run;
use crate::frontier::{self, Spot};

/// Version of the document.
const SCHEMA_VERSION: u32 = 1;

/// The report on `runs`; `comparisons` are those of later runs with the first.
#[must_use]
pub fn json(runs: &[Run], comparisons: &[Comparison]) -> Value {
    let spots = frontier::spots(runs);
    json!({
        "schema_version": SCHEMA_VERSION,
        "runs": runs.iter().map(run_json).collect::<Vec<_>>(),
        "frontier": frontier::line(&spots).into_iter().map(|spot| spot_json(runs, spot)).collect::<Vec<_>>(),
        "comparisons": comparisons.iter().map(comparison_json).collect::<Vec<_>>(),
    })
}

fn run_json(run: &Run) -> Value {
    let result = &run.result;
    let plan = run.plan.as_ref();
    let knobs = plan.map(|plan| {
        let entry = |knob: &crate::data::plan_facts::Knob| (knob.name.clone(), json!({"value": knob.value, "layer": knob.layer}));
        plan.set_knobs().map(entry).collect::<Map<_, _>>()
    });
    json!({
        "name": run.name,
        "path": run.path,
        "validity": run.verdict().as_str(),
        "validity_reasons": reasons_json(&result.validity_reasons),
        "unread": run.problems,
        "kind": result.kind,
        "partial": result.partial,
        "recipe": result.recipe,
        "model": result.model,
        "plan_hash": result.plan_hash,
        "n_gpus": result.n_gpus,
        "machines": result.machines,
        "versions": result.versions,
        "started_at": result.started_at,
        "ended_at": result.ended_at,
        "summary_point": result.summary_point,
        "points": run.points().zip(&run.predictions).map(|((point, _), predicted)| point_json(point, predicted.as_ref())).collect::<Vec<_>>(),
        "not_predicted": run.prediction_remarks,
        "set_knobs": knobs,
        "command": plan.map(|plan| plan.command(run.is_simulated())),
    })
}

fn point_json(point: &SavedPoint, predicted: Option<&Predicted>) -> Value {
    let summary: Map<_, _> = point.summary.iter().map(|(name, figure)| (name.clone(), figure_json(figure))).collect();
    json!({
        "directory": point.directory,
        "validity": point.validity.as_str(),
        "validity_reasons": reasons_json(&point.validity_reasons),
        "load": load_json(&point.load),
        "outcomes": point.outcomes,
        "summary": summary,
        "prediction": predicted.map(|p| prediction_json(point, p)),
        "energy": energy_json(point),
    })
}

/// One entry a role, and one of all together where there are several; null without telemetry of GPUs.
fn energy_json(point: &SavedPoint) -> Value {
    let Some(energy) = point.telemetry.as_ref().and_then(|telemetry| telemetry.energy.as_ref()) else { return Value::Null };
    let row = |row: EnergyRow<'_>| {
        json!({
            "role": row.role,
            "n_gpus": row.n_gpus,
            "energy_j": row.energy_j,
            "mean_power_w": row.mean_power_w,
            "joules_per_output_token": row.joules_per_token,
            "output_tokens_per_s_per_w": row.tokens_per_s_w,
        })
    };
    energy.rows().into_iter().map(row).collect()
}

fn prediction_json(point: &SavedPoint, predicted: &Predicted) -> Value {
    let beside = |b: Beside| {
        let [value, low, high] = b.predicted.range;
        json!({
            "metric": b.predicted.metric.name,
            "stat": b.predicted.stat,
            "unit": b.predicted.metric.unit.as_str(),
            "predicted": value,
            "interval_80": [low, high],
            "measured": b.measured,
            "off": b.off(),
            "is_inside": b.is_inside(),
        })
    };
    json!({
        "figures": predicted.beside(point).into_iter().map(beside).collect::<Vec<_>>(),
        "extrapolates": predicted.extrapolates,
    })
}

fn figure_json(figure: &SavedFigure) -> Value {
    let stats = figure.stats.iter().map(|(name, value)| (name.clone(), json!(value)));
    Value::Object([("unit".to_owned(), json!(figure.unit))].into_iter().chain(stats).collect())
}

fn load_json(load: &LoadFacts) -> Value {
    json!({
        "concurrency": load.concurrency,
        "n_requests": load.n_requests,
        "isl": load.isl,
        "osl": load.osl,
        "streaming": load.streaming,
    })
}

fn reasons_json(reasons: &[SavedReason]) -> Value {
    reasons.iter().map(|r| json!({"verdict": r.verdict.as_str(), "code": r.code, "message": r.message})).collect()
}

fn spot_json(runs: &[Run], spot: &Spot) -> Value {
    json!({
        "run": runs[spot.run].name,
        "point": spot.point,
        "tokens_per_user": spot.per_user,
        "tokens_per_gpu": spot.per_gpu,
        "validity": spot.verdict.as_str(),
    })
}

fn comparison_json(comparison: &Comparison) -> Value {
    json!({
        "baseline": comparison.baseline,
        "candidate": comparison.candidate,
        "warnings": comparison.warnings,
        "points": comparison.points.iter().map(matched_json).collect::<Vec<_>>(),
        "unmatched": comparison.unmatched,
    })
}

fn matched_json(point: &MatchedPoint) -> Value {
    json!({
        "load": point.load,
        "baseline_point": point.indices.0,
        "candidate_point": point.indices.1,
        "changes": point.changes.iter().map(change_json).collect::<Vec<_>>(),
    })
}

fn change_json(change: &Change) -> Value {
    json!({
        "metric": change.metric,
        "stat": change.stat,
        "unit": change.unit,
        "baseline": change.baseline,
        "candidate": change.candidate,
        "change": change.relative,
        "interval_95": change.interval.map(|(low, high)| [low, high]),
        "reading": change.reading().as_str(),
    })
}
