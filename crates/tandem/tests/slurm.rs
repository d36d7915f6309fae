//! `tandem submit` on a real Slurm: whole jobs that serve and are measured.

mod common;

use std::fs;
use std::process::Output;

use common::slurm_lab::Lab;
use common::{events, stderr, stdout};
use serde_json::Value;

/// A small load on modeled engines: they answer at once, what is tested is who started them where.
const SMALL: [&str; 12] = [
    "--set",
    "ISL=64",
    "--set",
    "OSL=8",
    "--set",
    "CONCURRENCY=4",
    "--set",
    "MULTI_ROUND=2",
    "--set",
    "MODELED_STEP_US=500",
    "--time",
    "5",
];

fn submit(lab: &Lab, recipe: &[&str], more: &[&str]) -> Output {
    let out = lab.path("job").display().to_string();
    let mut args = vec!["submit"];
    args.extend_from_slice(recipe);
    args.extend_from_slice(&SMALL);
    args.extend_from_slice(&["--out", &out, "--wait"]);
    args.extend_from_slice(more);
    lab.tandem(&args).output().expect("tandem starts")
}

fn check_success(lab: &Lab, output: &Output) -> Value {
    let log = |name: &str| fs::read_to_string(lab.path("job/logs").join(name)).unwrap_or_default();
    assert!(output.status.success(), "{}\n{}", stderr(output), log("output_server.log"));
    let result: Value = serde_json::from_slice(&fs::read(lab.path("job/result.json")).expect("result.json")).expect("JSON");
    assert_eq!(result["validity"]["verdict"], "valid", "{result:#}");
    for file in ["plan.json", "manifest.json", "perf_summary.txt", "configs/prefill.yaml", "job/job.sbatch", "job/result.json"] {
        assert!(lab.path("job").join(file).exists(), "{file}");
    }
    result
}

#[test]
fn the_h100_plan_runs_on_six_nodes_of_eight_gpus() {
    let Some(lab) = Lab::start("slurm: the H100 plan on 6 x 8", 6) else { return };
    let tokenizer = concat!("TOKENIZER=", env!("CARGO_MANIFEST_DIR"), "/../../models/nano");
    let output = submit(
        &lab,
        &["deepseek-r1", "--gpu-type", "h100", "--set", "ENGINE=modeled", "--set", "LOAD_FORMAT=dummy", "--set", tokenizer],
        &[],
    );
    check_success(&lab, &output);
    let machines = fs::read_to_string(lab.path("job/configs/machines.txt")).expect("machines.txt");
    assert_eq!(machines.split_whitespace().collect::<Vec<_>>(), ["n1", "n2", "n3", "n4", "n5", "n6"]);
    let script = fs::read_to_string(lab.path("job/job/job.sbatch")).expect("the script");
    assert!(script.contains("--nodes=6") && script.contains("--gpus-per-node=8") && script.lines().count() <= 14, "{script}");
    // Everything has ended, and the history knows the job.
    assert!(lab.slurm("squeue", &["-h"]).stdout.is_empty());
    let history = lab.tandem(&["history"]).output().expect("tandem starts");
    assert!(stdout(&history).contains("succeeded"), "{}", stdout(&history));
    let status = lab.tandem(&["status", &lab.path("job").display().to_string()]).output().expect("tandem starts");
    assert!(stdout(&status).contains("succeeded") && stdout(&status).contains("[result]"), "{}", stdout(&status));
}
