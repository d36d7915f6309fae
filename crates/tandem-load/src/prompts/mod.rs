//! Requests made from nothing but a seed: texts of exactly the wanted number of tokens, all different.
//!
//! Reading order: `texts` (who makes text of n tokens), `body` (the JSON around it), `requests` (one after
//! the other, in the order of sending).

pub mod body;
pub mod texts;

pub mod requests;
