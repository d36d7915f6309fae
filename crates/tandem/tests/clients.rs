//! Foreign clients against a whole deployment: `openai` and AIPerf from PyPI, unchanged.
//!
//! The scripts in tests/clients install what they need into an environment of their own. Where that is
//! impossible (no Python, no package registry) the test says that it was not run, and passes.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Background, metric, stderr, stdout, wait_for};
use tandem_testkit::not_run;

/// Exit code of a script that could not install its client.
const NOT_RUN: i32 = 77;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

/// Runs a client script against the trained model; fails with its output.
fn drive(script: &str, more: &[&str]) {
    let (run, url) = Background::serve(&["nano"]);
    let path = repository().join("tests/clients").join(script);
    let output = match Command::new("python3").arg(path).args([&url, "nano"]).args(more).output() {
        Ok(output) => output,
        Err(error) => return not_run(script, format!("python3: {error}")),
    };
    match output.status.code() {
        Some(0) => {}
        // The script has noted its reason.
        Some(NOT_RUN) => return,
        code => panic!("{script} ended with {code:?}\n{}{}\n{}", stdout(&output), stderr(&output), run.stderr()),
    }
    wait_for("all KV blocks to be free", || metric(&url, "tandem_kv_blocks_used").iter().all(|(_, used)| *used == 0.0).then_some(()));
}

#[test]
fn the_openai_client_works_unchanged() {
    drive("openai_client.py", &[]);
}

#[test]
fn aiperf_measures_a_deployment_unchanged() {
    let out = tempfile::tempdir().unwrap();
    let tokenizer = repository().join("models/nano");
    drive("aiperf_client.py", &["--tokenizer", tokenizer.to_str().unwrap(), "--out", out.path().to_str().unwrap()]);
}
