//! Runs every rule and prints what they found.

use anyhow::Result;

use super::finding::Finding;
use super::{architecture, dependencies, headers, links, purity, size, tiers, words};
use crate::workspace::Workspace;

/// A rule: its name in the output, and the function.
type Rule = (&'static str, fn(&Workspace) -> Vec<Finding>);

const RULES: [Rule; 14] = [
    ("tiers", tiers::every_crate_has_a_tier),
    ("directions", tiers::dependencies_point_downwards),
    ("walls", tiers::separated_crates_never_meet),
    ("third-party", tiers::reserved_dependencies_stay_where_they_belong),
    ("purity", purity::pure_crates_touch_nothing),
    ("bans", purity::pure_crates_ban_the_clock),
    ("map", architecture::every_crate_is_in_the_map),
    ("headers", headers::every_source_file_has_a_header),
    ("facades", headers::lib_files_hold_no_code),
    ("size", size::no_file_is_too_long),
    ("words", words::no_loose_ends),
    ("links", links::every_link_leads_somewhere),
    ("tests", links::every_named_test_exists),
    ("unused", dependencies::every_dependency_is_used),
];

/// Prints one line a rule and one a finding; `true` when there is none.
pub(crate) fn report(workspace: &Workspace) -> Result<bool> {
    let mut n_findings = 0;
    for (name, rule) in RULES {
        let mut findings = rule(workspace);
        findings.sort();
        findings.dedup();
        for finding in &findings {
            println!("tidy {name}: {finding}");
        }
        n_findings += findings.len();
    }
    println!("tidy: {} rules over {} files, {n_findings} findings", RULES.len(), workspace.files.len());
    Ok(n_findings == 0)
}
