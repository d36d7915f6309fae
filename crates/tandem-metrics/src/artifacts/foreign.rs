//! What other tools call our metrics: the one place that knows.
//!
//! GenAI-Perf's JSON, its CSV and AIPerf's record lines share tags; the CSV has units and an order of its own.

use crate::metrics::{
    Metric, e2e_output_throughput, effective_latency, goodput, icl, isl, osl, output_throughput, output_throughput_per_user,
    prefill_throughput_per_user, request_count, request_latency, request_throughput, tpot, ttfo, ttft, ttst,
};
use crate::record::FailureKind;

/// A metric under its foreign name.
#[derive(Debug, Clone, Copy)]
pub struct Foreign {
    /// Ours.
    pub metric: &'static Metric,
    /// Their tag.
    pub tag: &'static str,
    /// Their unit, in JSON.
    pub unit: &'static str,
    /// Where GenAI-Perf's CSV has it; none if its files lack the metric.
    pub csv: Option<CsvRow>,
    /// Whether AIPerf's record lines carry it.
    pub in_record_line: bool,
}

/// A row of GenAI-Perf's CSV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CsvRow {
    /// In the table of statistics, at this place.
    Statistics(u8),
    /// In the table of single values, at this place, with a unit that differs from the JSON's.
    Value(u8, &'static str),
}

const fn both(metric: &'static Metric, tag: &'static str, unit: &'static str, csv: CsvRow, in_record_line: bool) -> Foreign {
    Foreign { metric, tag, unit, csv: Some(csv), in_record_line }
}

const fn line_only(metric: &'static Metric, tag: &'static str, unit: &'static str) -> Foreign {
    Foreign { metric, tag, unit, csv: None, in_record_line: true }
}

/// All foreign names, in the order of GenAI-Perf's JSON.
pub static TABLE: [Foreign; 16] = [
    both(&request_throughput::METRIC, "request_throughput", "requests/sec", CsvRow::Value(1, "per sec"), false),
    both(&request_latency::METRIC, "request_latency", "ms", CsvRow::Statistics(2), true),
    both(&goodput::METRIC, "request_goodput", "requests/sec", CsvRow::Value(2, "per sec"), false),
    both(&request_count::METRIC, "request_count", "count", CsvRow::Value(3, "count"), false),
    both(&ttft::METRIC, "time_to_first_token", "ms", CsvRow::Statistics(0), true),
    both(&ttst::METRIC, "time_to_second_token", "ms", CsvRow::Statistics(1), true),
    both(&tpot::METRIC, "inter_token_latency", "ms", CsvRow::Statistics(3), true),
    both(&output_throughput::METRIC, "output_token_throughput", "tokens/sec", CsvRow::Value(0, "tokens/sec"), false),
    both(&output_throughput_per_user::METRIC, "output_token_throughput_per_user", "tokens/sec/user", CsvRow::Statistics(4), true),
    both(&osl::METRIC, "output_sequence_length", "tokens", CsvRow::Statistics(5), true),
    both(&isl::METRIC, "input_sequence_length", "tokens", CsvRow::Statistics(6), true),
    line_only(&ttfo::METRIC, "time_to_first_output_token", "ms"),
    line_only(&icl::METRIC, "inter_chunk_latency", "ms"),
    line_only(&prefill_throughput_per_user::METRIC, "prefill_throughput_per_user", "tokens/sec/user"),
    line_only(&e2e_output_throughput::METRIC, "e2e_output_token_throughput", "tokens/sec/user"),
    line_only(&effective_latency::METRIC, "effective_latency", "ms"),
];

/// The foreign tag of a metric.
#[must_use]
pub fn tag_of(metric: &Metric) -> Option<&'static str> {
    TABLE.iter().find(|foreign| foreign.metric.name == metric.name).map(|foreign| foreign.tag)
}

/// The metric with that foreign tag.
#[must_use]
pub fn metric_of(tag: &str) -> Option<&'static Metric> {
    TABLE.iter().find(|foreign| foreign.tag == tag).map(|foreign| foreign.metric)
}

/// The type that AIPerf's record lines would give a failure, in its manner of naming exceptions.
pub(crate) const fn error_type(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::ConnectError => "ConnectError",
        FailureKind::SendError => "SendError",
        FailureKind::HttpStatus => "HttpStatusError",
        FailureKind::SseError => "SseResponseError",
        FailureKind::Truncated => "TruncatedResponseError",
        FailureKind::Timeout => "RequestTimeoutError",
        FailureKind::NoProgress => "NoProgressError",
        FailureKind::Cancelled => "RequestCancellationError",
        FailureKind::BadResponse => "InvalidResponseError",
    }
}

/// A tag as the CSV titles it: words capitalised, abbreviations in capitals where `abbreviations` says so.
pub(crate) fn title(tag: &str, abbreviations: &[&str]) -> String {
    let word = |word: &str| {
        if abbreviations.contains(&word) {
            return word.to_uppercase();
        }
        let mut chars = word.chars();
        chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
    };
    tag.split('_').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_table_maps_both_ways_without_a_clash() {
        let tags: BTreeSet<_> = TABLE.iter().map(|foreign| foreign.tag).collect();
        let names: BTreeSet<_> = TABLE.iter().map(|foreign| foreign.metric.name).collect();
        assert_eq!((tags.len(), names.len()), (TABLE.len(), TABLE.len()));
        for foreign in &TABLE {
            assert_eq!(tag_of(foreign.metric), Some(foreign.tag));
            assert_eq!(metric_of(foreign.tag).map(|metric| metric.name), Some(foreign.metric.name));
        }
    }

    #[test]
    fn our_tpot_is_their_inter_token_latency() {
        assert_eq!(tag_of(&tpot::METRIC), Some("inter_token_latency"));
        assert_eq!(tag_of(&crate::metrics::itl::METRIC), None);
    }

    #[test]
    fn each_csv_place_is_taken_once_and_none_is_free() {
        let mut statistics: Vec<u8> = Vec::new();
        let mut values: Vec<u8> = Vec::new();
        for foreign in &TABLE {
            match foreign.csv {
                Some(CsvRow::Statistics(place)) => statistics.push(place),
                Some(CsvRow::Value(place, _)) => values.push(place),
                None => {}
            }
        }
        statistics.sort_unstable();
        values.sort_unstable();
        assert_eq!((statistics, values), ((0..7).collect(), (0..4).collect()));
    }

    #[test]
    fn titles_capitalise_words() {
        assert_eq!(title("time_to_first_token", &[]), "Time To First Token");
        assert_eq!(title("total_gpu_memory", &["gpu"]), "Total GPU Memory");
    }
}
