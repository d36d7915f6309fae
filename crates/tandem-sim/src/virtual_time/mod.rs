//! A deployment in virtual time, step by step: the schedulers of the workers, the router of the frontend and the pacing of the
//! load generator are the very code that serves; only engines, links and clocks are replaced by what they cost.
//!
//! `des` answers what a configuration does on average in milliseconds, by jumping from one change of a batch to the next; this
//! module makes every decision of every step, and so gives records, iteration lines, chunks and the effect of faults. A test holds
//! both to each other on common ground.
//!
//! Reading order: `setup` (what is simulated), `costs` and `table` (how long steps take), `faults`, `worker` (the engine loop), `events`, `run`, `plan` (from a plan to a setup),
//! `calibration` (step costs from the log of a run).

mod calibration;
mod costs;
mod events;
mod faults;
mod late;
mod plan;
mod run;
mod setup;
mod table;
mod worker;

pub use calibration::{Calibration, CalibrationError, Observed, ObservedStep, fit_steps};
pub use costs::{BENDS, LinearCosts, ReplayedStep, StepCosts};
pub use faults::{Fault, FaultError};
pub use late::Late;
pub use plan::{drive, setup};
pub use run::{Simulated, WorkerLog, simulate};
pub use setup::{Acceptance, Drive, Flow, Gap, Link, Overheads, Setup, SetupError, WorkerSetup};
pub use table::{Cell, TableCosts};
