//! `tandem run` as a user sees it: files, figures, exit codes, interrupts.

mod common;

use std::fs;
use std::process::Command;

use common::{Background, check_all_json, events, is_running, output, read_json, stderr, stdout, wait_for, wait_until_gone};
use rustix::process::Signal;

/// A deployment that computes nothing, with a long enough run to be disturbed.
const LONG: [&str; 9] = ["tiny", "--set", "ENGINE=modeled", "--set", "MODELED_STEP_US=20000", "--set", "OSL=200", "--set", "CONCURRENCY=4"];

const FILES: [&str; 14] = [
    "plan.json",
    "events.jsonl",
    "result.json",
    "perf_summary.txt",
    "configs/deployment.yaml",
    "configs/prefill.yaml",
    "configs/decode.yaml",
    "configs/machines.txt",
    "logs/output_server.log",
    "logs/output_prefill_1.log",
    "logs/output_decode_1.log",
    "logs/prefill.log",
    "logs/decode.log",
    "logs/bench.log",
];

#[test]
fn a_run_writes_every_file_and_its_figures_follow_from_the_records() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let run = output(&["run", "tiny", "--set", "CONCURRENCY=2,4", "--out", out.to_str().unwrap()]);
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    let summary = fs::read_to_string(out.join("perf_summary.txt")).unwrap();
    assert!(stdout(&run).contains("PERFORMANCE OVERVIEW"), "{}", stdout(&run));
    assert!(summary.contains("Average time per output token [TPOT] (ms)     : "), "{summary}");
    for name in FILES {
        assert!(out.join(name).is_file(), "{name} is missing");
    }
    for concurrency in [2, 4] {
        let point = out.join(format!("tiny-openai-chat-concurrency{concurrency}"));
        for name in ["profile_export_genai_perf.json", "profile_export_genai_perf.csv", "profile_export.jsonl", "inputs.json"] {
            assert!(point.join(name).is_file(), "{name} is missing for concurrency {concurrency}");
        }
    }
    assert!(check_all_json(&out) >= 8);
    // Requests this short leave gaps between them that a busy machine makes suspect.
    assert_ne!(read_json(&out.join("result.json"))["validity"], "invalid");
    let stopped: Vec<_> = events(&out).into_iter().filter(|e| e["event"] == "process_stopped").collect();
    assert!(stopped.len() == 3 && stopped.iter().all(|e| e["code"] == 0), "a normal end is no failure: {stopped:?}");
    let decode_log = fs::read_to_string(out.join("logs/decode.log")).unwrap();
    assert!(decode_log.lines().all(|line| line.contains("num_generation_tokens")) && decode_log.lines().count() > 8);
    check_with_the_independent_script(&out);
}

/// Python is not a requirement of the project, so its absence is said and passed.
fn check_with_the_independent_script(out: &std::path::Path) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/check_run.py");
    match Command::new("python3").arg(script).arg(out).output() {
        Ok(check) => assert!(check.status.success(), "{}{}", stdout(&check), stderr(&check)),
        Err(error) => tandem_testkit::not_run("the independent check of the figures", format!("python3: {error}")),
    }
}

#[test]
fn responses_that_do_not_stream_have_no_ttft_and_no_tpot() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let run = output(&["run", "tiny", "--set", "STREAMING=false", "--out", out.to_str().unwrap()]);
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    let csv = fs::read_to_string(out.join("tiny-openai-chat-concurrency2/profile_export_genai_perf.csv")).unwrap_or_else(|_| {
        let names: Vec<_> = fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
        panic!("no point folder among {names:?}")
    });
    assert!(!csv.contains("Time To First Token") && csv.contains("Request Latency (ms)"), "{csv}");
    check_with_the_independent_script(&out);
}

#[test]
fn a_process_that_dies_ends_the_run_and_is_named() {
    for victim in ["frontend", "prefill-1", "decode-0"] {
        let mut run = Background::run(&[&LONG[..], &["--set", "NCTX=2"]].concat());
        let pids = run.pids(4);
        wait_for("the deployment to be ready", || events(&run.out).iter().any(|e| e["event"] == "point_started").then_some(()));
        let pid = pids.iter().find(|(name, _)| name == victim).expect("the victim").1;
        common::kill(pid, Signal::KILL);
        assert_eq!(run.wait(), Some(6), "{}", run.stderr());
        assert!(run.stderr().contains(&format!("{victim} was ended by signal 9")), "{}", run.stderr());
        wait_until_gone(&pids);
        check_all_json(&run.out);
        let result = read_json(&run.out.join("result.json"));
        assert_eq!(result["validity"], "invalid");
        assert!(run.out.join("logs/prefill.log").is_file());
    }
}

#[test]
fn ctrl_c_finishes_what_is_in_flight_and_marks_the_results_partial() {
    let mut run = Background::run(&LONG);
    let pids = run.pids(3);
    wait_for("load", || events(&run.out).iter().any(|e| e["event"] == "point_started").then_some(()));
    run.signal(Signal::INT);
    assert_eq!(run.wait(), Some(130), "{}", run.stderr());
    wait_until_gone(&pids);
    check_all_json(&run.out);
    let result = read_json(&run.out.join("result.json"));
    assert_eq!(result["partial"], true, "{result}");
    assert!(run.out.join("perf_summary.txt").is_file());
}

#[test]
fn sigterm_while_it_starts_tears_down_what_is_there() {
    let mut run = Background::run(&LONG);
    let pids = run.pids(1);
    run.signal(Signal::TERM);
    assert_eq!(run.wait(), Some(130), "{}", run.stderr());
    wait_until_gone(&pids);
    check_all_json(&run.out);
}

#[test]
fn nothing_is_left_when_the_launcher_is_killed() {
    let mut run = Background::run(&LONG);
    let pids = run.pids(3);
    run.signal(Signal::KILL);
    run.wait();
    wait_until_gone(&pids);
    assert!(pids.iter().all(|(_, pid)| !is_running(*pid)));
}

#[test]
fn a_folder_that_holds_a_run_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("precious"), "x").unwrap();
    let run = output(&["run", "tiny", "--out", dir.path().to_str().unwrap()]);
    assert_eq!(run.status.code(), Some(2));
    assert!(stderr(&run).contains("is not empty"), "{}", stderr(&run));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let run = output(&["run", "tiny", "--out", "/dev/null/run"]);
    assert_eq!(run.status.code(), Some(9));
    assert!(stderr(&run).contains("/dev/null/run"), "{}", stderr(&run));
}

#[test]
fn a_recipe_for_a_cluster_says_so_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let run = output(&["run", "deepseek-r1", "--gpu-type", "h100", "--out", out.to_str().unwrap()]);
    assert_eq!(run.status.code(), Some(4), "{}", stderr(&run));
    assert!(stderr(&run).contains("tandem plan"), "{}", stderr(&run));
}
