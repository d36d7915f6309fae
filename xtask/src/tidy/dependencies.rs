//! Dependencies that nothing uses cost everybody build time.

use std::collections::BTreeSet;

use super::finding::Finding;
use crate::workspace::{Package, Workspace};

/// Every line of `[workspace.dependencies]` is used by a member, and every dependency of a member by its code.
pub(super) fn every_dependency_is_used(workspace: &Workspace) -> Vec<Finding> {
    let mut findings = unused_in_workspace(workspace);
    findings.extend(workspace.packages.iter().flat_map(|p| unused_in_package(workspace, p)));
    findings
}

fn unused_in_workspace(workspace: &Workspace) -> Vec<Finding> {
    let Some(root) = workspace.file("Cargo.toml") else { return Vec::new() };
    let used: BTreeSet<&str> = workspace.packages.iter().flat_map(|p| &p.dependencies).map(|d| d.name.as_str()).collect();
    let declared = keys_of_section(&root.text, "[workspace.dependencies]");
    let unused = declared.filter(|(_, name)| !used.contains(name));
    unused.map(|(index, name)| Finding::line("Cargo.toml", index, format!("no member depends on {name}"))).collect()
}

/// Dependencies whose name does not occur in any Rust file of the package.
fn unused_in_package(workspace: &Workspace, package: &Package) -> Vec<Finding> {
    let sources: Vec<&str> = workspace.files_of(package).filter(|f| f.path.ends_with(".rs")).map(|f| f.text.as_str()).collect();
    let is_used = |name: &str| {
        let ident = name.replace('-', "_");
        sources.iter().any(|text| text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == ident))
    };
    let unused = package.dependencies.iter().filter(|d| !is_used(&d.name));
    unused
        .map(|d| {
            Finding::file(&format!("{}/Cargo.toml", package.dir), format!("{} is declared but its name occurs in no source file", d.name))
        })
        .collect()
}

/// The keys of one section of a manifest, each with the index of its line.
fn keys_of_section<'a>(text: &'a str, section: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    let lines = text.lines().enumerate().skip_while(move |(_, line)| *line != section).skip(1);
    let lines = lines.take_while(|(_, line)| !line.starts_with('['));
    lines.filter_map(|(index, line)| Some((index, line.split_once('=')?.0.trim()))).filter(|(_, key)| !key.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::{Dependency, SourceFile};

    fn check(root: &str, source: &str, dependencies: &[&str], expected: &[&str]) {
        let dependencies = dependencies.iter().map(|d| Dependency { name: (*d).into(), dev: false }).collect();
        let workspace = Workspace {
            packages: vec![Package { name: "a".into(), dir: "crates/a".into(), dependencies }],
            files: vec![
                SourceFile { path: "Cargo.toml".into(), text: root.into() },
                SourceFile { path: "crates/a/src/x.rs".into(), text: source.into() },
            ],
            ..Workspace::default()
        };
        let messages: Vec<String> = every_dependency_is_used(&workspace).into_iter().map(|f| f.to_string()).collect();
        assert_eq!(messages, expected);
    }

    #[test]
    fn a_workspace_dependency_that_no_member_names_is_found() {
        let root = "[workspace.dependencies]\nhalf = \"2\"\n# why: x = y\nserde = { version = \"1\" }\n\n[workspace.lints]\nother = 1\n";
        check(root, "use half::f16; use serde::Serialize;", &["half", "serde"], &[]);
        check(root, "use half::f16;", &["half"], &["Cargo.toml:4: no member depends on serde"]);
    }

    #[test]
    fn a_declared_dependency_that_no_source_names_is_found() {
        check("", "use http_body::Frame;", &["http-body"], &[]);
        check(
            "",
            "use http_body_util::Frame;",
            &["http-body"],
            &["crates/a/Cargo.toml: http-body is declared but its name occurs in no source file"],
        );
    }
}
