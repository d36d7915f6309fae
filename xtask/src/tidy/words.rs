//! Words that must not be in the repository: marks of unfinished work, and paths of one machine.

use super::finding::Finding;
use crate::workspace::Workspace;

/// Marks of unfinished work, in pieces so that this file does not find itself.
const LOOSE_ENDS: [&str; 6] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("to", "do!("),
    concat!("unimplemented", "!("),
    concat!("#[ig", "nore"),
];

/// Folders that exist on one machine only.
const MACHINE_PATHS: [&str; 5] =
    [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), concat!("/tm", "p/")];

/// Nothing unfinished and nothing of one machine is in any text file.
pub(super) fn no_loose_ends(workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &workspace.files {
        // Data that a program wrote may say anything; prose, code and configuration may not.
        let data = ["json", "csv"].iter().any(|e| file.path.ends_with(&format!(".{e}")));
        for (index, line) in file.text.lines().enumerate() {
            for word in LOOSE_ENDS.iter().filter(|w| !data && line.contains(**w)) {
                findings.push(Finding::line(&file.path, index, format!("`{word}`: finish it, or open an issue")));
            }
            for path in MACHINE_PATHS.iter().filter(|p| names_folder(line, p)) {
                findings.push(Finding::line(&file.path, index, format!("`{path}` is a folder of one machine")));
            }
        }
    }
    findings
}

/// Whether `line` names `folder` from the file system's root: not as the middle of a longer path or of a URL.
fn names_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-/~}>*".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::SourceFile;

    fn n_findings(path: &str, text: &str) -> usize {
        let file = SourceFile { path: path.into(), text: text.into() };
        no_loose_ends(&Workspace { files: vec![file], ..Workspace::default() }).len()
    }

    #[test]
    fn loose_ends_are_found_in_code_and_prose() {
        for word in LOOSE_ENDS {
            assert_eq!(n_findings("a.rs", &format!("// {word} later\n")), 1, "{word}");
            assert_eq!(n_findings("docs/a.md", &format!("{word}\n")), 1, "{word}");
            assert_eq!(n_findings("models/a.json", &format!("\"{word}\"\n")), 0, "{word} in data");
        }
    }

    #[test]
    fn folders_of_one_machine_are_found_and_longer_paths_are_not() {
        for folder in MACHINE_PATHS {
            assert_eq!(n_findings("a.py", &format!("open(\"{folder}x\")\n")), 1, "{folder}");
            assert_eq!(n_findings("docs/results/a.json", &format!("{{\"p\": \"{folder}x\"}}\n")), 1, "{folder}");
            assert_eq!(n_findings("a.sh", &format!("$HOME/a{folder}x\n")), 0, "{folder}");
            assert_eq!(n_findings("a.md", &format!("https://example.org{folder}x\n")), 0, "{folder}");
        }
    }
}
