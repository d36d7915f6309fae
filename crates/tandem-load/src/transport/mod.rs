//! Sends requests and receives bytes, each read with its stamp. Knows HTTP/1.1 framing, and nothing of
//! server-sent events, JSON or metrics.
//!
//! One thread, or a few, own all sockets, each its own. A thread sleeps in epoll, reads, stamps, cuts the HTTP framing off (it has to
//! know where a response ends to send the next request), appends the body bytes to a batch and does
//! nothing else; batches go to the decode thread.
//!
//! Reading order: `http` (responses), `request` (requests), `route` (how the server is reached), `socket` (one connection),
//! `stamps` (the kernel's), `tls`, `outbox` (what leaves for the decoder), `supply` (what comes from the prompt thread), `desk` (who sends it), `receive` (the loop), `timer`
//! (precise waits), `gather` (pauses that make wake-ups few).

pub mod http;
pub mod request;
pub mod tls;

pub(crate) mod desk;
pub(crate) mod gather;
pub(crate) mod outbox;
pub(crate) mod receive;
pub(crate) mod route;
pub(crate) mod slot;
pub(crate) mod socket;
pub(crate) mod stamps;
pub(crate) mod supply;
pub(crate) mod timer;
pub(crate) mod turns;
