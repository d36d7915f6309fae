//! Computes engine steps: the `Engine` trait and what implements it.
//!
//! Reading order: `engine` (the trait and its messages), `factory` (from a plan to an engine),
//! `modeled` (sleeps instead of computing), `checkpoint` (weights from files or a seed), `comm`
//! (how ranks combine results), `cpu` (the DeepSeek model on host cores).
//!
//! Not here: which requests run (`tandem-sched`), who moves KV between workers (`tandem-kv`).

pub mod checkpoint;
pub mod comm;
pub mod cpu;
pub mod engine;
pub mod factory;
pub mod modeled;

pub use cpu::{CpuEngine, CpuOptions};
pub use engine::{Batch, BatchEntry, Engine, EngineError, EngineInfo, KvRead, NoObserver, Sampling, StepObserver, StepOutput};
pub use factory::build_engine;
pub use modeled::ModeledEngine;
