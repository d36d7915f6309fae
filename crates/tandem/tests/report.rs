//! `tandem report` and `tandem compare` as a user and a build machine see them: files, exit codes, what goes where.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{output, read_json, stderr, stdout};
use serde_json::{Value, json};

/// The committed run folder of the report's own tests.
fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tandem-report/tests/data/small-run")
}

/// A copy of the fixture in which a figure is multiplied.
fn slower(folder: &Path, factor: f64) -> String {
    fs::create_dir_all(folder).unwrap();
    let mut result = read_json(&fixture().join("result.json"));
    for point in result["points"].as_array_mut().unwrap() {
        let rate = &mut point["summary"]["output_throughput_per_gpu"]["avg"];
        *rate = json!(rate.as_f64().unwrap() * factor);
    }
    fs::write(folder.join("result.json"), result.to_string()).unwrap();
    folder.to_str().unwrap().to_owned()
}

#[test]
fn a_run_folder_becomes_a_page_a_table_and_json() {
    let dir = tempfile::tempdir().unwrap();
    let run = fixture();
    let run = run.to_str().unwrap();
    let page = dir.path().join("page.html");
    let made = output(&["report", run, "--html", page.to_str().unwrap(), "--json"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let json: Value = serde_json::from_str(&stdout(&made)).unwrap();
    assert_eq!(json["runs"][0]["unread"], json!([]), "everything was read");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("Waterfall of all 10 requests") && page.contains("logs/decode.log"));
    let table = output(&["report", run]);
    assert!(stdout(&table).starts_with("# Tandem report\n"), "{}", stdout(&table));
}

#[test]
fn predictions_stand_beside_the_figures_of_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let run = run.to_str().unwrap();
    let made = output(&["simulate", "tiny", "--set", "ENGINE=modeled", "--set", "CONCURRENCY=1,4", "--set", "OSL=16", "--out", run]);
    assert!(made.status.success(), "{}", stderr(&made));
    let page = dir.path().join("page.html");
    let json = |args: &[&str]| {
        let made = output(args);
        assert!(made.status.success(), "{}", stderr(&made));
        serde_json::from_str::<Value>(&stdout(&made)).unwrap()["runs"][0].clone()
    };
    let report = json(&["report", run, "--json", "--html", page.to_str().unwrap()]);
    let points = report["points"].as_array().unwrap();
    assert_eq!(points.len(), 2);
    for figure in points.iter().flat_map(|point| point["prediction"]["figures"].as_array().unwrap()) {
        // The run was simulated from the same plan with the same costs.
        assert!(figure["off"].as_f64().unwrap().abs() < 0.01 && figure["is_inside"] == true, "{figure}");
    }
    assert!(points.iter().all(|point| point["prediction"]["figures"].as_array().unwrap().len() == 4), "{points:?}");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("Prediction beside measurement") && page.contains("This run was simulated itself, step by step"));
    assert!(stdout(&output(&["report", run])).contains("| simulated | predicted | range (8 of 10) | off by |"));
    // The CPU engine has no costs without a calibration, and that is said.
    let unknown = json(&["report", fixture().to_str().unwrap(), "--json"]);
    assert!(unknown["not_predicted"].to_string().contains("until a run of it was calibrated"), "{}", unknown["not_predicted"]);
    assert_eq!(unknown["points"][0]["prediction"], Value::Null);
}

#[test]
fn a_gate_decides_about_the_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let (before, after) = (slower(&dir.path().join("before"), 1.0), slower(&dir.path().join("after"), 0.95));
    let compare = |a: &str, b: &str, gates: &[&str]| {
        let mut args = vec!["compare", a, b];
        gates.iter().for_each(|gate| args.extend(["--fail-if", gate]));
        let run = output(&args);
        (run.status.code(), stdout(&run), stderr(&run))
    };
    let (code, table, _) = compare(&before, &after, &[]);
    assert_eq!(code, Some(0));
    assert!(table.contains("| concurrency 1 | tokens/s/GPU |") && table.contains("−5.0 %"), "{table}");
    let (code, table, message) = compare(&before, &after, &["ttft.p99>10%", "tokens_per_gpu<-3%"]);
    assert_eq!(code, Some(8));
    assert!(table.contains("−5.0 %"), "the comparison is printed in any case");
    assert!(message.contains("tokens_per_gpu<-3%: at concurrency 1 it is −5.0 %"), "{message}");
    assert_eq!(compare(&after, &before, &["tokens_per_gpu<-3%"]).0, Some(0));
    assert_eq!(compare(&before, &after, &["goodput<-3%"]).0, Some(8), "what cannot be judged does not pass");
    assert_eq!(compare(&before, &after, &["tokens_per_gpu=3"]).0, Some(2));
}

#[test]
fn what_cannot_be_read_has_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().to_str().unwrap();
    let fixture = fixture();
    let run = fixture.to_str().unwrap();
    for args in [&["report", empty][..], &["compare", run, empty], &["report", "/no/such/run"]] {
        assert_eq!(output(args).status.code(), Some(9), "{args:?}");
    }
    fs::write(dir.path().join("result.json"), r#"{"schema_version": 99}"#).unwrap();
    let newer = output(&["compare", run, empty, "--fail-if", "tokens_per_gpu<-3%"]);
    assert_eq!(newer.status.code(), Some(9));
    assert!(stderr(&newer).contains("schema version 99"), "{}", stderr(&newer));
    assert_eq!(output(&["report", run, "--json", "--markdown"]).status.code(), Some(2));
}
