//! NVIDIA's management library, in this process, loaded at run time: the same binary runs where there is no driver.
//!
//! `ffi` has the calls. A quantity that a GPU, a driver or a hypervisor does not offer is left out of the reading.

mod ffi;

use std::path::Path;
use std::time::Duration;

use tandem_metrics::telemetry::{Subject, SubjectKind};

use crate::error::TelemetryError;
use crate::session::Roles;
use crate::source::{Reading, Source};
use ffi::{Device, Library};

/// The driver renews power and energy about ten times a second (measured on an H100: docs/results).
const INTERVAL: Duration = Duration::from_millis(100);
/// Slow questions (PCIe throughput is a measurement of 20 ms a direction; error counters hardly ever change) are asked once in so many.
const SLOW_EVERY: u64 = 20;

const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// All GPUs of this host.
pub(crate) struct Nvml {
    library: Library,
    gpus: Vec<(Device, Subject)>,
    n_sampled: u64,
}

impl Nvml {
    /// Loads the library (`path`, else the driver's) and finds the GPUs.
    pub(crate) fn open(path: Option<&Path>, host: &str, roles: &Roles) -> Result<Nvml, TelemetryError> {
        let library = match path {
            Some(path) => Library::load(&path.display().to_string())?,
            None => Library::load(LIBRARIES[0]).or_else(|error| Library::load(LIBRARIES[1]).map_err(|_| error))?,
        };
        let mut gpus = Vec::new();
        for index in 0..library.device_count()? {
            let device = library.device(index)?;
            let subject = Subject {
                kind: SubjectKind::Gpu,
                host: host.to_owned(),
                id: library.uuid(device).unwrap_or_else(|| format!("gpu-{index}")),
                index: Some(index),
                name: library.name(device).unwrap_or_default(),
                role: roles.of(host, index),
            };
            gpus.push((device, subject));
        }
        if gpus.is_empty() { Err(TelemetryError::NoGpu) } else { Ok(Nvml { library, gpus, n_sampled: 0 }) }
    }
}

impl Source for Nvml {
    fn name(&self) -> String {
        format!("NVML ({} GPUs)", self.gpus.len())
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    fn sample(&mut self) -> Result<Vec<Reading>, String> {
        let slow = self.n_sampled.is_multiple_of(SLOW_EVERY);
        self.n_sampled += 1;
        let reading = |(device, subject): &(Device, Subject)| {
            let mut values = Vec::with_capacity(32);
            self.library.fast_values(*device, &mut values);
            if slow {
                self.library.slow_values(*device, &mut values);
            }
            let values: Vec<(String, f64)> = values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            Reading { subject: subject.clone(), values }
        };
        let all: Vec<Reading> = self.gpus.iter().map(reading).filter(|reading| !reading.values.is_empty()).collect();
        if all.is_empty() { Err("no GPU answers".to_owned()) } else { Ok(all) }
    }
}
