//! The workloads of an installation, as `llmb-run list` and `tandem list` show them.

use tandem_llmb::Workload;
use tandem_llmb::lines::list;
use tandem_llmb::metadata::split_size;

use super::installation::Installation;
use super::submit::print;
use crate::commands::progress::say;
use crate::exit::{Exit, Failure};

/// Prints the named workloads, or all.
pub(crate) fn workloads(names: &[String]) -> Result<(), Failure> {
    let site = Installation::load()?;
    site.notes.iter().for_each(|note| say(&format!("warning: {note}")));
    let is_named = |w: &Workload| names.is_empty() || names.iter().any(|name| *name == w.key || split_size(name).0 == w.key);
    let shown: Vec<&Workload> = site.workloads.iter().filter(|w| is_named(w)).collect();
    if shown.is_empty() && !names.is_empty() {
        let known: Vec<&str> = site.workloads.iter().take(10).map(|w| w.key.as_str()).collect();
        let text = format!("Workload '{}' not found.\nAvailable workloads: {}", names.join(", "), known.join(", "));
        return Err(Failure::message(Exit::Usage, text));
    }
    print(&list(&shown, &site.cluster.installed, &site.cluster.gpu_type))
}
