//! ARCHITECTURE.md maps every crate, in its tier, with its invariant and its API boundary.

use super::finding::Finding;
use super::tiers::tier_of;
use crate::workspace::Workspace;

const PATH: &str = "ARCHITECTURE.md";

/// Lines the document may have: it is read in one sitting or not at all.
const MAX_LINES: usize = 300;

/// Words that each entry of the map must hold.
const PARTS: [&str; 2] = ["*Invariant:*", "*API boundary:*"];

/// One entry of the code map.
struct Entry<'a> {
    name: &'a str,
    tier: Option<u8>,
    line: usize,
    text: String,
}

/// Every crate has an entry, under its own tier, with both parts; no entry is about a crate that is gone.
pub(super) fn every_crate_is_in_the_map(workspace: &Workspace) -> Vec<Finding> {
    let Some(file) = workspace.file(PATH) else { return vec![Finding::file(PATH, "missing")] };
    let mut findings = Vec::new();
    let n_lines = file.text.lines().count();
    if n_lines >= MAX_LINES {
        findings.push(Finding::file(PATH, format!("{n_lines} lines; it must stay below {MAX_LINES}")));
    }
    let entries = entries(&file.text);
    for package in workspace.packages.iter().filter(|p| !entries.iter().any(|e| e.name == p.name)) {
        findings.push(Finding::file(PATH, format!("{} is not in the code map", package.name)));
    }
    for entry in &entries {
        if workspace.package(entry.name).is_none() {
            findings.push(Finding::line(PATH, entry.line, format!("{} is not a crate of this workspace", entry.name)));
        }
        if let (Some(said), Some(true_tier)) = (entry.tier, tier_of(entry.name))
            && said != true_tier
        {
            findings.push(Finding::line(PATH, entry.line, format!("{} is of tier {true_tier}, not {said}", entry.name)));
        }
        for part in PARTS.iter().filter(|p| !entry.text.contains(**p)) {
            findings.push(Finding::line(PATH, entry.line, format!("the entry of {} lacks `{part}`", entry.name)));
        }
    }
    findings
}

/// Entries start with ``**`name`**`` below a heading `### Tier N`, and end at the next entry or heading.
fn entries(text: &str) -> Vec<Entry<'_>> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    let (mut tier, mut open) = (None, false);
    for (index, line) in text.lines().enumerate() {
        if line.starts_with('#') {
            tier = line.strip_prefix("### Tier ").and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
            open = false;
        } else if let Some(name) = line.strip_prefix("**`").and_then(|rest| rest.split_once("`**")).map(|(name, _)| name) {
            entries.push(Entry { name, tier, line: index, text: line.to_owned() });
            open = true;
        } else if let Some(entry) = entries.last_mut().filter(|_| open) {
            entry.text.push('\n');
            entry.text.push_str(line);
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::{Package, SourceFile};

    fn check(text: &str, expected: &[&str]) {
        let packages = ["tandem-kv", "tandem-plan"].map(|name| Package { name: name.into(), ..Package::default() }).to_vec();
        let workspace = Workspace { packages, files: vec![SourceFile { path: PATH.into(), text: text.into() }], ..Workspace::default() };
        let messages: Vec<String> = every_crate_is_in_the_map(&workspace).into_iter().map(|f| f.message).collect();
        assert_eq!(messages, expected);
    }

    const GOOD: &str = "# A\n### Tier 0\n**`tandem-plan`** nouns.\n*Invariant:* x.\n*API boundary:* y.\n\n### Tier 3: IO\n**`tandem-kv`** moves. *Invariant:* x. *API boundary:* y.\n";

    #[test]
    fn a_complete_map_passes() {
        check(GOOD, &[]);
    }

    #[test]
    fn each_gap_in_the_map_is_found() {
        check(&GOOD.replace("**`tandem-kv`**", "tandem-kv"), &["tandem-kv is not in the code map"]);
        check(&GOOD.replace("*Invariant:* x.\n", ""), &["the entry of tandem-plan lacks `*Invariant:*`"]);
        check(&GOOD.replace("Tier 3", "Tier 2"), &["tandem-kv is of tier 3, not 2"]);
        check(&format!("{GOOD}**`tandem-old`** *Invariant:* *API boundary:*\n"), &["tandem-old is not a crate of this workspace"]);
        check(&format!("{GOOD}{}", "\n".repeat(300)), &["308 lines; it must stay below 300"]);
    }
}
