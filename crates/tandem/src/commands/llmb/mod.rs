//! What `llmb-run` does: workloads of an llmb installation as jobs, and what is left of them.
//!
//! Reading order: `installation` (the files), `submit` (which jobs), `script` and `recipe` (a job of a workload's own script, a job
//! of Tandem's recipe), then `list`, `exemplar`, `archive`, `jobs`; `alias` is the command line under the name `llmb-run`.

pub(crate) mod alias;
pub(crate) mod archive;
pub(crate) mod exemplar;
pub(crate) mod installation;
pub(crate) mod jobs;
pub(crate) mod list;
mod recipe;
mod script;
pub(crate) mod submit;

/// Whether there is an installation whose workloads may be listed.
pub(crate) fn has_installation() -> bool {
    installation::find_config().is_some()
}
