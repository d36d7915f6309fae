//! Which configurations are worth GPU hours: searches a space of knobs for the frontier of tokens/s/GPU against tokens/s/user.
//!
//! Every point is screened, the band near the screen's frontier is simulated, and of that the next points to measure are proposed.
//! Pure: the caller reads files, keeps the state between calls and shows the result.
//!
//! Reading order: `expression` and `axes` (what the user asks for), `space` (all points), `screening` (each of them, quickly), `pricing` (what they will do),
//! `frontier`, `search` (what is simulated and kept), `propose` (what to measure), `nearest` (advice when nothing is left),
//! `output` and `plot` (JSON, CSV, terminal).

mod axes;
mod expression;
mod frontier;
mod nearest;
mod output;
mod plot;
mod pricing;
mod propose;
mod screening;
mod search;
mod space;

pub use axes::{Axes, AxisError};
pub use expression::{Expression, ExpressionError, Operand};
pub use frontier::{Corner, distinct, hypervolume, pareto};
pub use nearest::{nearest, nearest_simulated};
pub use output::{csv, json, terminal};
pub use plot::plot;
pub use pricing::Pricer;
pub use propose::{Proposal, propose};
pub use screening::{Refusal, Screened, Screening, explain, screen};
pub use search::{Exploration, Measured, Simulated, State, band, explored};
pub use space::{Limits, Slo, SloError, Space};
