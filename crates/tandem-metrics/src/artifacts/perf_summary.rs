//! `perf_summary.txt`: eight figures for people, in the shape that users of the recipe know.
//!
//! One block for each load point. With a single point the file is that block alone; with several, each block's
//! title names the point's concurrency and a blank line separates blocks. A figure that does not apply
//! (TTFT, TPOT and per-user throughput without streaming) or does not exist is `N/A`, so that the lines stay the same.
//! Loads that are driven by time have two more lines, latencies from when a request was due: what a user would have waited.
//! Where GPUs were sampled three more lines say power, energy per output token and tokens per second and watt.
//! Points with failed requests or invalid figures say so above their block.

use crate::artifacts::python;
use crate::metrics::{
    Metric, effective_latency, effective_ttft, energy_per_output_token, gpu_power, output_throughput, output_throughput_per_gpu,
    output_throughput_per_user, output_tokens_per_joule, request_latency, request_throughput, total_throughput_per_gpu, tpot, ttft,
};
use crate::summary::Summary;
use crate::validity::Verdict;

const RULE: &str = "============================================================";

/// Label and metric of each line, in order.
static LINES: [(&str, &Metric); 8] = [
    ("Request Throughput (req/sec)", &request_throughput::METRIC),
    ("Output Token Throughput (tokens/sec)", &output_throughput::METRIC),
    ("Output Token Throughput per User (tps/user)", &output_throughput_per_user::METRIC),
    ("Output Token Throughput per GPU (tps/gpu)", &output_throughput_per_gpu::METRIC),
    ("Total Token Throughput per GPU (tokens/sec)", &total_throughput_per_gpu::METRIC),
    ("Average request latency (ms)", &request_latency::METRIC),
    ("Average time to first token [TTFT] (ms)", &ttft::METRIC),
    ("Average time per output token [TPOT] (ms)", &tpot::METRIC),
];

/// Further lines of loads that are driven by time.
static FROM_SCHEDULE: [(&str, &Metric); 2] =
    [("Average latency from schedule (ms)", &effective_latency::METRIC), ("Average TTFT from schedule (ms)", &effective_ttft::METRIC)];

/// Further lines of loads whose GPUs were sampled.
static ENERGY: [(&str, &Metric); 3] = [
    ("Average GPU power (W)", &gpu_power::METRIC),
    ("Energy per output token (J)", &energy_per_output_token::METRIC),
    ("Output tokens per second per watt (tps/W)", &output_tokens_per_joule::METRIC),
];

/// The file's text, from the summaries in the order of the load points.
#[must_use]
pub fn render(summaries: &[&Summary]) -> String {
    let blocks: Vec<String> = summaries.iter().map(|summary| block(summary, summaries.len() > 1)).collect();
    blocks.join("\n")
}

fn block(summary: &Summary, name_point: bool) -> String {
    let mut out = String::new();
    let shown = |reason: &&crate::validity::Reason| reason.verdict == Verdict::Invalid || reason.code == "failed_requests";
    for reason in summary.validity.reasons.iter().filter(shown) {
        out.push_str(&format!("{}: {}\n", reason.verdict.as_str().to_uppercase(), reason.message));
    }
    let point = match summary.load.concurrency {
        Some(concurrency) if name_point => format!(" (concurrency {concurrency})"),
        None if name_point => summary.load.request_rate.map_or_else(String::new, |rate| format!(" (request rate {rate})")),
        _ => String::new(),
    };
    out.push_str(&format!("{RULE}\nPERFORMANCE OVERVIEW{point}\n{RULE}\n"));
    let is_timed = summary.load.concurrency.is_none();
    for (label, metric) in LINES.into_iter().chain(FROM_SCHEDULE.into_iter().filter(|_| is_timed)) {
        let value = summary.avg(metric).map_or_else(|| "N/A".to_owned(), python::fixed2);
        out.push_str(&format!("{label:<46}: {value}\n"));
    }
    for (label, value) in ENERGY.into_iter().filter_map(|(label, metric)| Some((label, summary.avg(metric)?))) {
        // A token may cost a hundredth of a joule, or a watt give a hundredth of a token: two decimals would say nothing.
        out.push_str(&format!("{label:<46}: {value:.4}\n"));
    }
    out
}
