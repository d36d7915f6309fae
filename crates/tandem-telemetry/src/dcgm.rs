//! The text endpoint of NVIDIA's DCGM exporter.
//!
//! GPUs are keyed by host and UUID (`Hostname`, `UUID`), not by the `gpu` label alone, which repeats on every host.
//! Units as the exporter documents them: energy in mJ, memory in MiB, `PROF_*_ACTIVE` as a share of one, PCIe in bytes/s.

use std::time::Duration;

use tandem_metrics::telemetry::{Subject, SubjectKind};

use crate::http;
use crate::prometheus::{self, Sample};
use crate::session::Roles;
use crate::source::{Reading, Source};

/// As GenAI-Perf scrapes. The exporter itself refreshes every 30 s unless it is told otherwise (`-c`).
const INTERVAL: Duration = Duration::from_millis(330);

const MIB: f64 = 1_048_576.0;

/// Field of the exporter, our quantity, and what theirs times is ours.
static FIELDS: [(&str, &str, f64); 29] = [
    ("DCGM_FI_DEV_POWER_USAGE", "power_w", 1.0),
    ("DCGM_FI_DEV_POWER_MGMT_LIMIT", "power_limit_w", 1.0),
    ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "energy_j", 1e-3),
    ("DCGM_FI_DEV_FB_TOTAL", "memory_total_bytes", MIB),
    ("DCGM_FI_DEV_FB_USED", "memory_used_bytes", MIB),
    ("DCGM_FI_DEV_FB_FREE", "memory_free_bytes", MIB),
    ("DCGM_FI_DEV_GPU_UTIL", "gpu_utilization_percent", 1.0),
    ("DCGM_FI_PROF_SM_ACTIVE", "sm_active_percent", 100.0),
    ("DCGM_FI_DEV_MEM_COPY_UTIL", "memory_utilization_percent", 1.0),
    ("DCGM_FI_DEV_ENC_UTIL", "encoder_utilization_percent", 1.0),
    ("DCGM_FI_DEV_DEC_UTIL", "decoder_utilization_percent", 1.0),
    ("DCGM_FI_DEV_SM_CLOCK", "sm_clock_mhz", 1.0),
    ("DCGM_FI_DEV_MEM_CLOCK", "memory_clock_mhz", 1.0),
    ("DCGM_FI_DEV_GPU_TEMP", "temperature_c", 1.0),
    ("DCGM_FI_DEV_MEMORY_TEMP", "memory_temperature_c", 1.0),
    ("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "throttle_reasons", 1.0),
    ("DCGM_FI_DEV_POWER_VIOLATION", "power_throttle_us", 1.0),
    ("DCGM_FI_DEV_THERMAL_VIOLATION", "thermal_throttle_us", 1.0),
    ("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", "ecc_corrected_volatile", 1.0),
    ("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "ecc_uncorrected_volatile", 1.0),
    ("DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", "ecc_corrected_aggregate", 1.0),
    ("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", "ecc_uncorrected_aggregate", 1.0),
    ("DCGM_FI_DEV_XID_ERRORS", "xid_last_error", 1.0),
    ("DCGM_FI_DEV_RETIRED_SBE", "retired_pages_sbe", 1.0),
    ("DCGM_FI_DEV_RETIRED_DBE", "retired_pages_dbe", 1.0),
    ("DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", "nvlink_crc_flit_errors", 1.0),
    ("DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", "nvlink_crc_data_errors", 1.0),
    ("DCGM_FI_PROF_PCIE_TX_BYTES", "pcie_tx_kb_per_s", 1.0 / 1024.0),
    ("DCGM_FI_PROF_PCIE_RX_BYTES", "pcie_rx_kb_per_s", 1.0 / 1024.0),
];

/// The exporter of one host, or one that speaks for several.
pub(crate) struct Dcgm {
    agent: ureq::Agent,
    url: String,
    roles: Roles,
}

impl Dcgm {
    pub(crate) fn new(url: &str, roles: Roles) -> Self {
        Dcgm { agent: http::agent(), url: http::metrics_url(url), roles }
    }
}

impl Source for Dcgm {
    fn name(&self) -> String {
        self.url.clone()
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    fn sample(&mut self) -> Result<Vec<Reading>, String> {
        let text = http::get(&self.agent, &self.url)?;
        let readings = readings(&prometheus::parse(&text), http::host_of(&self.url), &self.roles);
        if readings.is_empty() { Err("no DCGM metrics in its answer".to_owned()) } else { Ok(readings) }
    }
}

/// One reading a GPU, in the order of the text.
fn readings(samples: &[Sample], url_host: &str, roles: &Roles) -> Vec<Reading> {
    let mut all: Vec<Reading> = Vec::new();
    for sample in samples {
        let Some((_, quantity, factor)) = FIELDS.iter().find(|(field, ..)| *field == sample.name) else { continue };
        let index = sample.label("gpu").and_then(|gpu| gpu.parse().ok());
        let host = sample.label("Hostname").or_else(|| sample.label("hostname")).unwrap_or(url_host);
        // A MIG instance reports under the UUID of its GPU; its share is not the GPU's.
        if sample.label("GPU_I_ID").is_some_and(|id| !id.is_empty()) {
            continue;
        }
        let Some(id) = sample.label("UUID").map(str::to_owned).or_else(|| index.map(|i: u32| format!("gpu-{i}"))) else { continue };
        let subject = Subject {
            kind: SubjectKind::Gpu,
            host: host.to_owned(),
            id,
            index,
            name: sample.label("modelName").unwrap_or_default().to_owned(),
            role: index.and_then(|index| roles.of(host, index)),
        };
        let value = ((*quantity).to_owned(), sample.value * factor);
        match all.iter_mut().find(|reading| reading.subject.is_same(&subject)) {
            Some(reading) => reading.values.push(value),
            None => all.push(Reading { subject, values: vec![value] }),
        }
    }
    for reading in &mut all {
        complete(&mut reading.values);
    }
    all
}

/// Newer exporters have no total of memory: it is what is used, free and reserved.
fn complete(values: &mut Vec<(String, f64)>) {
    let value = |name: &str| values.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
    if let (None, Some(used), Some(free)) = (value("memory_total_bytes"), value("memory_used_bytes"), value("memory_free_bytes")) {
        values.push(("memory_total_bytes".to_owned(), used + free));
    }
}

#[cfg(test)]
mod tests {
    use tandem_metrics::telemetry::quantity;

    use super::*;

    #[test]
    fn gpus_of_the_same_index_on_two_hosts_are_two() {
        let text = include_str!("../tests/data/dcgm.txt");
        let roles = Roles::new(|host, index| (host == "node-a").then(|| if index == 0 { "prefill" } else { "decode" }.to_owned()));
        let all = readings(&prometheus::parse(text), "exporter", &roles);
        let who: Vec<_> = all.iter().map(|r| (r.subject.host.as_str(), r.subject.index, r.subject.role.as_deref())).collect();
        assert_eq!(who, [("node-a", Some(0), Some("prefill")), ("node-a", Some(1), Some("decode")), ("node-b", Some(0), None)]);
        assert_eq!(all[0].value("power_w"), Some(412.553));
        assert_eq!(all[0].value("energy_j"), Some(10_003_134.862));
        assert_eq!(all[0].value("memory_used_bytes"), Some(60_000.0 * MIB));
        assert_eq!(all[0].value("memory_total_bytes"), Some(81_000.0 * MIB));
        assert_eq!(all[0].value("sm_active_percent"), Some(80.0));
        assert_eq!(all[2].value("power_w"), Some(99.0));
        assert_eq!(all[0].subject.name, "NVIDIA H100 80GB HBM3");
    }

    #[test]
    fn every_field_has_a_known_quantity() {
        assert!(FIELDS.iter().all(|(_, name, _)| quantity(name).is_some()));
    }
}
