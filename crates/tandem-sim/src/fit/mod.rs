//! Fitting: the constants of the model from measured rows, and corrections by GPU, stack and configuration.
//!
//! `features` says what a correction may depend on, `ridge` and `nelder_mead` are the two minimisers, `constants` the file that ships,
//! `targets` what a row says about a step's time, `calibrate` the whole fit, `study` its examination.

mod calibrate;
mod constants;
mod features;
mod nelder_mead;
mod ridge;
mod study;
mod targets;

pub(crate) use calibrate::aggregated_correction;
pub use calibrate::{Options, calibrate, decode_residuals};
pub use constants::{Constants, ConstantsError, Provenance, Support};
pub use features::{DECODE, PREFILL, aggregated_features, decode_features, prefill_features};
pub(crate) use ridge::least_squares;
pub use study::{Split, examine, record_provenance};
pub use targets::{Target, find_prefill, targets};
