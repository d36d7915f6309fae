//! Turns batches of stamped bytes into request records, behind the receive thread.
//!
//! Reading order: `json` (what a chunk or a response says; `scan`, the usual chunk, fast), `assemble` (one request), `thread` (all of
//! them). Not here: sockets, clocks, statistics. Wrong bytes make a record with an outcome, never a panic.

pub mod json;

pub(crate) mod assemble;
mod scan;
pub(crate) mod thread;
