//! `tandem doctor` says what is missing, for what, and what to do about it.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{stderr, stdout, tandem};
use serde_json::Value;

fn program(dir: &Path, name: &str, script: &str) {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// State and details of a check, with only these programs in `PATH`.
fn check(bin: &Path, purpose: &str, name: &str) -> (String, String, String) {
    let run = tandem().args(["doctor", "--for", purpose, "--json", "--slurm-timeout", "2"]).env("PATH", bin).output().unwrap();
    let checks: Vec<Value> = serde_json::from_slice(&run.stdout).unwrap();
    let check = checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("{name} in {checks:?}"));
    let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("detail"), text("fix"))
}

#[test]
fn doctor_names_what_is_missing_and_fails_only_for_what_was_asked() {
    let empty = tempfile::tempdir().unwrap();
    let doctor = |args: &[&str]| tandem().arg("doctor").args(args).env("PATH", empty.path()).output().unwrap();
    let all = doctor(&[]);
    assert_eq!(all.status.code(), Some(0), "{}", stderr(&all));
    for word in ["sbatch", "ai-dynamo", "installation", "nvidia driver"] {
        assert!(stdout(&all).contains(word), "{word} in {}", stdout(&all));
    }
    // However long a name is, a gap follows it.
    assert!(stdout(&all).contains(" libnvidia-ml.so.1  "), "{}", stdout(&all));
    let slurm = doctor(&["--for", "slurm", "--json"]);
    assert_eq!(slurm.status.code(), Some(8), "{}", stderr(&slurm));
    assert!(stderr(&slurm).contains("missing for slurm: sbatch, srun"), "{}", stderr(&slurm));
    let (state, _, fix) = check(empty.path(), "slurm", "sbatch");
    assert!(state == "missing" && fix.contains("slurm-client"), "{fix}");
    let checks: Vec<Value> = serde_json::from_slice(&slurm.stdout).unwrap();
    assert!(checks.iter().all(|c| c["for"] == "slurm" || c["for"] == "local"), "{checks:?}");
}

#[test]
fn doctor_asks_the_controller_munge_and_sruns_plugins() {
    let bin = tempfile::tempdir().unwrap();
    let look = |name: &str| check(bin.path(), "slurm", name);
    program(bin.path(), "sinfo", "echo 'batch*|6|idle|gpu:h100:8'");
    assert_eq!(look("controller"), ("ok".into(), "batch* 6 idle".into(), String::new()));
    assert_eq!(look("gres").1, "gpu:h100:8");
    program(bin.path(), "sinfo", "echo 'batch*|6|idle|(null)'");
    assert_eq!(look("gres").0, "note");
    program(bin.path(), "sinfo", "exit 1");
    assert_eq!(look("controller").0, "missing");
    // A controller that hangs is a finding, not a hang.
    program(bin.path(), "sinfo", "/bin/sleep 600");
    assert!(look("controller").2.contains("the controller hangs"));
    program(bin.path(), "sinfo", "exit 1");
    program(bin.path(), "munge", "echo 'munge: Error: Failed to access socket' >&2; exit 6");
    assert!(look("munge").0 == "missing" && look("munge").1.contains("Failed to access socket"));
    program(bin.path(), "munge", "exit 0");
    assert_eq!(look("munge").0, "ok");
    program(bin.path(), "srun", "echo '  --nodes=N'");
    assert!(look("containers").0 == "note" && look("containers").2.contains("install pyxis"));
    program(bin.path(), "srun", "echo '  --container-image=[USER@]IMAGE   [pyxis]'");
    assert_eq!(look("containers"), ("ok".into(), "pyxis".into(), String::new()));
}
