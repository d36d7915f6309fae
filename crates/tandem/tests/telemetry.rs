//! Telemetry from the command line to the files: a fake NVML library, roles from the plan, what is missing, time slices.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{events, output, read_json, stderr, tandem};
use serde_json::Value;

fn fake_nvml(dir: &Path) -> Option<PathBuf> {
    tandem_testkit::shared_library(
        concat!(env!("CARGO_MANIFEST_DIR"), "/../tandem-telemetry/tests/data/fake_nvml.c"),
        dir,
        "telemetry of a run with a fake NVML library",
    )
}

fn run_with(library: &Path, out: &Path, more: &[&str]) -> Output {
    let knobs = ["--set", "ENGINE=modeled", "--set", "MODELED_STEP_US=10000", "--set", "OSL=40", "--set", "CONCURRENCY=2"];
    let args = ["run", "tiny", "--gpu-role", "prefill=0", "--gpu-role", "decode=1"].into_iter().chain(knobs).chain(more.iter().copied());
    tandem().env("TANDEM_NVML_LIBRARY", library).args(args).arg("--out").arg(out).output().expect("tandem starts")
}

#[test]
fn energy_by_role_reaches_every_file() {
    let dir = tempfile::tempdir().unwrap();
    let Some(library) = fake_nvml(dir.path()) else { return };
    let out = dir.path().join("run");
    let run = run_with(&library, &out, &["--telemetry", "nvml", "--slice", "0.25"]);
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    let result = read_json(&out.join("result.json"));
    let telemetry = &result["points"][0]["telemetry"];
    let roles = &telemetry["energy"]["roles"];
    // The fake GPUs draw 300 W and 500 W.
    for (role, watts) in [("prefill", 300.0), ("decode", 500.0)] {
        let mean = roles[role]["mean_power_w"].as_f64().unwrap_or_else(|| panic!("no {role} in {roles}"));
        assert!((mean / watts - 1.0).abs() < 0.1, "{role}: {mean} W");
    }
    let summary = &result["summary"];
    let value = |name: &str| summary[name]["avg"].as_f64().unwrap_or_else(|| panic!("no {name}"));
    assert!((value("gpu_power") / 800.0 - 1.0).abs() < 0.1);
    assert!((value("energy_per_output_token") * value("output_tokens_per_joule") - 1.0).abs() < 1e-9);
    assert!(
        (value("output_throughput") / value("gpu_power") / value("output_tokens_per_joule") - 1.0).abs() < 1e-9,
        "tokens/J are tokens/s/W"
    );
    let hosts = telemetry["hosts"].as_array().unwrap();
    assert!(hosts[0]["figures"]["cpu_percent"]["avg"].is_number(), "{hosts:?}");
    let servers = telemetry["servers"].as_array().unwrap();
    assert_eq!(servers[0]["name"], "tandem", "the run's own frontend is scraped");
    assert!(servers[0]["figures"]["server_output_tokens_total"]["growth"].is_number(), "{servers:?}");

    let point = out.join(result["points"][0]["directory"].as_str().unwrap());
    let genai = read_json(&point.join("profile_export_genai_perf.json"));
    assert_eq!(genai["telemetry_stats"]["gpu_power_usage"]["1"]["p50"], 500.0);
    let used = genai["telemetry_stats"]["energy_consumption"]["0"]["avg"].as_f64().unwrap() * 1e6;
    assert!((used / telemetry["energy"]["gpus"][0]["energy_j"].as_f64().unwrap() - 1.0).abs() < 1e-9, "what was used, not the counter");
    let csv = fs::read_to_string(point.join("profile_export_genai_perf.csv")).unwrap();
    assert!(csv.contains("GPU Memory Temperature (C),1,62.00,"), "{csv}");
    let slices = fs::read_to_string(point.join("timeslices.csv")).unwrap();
    assert!(slices.lines().count() > 10 && slices.contains("time_to_first_token,ms,p99"), "{slices}");
    assert!(result["points"][0]["slices"].as_array().unwrap().len() > 1);
    let lines = fs::read_to_string(out.join("telemetry.jsonl")).unwrap();
    let kinds: Vec<String> =
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["kind"].as_str().unwrap().to_owned()).collect();
    assert!(["gpu", "host", "server"].iter().all(|kind| kinds.iter().any(|found| found == kind)));
    assert!(events(&out).iter().any(|event| event["event"] == "telemetry_started"));
    check_with_the_independent_script(&out);
    let lines = fs::read_to_string(out.join("perf_summary.txt")).unwrap();
    let said = lines.lines().find_map(|line| line.strip_prefix("Energy per output token (J)                   : ")).unwrap();
    assert!((said.parse::<f64>().unwrap() - value("energy_per_output_token")).abs() < 1e-4, "{lines}");
    let page = dir.path().join("report.html");
    let report = output(&["report", out.to_str().unwrap(), "--html", page.to_str().unwrap()]);
    assert!(report.status.success(), "{}", stderr(&report));
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("GPU power, by role") && page.contains("GPU memory temperature, by role"));
    let markdown = output(&["report", out.to_str().unwrap(), "--markdown"]);
    assert!(String::from_utf8_lossy(&markdown.stdout).contains("| together | 2 |"), "{}", stderr(&markdown));
}

fn check_with_the_independent_script(out: &Path) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/check_run.py");
    match Command::new("python3").arg(script).arg(out).output() {
        Ok(check) => assert!(check.status.success(), "{}{}", common::stdout(&check), stderr(&check)),
        Err(error) => tandem_testkit::not_run("the independent check of the figures", format!("python3: {error}")),
    }
}

#[test]
fn without_a_gpu_auto_goes_on_and_nvml_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("no-library.so");
    let out = dir.path().join("auto");
    let run = run_with(&missing, &out, &[]);
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    let result = read_json(&out.join("result.json"));
    let telemetry = &result["points"][0]["telemetry"];
    assert!(telemetry["energy"].is_null() && telemetry["notes"][0].as_str().unwrap().starts_with("no GPU telemetry"), "{telemetry}");
    assert!(result["summary"]["gpu_energy"].is_null());

    let run = run_with(&missing, &dir.path().join("nvml"), &["--telemetry", "nvml"]);
    assert_eq!(run.status.code(), Some(2), "{}", stderr(&run));
    assert!(stderr(&run).contains("no-library.so"), "{}", stderr(&run));

    let out = dir.path().join("none");
    let run = run_with(&missing, &out, &["--telemetry", "none"]);
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    assert!(read_json(&out.join("result.json"))["points"][0]["telemetry"].is_null() && !out.join("telemetry.jsonl").exists());
}

#[test]
fn an_unknown_source_is_refused() {
    let run = output(&["run", "tiny", "--telemetry", "dgcm:n1"]);
    assert_eq!(run.status.code(), Some(2));
    assert!(stderr(&run).contains("expected auto, nvml, dcgm:URL or none"), "{}", stderr(&run));
}
