//! The committed run folder, and ways to bend it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tandem_metrics::artifacts::profile_export;
use tandem_metrics::{RequestRecord, RunClock};
use tandem_plan::Phase;
use tandem_report::{Comparison, Evidence, PhaseLog, Run, compare, html};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/small-run")
}

pub(crate) fn text(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub(crate) fn result() -> Value {
    serde_json::from_str(&text("result.json")).unwrap()
}

/// Two load points of the `nano` model, with everything a run folder has.
pub(crate) fn run(name: &str) -> Run {
    run_of(name, &result(), Some(&text("plan.json")))
}

/// The same with another `result.json` and `plan.json`.
pub(crate) fn run_of(name: &str, result: &Value, plan: Option<&str>) -> Run {
    let mut run = Run::new(name, format!("runs/{name}"), &result.to_string()).unwrap();
    if let Some(plan) = plan {
        run.set_plan(plan);
    }
    for source in run.point_sources().collect::<Vec<_>>() {
        run.set_records(source.index, &records(source.index));
    }
    run.set_log(Phase::Prefill, log("logs/prefill.log"));
    run.set_log(Phase::Decode, log("logs/decode.log"));
    run.add_evidence(Evidence { path: "result.json".to_owned(), bytes: 7321 });
    run
}

/// The records of load point `index`, warm-up included.
pub(crate) fn records(index: usize) -> Vec<RequestRecord> {
    let directory = format!("nano-openai-chat-concurrency{}", index + 1);
    let parse = |name: &str| profile_export::parse(&text(&format!("{directory}/{name}")), RunClock { wall_origin_ns: 0 }).unwrap();
    [parse("profile_export.jsonl"), parse("profile_export_warmup.jsonl")].concat()
}

pub(crate) fn log(name: &str) -> PhaseLog {
    let mut log = PhaseLog::new();
    text(name).lines().for_each(|line| log.push_line(line));
    log
}

pub(crate) fn comparisons(runs: &[Run]) -> Vec<Comparison> {
    runs.iter().skip(1).map(|run| compare(&runs[0], run)).collect()
}

pub(crate) fn page(runs: &[Run]) -> String {
    html(runs, &comparisons(runs), "tandem report run --html report.html")
}
