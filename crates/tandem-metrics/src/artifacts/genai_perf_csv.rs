//! `profile_export_genai_perf.csv`, as GenAI-Perf 0.0.16 writes it.
//!
//! Two tables: statistics of each metric with values per request, and single values. Two decimals with thousands
//! separators, `N/A` for what is missing; rows that need streaming are left out without it.

use crate::artifacts::foreign::{self, CsvRow, Foreign};
use crate::artifacts::telemetry::Telemetry;
use crate::artifacts::{csv, python};
use crate::metrics::goodput;
use crate::summary::Summary;

/// Columns of the table of statistics.
pub(crate) const STATISTICS: [&str; 12] = ["avg", "min", "max", "p99", "p95", "p90", "p75", "p50", "p25", "p10", "p5", "p1"];

/// The file's text.
#[must_use]
pub fn render(summary: &Summary, telemetry: Option<&Telemetry>) -> String {
    let mut out = String::new();
    csv::row(&mut out, ["Metric"].into_iter().chain(STATISTICS));
    for (entry, _) in rows(|csv| matches!(csv, CsvRow::Statistics(_))) {
        if !summary.load.streaming && entry.metric.streaming_only {
            continue;
        }
        let stats = summary.stats(entry.metric);
        let cell = |name| stats.and_then(|stats| stats.by_name(name)).map_or_else(|| "N/A".to_owned(), python::grouped2);
        csv::row(&mut out, [title(entry, entry.unit)].into_iter().chain(STATISTICS.into_iter().map(cell)));
    }
    csv::row(&mut out, [""; 0]);
    csv::row(&mut out, ["Metric", "Value"]);
    for (entry, csv) in rows(|csv| matches!(csv, CsvRow::Value(..))) {
        if entry.metric.name == goodput::METRIC.name && summary.load.slos.is_empty() {
            continue;
        }
        let CsvRow::Value(_, unit) = csv else { continue };
        let value = summary.avg(entry.metric).map_or_else(|| "N/A".to_owned(), python::grouped2);
        csv::row(&mut out, [title(entry, unit), value]);
    }
    if let Some(telemetry) = telemetry {
        telemetry.write_csv(&mut out);
    }
    out
}

fn rows(wanted: impl Fn(CsvRow) -> bool) -> Vec<(&'static Foreign, CsvRow)> {
    let mut rows: Vec<_> = foreign::TABLE.iter().filter_map(|entry| Some((entry, entry.csv.filter(|&csv| wanted(csv))?))).collect();
    rows.sort_by_key(|(_, csv)| match csv {
        CsvRow::Statistics(place) | CsvRow::Value(place, _) => *place,
    });
    rows
}

fn title(entry: &Foreign, unit: &str) -> String {
    format!("{} ({unit})", foreign::title(entry.tag, &[]))
}
