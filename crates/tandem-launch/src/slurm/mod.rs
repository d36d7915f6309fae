//! Runs a [`Plan`](tandem_plan::Plan) inside one Slurm job, and asks Slurm about it.
//!
//! On the login node: [`JobRequest`] renders the job script, [`Slurm`] submits it. Inside the
//! allocation the same binary binds the plan once ([`Allocation`]: nodes, addresses, ports) and
//! starts each server as an `srun` step. Every call of a Slurm program has a deadline and a clean
//! environment, and "no answer" is a third answer beside yes and no.
//!
//! Reading order: `client` (calling Slurm's programs), `text` (reading what they print), `hostlist`, `request`
//! (the job script), `allocation` (nodes, ports), `step` (one server as `srun` arguments), `state` (where a job is).

pub mod allocation;
pub mod client;
pub mod hostlist;
pub mod ports;
pub mod request;
pub mod state;
pub mod step;
pub mod text;

pub use allocation::Allocation;
pub use client::{Slurm, SlurmError};
pub use request::{GpuRequest, Head, JobRequest};
pub use state::{JobState, Observed, observe};
pub use step::{Container, StepSettings};
