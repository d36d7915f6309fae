//! Rules about the repository itself that no compiler checks.
//!
//! Each rule is one pure function from [`Workspace`](crate::workspace::Workspace) to findings,
//! in a file of its own with tests that see it fail on a bad sample. There are no exceptions by
//! list: a rule that needs one states it in the rule.

mod architecture;
mod dependencies;
mod finding;
mod headers;
mod links;
mod purity;
mod run;
mod size;
mod tiers;
mod words;

pub(crate) use run::report;
