//! `tandem submit` on a real Slurm: whole jobs that serve and are measured.

mod common;

use std::fs;
use std::process::Output;

use common::slurm_lab::Lab;
use common::{events, stderr, stdout, wait_for};
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
    // On a busy machine the client may be late for a load this small; that makes figures suspect, not wrong.
    assert_ne!(result["validity"], "invalid", "{result:#}");
    assert_eq!(result["outcomes"]["ok"], 8, "{result:#}");
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
    // Everything ends, and the history knows the job. Slurm may list a job as completing for a moment after its result is known.
    wait_for("the job to leave the queue", || lab.slurm("squeue", &["-h"]).stdout.is_empty().then_some(()));
    let history = lab.tandem(&["history"]).output().expect("tandem starts");
    assert!(stdout(&history).contains("succeeded"), "{}", stdout(&history));
    let status = lab.tandem(&["status", &lab.path("job").display().to_string()]).output().expect("tandem starts");
    assert!(stdout(&status).contains("succeeded") && stdout(&status).contains("[result]"), "{}", stdout(&status));
}

#[test]
fn the_embedded_engine_serves_inside_a_job_and_two_servers_share_a_node() {
    let Some(lab) = Lab::start("slurm: the embedded engine in a job", 1) else { return };
    // The first port of the job's block is taken by somebody else: the next ones are found, and it is said.
    let taken = std::net::TcpListener::bind("127.0.1.1:20050").expect("the port is free");
    let output = submit(&lab, &["nano"], &[]);
    drop(taken);
    check_success(&lab, &output);
    let ports = events(&lab.path("job")).into_iter().find(|event| event["event"] == "ports_bound").expect("an event");
    assert_eq!(ports["busy"], serde_json::json!([20050]), "{ports}");
    // It cannot be submitted a second time by mistake, and a success is not retried.
    let job = lab.path("job").display().to_string();
    let again = lab.tandem(&["submit", "nano", "--out", &job]).output().expect("tandem starts");
    assert!(stderr(&again).contains("was submitted before"), "{}", stderr(&again));
    let retry = lab.tandem(&["retry", &job]).output().expect("tandem starts");
    assert!(stderr(&retry).contains("it succeeded"), "{}", stderr(&retry));
    // The same job again, by name, in a folder of its own.
    let rerun = lab.tandem(&["rerun", &job]).output().expect("tandem starts");
    assert!(rerun.status.success(), "{}", stderr(&rerun));
    let watched = lab.tandem(&["watch", stdout(&rerun).trim()]).output().expect("tandem starts");
    assert!(watched.status.success(), "{}", stderr(&watched));
}

#[test]
fn a_dry_run_shows_script_environment_and_commands_and_leaves_nothing() {
    let Some(lab) = Lab::start("slurm: dry run", 6) else { return };
    let out = lab.path("job").display().to_string();
    let args =
        ["submit", "deepseek-r1", "--gpu-type", "h100", "--set", "ENGINE=modeled", "--dry-run", "--out", &out, "--gpu-request", "gres"];
    let mut command = lab.tandem(&args);
    let output = command.env("TANDEM_API_KEY", "very-secret").output().expect("tandem starts");
    let text = stdout(&output);
    assert!(output.status.success(), "{}", stderr(&output));
    for part in
        ["#SBATCH --gres=gpu:8", "orchestrate", "sbatch --parsable", "--nodelist=NODE_4,NODE_5 --nodes=2 --ntasks=16", "to start at"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("very-secret"), "{text}");
    assert!(!lab.path("job").exists());
}
