//! Reads `result.json`, the account of a run that `tandem_metrics::artifacts::result` writes.
//!
//! Keys that are not known are ignored, so that later writers may add some; another schema version is refused.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};
use tandem_metrics::Verdict;
use tandem_metrics::artifacts::result::RESULT_SCHEMA_VERSION;
use tandem_metrics::metrics::Metric;

use super::error::ReportError;
use super::gpus::SavedTelemetry;

/// The document.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ResultFile {
    #[serde(deserialize_with = "verdict")]
    pub(crate) validity: Verdict,
    #[serde(default)]
    pub(crate) validity_reasons: Vec<SavedReason>,
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) partial: bool,
    pub(crate) recipe: String,
    pub(crate) model: String,
    pub(crate) plan_hash: Option<String>,
    #[serde(default)]
    pub(crate) versions: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) machines: Vec<String>,
    pub(crate) n_gpus: u32,
    #[serde(default)]
    pub(crate) started_at: String,
    #[serde(default)]
    pub(crate) ended_at: String,
    #[serde(default)]
    pub(crate) duration_s: f64,
    #[serde(default)]
    pub(crate) summary_point: Option<usize>,
    #[serde(default)]
    pub(crate) points: Vec<SavedPoint>,
}

/// Something that is held against the figures.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SavedReason {
    #[serde(deserialize_with = "verdict")]
    pub(crate) verdict: Verdict,
    pub(crate) code: String,
    pub(crate) message: String,
}

/// One load point.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SavedPoint {
    pub(crate) directory: String,
    #[serde(deserialize_with = "verdict")]
    pub(crate) validity: Verdict,
    #[serde(default)]
    pub(crate) validity_reasons: Vec<SavedReason>,
    pub(crate) load: LoadFacts,
    #[serde(default)]
    pub(crate) outcomes: BTreeMap<String, u64>,
    #[serde(default, deserialize_with = "figures")]
    pub(crate) summary: BTreeMap<String, SavedFigure>,
    #[serde(default)]
    pub(crate) telemetry: Option<SavedTelemetry>,
}

/// What was asked of a load point. Points of two runs are compared when these are equal.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct LoadFacts {
    /// Requests kept in flight.
    pub(crate) concurrency: Option<u32>,
    /// Requests a second, of loads driven by a rate.
    #[serde(default)]
    pub(crate) request_rate: Option<f64>,
    /// Measured requests.
    pub(crate) n_requests: u64,
    /// Input tokens of each request.
    pub(crate) isl: Option<u32>,
    /// Output tokens of each request.
    pub(crate) osl: Option<u32>,
    /// Whether responses stream.
    pub(crate) streaming: bool,
}

/// A metric as saved: its unit, and `avg` alone or all its statistics.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SavedFigure {
    /// Unit of the values.
    pub(crate) unit: String,
    /// Statistics by name: `avg`, `p50`, …
    pub(crate) stats: BTreeMap<String, f64>,
}

impl ResultFile {
    /// Reads the text of the file.
    ///
    /// # Errors
    /// If it is not such a document, or of another version.
    pub(crate) fn parse(text: &str) -> Result<Self, ReportError> {
        let value: Value = serde_json::from_str(text).map_err(ReportError::Json)?;
        if let Some(found) = value.get("schema_version").and_then(Value::as_u64).filter(|&v| v != u64::from(RESULT_SCHEMA_VERSION)) {
            return Err(ReportError::SchemaVersion { found, expected: RESULT_SCHEMA_VERSION });
        }
        serde_json::from_value(value).map_err(ReportError::Json)
    }
}

impl SavedPoint {
    /// A statistic of a metric, if it was saved.
    pub(crate) fn stat(&self, metric: &Metric, stat: &str) -> Option<f64> {
        self.summary.get(metric.name)?.stats.get(stat).copied()
    }

    /// Requests that ended well, and all.
    pub(crate) fn ok_of(&self) -> (u64, u64) {
        (self.outcomes.get("ok").copied().unwrap_or(0), self.outcomes.values().sum())
    }
}

impl LoadFacts {
    /// Whether figures under both loads can be compared; the number of requests may differ.
    pub(crate) fn is_comparable(&self, other: &LoadFacts) -> bool {
        LoadFacts { n_requests: 0, ..self.clone() } == LoadFacts { n_requests: 0, ..other.clone() }
    }

    /// Lengths and how responses come, e.g. `ISL 512, OSL 128, streaming`.
    pub(crate) fn lengths(&self) -> String {
        let text = |n: Option<u32>| n.map_or_else(|| "any".to_owned(), |n| n.to_string());
        let streaming = if self.streaming { "streaming" } else { "whole responses" };
        format!("ISL {}, OSL {}, {streaming}", text(self.isl), text(self.osl))
    }

    /// The load in a few words, e.g. `concurrency 8`.
    pub(crate) fn label(&self) -> String {
        match (self.concurrency, self.request_rate) {
            (Some(n), _) => format!("concurrency {n}"),
            (None, Some(rate)) => format!("rate {rate}"),
            (None, None) => format!("{} requests", self.n_requests),
        }
    }
}

fn verdict<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Verdict, D::Error> {
    let name = String::deserialize(deserializer)?;
    let known = [Verdict::Valid, Verdict::Suspect, Verdict::Invalid].into_iter().find(|v| v.as_str() == name);
    known.ok_or_else(|| serde::de::Error::custom(format!("unknown verdict '{name}'")))
}

fn figures<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, SavedFigure>, D::Error> {
    let entries = Map::deserialize(deserializer)?;
    Ok(entries.into_iter().filter_map(|(name, entry)| Some((name, figure(entry)?))).collect())
}

/// A figure without a unit is none of ours.
fn figure(entry: Value) -> Option<SavedFigure> {
    let unit = entry.get("unit")?.as_str()?.to_owned();
    let stats = entry.as_object()?.iter().filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect();
    Some(SavedFigure { unit, stats })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"{"schema_version":1,"validity":"suspect","kind":"measured","recipe":"r","model":"m","plan_hash":null,"n_gpus":2,
        "points":[{"directory":"d","validity":"valid","load":{"concurrency":2,"n_requests":8,"isl":3,"osl":4,"streaming":true},
        "summary":{"ttft":{"unit":"ms","avg":1.5,"p99":2},"odd":7}}]}"#;

    #[test]
    fn what_is_missing_has_a_default_and_what_is_odd_is_skipped() {
        let result = ResultFile::parse(MINIMAL).unwrap();
        assert_eq!(result.validity, Verdict::Suspect);
        assert_eq!(result.points[0].stat(&tandem_metrics::metrics::ttft::METRIC, "p99"), Some(2.0));
        assert!(!result.points[0].summary.contains_key("odd"));
    }

    #[test]
    fn another_version_or_form_is_refused() {
        let message = |text: &str| ResultFile::parse(text).unwrap_err().to_string();
        assert_eq!(message(&MINIMAL.replace(":1,", ":2,")), "result.json has schema version 2, this program reads 1");
        assert_eq!(message("{"), "result.json cannot be understood");
        assert_eq!(message(&MINIMAL.replace("suspect", "fine")), "result.json cannot be understood");
    }
}
