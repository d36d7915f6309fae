//! Computes engine steps: the `Engine` trait and what implements it.
//!
//! Reading order: `engine` (the trait and its messages), `modeled` (sleeps instead of
//! computing), `checkpoint` (weights from files or a seed), `cpu` (the DeepSeek model on
//! host cores).
//!
//! Not here: which requests run (`tandem-sched`), who moves KV between workers (`tandem-kv`).

pub mod engine;
pub mod modeled;

pub use engine::{Batch, BatchEntry, Engine, EngineError, EngineInfo, KvRead, NoObserver, Sampling, StepObserver, StepOutput};
pub use modeled::ModeledEngine;
