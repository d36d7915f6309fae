//! Who may depend on whom.
//!
//! Crates form tiers; a crate depends only on its own tier or a lower one. Beyond that some
//! crates must never see each other, not even through a third, and some third-party crates are
//! reserved for one place. Dependencies of tests are free: an agreement test needs both sides.

use std::collections::BTreeSet;

use super::finding::Finding;
use crate::workspace::{Package, Workspace};

/// Highest tier that has no async runtime, no clock and no files.
pub(super) const LAST_PURE_TIER: u8 = 2;

/// Every crate and its tier.
const TIERS: [(&str, u8); 21] = [
    ("tandem-plan", 0),
    ("tandem-recipe", 1),
    ("tandem-sched", 1),
    ("tandem-metrics", 1),
    ("tandem-wire", 1),
    // A stability contract: the formats of a foreign tool.
    ("tandem-llmb", 1),
    ("tandem-sim", 2),
    ("tandem-explore", 2),
    ("tandem-report", 2),
    ("tandem-engine", 3),
    ("tandem-kv", 3),
    ("tandem-cuda", 3),
    // A crate of its own because it isolates a heavy dependency, and because its two users, the
    // frontend and the load generator, must not see each other.
    ("tandem-tokenizer", 3),
    ("tandem-worker", 4),
    ("tandem-frontend", 4),
    ("tandem-load", 4),
    ("tandem-telemetry", 4),
    ("tandem-launch", 4),
    ("tandem-testkit", 4),
    ("tandem", 5),
    ("xtask", 6),
];

/// Pairs that must not see each other, with the reason: the first never reaches the second.
const WALLS: [(&str, &str, &str); 9] = [
    ("tandem-launch", "tandem-recipe", "the Plan leaves the launcher no choices"),
    ("tandem-sim", "tandem-worker", "both use tandem-sched"),
    ("tandem-metrics", "tandem-load", "records come to the metrics, not the other way round"),
    ("tandem-metrics", "tandem-sim", "records come to the metrics, not the other way round"),
    ("tandem-load", "tandem-frontend", "the load generator measures any OpenAI-compatible server"),
    ("tandem-frontend", "tandem-load", "they meet only in tandem-wire"),
    ("tandem-frontend", "tandem-engine", "the frontend holds no model"),
    ("tandem-frontend", "tandem-kv", "the frontend holds no KV cache"),
    ("tandem-worker", "tandem-tokenizer", "workers know no text, only tokens"),
];

/// Third-party crates that belong to a few crates only.
const RESERVED: [(&str, &[&str], &str); 4] = [
    ("anyhow", &["tandem", "xtask", "tandem-testkit"], "library crates have an error enum"),
    ("clap", &["tandem"], "only the command line parses arguments"),
    ("hyper", &["tandem-frontend", "tandem", "tandem-testkit"], "only the frontend and the live page speak HTTP as servers"),
    ("fastokens", &["tandem-tokenizer"], "the tokenizer crate isolates it"),
];

/// The tier of a crate, if it has one.
pub(super) fn tier_of(name: &str) -> Option<u8> {
    TIERS.iter().find(|(n, _)| *n == name).map(|(_, tier)| *tier)
}

/// A crate that nobody has put into a tier escapes every other rule.
pub(super) fn every_crate_has_a_tier(workspace: &Workspace) -> Vec<Finding> {
    let tierless = workspace.packages.iter().filter(|p| tier_of(&p.name).is_none());
    tierless.map(|p| Finding::file(&manifest(p), format!("{} has no tier; add it to xtask/src/tidy/tiers.rs", p.name))).collect()
}

/// No crate depends on a crate of a higher tier.
pub(super) fn dependencies_point_downwards(workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &workspace.packages {
        let Some(own) = tier_of(&package.name) else { continue };
        for dependency in package.dependencies.iter().filter(|d| !d.dev) {
            if let Some(other) = tier_of(&dependency.name).filter(|other| *other > own) {
                let message = format!("{} (tier {own}) depends on {} (tier {other}), which is above it", package.name, dependency.name);
                findings.push(Finding::file(&manifest(package), message));
            }
        }
    }
    findings
}

/// No crate reaches one that it must never see, directly or through others.
pub(super) fn separated_crates_never_meet(workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (from, to, reason) in WALLS {
        if let Some(package) = workspace.package(from)
            && reachable(workspace, from).contains(to)
        {
            findings.push(Finding::file(&manifest(package), format!("{from} must never see {to}: {reason}")));
        }
    }
    findings
}

/// Reserved third-party crates appear only where they belong.
pub(super) fn reserved_dependencies_stay_where_they_belong(workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &workspace.packages {
        for dependency in package.dependencies.iter().filter(|d| !d.dev) {
            for (name, owners, reason) in RESERVED {
                if dependency.name == name && !owners.contains(&package.name.as_str()) {
                    let message = format!("{} depends on {name}, which is for {} only: {reason}", package.name, owners.join(", "));
                    findings.push(Finding::file(&manifest(package), message));
                }
            }
        }
    }
    findings
}

fn manifest(package: &Package) -> String {
    format!("{}/Cargo.toml", package.dir)
}

/// Members that `from` depends on, directly or not.
fn reachable<'a>(workspace: &'a Workspace, from: &'a str) -> BTreeSet<&'a str> {
    let edges = workspace.internal_edges();
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(name) = open.pop() {
        for next in edges.get(name).into_iter().flatten() {
            if seen.insert(*next) {
                open.push(next);
            }
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn package(name: &str, dependencies: &[&str]) -> Package {
        let dependencies = dependencies.iter().map(|d| Dependency { name: (*d).into(), dev: false }).collect();
        Package { name: name.into(), dir: format!("crates/{name}"), dependencies }
    }

    fn workspace(packages: &[(&str, &[&str])]) -> Workspace {
        Workspace { packages: packages.iter().map(|(n, d)| package(n, d)).collect(), ..Workspace::default() }
    }

    #[test]
    fn a_crate_without_a_tier_is_found() {
        let findings = every_crate_has_a_tier(&workspace(&[("tandem-plan", &[]), ("tandem-utils", &[])]));
        assert_eq!(findings.len(), 1);
        assert!(findings[0].message.contains("tandem-utils"));
    }

    #[test]
    fn an_upward_dependency_is_found_and_a_sideways_one_is_not() {
        let bad = workspace(&[("tandem-sched", &["tandem-engine", "tandem-wire"]), ("tandem-engine", &[]), ("tandem-wire", &[])]);
        let findings = dependencies_point_downwards(&bad);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].message.contains("tandem-engine (tier 3)"));
    }

    #[test]
    fn a_test_may_depend_upwards() {
        let mut free = workspace(&[("tandem-sim", &["tandem-worker"]), ("tandem-worker", &[])]);
        free.packages[0].dependencies[0].dev = true;
        assert!(dependencies_point_downwards(&free).is_empty());
        assert!(separated_crates_never_meet(&free).is_empty());
    }

    #[test]
    fn a_wall_holds_through_a_third_crate() {
        let bad =
            workspace(&[("tandem-load", &["tandem-telemetry"]), ("tandem-telemetry", &["tandem-frontend"]), ("tandem-frontend", &[])]);
        let findings = separated_crates_never_meet(&bad);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].message.starts_with("tandem-load must never see tandem-frontend"));
    }

    #[test]
    fn a_reserved_crate_in_a_library_is_found() {
        let findings =
            reserved_dependencies_stay_where_they_belong(&workspace(&[("tandem-kv", &["anyhow"]), ("tandem", &["anyhow", "clap"])]));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].path, "crates/tandem-kv/Cargo.toml");
    }
}
