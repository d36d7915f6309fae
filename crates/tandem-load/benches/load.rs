//! Measures the load generator against the paced server in this process: rates, client CPU a chunk, and the error of
//! every figure against the server's log of what it really sent. `cargo bench -p tandem-load`; arguments pick rows by name.

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::sync::Arc;

use tandem_load::paced::{Accuracy, EmissionLog, PacedConfig, PacedServer};
use tandem_load::{ByteTexts, LoadReport, LoadSpec, NoProgress, StopSignal, run};
use tandem_plan::Nanos;

struct Row {
    name: &'static str,
    concurrency: u32,
    n_requests: u32,
    isl: u32,
    osl: u32,
    ttft_us: u64,
    itl_us: u64,
    kernel_stamps: bool,
}

const fn row(name: &'static str, concurrency: u32, n_requests: u32, isl: u32, osl: u32, ttft_us: u64, itl_us: u64) -> Row {
    Row { name, concurrency, n_requests, isl, osl, ttft_us, itl_us, kernel_stamps: true }
}

const ROWS: [Row; 8] = [
    row("c1", 1, 4, 128, 128, 50_000, 10_000),
    row("c64", 64, 256, 128, 128, 50_000, 10_000),
    row("c256", 256, 1024, 128, 128, 50_000, 10_000),
    row("c1024", 1024, 6144, 128, 128, 50_000, 10_000),
    Row { kernel_stamps: false, ..row("c1024-clock", 1024, 6144, 128, 128, 50_000, 10_000) },
    row("c1024-isl8150", 1024, 2048, 8150, 128, 1_000_000, 25_000),
    row("osl1-c1", 1, 20_000, 16, 1, 0, 0),
    row("osl1-c64", 64, 200_000, 16, 1, 0, 0),
];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for row in ROWS.iter().filter(|r| wanted.is_empty() || wanted.iter().any(|w| r.name == w)) {
        measure(row);
    }
}

fn measure(row: &Row) {
    let config = PacedConfig { ttft: Nanos(row.ttft_us * 1000), itl: Nanos(row.itl_us * 1000), tokens_per_chunk: 1, n_prompt: row.isl };
    let server = PacedServer::start(config).expect("the paced server starts");
    let mut spec =
        LoadSpec::closed_loop(&server.url(), "paced", row.concurrency, row.n_requests, row.isl, row.osl).expect("the URL is good");
    spec.load.n_warmup = 0;
    spec.kernel_stamps = row.kernel_stamps;
    let texts = Arc::new(ByteTexts { template_tokens: 0 });
    let report = run(&spec, texts, &mut NoProgress, &Arc::new(StopSignal::new())).expect("the run ends");
    let log = server.stop().expect("the server's loop did not fail");
    print(row, &report, &log);
}

fn print(row: &Row, report: &LoadReport, log: &EmissionLog) {
    let h = &report.health;
    let failed = report.records.iter().filter(|r| !r.outcome.is_ok()).count();
    let span = |of: &dyn Fn(&tandem_metrics::RequestRecord) -> u64| report.records.iter().map(of).max().unwrap_or(0);
    let seconds = (span(&|r| r.end_ns) - report.records.iter().map(|r| r.start_ns).min().unwrap_or(0)) as f64 * 1e-9;
    println!(
        "{}: C {} ISL {} OSL {} ({} requests, {failed} failed, {seconds:.2} s)",
        row.name,
        row.concurrency,
        row.isl,
        row.osl,
        report.records.len()
    );
    println!(
        "  {:.0} requests/s, {:.0} chunks/s, in flight {:.1} (peak {})",
        report.records.len() as f64 / seconds,
        h.n_chunks as f64 / seconds,
        h.in_flight_mean,
        h.in_flight_peak
    );
    let us = |t: std::time::Duration| t.as_secs_f64() * 1e6 / h.n_chunks as f64;
    let threads: Vec<String> = h.cpu.iter().map(|(name, t)| format!("{name} {:.2}", us(*t))).collect();
    println!(
        "  client CPU {:.2} us a chunk ({}), server {:.2} us; receive thread {:.0} % busy, {:.1} % waiting for a CPU",
        us(h.cpu_total()),
        threads.join(", "),
        us(log.cpu),
        h.receive_utilisation() * 100.0,
        h.cpu_wait_share() * 100.0
    );
    println!(
        "  stamps: {} (priority raised: {}); read lag p50 {:.1} p99 {:.1} us; clumped {:.2} %; waits: prompts {}, decoder {}, kernel {}",
        h.receive.stamp_source(),
        h.receive.priority_raised,
        h.receive.read_lag.quantile(0.5).0 as f64 * 1e-3,
        h.receive.read_lag.quantile(0.99).0 as f64 * 1e-3,
        h.clumped_share() * 100.0,
        h.receive.n_supply_waits,
        h.receive.n_decoder_waits,
        h.receive.n_partial_writes
    );
    let first = report.records.iter().map(|r| r.start_ns).min().unwrap_or(0) as f64 * 1e-6;
    println!("  first request {first:.0} ms after the start; peak memory so far, server included, {}", peak_memory());
    errors(report, log);
}

fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|l| l.strip_prefix("VmHWM:")).map_or_else(|| "unknown".to_owned(), |kb| kb.trim().to_owned())
}

fn errors(report: &LoadReport, log: &EmissionLog) {
    let accuracy = Accuracy::of(report, log);
    assert_eq!(accuracy.n_miscounted, 0, "every chunk is seen once");
    for (name, s) in [
        ("stamp - write", accuracy.stamp),
        ("send -> received", accuracy.send),
        ("TTFT excess", accuracy.ttft),
        ("ITL error", accuracy.itl),
    ] {
        let [mean, min, p50, p99, p999, max] = [s.mean, s.min, s.p50, s.p99, s.p999, s.max].map(|ns| ns * 1e-3);
        println!("  {name} us: mean {mean:.2} min {min:.2} p50 {p50:.2} p99 {p99:.2} p99.9 {p999:.2} max {max:.2}");
    }
}
