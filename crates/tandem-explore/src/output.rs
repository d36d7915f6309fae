//! The result for programs (JSON, CSV) and for people at a terminal.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use crate::frontier::{Corner, hypervolume};
use crate::plot::plot;
use crate::search::{Exploration, Measured, Simulated, interval_json, prediction_json};

/// Version of the JSON's form.
const SCHEMA_VERSION: u32 = 1;

/// Everything that was found; screened points that were not simulated are counted only.
#[must_use]
pub fn json(e: &Exploration) -> Json {
    let frontier = e.frontier();
    let refusals: Vec<Json> =
        e.screening.refusals.iter().map(|(reason, r)| json!({"reason": reason, "points": r.n, "example": r.example})).collect();
    let bounds: Vec<Json> = e.bounds().iter().map(|(bound, n)| json!({"bound": bound.name(), "points": n})).collect();
    let corners: Vec<Corner> = frontier.iter().map(|p| p.corner()).collect();
    json!({
        "schema_version": SCHEMA_VERSION,
        "recipe": e.recipe,
        "space": e.about,
        "screened": {"points": e.screening.n, "passed": e.screening.points.len(), "refused": refusals, "bounds": bounds},
        "remarks": e.remarks(),
        "frontier": frontier.iter().map(|p| point(p)).collect::<Vec<_>>(),
        "frontier_hypervolume": hypervolume(&corners),
        "simulated": e.simulated.iter().map(point).collect::<Vec<_>>(),
        "measured": e.measured.iter().map(|m| measured(m, e)).collect::<Vec<_>>(),
        "proposals": e.proposals.iter().map(|p| json!({"expected_gain": p.gain, "point": point(&e.simulated[p.simulated])})).collect::<Vec<_>>(),
    })
}

fn point(p: &Simulated) -> Json {
    json!({
        "knobs": p.knobs.iter().map(|(k, v)| (k.clone(), Json::from(v.clone()))).collect::<serde_json::Map<_, _>>(),
        "plan": p.key,
        "gpus": p.screened.gpus,
        "tokens_per_user": interval_json(&p.per_user()),
        "prediction": prediction_json(&p.prediction),
        "screen": {"tokens_per_gpu": p.screened.per_gpu, "tokens_per_user": p.screened.per_user, "ttft_mean_s": p.screened.ttft_s},
        "bound": p.screened.bound.name(),
        "meets_slos": p.meets,
        "on_frontier": p.on_frontier,
    })
}

fn measured(m: &Measured, e: &Exploration) -> Json {
    let predicted = e.simulated.iter().find(|p| m.key.as_deref() == Some(&p.key));
    json!({
        "name": m.name,
        "gpus": m.gpus,
        "simulated": m.is_simulated,
        "tokens_per_gpu": m.corner.y,
        "tokens_per_user": m.corner.x,
        "ttft_median_s": m.ttft_s,
        "plan": m.key,
        "predicted": predicted.map(|p| prediction_json(&p.prediction)),
    })
}

/// The simulated points, one a line.
#[must_use]
pub fn csv(e: &Exploration) -> String {
    let names: Vec<&str> = e.simulated.first().map(|p| p.knobs.iter().map(|(k, _)| k.as_str()).collect()).unwrap_or_default();
    let mut out = names.iter().map(|n| format!("{n},")).collect::<String>();
    out += "gpus,tokens_per_gpu,tokens_per_gpu_low,tokens_per_gpu_high,tokens_per_user,tokens_per_user_low,tokens_per_user_high,\
            tpot_ms,ttft_ms_median,ttft_ms_p99,bound,meets_slos,on_frontier,plan\n";
    for p in &e.simulated {
        for (_, value) in &p.knobs {
            let _ = write!(out, "{},", quoted(value));
        }
        let (user, gpu) = (p.per_user(), p.prediction.tokens_per_gpu);
        let _ = writeln!(
            out,
            "{},{:.3},{:.3},{:.3},{:.3},{:.3},{:.3},{:.3},{:.1},{:.1},{},{},{},{}",
            p.screened.gpus,
            gpu.value,
            gpu.low,
            gpu.high,
            user.value,
            user.low,
            user.high,
            p.prediction.tpot.value * 1e3,
            p.prediction.ttft_median.value * 1e3,
            p.prediction.ttft_p99.value * 1e3,
            p.screened.bound.name(),
            p.meets,
            p.on_frontier,
            p.key,
        );
    }
    out
}

/// A field of CSV (RFC 4180).
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// Counts, plot, frontier and proposals.
#[must_use]
pub fn terminal(e: &Exploration) -> String {
    let mut out = e.counts();
    let cloud: Vec<Corner> = e.screening.points.iter().map(|p| Corner { x: p.per_user, y: p.per_gpu }).collect();
    let frontier = e.frontier();
    let mut marks: Vec<(Corner, char)> = frontier.iter().map(|p| (p.corner(), 'o')).collect();
    marks.extend(e.proposals.iter().map(|p| (e.simulated[p.simulated].corner(), '*')));
    marks.extend(e.measured.iter().map(|m| (m.corner, if m.is_simulated { 's' } else { 'M' })));
    let _ = write!(out, "\n{}", plot(&cloud, &marks, 72, 18));
    out += "dots: screened; o: frontier (simulated); *: measure next; M: measured; s: simulated run\n\n";
    out += "Frontier, with the ranges that hold 8 of 10 errors:\n";
    out += &table(&frontier, &[]);
    e.remarks().iter().for_each(|remark| out += &format!("  note: {remark}\n"));
    if !e.proposals.is_empty() {
        out += "\nMeasure next (expected growth of the area under the frontier of what is measured):\n";
        let chosen: Vec<&Simulated> = e.proposals.iter().map(|p| &e.simulated[p.simulated]).collect();
        out += &table(&chosen, &e.gains());
    }
    out
}

fn table(points: &[&Simulated], gains: &[String]) -> String {
    // What is the same at all of them is said once.
    let is_common =
        |k: &str, v: &str| points.len() > 1 && points.iter().all(|p| p.knobs.iter().any(|(name, value)| name == k && value == v));
    let mut head = vec!["tokens/s/GPU", "tokens/s/user", "TTFT s", "GPUs", "limited by", "knobs"];
    if !gains.is_empty() {
        head.insert(0, "gain");
    }
    let mut rows: Vec<Vec<String>> = vec![head.into_iter().map(str::to_owned).collect()];
    for (i, p) in points.iter().enumerate() {
        let range = |i: tandem_sim::predict::Interval| format!("{:.0} ({:.0}-{:.0})", i.value, i.low, i.high);
        let knobs: Vec<String> = p.knobs.iter().filter(|(k, v)| !is_common(k, v)).map(|(k, v)| format!("{k}={v}")).collect();
        let mut row = vec![
            range(p.prediction.tokens_per_gpu),
            range(p.per_user()),
            format!("{:.2}", p.prediction.ttft_median.value),
            p.screened.gpus.to_string(),
            p.screened.bound.name().to_owned(),
            knobs.join(" "),
        ];
        if let Some(gain) = gains.get(i) {
            row.insert(0, gain.clone());
        }
        rows.push(row);
    }
    let widths: Vec<usize> = (0..rows[0].len()).map(|c| rows.iter().map(|r| r[c].len()).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect::<Vec<_>>().join("  ");
    let mut out: String = rows.iter().map(|row| format!("  {}\n", line(row).trim_end())).collect();
    let common = points.first().into_iter().flat_map(|p| &p.knobs).filter(|(k, v)| is_common(k, v));
    let common: Vec<String> = common.map(|(k, v)| format!("{k}={v}")).collect();
    if !common.is_empty() {
        let _ = writeln!(out, "  all of them: {}", common.join(" "));
    }
    out
}
