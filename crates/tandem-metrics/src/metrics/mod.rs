//! Every metric: one file each, with its definition in the header.
//!
//! A metric has a name, a unit and one of four ways to come about ([`Kind`]). Values are taken over the *kept*
//! requests of the profiling phase (complete, with output), unless a header says otherwise. A metric that does
//! not apply (no streaming, output of one token, nothing kept) has no value rather than a made-up one.
//!
//! Names are ours. What GenAI-Perf and AIPerf call them is known to `artifacts::foreign` alone.
//! To add a metric: a file here, a line in [`ALL`].

pub mod benchmark_duration;
pub mod e2e_output_throughput;
pub mod effective_concurrency;
pub mod effective_latency;
pub mod effective_ttft;
pub mod energy_per_output_token;
pub mod energy_per_request;
pub mod error_count;
pub mod error_rate;
pub mod good_fraction;
pub mod goodput;
pub mod gpu_energy;
pub mod gpu_power;
pub mod icl;
pub mod input_throughput;
pub mod isl;
pub mod isl_mismatch;
pub mod itl;
pub mod osl;
pub mod osl_mismatch;
pub mod output_throughput;
pub mod output_throughput_per_gpu;
pub mod output_throughput_per_user;
pub mod output_tokens_per_joule;
pub mod prefill_throughput_per_user;
pub mod request_count;
pub mod request_latency;
pub mod request_throughput;
mod sample;
pub mod send_lag;
pub mod steady_concurrency;
pub mod total_throughput;
pub mod total_throughput_per_gpu;
pub mod total_tokens_per_joule;
pub mod tpot;
pub mod ttfo;
pub mod ttfr;
pub mod ttft;
pub mod ttst;

pub use sample::{Load, Sample};

use crate::record::RequestRecord;

/// A named function of records.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Name in code, flags and `result.json`.
    pub name: &'static str,
    /// Name for people.
    pub title: &'static str,
    /// Unit of shown values.
    pub unit: Unit,
    /// Which way is better.
    pub better: Better,
    /// Whether it has no meaning when the whole response comes at once.
    pub streaming_only: bool,
    /// How its values come about.
    pub kind: Kind,
}

/// Names are unique.
impl PartialEq for Metric {
    fn eq(&self, other: &Metric) -> bool {
        self.name == other.name
    }
}

/// How the values of a metric come about. Functions yield raw values: times in nanoseconds, see [`Unit::scale`].
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// At most one value a request; shown as statistics.
    Record(fn(&RequestRecord) -> Option<f64>),
    /// Any number of values a request, each with the number of times it counts; shown as statistics.
    Pooled(fn(&RequestRecord, &mut Vec<(f64, u64)>)),
    /// One value for the load point, from its records.
    Aggregate(fn(&Sample<'_>) -> Option<f64>),
    /// One value for the load point, from other metrics.
    Derived(fn(&Sample<'_>) -> Option<f64>),
}

/// Which way a metric is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
    /// Neither: it describes the load.
    Neither,
}

/// Unit of shown values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds; raw values are nanoseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Tokens.
    Tokens,
    /// Requests.
    Requests,
    /// Tokens a second.
    TokensPerSecond,
    /// Tokens a second and user.
    TokensPerSecondPerUser,
    /// Tokens a second and GPU.
    TokensPerSecondPerGpu,
    /// Requests a second.
    RequestsPerSecond,
    /// Percent.
    Percent,
    /// Joules.
    Joules,
    /// Watts.
    Watts,
    /// Joules a token.
    JoulesPerToken,
    /// Joules a request.
    JoulesPerRequest,
    /// Tokens a joule, which is tokens a second and watt.
    TokensPerJoule,
}

impl Unit {
    /// As written after a value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Unit::Milliseconds => "ms",
            Unit::Seconds => "s",
            Unit::Tokens => "tokens",
            Unit::Requests => "requests",
            Unit::TokensPerSecond => "tokens/s",
            Unit::TokensPerSecondPerUser => "tokens/s/user",
            Unit::TokensPerSecondPerGpu => "tokens/s/GPU",
            Unit::RequestsPerSecond => "requests/s",
            Unit::Percent => "%",
            Unit::Joules => "J",
            Unit::Watts => "W",
            Unit::JoulesPerToken => "J/token",
            Unit::JoulesPerRequest => "J/request",
            Unit::TokensPerJoule => "tokens/J",
        }
    }

    /// Raw values times this are in the unit.
    #[must_use]
    pub const fn scale(self) -> f64 {
        match self {
            Unit::Milliseconds => 1e-6,
            _ => 1.0,
        }
    }
}

/// All metrics in the order of a summary.
pub static ALL: [&Metric; 38] = [
    &request_throughput::METRIC,
    &output_throughput::METRIC,
    &output_throughput_per_user::METRIC,
    &output_throughput_per_gpu::METRIC,
    &total_throughput_per_gpu::METRIC,
    &request_latency::METRIC,
    &ttft::METRIC,
    &ttfr::METRIC,
    &ttfo::METRIC,
    &ttst::METRIC,
    &tpot::METRIC,
    &itl::METRIC,
    &icl::METRIC,
    &isl::METRIC,
    &osl::METRIC,
    &input_throughput::METRIC,
    &total_throughput::METRIC,
    &prefill_throughput_per_user::METRIC,
    &e2e_output_throughput::METRIC,
    &request_count::METRIC,
    &error_count::METRIC,
    &error_rate::METRIC,
    &goodput::METRIC,
    &good_fraction::METRIC,
    &benchmark_duration::METRIC,
    &effective_concurrency::METRIC,
    &steady_concurrency::METRIC,
    &send_lag::METRIC,
    &effective_latency::METRIC,
    &effective_ttft::METRIC,
    &isl_mismatch::METRIC,
    &osl_mismatch::METRIC,
    &gpu_energy::METRIC,
    &gpu_power::METRIC,
    &energy_per_output_token::METRIC,
    &energy_per_request::METRIC,
    &output_tokens_per_joule::METRIC,
    &total_tokens_per_joule::METRIC,
];

/// The metric with that name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Metric> {
    ALL.into_iter().find(|metric| metric.name == name)
}

/// A span that may be negative only through clock trouble, as raw value; negative spans count as zero.
fn span_ns(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn metric_names_are_unique_and_found() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(ALL.iter().all(|metric| by_name(metric.name).is_some_and(|found| found.title == metric.title)));
        assert!(by_name("time_to_first_token").is_none(), "foreign names are not ours");
    }
}
