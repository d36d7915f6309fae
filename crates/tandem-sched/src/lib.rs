//! Decides which sequences run in the next engine step and who owns which KV block.
//!
//! Sans IO: it opens nothing, reads no clock and never sees a token, only lengths. The worker
//! drives it in real time, a simulator may drive the same code in virtual time.
//!
//! One loop drives it: [`Scheduler::next_step`] says what to compute, the caller computes it,
//! [`Scheduler::complete_step`] says what came out. Between those, requests are submitted,
//! reserved, committed and released in any order.
//!
//! Admission is `GUARANTEED_NO_EVICT`: a sequence gets all blocks it can ever need when it is
//! admitted, or it waits. Nothing that runs is evicted or can run out of blocks.
//!
//! Reading order: `config` (limits), `blocks` (the KV blocks), `step` (what goes in and out),
//! `sequence` (states), `scheduler` (the decisions), `slab` and `queue` (containers).
//!
//! Two more decisions that the real system and the simulator share are here: `router` (which worker gets a
//! request) and `pacing` (when a load generator sends one); `iteration` is the line that both write for each step.
//!
//! Not here: tokens and when a text ends (`tandem-worker`), computation (`tandem-engine`).

mod blocks;
mod config;
pub mod iteration;
pub mod pacing;
mod queue;
pub mod router;
mod scheduler;
mod sequence;
mod slab;
mod step;

pub use blocks::{BlockManager, BlockTable};
pub use config::{ConfigError, SchedConfig, SubmitError};
pub use scheduler::Scheduler;
pub use sequence::{SeqId, SeqState};
pub use step::{Outcome, SchedStats, Step, StepEntry};
