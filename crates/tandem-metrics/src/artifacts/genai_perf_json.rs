//! `profile_export_genai_perf.json`, laid out as GenAI-Perf 0.0.16 writes it.
//!
//! Two-space indentation, no newline at the end, floats as Python prints them, keys in a fixed order. Nothing of
//! our own is ever added to this file; richer data goes into `result.json` and `profile_export.jsonl`.

use serde_json::{Map, Value, json};

use crate::artifacts::foreign::{self, CsvRow};
use crate::artifacts::python;
use crate::artifacts::telemetry::Telemetry;
use crate::metrics::{Metric, request_latency, ttft};
use crate::stats::{PERCENTILES, Stats};
use crate::summary::{Figure, Summary};

/// The file's text.
#[must_use]
pub fn render(summary: &Summary, telemetry: Option<&Telemetry>, input_config: Value) -> String {
    let mut root = Map::new();
    for entry in foreign::TABLE.iter().filter(|entry| entry.csv.is_some()) {
        let Some(figure) = figure(summary, entry.metric) else { continue };
        let mut metric = Map::from_iter([("unit".to_owned(), Value::from(entry.unit))]);
        match (figure, entry.csv) {
            (Figure::Stats(values), Some(CsvRow::Statistics(_))) => metric.extend(stats(&values)),
            _ => metric.extend([("avg".to_owned(), json!(figure.avg()))]),
        }
        root.insert(entry.tag.to_owned(), metric.into());
    }
    if let Some(telemetry) = telemetry.and_then(Telemetry::to_json) {
        root.insert("telemetry_stats".to_owned(), telemetry);
    }
    root.insert("input_config".to_owned(), input_config);
    python::dumps_indented(&root.into())
}

/// A metric as GenAI-Perf has it. Without streaming it still reports the time to the first (and only) chunk.
fn figure(summary: &Summary, metric: &Metric) -> Option<Figure> {
    if metric.name == ttft::METRIC.name && !summary.load.streaming {
        return summary.figure(&request_latency::METRIC);
    }
    summary.figure(metric)
}

/// Statistics in the order of the file.
pub(crate) fn stats(stats: &Stats) -> Map<String, Value> {
    let mut map = Map::from_iter([("avg".to_owned(), json!(stats.avg))]);
    map.extend(PERCENTILES.into_iter().zip(stats.percentiles).map(|(p, value)| (format!("p{p}"), json!(value))));
    map.extend([("min", stats.min), ("max", stats.max), ("std", stats.std)].map(|(name, value)| (name.to_owned(), json!(value))));
    map
}
