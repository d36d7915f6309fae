//! Predicts what a deployment will do before any GPU is used: step times, a simulation of the whole closed loop, and errors against
//! measured rows.
//!
//! Pure: text and values in, values out; virtual time only. Reading order: `hardware` (peaks), `cost` (one step), `tables` (measured
//! operators in its place), `des` (one run), `screen` (its means, faster),
//! `rows` (what was measured), `model` (from a row to a run), `fit` (constants), `evaluate` (errors), `predictive` (what may
//! happen, given what is not known), `predict` (a plan's prediction).
//!
//! Not here: memory (`tandem_plan::memory`), and what to try next.

mod aggregated;
pub mod cost;
pub mod des;
pub mod evaluate;
pub mod fit;
pub mod hardware;
pub mod model;
pub mod predict;
pub mod predictive;
pub mod rows;
pub mod screen;
pub mod tables;
pub mod virtual_time;
