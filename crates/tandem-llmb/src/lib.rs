//! What `llmb-run` and `llmb-install` read and write, and how a request becomes submissions: texts in, values out.
//!
//! A workload's `metadata.yaml` says what may run where, `cluster_config.yaml` what a cluster is; options, a task file or an
//! `exemplar.yaml` ask for jobs. [`generate()`] makes the tasks in the tools' own order, [`validate`] says what is wrong with each,
//! [`submission()`] gives nodes, `sbatch` arguments and environment, [`llmb_config`] the file beside the job. Formats and texts are
//! those of releases 26.02 and 26.06.
//!
//! Reading order: `metadata`, `cluster`, `generate`, `tasks` (task files), `flags`, `submission`, `config`, `exemplar`, `lines` (what
//! is printed), `pyyaml`; `install` stands apart: what `llmb-install` prepares. Not here: files, Slurm, Tandem's recipes.

pub mod cluster;
mod config;
mod document;
mod exemplar;
pub mod flags;
pub mod generate;
pub mod install;
pub mod lines;
pub mod metadata;
pub mod pyyaml;
pub mod submission;
pub mod tasks;

pub use cluster::Cluster;
pub use config::{Launch, llmb_config, read_config};
pub use document::LlmbError;
pub use exemplar::{exemplar_tasks, release};
pub use flags::SlurmFlags;
pub use generate::{Generated, Options, Task, generate, refine, validate, warning};
pub use metadata::{Support, Workload};
pub use submission::{Circumstances, Compat, Submission, submission};
pub use tasks::{text_tasks, yaml_tasks};
