//! Measured times of single operators, which take the place of the roofline's terms.
//!
//! The layout is AIConfigurator's (`gemm_perf`, `moe_perf`, `context_mla_perf` …; `docs/reference/operator-tables.md`); own measurements
//! have the same columns. Whoever reads the files gives [`Table`]s; nothing here knows files.
//!
//! A measured point counts as a factor on the bound of its operator, max(bytes / peak bandwidth, operations / peak rate). Between points the
//! factor is interpolated in logarithms, beyond them the nearest one is held, so that times go on with the bound.
//!
//! Reading order: `table` (columns), `store` (points by operator and shape), `curve` (between points), `operators` (one worker's).

mod curve;
mod operators;
mod store;
mod table;

pub use curve::Hit;
pub use operators::{Operators, Use};
pub(crate) use operators::{Wanted, compile};
pub use store::OperatorTables;
pub use table::{Column, Table, TableError};
