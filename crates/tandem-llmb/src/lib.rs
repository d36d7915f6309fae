//! What `llmb-run` reads and how it turns a request into submissions: texts in, values out.
//!
//! A workload's `metadata.yaml` says what may run where, `cluster_config.yaml` what a cluster is; options or a task file ask for
//! jobs. [`generate()`] makes the tasks in the tools' own order, [`validate`] says what is wrong with each, [`submission()`] gives
//! nodes, `sbatch` arguments and environment. Formats and texts are those of releases 26.02 and 26.06.
//!
//! Reading order: `metadata`, `cluster`, `generate`, `tasks` (task files), `submission`. Not here: files, Slurm, Tandem's recipes.

pub mod cluster;
mod document;
pub mod generate;
pub mod metadata;
pub mod submission;
pub mod tasks;

pub use cluster::Cluster;
pub use document::LlmbError;
pub use generate::{Options, Task, generate, validate};
pub use metadata::{Support, Workload};
pub use submission::{Compat, Submission, submission};
pub use tasks::{text_tasks, yaml_tasks};
