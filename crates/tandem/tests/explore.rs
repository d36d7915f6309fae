//! `tandem explore` as a process: files, resuming, and what it says when nothing is left.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::path::Path;
use std::process::{Command, Output};

fn explore(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    command.args(["explore", "deepseek-r1", "--gpu-type", "gb200"]).args(args);
    // Knobs of the environment of whoever runs the tests must not count.
    command.env_clear().output().unwrap()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_search_writes_its_files_and_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("search");
    let run = |nctx: &str| explore(&["--set", nctx, "--set", "GEN_MAX_BATCH_SIZE=64,128", "--out", out.to_str().unwrap()]);
    let first = run("NCTX=3,4");
    assert!(first.status.success(), "{first:?}");
    let text = String::from_utf8(first.stdout).unwrap();
    assert!(text.contains("simulated 4 in") && text.contains("Measure next"), "{text}");
    let before = json(&out.join("explore.json"));
    assert_eq!(before["screened"]["points"], 4);
    assert!(std::fs::read_to_string(out.join("explore.html")).unwrap().contains("<svg class=\"chart\""));
    assert_eq!(std::fs::read_to_string(out.join("explore.csv")).unwrap().lines().count(), 5);

    let again = String::from_utf8(run("NCTX=3,4").stdout).unwrap();
    assert!(again.contains("simulated 0 in") && again.contains("(4 taken from before)"), "{again}");
    assert_eq!(json(&out.join("explore.json")), before);
    let wider = String::from_utf8(run("NCTX=3,4,5").stdout).unwrap();
    assert!(wider.contains("simulated 2 in") && wider.contains("(4 taken from before)"), "{wider}");
}

#[test]
fn nothing_left_is_an_error_with_the_nearest_change() {
    let output = explore(&["--set", "NCTX=4,6", "--slo", "tpot:1"]);
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("2 × misses the SLO tpot") && text.contains("hint: nearest change: --slo tpot:"), "{text}");
}

#[test]
fn bad_axes_and_conditions_are_usage_errors() {
    for args in [["--set", "NCTX=4..1"], ["--where", "NTCX > 1"], ["--slo", "speed:3"], ["--where", "NCTX >"]] {
        assert_eq!(explore(&args).status.code(), Some(2), "{args:?}");
    }
    assert_eq!(explore(&["--set", "NTCX=1,2"]).status.code(), Some(3));
}
