//! `tandem load selftest`: the process, its files and its exit code. Figures are the machine's, so none is asserted.

use std::process::{Command, Output};

fn selftest(args: &[&str], json: &std::path::Path) -> (Output, serde_json::Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args(["load", "selftest", "--no-ceiling", "--rounds", "2", "--isl", "16"])
        .args(args)
        .arg("--json")
        .arg(json)
        .output()
        .expect("tandem starts");
    let text = std::fs::read_to_string(json).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    (output, serde_json::from_str(&text).expect("an answer"))
}

#[test]
fn a_selftest_says_what_it_measured_and_its_exit_code_is_its_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let (output, json) =
        selftest(&["--concurrency", "2,3", "--ttft-ms", "5", "--itl-ms", "2", "--osl", "6"], &folder.path().join("selftest.json"));
    let points = json["points"].as_array().unwrap();
    let seen: Vec<_> = points.iter().map(|p| (p["concurrency"].as_u64().unwrap(), p["n_failed"].as_u64().unwrap())).collect();
    assert_eq!(seen, [(2, 0), (2, 0), (3, 0), (3, 0)]);
    assert_eq!(points[1]["stamp_source"], "clock");
    // What is asked takes 15 ms twice: nobody can have been faster.
    assert!(points.iter().all(|p| p["seconds"].as_f64().unwrap() >= 0.0299 && p["n_miscounted"] == 0), "{json}");
    let wanted = if json["verdict"] == "valid" { 0 } else { 8 };
    assert_eq!(output.status.code(), Some(wanted));
    assert!(String::from_utf8_lossy(&output.stdout).contains("chunk stamp error, p99"));
}

#[test]
fn a_load_that_no_host_can_carry_is_exit_code_8_and_names_the_bar() {
    let folder = tempfile::tempdir().unwrap();
    // 32 million chunks a second.
    let args = ["--concurrency", "32", "--ttft-ms", "0", "--itl-ms", "0.001", "--osl", "64"];
    let (output, json) = selftest(&args, &folder.path().join("selftest.json"));
    assert_eq!((output.status.code(), json["verdict"].as_str()), (Some(8), Some("failed")));
    assert!(String::from_utf8_lossy(&output.stderr).contains("chunks/s, of those offered at concurrency 32"));
}
