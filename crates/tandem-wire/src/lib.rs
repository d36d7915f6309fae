//! What crosses process boundaries: OpenAI messages, SSE framing and the worker protocol.
//!
//! `tandem-frontend` and `tandem-load` meet only here, so the load generator can measure
//! any OpenAI-compatible server. Pure: bytes in, values out; sockets belong to the users.
//!
//! Reading order: `openai` (what clients send and get), `sse` (its stream framing),
//! `worker` (frontend and workers), `frame` (how worker messages are cut from a stream).

pub mod frame;
pub mod openai;
pub mod sse;
pub mod worker;
