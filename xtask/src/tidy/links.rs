//! Links between documents lead to files that exist, and every figure in PERF.md to its raw output.

use super::finding::Finding;
use crate::workspace::{SourceFile, Workspace};

/// Relative links of all documents, and `docs/results/…` paths in PERF.md and CHANGELOG.md, exist.
pub(super) fn every_link_leads_somewhere(workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in workspace.files.iter().filter(|f| f.path.ends_with(".md")) {
        for (index, line) in file.text.lines().enumerate() {
            for target in markdown_targets(line) {
                let path = resolve(&file.path, target);
                if !exists(workspace, &path) {
                    findings.push(Finding::line(&file.path, index, format!("link to `{target}`: there is no {path}")));
                }
            }
            for path in evidence(file, line).filter(|p| !exists(workspace, p)) {
                findings.push(Finding::line(&file.path, index, format!("evidence `{path}` does not exist")));
            }
        }
    }
    findings
}

/// Every `path.rs::test` that a document names is a function in that file.
pub(super) fn every_named_test_exists(workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in workspace.files.iter().filter(|f| f.path.ends_with(".md")) {
        for (index, line) in file.text.lines().enumerate() {
            for (path, test) in named_tests(line) {
                let found = workspace.file(path).is_some_and(|f| f.text.contains(&format!("fn {test}(")));
                if !found {
                    findings.push(Finding::line(&file.path, index, format!("there is no test `{test}` in {path}")));
                }
            }
        }
    }
    findings
}

/// Pieces of code of the form `folder/file.rs::function`.
fn named_tests(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let code = line.split('`').skip(1).step_by(2);
    code.filter_map(|piece| piece.split_once("::")).filter(|(path, _)| path.ends_with(".rs"))
}

/// Targets of `[text](target)` that point into the repository.
fn markdown_targets(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let targets = targets.map(|t| t.split(['#', ' ']).next().unwrap_or(""));
    targets.filter(|t| !t.is_empty() && !t.contains("://") && !t.starts_with("mailto:"))
}

/// Paths below `docs/results/` that a ledger names in any form.
fn evidence<'a>(file: &SourceFile, line: &'a str) -> impl Iterator<Item = &'a str> {
    let ledger = ["PERF.md", "CHANGELOG.md"].contains(&file.path.as_str());
    let words = line.split(|c: char| c.is_whitespace() || "`()[]<>,;".contains(c));
    words.filter(move |w| ledger && w.starts_with("docs/results/") && *w != "docs/results/").map(|w| w.trim_end_matches(['.', ':', '/']))
}

/// The path that `target` in the document at `from` means, without `.` and `..`.
fn resolve(from: &str, target: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

fn exists(workspace: &Workspace, path: &str) -> bool {
    let below = format!("{path}/");
    path.is_empty() || workspace.paths.iter().any(|p| p == path || p.starts_with(&below))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str, n: usize) {
        let workspace = Workspace {
            files: vec![SourceFile { path: path.into(), text: text.into() }],
            paths: vec!["README.md".into(), "docs/guide/first-run.md".into(), "docs/results/2026-01-01-box/raw.txt".into()],
            ..Workspace::default()
        };
        let findings = every_link_leads_somewhere(&workspace);
        assert_eq!(findings.len(), n, "{text}: {findings:?}");
    }

    #[test]
    fn dead_links_are_found() {
        check("README.md", "see [a](docs/guide/first-run.md#x) and [b](docs/none.md)\n", 1);
        check("docs/guide/first-run.md", "up to [readme](../../README.md), not [x](../README.md)\n", 1);
    }

    #[test]
    fn folders_urls_and_anchors_are_fine() {
        check("README.md", "[a](docs) [b](https://example.org/x) [c](#part)\n", 0);
    }

    #[test]
    fn a_ledger_must_show_its_evidence() {
        check("PERF.md", "12 ms, raw: `docs/results/2026-01-01-box/raw.txt`.\n", 0);
        check("PERF.md", "12 ms, raw: docs/results/2026-02-02-box.\n", 1);
        check("PERF.md", "raw output lies below `docs/results/`\n", 0);
        check("README.md", "results go to `docs/results/<date>`\n", 0);
    }

    #[test]
    fn a_test_that_is_gone_is_missed() {
        let sources =
            [("docs/a.md", "`c/t.rs::a_test`, `c/t.rs::gone`, `c/u.rs::a_test`, `std::fs`\n"), ("c/t.rs", "async fn a_test() {}\n")];
        let files = sources.map(|(path, text)| SourceFile { path: path.into(), text: text.into() }).to_vec();
        let findings = every_named_test_exists(&Workspace { files, ..Workspace::default() });
        assert_eq!(findings.len(), 2, "{findings:?}");
    }
}
