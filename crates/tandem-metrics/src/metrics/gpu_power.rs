//! GPU power: the mean of all GPUs of the deployment together.
//!
//! Formula: `GPU energy / benchmark duration`, so short peaks between samples count.
//! Kind: derived. Unit: W. Undefined without telemetry.

use crate::metrics::{Better, Kind, Metric, Sample, Unit};

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "gpu_power",
    title: "Mean GPU power",
    unit: Unit::Watts,
    better: Better::Lower,
    streaming_only: false,
    kind: Kind::Derived(of),
};

/// Watts.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    Some(sample.energy_j? / sample.duration_s()?)
}
