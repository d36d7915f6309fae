//! All checks in order, the same command on a laptop and on a build machine.
//!
//! A failed step does not hide the others: all of them run, and the last lines say how each
//! ended. A missing tool makes its step `not run`, which is said and is not a failure; tests
//! that need something from outside the repository report themselves in the same way, through
//! the file that `TANDEM_NOT_RUN_FILE` names.

use std::path::Path;

use anyhow::{Context, Result};

use crate::step::{Finished, Outcome, Step, available, line, step, tool};
use crate::workspace::Workspace;
use crate::{codegen, tidy};

/// Where tests append one line for each thing they could not run.
const NOT_RUN_FILE: &str = "target/not-run.txt";

/// Runs every step; `true` when none failed.
pub(crate) fn run(root: &Path) -> Result<bool> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let not_run = root.join(NOT_RUN_FILE);
    std::fs::create_dir_all(root.join("target")).context("cannot create target")?;
    std::fs::write(&not_run, "").with_context(|| format!("cannot write {NOT_RUN_FILE}"))?;

    let steps = [
        step("tidy", "rules about the repository", || Ok((verdict(tidy::report(&Workspace::read()?)?, "see above"), String::new()))),
        step("fmt", "formatting", || fmt(root, &cargo)),
        step("clippy", "lints, warnings are errors", || clippy(root, &cargo)),
        step("test", "unit, property, golden and whole-system tests", || tests(root, &cargo, &not_run)),
        step("doctest", "examples in the documentation", || doctests(root, &cargo)),
        step("doc", "documentation builds without warnings", || doc(root, &cargo)),
        step("codegen", "generated references are up to date", || {
            Ok((verdict(codegen::check(root)?, "run `cargo xtask codegen`"), String::new()))
        }),
        step("deny", "licences, sources and duplicates of third-party crates", || deny(root)),
    ];
    summarise(&steps, &std::fs::read_to_string(&not_run).unwrap_or_default());
    Ok(!steps.iter().any(|s| matches!(s.outcome, Outcome::Failed(_))))
}

fn verdict(good: bool, otherwise: &str) -> Outcome {
    if good { Outcome::Ok } else { Outcome::Failed(otherwise.to_owned()) }
}

fn fmt(root: &Path, cargo: &str) -> Result<(Outcome, String)> {
    if !available(cargo, &["fmt", "--version"]) {
        return Ok((Outcome::NotRun("rustfmt is missing: rustup component add rustfmt".into()), String::new()));
    }
    let done = tool(root, cargo, &["fmt", "--all", "--check"], &[], |_| false)?;
    Ok((verdict(done.success, "run `cargo fmt --all`"), String::new()))
}

fn clippy(root: &Path, cargo: &str) -> Result<(Outcome, String)> {
    if !available(cargo, &["clippy", "--version"]) {
        return Ok((Outcome::NotRun("clippy is missing: rustup component add clippy".into()), String::new()));
    }
    let done =
        tool(root, cargo, &["clippy", "--workspace", "--all-targets", "--quiet", "--keep-going", "--", "-D", "warnings"], &[], |_| false)?;
    Ok((verdict(done.success, "see above"), String::new()))
}

fn tests(root: &Path, cargo: &str, not_run: &Path) -> Result<(Outcome, String)> {
    let not_run = not_run.to_string_lossy();
    let env = [("TANDEM_NOT_RUN_FILE", not_run.as_ref())];
    let done = if available(cargo, &["nextest", "--version"]) {
        tool(root, cargo, &["nextest", "run", "--workspace", "--no-fail-fast"], &env, is_result)?
    } else {
        tool(root, cargo, &["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests", "--examples"], &env, is_result)?
    };
    Ok(test_result(&done))
}

fn doctests(root: &Path, cargo: &str) -> Result<(Outcome, String)> {
    let done = tool(root, cargo, &["test", "--workspace", "--doc", "--no-fail-fast", "--quiet"], &[], is_result)?;
    Ok(test_result(&done))
}

fn doc(root: &Path, cargo: &str) -> Result<(Outcome, String)> {
    let env = [("RUSTDOCFLAGS", "-D warnings")];
    let done = tool(root, cargo, &["doc", "--workspace", "--no-deps", "--quiet", "--keep-going"], &env, |_| false)?;
    Ok((verdict(done.success, "see above"), String::new()))
}

fn deny(root: &Path) -> Result<(Outcome, String)> {
    if !available("cargo-deny", &["--version"]) {
        return Ok((Outcome::NotRun("cargo-deny is missing: cargo install cargo-deny".into()), String::new()));
    }
    let done = tool(root, "cargo-deny", &["--locked", "--log-level", "error", "check", "licenses", "bans", "sources"], &[], |_| false)?;
    Ok((verdict(done.success, "see above"), String::new()))
}

/// Summary lines of the two test runners.
fn is_result(line: &str) -> bool {
    line.starts_with("test result: ") || line.trim_start().starts_with("Summary [")
}

fn test_result(done: &Finished) -> (Outcome, String) {
    let [passed, failed, ignored] = count(&done.kept);
    let note = format!("{passed} passed, {failed} failed, {ignored} skipped");
    // A runner that reports nothing has not shown that anything holds.
    let good = done.success && !done.kept.is_empty();
    (verdict(good, "see above"), note)
}

/// Passed, failed and skipped tests over all summary lines of either runner.
fn count(lines: &[String]) -> [usize; 3] {
    let mut counts = [0; 3];
    for line in lines {
        let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
        for pair in words.windows(2) {
            let slot = match pair[1] {
                "passed" => 0,
                "failed" => 1,
                "ignored" | "skipped" => 2,
                _ => continue,
            };
            counts[slot] += pair[0].parse::<usize>().unwrap_or(0);
        }
    }
    counts
}

fn summarise(steps: &[Step], not_run: &str) {
    println!("\n=== summary");
    for step in steps {
        println!("{}", line(step));
    }
    for reason in not_run.lines().filter(|l| !l.trim().is_empty()) {
        println!("within test: {reason}");
    }
    let total: f64 = steps.iter().map(|s| s.duration.as_secs_f64()).sum();
    let n_failed = steps.iter().filter(|s| matches!(s.outcome, Outcome::Failed(_))).count();
    let n_not_run = steps.iter().filter(|s| matches!(s.outcome, Outcome::NotRun(_))).count();
    let verdict = if n_failed == 0 { "passed" } else { "FAILED" };
    println!("ci {verdict}: {} steps in {total:.0} s, {n_failed} failed, {n_not_run} not run", steps.len());
    if let Some(tests) = steps.iter().find(|step| step.name == "test" && !step.note.is_empty()) {
        println!("tests: {}", tests.note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_both_runners_are_read() {
        let lines = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let libtest = lines(&[
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        ]);
        assert_eq!(count(&libtest), [15, 2, 1]);
        assert_eq!(count(&lines(&["     Summary [   1.204s] 34 tests run: 33 passed (1 slow), 1 failed, 2 skipped"])), [33, 1, 2]);
    }

    #[test]
    fn a_silent_test_runner_has_failed() {
        let (outcome, _) = test_result(&Finished { success: true, kept: Vec::new() });
        assert!(matches!(outcome, Outcome::Failed(_)));
    }
}
