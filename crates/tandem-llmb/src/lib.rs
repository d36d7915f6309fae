//! What `llmb-run` reads and how it turns a request into submissions: texts in, values out.
//!
//! A workload's `metadata.yaml` says what may run where, `cluster_config.yaml` what a cluster is; options or a task file ask for
//! jobs. [`generate()`] makes the tasks in the tools' own order, [`validate`] says what is wrong with each, [`submission`] gives
//! nodes, `sbatch` arguments and environment. Formats and texts are those of releases 26.02 and 26.06.
//!
//! Reading order: `metadata`, `cluster`, `generate`, `tasks` (task files), `submission`. Not here: files, Slurm, Tandem's recipes.

pub mod cluster;
pub mod generate;
pub mod metadata;
pub mod submission;
pub mod tasks;

pub use cluster::Cluster;
pub use generate::{Options, Task, generate, validate};
pub use metadata::{Support, Workload};
pub use submission::{Compat, Submission, submission};
pub use tasks::{text_tasks, yaml_tasks};

/// Why a file or a request cannot be used; the text is for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LlmbError(pub String);

impl LlmbError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        LlmbError(text.into())
    }
}

/// Parses YAML with mappings in file order.
pub(crate) fn yaml(what: &str, text: &str) -> Result<serde_json::Value, LlmbError> {
    serde_saphyr::from_str(text).map_err(|e| LlmbError(format!("{what}: {e}")))
}

/// A scalar as the tools print it; none for null, lists and mappings.
pub(crate) fn scalar(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::String(s) => Some(s.clone()),
        serde_json::Value::Number(n) => Some(n.to_string()),
        serde_json::Value::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}
