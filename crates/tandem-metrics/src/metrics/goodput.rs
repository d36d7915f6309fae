//! Goodput: requests a second that meet every service level objective (SLO).
//!
//! Formula: `good requests / benchmark duration`. A good request is kept and meets each SLO; one that lacks the
//! metric of an SLO does not meet it. Undefined without SLOs.
//! Kind: derived. Unit: requests/s.
//! GenAI-Perf pairs the metrics of different requests when one lacks a metric; this does not.

use thiserror::Error;

use crate::metrics::{self, Better, Kind, Metric, Sample, Unit};
use crate::record::RequestRecord;

/// The metric; the definition is in the file header.
pub static METRIC: Metric = Metric {
    name: "goodput",
    title: "Goodput",
    unit: Unit::RequestsPerSecond,
    better: Better::Higher,
    streaming_only: false,
    kind: Kind::Derived(of),
};

/// Requests a second.
#[must_use]
pub fn of(sample: &Sample<'_>) -> Option<f64> {
    Some(good_requests(sample)? as f64 / sample.duration_s()?)
}

/// Number of good requests; none without SLOs.
#[must_use]
pub fn good_requests(sample: &Sample<'_>) -> Option<usize> {
    let slos = &sample.load.slos;
    (!slos.is_empty()).then(|| sample.kept.iter().filter(|record| slos.iter().all(|slo| slo.is_met(record))).count())
}

/// A limit on a per-request metric.
#[derive(Debug, Clone, Copy)]
pub struct Slo {
    metric: &'static Metric,
    value: fn(&RequestRecord) -> Option<f64>,
    limit: f64,
}

/// Why there is no such SLO.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum SloError {
    /// No metric has that name.
    #[error("slo {0}: no such metric")]
    UnknownMetric(String),
    /// The metric has no value per request, or neither direction is better.
    #[error("slo {0}: not a latency or rate of a single request")]
    NotPerRequest(&'static str),
    /// The limit is negative or not a number.
    #[error("slo {name}: limit {limit} is not a finite number of at least 0")]
    BadLimit {
        /// The metric.
        name: &'static str,
        /// The limit.
        limit: f64,
    },
}

impl Slo {
    /// `limit` in the shown unit of the metric called `name`: an upper limit for latencies, a lower one for rates.
    ///
    /// # Errors
    /// If no metric has the name, if it is not one of single requests, or if the limit is no sensible number.
    pub fn new(name: &str, limit: f64) -> Result<Slo, SloError> {
        let metric = metrics::by_name(name).ok_or_else(|| SloError::UnknownMetric(name.to_owned()))?;
        if !(limit.is_finite() && limit >= 0.0) {
            return Err(SloError::BadLimit { name: metric.name, limit });
        }
        match metric.kind {
            Kind::Record(value) if metric.better != Better::Neither => Ok(Slo { metric, value, limit }),
            _ => Err(SloError::NotPerRequest(metric.name)),
        }
    }

    /// The metric it limits.
    #[must_use]
    pub const fn metric(&self) -> &'static Metric {
        self.metric
    }

    /// The limit, in the shown unit of the metric.
    #[must_use]
    pub const fn limit(&self) -> f64 {
        self.limit
    }

    /// Whether a request meets it.
    #[must_use]
    pub fn is_met(&self, record: &RequestRecord) -> bool {
        (self.value)(record).map(|raw| raw * self.metric.unit.scale()).is_some_and(|value| match self.metric.better {
            Better::Higher => value >= self.limit,
            Better::Lower | Better::Neither => value <= self.limit,
        })
    }
}

impl PartialEq for Slo {
    fn eq(&self, other: &Slo) -> bool {
        self.metric.name == other.metric.name && self.limit == other.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_metrics_of_single_requests_make_an_slo() {
        assert!(Slo::new("ttft", 200.0).is_ok());
        assert_eq!(Slo::new("itl", 20.0).unwrap_err(), SloError::NotPerRequest("itl"));
        assert_eq!(Slo::new("osl", 20.0).unwrap_err(), SloError::NotPerRequest("osl"));
        assert_eq!(Slo::new("tfft", 20.0).unwrap_err(), SloError::UnknownMetric("tfft".to_owned()));
        assert_eq!(Slo::new("ttft", f64::NAN).unwrap_err().to_string(), "slo ttft: limit NaN is not a finite number of at least 0");
    }
}
