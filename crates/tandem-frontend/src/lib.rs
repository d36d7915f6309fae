//! The OpenAI-compatible server and its router.
//!
//! Clients speak HTTP to it; workers dial its control address and compute. It holds no KV
//! cache and no model: it checks and tokenizes requests, picks a prefill and a decode
//! worker, follows each request through both, and turns tokens into text.
//!
//! Reading order: `server` (listeners and tasks), `http` (paths, keys, bodies),
//! `completions` (body to response), `reply` (tokens to response), `text` (tokens to text),
//! `generation` (one request through the workers) over `lifecycle` (its pure state machine)
//! and `tandem_sched::router` (pure policies), `inflight` (whose message is it), `workers` and `control`
//! (who is connected), `health`, `metrics`, `patience` (clients that do not read).

mod completions;
mod control;
mod failures;
mod generation;
mod health;
mod http;
mod inflight;
mod lifecycle;
mod metrics;
mod patience;
mod reply;
mod server;
mod shared;
mod text;
mod workers;

pub use server::{Options, ServeError, serve};
