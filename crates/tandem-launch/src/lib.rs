//! Runs a [`Plan`](tandem_plan::Plan): starts its processes, proves that it serves, notices deaths, tears it down.
//!
//! It never sees recipes: a Plan leaves it no choices but ports, which the processes bind
//! themselves and announce. Each child is in a process group of its own and watches its
//! standard input, so that it ends with the launcher even when that is killed.
//!
//! Reading order: `engines` (what each engine needs, as data), `local` (a deployment on this machine), `process` (one child), `probe`
//! (health and canaries over HTTP), `events` (the run's `events.jsonl`), `logs` (tails, cuts).
//! Not here: the load (`tandem-load`), what a Plan should be (`tandem-recipe`).

pub mod engines;
pub mod error;
pub mod events;
pub mod local;
pub mod logs;
pub mod probe;
pub mod process;

pub use error::LaunchError;
pub use events::EventLog;
pub use local::{Deployment, LaunchOptions};
pub use process::Exited;
