//! Fitting: the constants of the model from measured rows, and corrections by GPU, stack and configuration.
//!
//! `features` says what a correction may depend on by name, `coordinates` and `field` what they leave over; `ridge` and `nelder_mead`
//! are the two minimisers, `constants` the file that ships,
//! `refit` constants for one's own cluster, `routing` who chooses decode workers,
//! `targets` what a row says about a step's time, `calibrate` the whole fit, `study` its examination.

mod calibrate;
mod constants;
mod coordinates;
mod features;
mod field;
mod nelder_mead;
mod refit;
mod ridge;
mod routing;
mod study;
mod targets;

pub use calibrate::{Options, calibrate, decode_residuals};
pub(crate) use calibrate::{aggregated_correction, typical_iteration};
pub use constants::{Constants, ConstantsError, Provenance, Support};
pub(crate) use coordinates::{DECODE_PRIOR, PREFILL_PRIOR, decode_coordinates, decode_table, prefill_coordinates, prefill_value};
pub use features::{DECODE, PREFILL, aggregated_features, decode_features, prefill_features};
pub use field::Field;
pub use refit::{OwnRun, Refitted, refit};
pub(crate) use ridge::{dot, regress};
pub use study::{Split, examine, record_provenance};
pub use targets::{PrefillTarget, Target, find_prefill, targets};
