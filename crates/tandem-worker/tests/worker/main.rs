//! Workers over real loopback sockets, with the modeled engine and a frontend that the tests play themselves.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;
mod faults;
mod serving;
