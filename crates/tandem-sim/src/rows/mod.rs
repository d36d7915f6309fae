//! Measured rows: from CSV text to configurations that can be simulated.
//!
//! `csv` splits text, `row` gives the columns their types, `scenario` decides what a row leaves open and says what it assumed.

mod csv;
mod row;
mod scenario;

pub(crate) use csv::records;
pub use row::{Kind, Measured, Row, RowsError, Side, parse};
pub use scenario::{Pool, Scenario};
