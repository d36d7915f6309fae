//! The quantities that are sampled: names as in `telemetry.jsonl`, units, and how they behave.
//!
//! GPU quantities follow NVML's and DCGM's definitions; their counterparts in GenAI-Perf's files are in
//! `artifacts::telemetry`. Metrics of servers keep the names that the servers give them and are not listed here, but for
//! the few that every server has (`server_*`).

/// How a quantity changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Goes up and down.
    Gauge,
    /// Only grows: what counts is the difference over a window.
    Counter,
    /// Does not change.
    Constant,
    /// A set of bits: what counts is which were set and how often.
    Bits,
}

/// A named quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantity {
    /// The key in files; it ends in the unit where there is one.
    pub name: &'static str,
    /// The unit for people.
    pub unit: &'static str,
    /// How it changes.
    pub behaviour: Behaviour,
}

const fn gauge(name: &'static str, unit: &'static str) -> Quantity {
    Quantity { name, unit, behaviour: Behaviour::Gauge }
}

const fn counter(name: &'static str, unit: &'static str) -> Quantity {
    Quantity { name, unit, behaviour: Behaviour::Counter }
}

const fn constant(name: &'static str, unit: &'static str) -> Quantity {
    Quantity { name, unit, behaviour: Behaviour::Constant }
}

/// All quantities with a fixed name.
pub static QUANTITIES: [Quantity; 59] = [
    // GPUs. `power_w` is what the driver reports, on Hopper the mean of the last second; `energy_j` counts since the driver was loaded.
    gauge("power_w", "W"),
    gauge("power_instant_w", "W"),
    constant("power_limit_w", "W"),
    counter("energy_j", "J"),
    constant("memory_total_bytes", "bytes"),
    gauge("memory_used_bytes", "bytes"),
    gauge("memory_free_bytes", "bytes"),
    gauge("gpu_utilization_percent", "%"),
    gauge("sm_active_percent", "%"),
    gauge("memory_utilization_percent", "%"),
    gauge("encoder_utilization_percent", "%"),
    gauge("decoder_utilization_percent", "%"),
    gauge("sm_clock_mhz", "MHz"),
    gauge("memory_clock_mhz", "MHz"),
    gauge("temperature_c", "C"),
    gauge("memory_temperature_c", "C"),
    Quantity { name: "throttle_reasons", unit: "bits", behaviour: Behaviour::Bits },
    counter("power_throttle_us", "us"),
    counter("thermal_throttle_us", "us"),
    counter("ecc_corrected_volatile", "errors"),
    counter("ecc_uncorrected_volatile", "errors"),
    counter("ecc_corrected_aggregate", "errors"),
    counter("ecc_uncorrected_aggregate", "errors"),
    gauge("xid_last_error", "errors"),
    counter("retired_pages_sbe", "pages"),
    counter("retired_pages_dbe", "pages"),
    counter("nvlink_crc_flit_errors", "errors"),
    counter("nvlink_crc_data_errors", "errors"),
    gauge("pcie_tx_kb_per_s", "KB/s"),
    gauge("pcie_rx_kb_per_s", "KB/s"),
    counter("pcie_replays", "retries"),
    gauge("pcie_link_generation", "generation"),
    gauge("pcie_link_width", "lanes"),
    // Hosts. CPU shares are of all cores together since the sample before.
    gauge("cpu_percent", "%"),
    gauge("cpu_steal_percent", "%"),
    gauge("cpu_iowait_percent", "%"),
    constant("cpu_count", "cores"),
    gauge("load_1min", "processes"),
    constant("host_memory_total_bytes", "bytes"),
    gauge("host_memory_used_bytes", "bytes"),
    counter("net_rx_bytes", "bytes"),
    counter("net_tx_bytes", "bytes"),
    counter("loopback_rx_bytes", "bytes"),
    counter("client_cpu_s", "s"),
    gauge("client_rss_bytes", "bytes"),
    // Servers, whatever they call it.
    gauge("server_requests_running", "requests"),
    gauge("server_requests_waiting", "requests"),
    gauge("server_kv_usage_percent", "%"),
    counter("server_requests_total", "requests"),
    counter("server_prompt_tokens_total", "tokens"),
    counter("server_output_tokens_total", "tokens"),
    counter("server_prefix_cache_queries_total", "tokens"),
    counter("server_prefix_cache_hits_total", "tokens"),
    gauge("server_prefix_cache_hit_rate", "ratio"),
    counter("server_preemptions_total", "requests"),
    gauge("server_output_tokens_per_s", "tokens/s"),
    counter("server_rejections_total", "requests"),
    counter("server_retries_total", "requests"),
    gauge("scrape_ms", "ms"),
];

/// The quantity of that name.
#[must_use]
pub fn quantity(name: &str) -> Option<&'static Quantity> {
    QUANTITIES.iter().find(|quantity| quantity.name == name)
}

/// How a quantity of any name behaves: those of servers by Prometheus' naming rules.
pub(crate) fn behaviour(name: &str) -> Behaviour {
    if let Some(known) = quantity(name) {
        return known.behaviour;
    }
    let family = name.split('{').next().unwrap_or(name);
    if ["_total", "_sum", "_count"].iter().any(|end| family.ends_with(end)) { Behaviour::Counter } else { Behaviour::Gauge }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        assert_eq!(QUANTITIES.iter().map(|q| q.name).collect::<BTreeSet<_>>().len(), QUANTITIES.len());
    }

    #[test]
    fn foreign_counters_are_known_by_their_ending() {
        assert_eq!(behaviour("vllm:generation_tokens_total{model=\"m\"}"), Behaviour::Counter);
        assert_eq!(behaviour("vllm:num_requests_running"), Behaviour::Gauge);
        assert_eq!(behaviour("energy_j"), Behaviour::Counter);
    }
}
