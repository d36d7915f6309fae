//! Pure crates (tiers 0 to 2) have no async runtime, no clock, no files and no environment.
//!
//! Three nets, since each has holes: manifests (no crate that does IO), source text (no module of
//! `std` that does), and clippy's `disallowed-methods`, which sees through renames and macros and
//! therefore must be configured in every pure crate. Tests are free to read golden files.

use super::finding::Finding;
use super::tiers::{LAST_PURE_TIER, tier_of};
use crate::workspace::{Package, SourceFile, Workspace};

/// Third-party crates that do IO or read a clock.
const IMPURE_CRATES: [&str; 14] = [
    "tokio",
    "tokio-util",
    "mio",
    "hyper",
    "hyper-util",
    "axum",
    "socket2",
    "rustix",
    "memmap2",
    "tempfile",
    "signal-hook",
    "jiff",
    "indicatif",
    "rayon",
];

/// Names of `std` that touch the world.
const IMPURE_NAMES: [&str; 9] = ["fs", "net", "env", "process", "thread", "os", "Instant", "SystemTime", "UNIX_EPOCH"];

/// Bans of clippy that each pure crate must repeat.
const CLOCK_BANS: [&str; 2] = ["std::time::Instant::now", "std::time::SystemTime::now"];

fn pure_packages(workspace: &Workspace) -> impl Iterator<Item = &Package> {
    workspace.packages.iter().filter(|p| tier_of(&p.name).is_some_and(|tier| tier <= LAST_PURE_TIER))
}

/// No pure crate depends on, or names, something that touches the world.
pub(super) fn pure_crates_touch_nothing(workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in pure_packages(workspace) {
        for dependency in package.dependencies.iter().filter(|d| !d.dev && IMPURE_CRATES.contains(&d.name.as_str())) {
            let message = format!("{} is pure and must not depend on {}", package.name, dependency.name);
            findings.push(Finding::file(&format!("{}/Cargo.toml", package.dir), message));
        }
        let sources = format!("{}/src/", package.dir);
        for file in workspace.files_of(package).filter(|f| f.path.starts_with(&sources) && f.path.ends_with(".rs")) {
            findings.extend(impure_lines(file));
        }
    }
    findings
}

/// Every pure crate has a `clippy.toml` with the clock banned and the bans of the root, which it replaces, repeated.
pub(super) fn pure_crates_ban_the_clock(workspace: &Workspace) -> Vec<Finding> {
    let mut root_bans: Vec<&str> = workspace.file("clippy.toml").map(|f| banned_paths(&f.text)).unwrap_or_default();
    // A pure crate cannot even name the runtime.
    root_bans.retain(|ban| !ban.starts_with("tokio::"));
    let mut findings = Vec::new();
    for package in pure_packages(workspace) {
        let path = format!("{}/clippy.toml", package.dir);
        let Some(file) = workspace.file(&path) else {
            findings.push(Finding::file(&path, "missing: a pure crate bans the clock in a clippy.toml of its own"));
            continue;
        };
        let bans = banned_paths(&file.text);
        for wanted in CLOCK_BANS.iter().chain(&root_bans).filter(|b| !bans.contains(b)) {
            findings.push(Finding::file(&path, format!("does not ban {wanted} (this file replaces the one in the root)")));
        }
    }
    findings
}

/// The `path = "…"` values of a clippy configuration.
fn banned_paths(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.split_once("path = \"")?.1.split('"').next()).collect()
}

/// Lines outside comments and test modules that name something impure.
fn impure_lines(file: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut in_tests = false;
    let mut test_attribute = false;
    for (index, line) in file.text.lines().enumerate() {
        if in_tests {
            // rustfmt closes a top-level module in the first column.
            in_tests = line != "}";
            continue;
        }
        if test_attribute && line.starts_with("mod ") {
            in_tests = line.ends_with('{');
        }
        test_attribute = line == "#[cfg(test)]";
        if let Some(name) = impure_name(without_comment(line)) {
            let message = format!("names `{name}` in a pure crate; take what it yields as an argument");
            findings.push(Finding::line(&file.path, index, message));
        }
    }
    findings
}

/// The code of a line, cut at a comment (a `//` that is not part of a URL).
fn without_comment(line: &str) -> &str {
    let cut = line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':'));
    cut.map_or(line, |(at, _)| &line[..at])
}

fn impure_name(code: &str) -> Option<&'static str> {
    if words(code).any(|w| w == "tokio") {
        return Some("tokio");
    }
    let imported = code.trim_start().starts_with("use std::") || code.contains("std::");
    let tail = code.split_once("std::").map_or("", |(_, tail)| tail);
    if imported && let Some(name) = IMPURE_NAMES.iter().find(|n| words(tail).any(|w| w == **n)) {
        return Some(name);
    }
    ["Instant::now", "SystemTime::now"].into_iter().find(|call| code.contains(call))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn sched(source: &str, dependencies: &[&str]) -> Workspace {
        let dependencies = dependencies.iter().map(|d| Dependency { name: (*d).into(), dev: false }).collect();
        Workspace {
            packages: vec![Package { name: "tandem-sched".into(), dir: "crates/tandem-sched".into(), dependencies }],
            files: vec![
                SourceFile { path: "crates/tandem-sched/src/step.rs".into(), text: source.into() },
                SourceFile { path: "clippy.toml".into(), text: "  { path = \"std::process::exit\", reason = \"return it\" },\n".into() },
            ],
            ..Workspace::default()
        }
    }

    #[test]
    fn each_way_to_touch_the_world_is_found() {
        for bad in [
            "use std::time::Instant;",
            "use std::{collections::BTreeMap, fs};",
            "    let now = Instant::now();",
            "    let t = std::time::SystemTime::now();",
            "    let home = std::env::var(\"HOME\");",
            "use tokio::sync::mpsc;",
            "    std::thread::sleep(d);",
        ] {
            assert_eq!(pure_crates_touch_nothing(&sched(bad, &[])).len(), 1, "{bad}");
        }
    }

    #[test]
    fn comments_durations_and_tests_are_free() {
        let good = "//! Never calls std::fs.\nuse std::time::Duration;\nlet x = env!(\"CARGO_PKG_VERSION\"); // not std::env\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        assert!(pure_crates_touch_nothing(&sched(good, &[])).is_empty());
        let after = format!("{good}use std::fs;\n");
        assert_eq!(pure_crates_touch_nothing(&sched(&after, &[])).len(), 1, "code after the test module counts again");
    }

    #[test]
    fn an_impure_dependency_is_found() {
        assert_eq!(pure_crates_touch_nothing(&sched("", &["tokio"])).len(), 1);
        assert!(pure_crates_touch_nothing(&sched("", &["thiserror"])).is_empty());
    }

    #[test]
    fn a_missing_or_partial_clippy_file_is_found() {
        let mut workspace = sched("", &[]);
        assert!(pure_crates_ban_the_clock(&workspace)[0].message.starts_with("missing"));
        let partial = "{ path = \"std::time::Instant::now\" },\n{ path = \"std::time::SystemTime::now\" },\n";
        workspace.files.push(SourceFile { path: "crates/tandem-sched/clippy.toml".into(), text: partial.into() });
        let findings = pure_crates_ban_the_clock(&workspace);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].message.contains("std::process::exit"));
        workspace.files[2].text.push_str("{ path = \"std::process::exit\" },\n");
        assert!(pure_crates_ban_the_clock(&workspace).is_empty());
    }
}
