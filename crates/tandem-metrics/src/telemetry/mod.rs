//! What devices, hosts and servers did while a load ran: samples, and what follows from them.
//!
//! `tandem-telemetry` samples; here is everything pure: the quantities and their units, series with bounded memory,
//! the lines of `telemetry.jsonl`, statistics clipped to a load point's window, and energy by role.
//! Times are wall-clock nanoseconds, the only clock that hosts share.
//!
//! Reading order: `quantity` (names and units), `series` (samples of one subject), `lines` (the file), `energy`
//! (what was consumed), `summary` (what `result.json` says).

mod energy;
mod lines;
mod quantity;
mod series;
mod summary;

pub use energy::{EnergySource, EnergyUse, GpuEnergy, RoleEnergy, UNASSIGNED};
pub use lines::{TelemetryLineError, line, parse};
pub use quantity::{Behaviour, QUANTITIES, Quantity, quantity};
pub use series::{MAX_SAMPLES, Series, Subject, SubjectKind};
pub use summary::{PointTelemetry, TelemetryNote};
