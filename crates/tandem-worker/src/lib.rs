//! The prefill and decode serving process.
//!
//! Two threads of control: the *engine thread* owns the engine, the scheduler and every
//! request, and runs the loop wait, handle, step, respond; the caller's async runtime moves
//! bytes (frontend connection, heartbeats, KV transfers). They share nothing but channels,
//! an outgoing buffer and a snapshot of statistics. The engine thread parks when idle.
//!
//! Reading order: `options`, `worker` (wiring), `engine_loop` (the loop), `prefill` and `decode`
//! (what the two phases do with requests), `sampling` (when a text ends), `push` (KV out, layer
//! by layer), `inbox` and `outgoing` (in and out of the engine thread), `link` (the frontend
//! connection), `iteration_log`.
//!
//! Invariants: a request holds blocks only while it is in the scheduler; whatever ends it
//! (finish, cancel, failure, expiry, loss of the frontend) goes through one release.
//! Not here: HTTP and text (`tandem-frontend`), what runs when (`tandem-sched`), bytes on the
//! KV wire (`tandem-kv`).

mod options;
mod worker;

mod decode;
mod engine_loop;
mod prefill;
mod push;
mod sampling;

mod inbox;
mod iteration_log;
mod link;
mod outgoing;

pub use options::{WorkerError, WorkerOptions};
pub use worker::run;
