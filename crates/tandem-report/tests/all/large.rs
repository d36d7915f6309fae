//! However many requests there were, the page stays one that can be mailed and opened.

use serde_json::json;
use tandem_metrics::{Chunk, LoadPhase, RequestRecord};
use tandem_plan::Phase;
use tandem_report::{PhaseLog, Run, html};

use crate::fixture::{page, result};
use crate::markup::Markup;

const MAX_BYTES: usize = 2_000_000;

fn record(i: u64, n_chunks: u64) -> RequestRecord {
    let mut record = RequestRecord::issued(i, format!("profiling-{i}"), 0, LoadPhase::Profiling, i * 1_000_000);
    let chunk = |k: u64| Chunk { n_tokens: Some(1), ..Chunk::content(record.start_ns + 50_000_000 + k * 9_700_000 + i % 977) };
    record.chunks = (0..n_chunks).map(chunk).collect();
    record.end_ns = record.chunks.last().unwrap().at_ns;
    record.osl.server = u32::try_from(n_chunks).ok();
    record
}

fn log(n_steps: u64) -> PhaseLog {
    let mut log = PhaseLog::new();
    for worker in 0..4 {
        for i in 1..=n_steps {
            log.push_line(&format!(
                "iter = {i}, host_step_time = {}.{worker}ms, num_scheduled_requests: {}, states = {{'num_ctx_requests': 0, 'num_ctx_tokens': 0, \
                 'num_generation_tokens': {}}}, kv_blocks_used = {}, kv_blocks_free = 9000",
                i % 37,
                i % 256,
                i % 256,
                i % 5000
            ));
        }
    }
    log
}

/// Ranks under attention data parallelism write their lines in turn: they are no workers of their own.
#[test]
fn a_page_of_many_ranks_is_small_and_says_how_many_there_are() {
    let mut log = PhaseLog::new();
    for worker in 0..6 {
        for (i, rank) in (1..=4000).flat_map(|i| (0..8).map(move |rank| (i, rank))) {
            log.push_line(&format!(
                "iter = {i}, rank = {rank}, host_step_time = 8.{worker}ms, num_scheduled_requests: {rank}, states = {{'num_ctx_requests': 0, \
                 'num_ctx_tokens': 0, 'num_generation_tokens': {rank}}}, begin = {i}.5"
            ));
        }
    }
    let mut run = Run::new("a", "a", &result().to_string()).unwrap();
    run.set_log(Phase::Decode, log);
    let page = page(&[run]);
    assert!(page.len() < MAX_BYTES / 4, "{} bytes", page.len());
    assert!(page.contains("192,000 steps of 48 ranks of 6 workers"), "the description counts them");
    assert!(page.contains("worker 1, rank 0") && page.contains("all 48 ranks of 6 workers") && !page.contains("worker 7"));
}

#[test]
fn a_page_of_many_large_runs_is_below_two_megabytes() {
    let mut wide = result();
    let point = wide["points"][0].clone();
    wide["points"] = (0..12)
        .map(|i| {
            let mut point = point.clone();
            point["directory"] = json!(format!("c{i}"));
            point["load"]["concurrency"] = json!(1 << i);
            point["outcomes"] = json!({"ok": 2500});
            point
        })
        .collect();
    let records: Vec<_> = (0..2500).map(|i| record(i, 24)).collect();
    let run = |name: &str| {
        let mut run = Run::new(name, name, &wide.to_string()).unwrap();
        (0..12).for_each(|i| run.set_records(i, &records));
        run.set_log(Phase::Prefill, log(2_000));
        run.set_log(Phase::Decode, log(10_000));
        run
    };
    let runs: Vec<Run> = ["a", "b", "c", "d"].map(run).into();
    let page = page(&runs);
    assert!(page.len() < MAX_BYTES, "{} bytes", page.len());
    assert!(page.contains("left out, to keep this page small") && page.contains("60 of 2,500 requests"));
    Markup::read(&page);
    let dozen: Vec<Run> = runs.iter().cycle().take(12).cloned().collect();
    let page = html(&dozen, &[], "");
    assert!(page.len() < MAX_BYTES, "{} bytes of a dozen runs", page.len());
    Markup::read(&page);
}
