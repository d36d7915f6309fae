//! GPU energy: what the GPUs of the deployment consumed.
//!
//! Formula: energy counters, last minus first (else power, integrated), over the benchmark duration; GPUs of the deployment only.
//! Kind: derived. Unit: J. Undefined without telemetry.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "gpu_energy",
    title: "GPU energy",
    unit: Unit::Joules,
    better: Better::Lower,
    streaming_only: false,
    kind: Kind::Derived(of),
};

/// Joules.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    sample.energy_j
}
