//! A disaggregated deployment under a closed loop, as discrete events in virtual time.
//!
//! A request goes client → prefill queue → iterations → KV link → decode queue → batch → client, whose slot then sends the next one.
//! Nothing here reads a clock; equal inputs give equal outputs, to the last bit.
//!
//! Decode workers advance by segments: between two changes of its batch a worker's steps are counted, not simulated, so the cost of
//! a run is in requests and not in tokens. `deployment` is the input, `prefill` and `decode` the two kinds of workers, `run` the
//! events, `outcome` what comes out.
//!
//! Not here: what a step costs (`cost`), faults, which the real system has and a prediction does not.

mod decode;
mod deployment;
mod outcome;
mod prefill;
mod run;

pub use deployment::{DecodePool, Deployment, Lengths, Load, PrefillPool, RankSpread, Transfer, WorkerChoice};
pub(crate) use outcome::percentile;
pub use outcome::{Outcome, RequestTimes, Spread};
pub use run::simulate;
