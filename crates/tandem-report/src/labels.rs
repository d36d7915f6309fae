//! Short names of figures, with the statistic and the unit: what heads a column or a row.

use tandem_metrics::metrics::{Kind, Metric, by_name, output_throughput_per_user};

const SHORT: [(&str, &str); 5] =
    [("ttft", "TTFT"), ("tpot", "TPOT"), ("request_latency", "latency"), ("error_rate", "failed requests"), ("goodput", "goodput")];

/// `TTFT p99, ms`; a rate is named by its unit alone.
pub(crate) fn figure_label(metric: &Metric, stat: &str) -> String {
    let unit = metric.unit.as_str();
    let is_single = matches!(metric.kind, Kind::Aggregate(_) | Kind::Derived(_));
    let stat = if stat == "avg" { "mean" } else { stat };
    match SHORT.iter().find(|(name, _)| *name == metric.name) {
        Some((_, short)) if is_single => format!("{short}, {unit}"),
        Some((_, short)) => format!("{short} {stat}, {unit}"),
        None if is_single || metric.name == output_throughput_per_user::METRIC.name => unit.to_owned(),
        None => format!("{} {stat}, {unit}", metric.title),
    }
}

/// The same for a metric by its name.
pub(crate) fn label_by_name(metric: &str, stat: &str) -> String {
    by_name(metric).map_or_else(|| format!("{metric} {stat}"), |metric| figure_label(metric, stat))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short_and_have_a_unit() {
        let cases = [
            ("ttft", "p99", "TTFT p99, ms"),
            ("tpot", "avg", "TPOT mean, ms"),
            ("output_throughput_per_gpu", "avg", "tokens/s/GPU"),
            ("output_throughput_per_user", "avg", "tokens/s/user"),
            ("error_rate", "avg", "failed requests, %"),
            ("later", "avg", "later avg"),
        ];
        for (metric, stat, expected) in cases {
            assert_eq!(label_by_name(metric, stat), expected);
        }
    }
}
