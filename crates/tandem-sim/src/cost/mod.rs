//! How long one step takes: operators as max(memory time, compute time) at fitted efficiencies, plus communication and fixed costs.
//!
//! [`ModelFacts`] are the bytes and operations of one model, [`Shape`] is one worker, [`Coefficients`] what was fitted.
//! [`DecodeCost`] and [`PrefillCost`] are compiled from the three; evaluating them is a few dozen multiplications.
//!
//! Reading order: `facts`, `coefficients`, `decode`, `prefill`. Not here: queueing (`des`), corrections by GPU and stack (`fit`).

mod coefficients;
mod decode;
mod facts;
mod prefill;

pub use coefficients::Coefficients;
pub use decode::{CORRECTION_BATCHES, Correction, DecodeCost, DecodeLoad};
pub use facts::{ModelFacts, Shape};
pub use prefill::{PrefillCost, PrefillLoad};
