//! Every source file says first what it is for.

use super::finding::Finding;
use crate::workspace::{SourceFile, Workspace};

/// Rust files open with `//!`, scripts with a comment or a docstring (after a `#!` line).
pub(super) fn every_source_file_has_a_header(workspace: &Workspace) -> Vec<Finding> {
    let headless = workspace.files.iter().filter_map(|file| {
        let wanted = wanted_header(file)?;
        let first = file.text.lines().find(|l| !l.trim().is_empty() && !l.starts_with("#!/")).unwrap_or("");
        let opens = wanted.iter().any(|w| first.starts_with(w) && first.len() > w.len() + 1);
        (!opens).then(|| Finding::file(&file.path, format!("does not open with a header ({} what it is for)", wanted[0])))
    });
    headless.collect()
}

/// `lib.rs` holds the header, modules and re-exports only.
pub(super) fn lib_files_hold_no_code(workspace: &Workspace) -> Vec<Finding> {
    let code = ["fn ", "struct ", "enum ", "trait ", "impl ", "impl<", "const ", "static ", "type ", "async fn ", "macro_rules!"];
    let mut findings = Vec::new();
    for file in workspace.files.iter().filter(|f| f.path.ends_with("/src/lib.rs")) {
        for (index, line) in file.text.lines().enumerate() {
            let item = line.trim_start_matches("pub(crate) ").trim_start_matches("pub ");
            if code.iter().any(|c| item.starts_with(c)) {
                findings.push(Finding::line(&file.path, index, "code in a file that holds only the header, modules and re-exports"));
            }
        }
    }
    findings
}

fn wanted_header(file: &SourceFile) -> Option<&'static [&'static str]> {
    let name = file.path.rsplit('/').next().unwrap_or(&file.path);
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("rs") => Some(&["//!"]),
        Some("py") => Some(&["\"\"\"", "r\"\"\"", "#"]),
        Some("sh" | "toml") if name == "Cargo.toml" && file.path != "Cargo.toml" => None,
        Some("sh" | "toml") => Some(&["#"]),
        None if file.text.starts_with("#!/") => Some(&["#"]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str, n: usize) {
        let workspace = Workspace { files: vec![SourceFile { path: path.into(), text: text.into() }], ..Workspace::default() };
        let findings = every_source_file_has_a_header(&workspace);
        assert_eq!(findings.len(), n, "{path}: {text:?}: {findings:?}");
    }

    #[test]
    fn files_without_a_header_are_found() {
        check("a/src/x.rs", "use std::fmt;\n//! Late.\n", 1);
        check("a/src/x.rs", "// An ordinary comment.\n", 1);
        check("a/src/x.rs", "//!\n", 1);
        check("a/src/x.rs", "", 1);
        check("t.py", "#!/usr/bin/env python3\nimport os\n", 1);
        check("t.sh", "#!/bin/sh\nset -e\n", 1);
        check(".ci/run", "#!/usr/bin/env bash\nset -e\n", 1);
    }

    #[test]
    fn files_with_a_header_pass() {
        check("a/src/x.rs", "//! Does x.\n", 0);
        check("t.py", "#!/usr/bin/env python3\n\"\"\"Does t.\"\"\"\n", 0);
        check("t.sh", "#!/bin/sh\n# Does t.\n", 0);
        check("deny.toml", "# Rules.\n", 0);
        check("LICENSE", "Apache License\n", 0);
        check("crates/a/Cargo.toml", "[package]\n", 0);
    }

    #[test]
    fn code_in_a_facade_is_found() {
        let at = |path: &str, text: &str| {
            let workspace = Workspace { files: vec![SourceFile { path: path.into(), text: text.into() }], ..Workspace::default() };
            lib_files_hold_no_code(&workspace).len()
        };
        assert_eq!(at("a/src/lib.rs", "//! A.\nmod b;\npub use b::B;\n"), 0);
        assert_eq!(at("a/src/lib.rs", "//! A.\npub fn f() {}\nstruct S;\n"), 2);
        assert_eq!(at("a/src/b.rs", "//! B.\npub fn f() {}\n"), 0);
    }
}
