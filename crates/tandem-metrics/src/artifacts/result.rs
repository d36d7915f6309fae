//! `result.json`: our own account of a run, for scripts. Schema version 1.
//!
//! `validity` comes before any figure. `summary` has each metric by its name and unit (`summary.ttft.avg`); with
//! several load points it is that of `summary_point`, the trustworthy one with the highest output throughput per GPU,
//! and `points` has them all.

use serde_json::{Map, Value, json};

use crate::analysis::repeats;
use crate::artifacts::python;
use crate::artifacts::{PointArtifacts, RunContext};
use crate::metrics::output_throughput_per_gpu;
use crate::summary::Summary;
use crate::validity::{Reason, Validity, Verdict};

/// Version of the document; readers refuse another.
pub const RESULT_SCHEMA_VERSION: u32 = 1;

/// The file's text.
#[must_use]
pub fn render(points: &[PointArtifacts], context: &RunContext) -> String {
    let validity = run_validity(points, context);
    let best = best_point(points);
    let mut root = Map::new();
    let mut put = |key: &str, value: Value| root.insert(key.to_owned(), value);
    put("schema_version", RESULT_SCHEMA_VERSION.into());
    put("validity", validity.verdict().as_str().into());
    put("validity_reasons", reasons_json(&validity.reasons));
    put("kind", context.kind.as_str().into());
    put("partial", context.is_partial.into());
    put("recipe", context.recipe.clone().into());
    put("model", context.model.clone().into());
    put("plan_hash", Some(context.plan_hash.as_str()).filter(|hash| !hash.is_empty()).into());
    put("versions", strings_json(&context.versions));
    put("machines", json!(context.machines));
    put("n_gpus", context.n_gpus.into());
    put("started_at", rfc3339(context.started_wall_ns).into());
    put("ended_at", rfc3339(context.ended_wall_ns).into());
    put("duration_s", json!(context.ended_wall_ns.saturating_sub(context.started_wall_ns) as f64 / 1e9));
    put("outcomes", outcomes_json(points.iter().map(|point| &point.summary)));
    put("summary_point", json!(best));
    put("summary", best.map_or_else(|| json!({}), |i| points[i].summary.to_json()));
    put("points", points.iter().map(point_json).collect());
    let summaries: Vec<&Summary> = points.iter().map(|point| &point.summary).collect();
    put("repeats", repeats::to_json(&repeats::repeats(&summaries)));
    python::dumps_indented(&root.into()) + "\n"
}

/// Everything that is wrong with any point, and with the run as a whole.
#[must_use]
pub fn run_validity(points: &[PointArtifacts], context: &RunContext) -> Validity {
    let mut reasons = context.reasons.clone();
    if context.is_partial {
        reasons.push(Reason { verdict: Verdict::Invalid, code: "partial", message: "the run ended early; figures are partial".to_owned() });
    }
    if points.is_empty() {
        reasons.push(Reason { verdict: Verdict::Invalid, code: "no_result", message: "no load point was measured".to_owned() });
    }
    for point in points {
        let named = |reason: &Reason| Reason {
            message: if points.len() > 1 { format!("{}: {}", point.directory, reason.message) } else { reason.message.clone() },
            ..reason.clone()
        };
        reasons.extend(point.summary.validity.reasons.iter().map(named));
    }
    Validity::new(reasons)
}

/// Index of the point whose summary stands for the run: of the best verdict, the highest output throughput per GPU.
fn best_point(points: &[PointArtifacts]) -> Option<usize> {
    let key = |point: &PointArtifacts| {
        (std::cmp::Reverse(point.summary.validity.verdict()), point.summary.avg(&output_throughput_per_gpu::METRIC).unwrap_or(0.0))
    };
    let better = |a: &usize, b: &usize| {
        let (a, b) = (key(&points[*a]), key(&points[*b]));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    };
    (0..points.len()).max_by(better)
}

fn point_json(point: &PointArtifacts) -> Value {
    let summary = &point.summary;
    let mut entry = json!({
        "directory": point.directory,
        "validity": summary.validity.verdict().as_str(),
        "validity_reasons": reasons_json(&summary.validity.reasons),
        "load": {
            "concurrency": summary.load.concurrency,
            "request_rate": summary.load.request_rate,
            "n_requests": summary.load.n_requests,
            "isl": summary.load.isl,
            "osl": summary.load.osl,
            "streaming": summary.load.streaming,
            "slos": summary.load.slos.iter().map(|slo| (slo.metric().name.to_owned(), json!(slo.limit()))).collect::<Map<_, _>>(),
        },
        "outcomes": outcomes_json([summary]),
        "genai_perf_counting": if point.genai_perf_compat { "genai_perf" } else { "tandem" },
        "summary": summary.to_json(),
    });
    for (key, value) in point.analysis.to_json() {
        entry[key] = value;
    }
    entry["client"] = point.client.clone();
    entry["telemetry"] = point.telemetry.clone();
    entry
}

fn reasons_json(reasons: &[Reason]) -> Value {
    let entry = |reason: &Reason| json!({"verdict": reason.verdict.as_str(), "code": reason.code, "message": reason.message});
    reasons.iter().map(entry).collect()
}

fn outcomes_json<'a>(summaries: impl IntoIterator<Item = &'a Summary>) -> Value {
    let mut total = std::collections::BTreeMap::<&str, u64>::new();
    for (name, n) in summaries.into_iter().flat_map(|summary| &summary.outcomes) {
        *total.entry(name).or_default() += n;
    }
    json!(total)
}

fn strings_json(pairs: &[(String, String)]) -> Value {
    Value::Object(pairs.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect())
}

/// A wall-clock time as `2026-11-24T06:41:57.123456789Z`.
#[must_use]
pub fn rfc3339(wall_ns: u64) -> String {
    let (seconds, nanos) = (wall_ns / 1_000_000_000, wall_ns % 1_000_000_000);
    let (days, in_day) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in 400-year eras, so that leap days end a year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (in_day / 3_600, in_day / 60 % 60, in_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn times_are_written_as_dates() {
        let at = |seconds: u64| rfc3339(seconds * 1_000_000_000);
        assert_eq!(at(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59.000000000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(at(951_868_800), "2000-03-01T00:00:00.000000000Z");
        assert_eq!(at(1_798_761_599), "2026-12-31T23:59:59.000000000Z");
        assert_eq!(rfc3339(1_795_488_137_933_718_946), "2026-11-24T02:42:17.933718946Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000000Z");
    }
}
