//! A file past 700 lines is usually two subjects; one that is not says why in its header.

use super::finding::Finding;
use crate::workspace::{SourceFile, Workspace};

/// Lines a file may have without a reason.
const MAX_LINES: usize = 700;

/// The words that introduce the reason, in any case.
const REASON: &str = "long because";

/// No source file is longer than [`MAX_LINES`] unless its header says `long because …`.
pub(super) fn no_file_is_too_long(workspace: &Workspace) -> Vec<Finding> {
    let sources = workspace.files.iter().filter(|f| [".rs", ".py", ".sh"].iter().any(|e| f.path.ends_with(e)));
    sources.filter_map(too_long).collect()
}

fn too_long(file: &SourceFile) -> Option<Finding> {
    let n_lines = file.text.lines().count();
    let excused = header(file).any(|line| line.to_lowercase().contains(REASON));
    (n_lines > MAX_LINES && !excused)
        .then(|| Finding::file(&file.path, format!("{n_lines} lines: split it, or say `{REASON} …` in its header (limit {MAX_LINES})")))
}

/// The leading comment or docstring, generously: everything before the first blank line after it, at most 60 lines.
fn header(file: &SourceFile) -> impl Iterator<Item = &str> {
    let rust = file.path.ends_with(".rs");
    file.text.lines().take(60).take_while(move |line| !rust || line.starts_with("//!"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, n_lines: usize, n: usize) {
        let text = format!("{header}\n{}", "let x = 1;\n".repeat(n_lines - header.lines().count()));
        let workspace = Workspace { files: vec![SourceFile { path: "a/src/x.rs".into(), text }], ..Workspace::default() };
        assert_eq!(no_file_is_too_long(&workspace).len(), n, "{header}");
    }

    #[test]
    fn a_long_file_needs_a_reason_in_its_header() {
        check("//! Does x.", 700, 0);
        check("//! Does x.", 701, 1);
        check("//! Does x.\n//! Long because it is one exhaustive table.", 900, 0);
        check("//! Does x.\nuse y;\n//! Long because it is too late.", 900, 1);
    }
}
