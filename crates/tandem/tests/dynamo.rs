//! The real Dynamo from PyPI with its mocker, disaggregated on one machine: a whole run, and a prefill worker that dies.
//!
//! `tests/dynamo/install.sh` installs it once into a cached environment. Where that is impossible the tests say so and pass.

mod common;

use common::{Background, dynamo, events, kill, output, read_json, stderr, wait_for, wait_until_gone};
use rustix::process::Signal;
use tandem_testkit::not_run;

/// Arguments of a mocker run; none when Dynamo cannot be had.
fn arguments(what: &str) -> Option<Vec<String>> {
    match dynamo() {
        Ok((python, model)) => Some(vec![
            "mocker".to_owned(),
            "--set".to_owned(),
            format!("ENGINE_PYTHON={python}"),
            "--set".to_owned(),
            format!("MODEL={model}"),
        ]),
        Err(reason) => {
            not_run(what, reason);
            None
        }
    }
}

#[test]
fn a_run_with_the_real_dynamo_is_valid_and_disaggregated() {
    let Some(arguments) = arguments("Dynamo with its mocker") else { return };
    let out = tempfile::tempdir().unwrap();
    let run = out.path().join("run");
    let mut all = vec!["run", "--out", run.to_str().unwrap(), "--set", "NCTX=2"];
    all.extend(arguments.iter().map(String::as_str));
    let done = output(&all);
    assert!(done.status.success(), "{}", stderr(&done));
    let result = read_json(&run.join("result.json"));
    let reasons = result["validity"]["reasons"].as_array().cloned().unwrap_or_default();
    // A busy machine may make the client's own clock suspect; that all requests were disaggregated must hold anyway.
    assert!(!reasons.iter().any(|r| r["verdict"] == "invalid"), "{reasons:?}");
    let records = std::fs::read_to_string(run.join("profile_export.jsonl")).or_else(|_| {
        let point = std::fs::read_dir(&run).unwrap().map(|e| e.unwrap().path()).find(|p| p.join("profile_export.jsonl").exists());
        std::fs::read_to_string(point.expect("a load point").join("profile_export.jsonl"))
    });
    assert!(records.unwrap().lines().count() >= 64);
    for file in ["plan.json", "perf_summary.txt", "events.jsonl", "configs/prefill.yaml", "logs/output_prefill_2.log"] {
        assert!(run.join(file).exists(), "{file}");
    }
}

#[test]
fn a_prefill_worker_that_dies_is_named() {
    let Some(arguments) = arguments("Dynamo with a prefill worker that dies") else { return };
    let mut all: Vec<&str> = arguments.iter().map(String::as_str).collect();
    all.extend(["--set", "MULTI_ROUND=10000"]);
    let mut run = Background::run(&all);
    wait_for("the load", || events(&run.out).iter().any(|e| e["event"] == "point_started").then_some(()));
    let pids = run.pids(3);
    let (_, prefill) = pids.iter().find(|(name, _)| name == "prefill-0").expect("a prefill worker");
    kill(*prefill, Signal::KILL);
    assert_eq!(run.wait(), Some(6), "{}", run.stderr());
    assert!(run.stderr().contains("prefill-0 was ended by signal 9"), "{}", run.stderr());
    wait_until_gone(&pids);
}
