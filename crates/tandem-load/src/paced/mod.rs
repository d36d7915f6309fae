//! A chat server that answers on a fixed schedule and logs when it really sent: the truth to measure a load generator against.
//!
//! No model: the first token leaves `ttft` after the request has arrived, each further chunk `itl` later. A
//! thread, or several that share a port, each with its own connections. The log holds the time just before each write, so that a stamp earlier than its entry is
//! wrong, and the difference of a later one is the client's error (or the network's).
//!
//! Reading order: `server` (the loop), `connection` (one client), `answer` (the bytes),
//! `log` (as a file), `accuracy` (what a client recorded against it).

mod accuracy;
mod answer;
mod connection;
mod log;
mod server;

pub use accuracy::{Accuracy, Spread};
pub use connection::Emission;
pub use server::{EmissionLog, PacedConfig, PacedServer};
