//! What requests say: texts of exactly the wanted number of tokens, all different, made from a seed; or the user's own.
//!
//! Reading order: `texts` (who makes text of n tokens), `lengths` (how many), `files` and `trace` (what the
//! user brings), `body` (the JSON around it), `requests` (one after the other, in the order of sending),
//! `sessions` (what is said after an answer).

pub mod body;
pub mod files;
pub mod lengths;
pub mod requests;
pub mod sessions;
pub mod texts;
pub mod trace;
