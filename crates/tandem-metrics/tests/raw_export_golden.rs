//! A run's raw file, its records, and what GenAI-Perf 0.0.16 itself wrote from the raw file: ours from the records equals it to the byte.
//!
//! The data are those of the test `genai_perf_reads_our_raw_file_as_we_do` of the program, which repeats all this with GenAI-Perf from PyPI;
//! `TANDEM_KEEP_GOLDEN=FOLDER` keeps new ones. The mixed run holds reasoning, answers that are empty but for it, eight tokens a chunk,
//! single tokens and texts that need escapes, and has SLOs.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;

use serde_json::{Map, Value};
use tandem_metrics::artifacts::{ArtifactOptions, InputConfig, PointContext, Stimulus, foreign, profile_export, render_point};
use tandem_metrics::{ChunkKind, Exchange, Load, RequestRecord, RunClock, Slo};

/// Before every run.
const CLOCK: RunClock = RunClock { wall_origin_ns: 1_790_000_000_000_000_000 };

struct Case {
    stimulus: Stimulus,
    records: &'static str,
    raw: &'static str,
    json: &'static str,
    csv: &'static str,
}

macro_rules! case {
    ($name:literal, $stimulus:expr) => {
        Case {
            stimulus: $stimulus,
            records: include_str!(concat!("data/genai_perf_raw/", $name, "/profile_export.jsonl")),
            raw: include_str!(concat!("data/genai_perf_raw/", $name, "/profile_export.json")),
            json: include_str!(concat!("data/genai_perf_raw/", $name, "/profile_export_genai_perf.json")),
            csv: include_str!(concat!("data/genai_perf_raw/", $name, "/profile_export_genai_perf.csv")),
        }
    };
}

/// The exchanges that a raw file holds, events without a choice excepted.
fn exchanges(raw: &Value) -> Vec<Exchange> {
    let ns = |value: &Value| value.as_u64().unwrap() - CLOCK.wall_origin_ns;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let exchange = |request: &Value| {
        let stamps = request["response_timestamps"].as_array().unwrap().iter().map(ns);
        let texts = request["response_outputs"].as_array().unwrap().iter().map(|output| text(&output["response"]));
        Exchange {
            start_ns: ns(&request["timestamp"]),
            payload: text(&request["request_inputs"]["payload"]),
            responses: stamps.zip(texts).collect(),
        }
    };
    raw["experiments"][0]["requests"].as_array().unwrap().iter().map(exchange).collect()
}

/// When the answer's pieces arrived, as a raw file says it.
fn answer_stamps(exchange: &Exchange) -> Vec<u64> {
    let is_piece = |text: &str| {
        let event: Value = text.strip_prefix("data: ").and_then(|json| serde_json::from_str(json.trim_end()).ok()).unwrap_or_default();
        event["choices"][0]["delta"]["content"].as_str().is_some_and(|content| !content.is_empty())
    };
    exchange.responses.iter().filter(|(_, text)| is_piece(text)).map(|(at_ns, _)| *at_ns).collect()
}

fn context(case: &Case, exchanges: Vec<Exchange>) -> PointContext {
    let theirs: Value = serde_json::from_str(case.json).unwrap();
    let slo = |(tag, limit): (&String, &Value)| Slo::new(foreign::metric_of(tag).unwrap().name, limit.as_f64().unwrap()).unwrap();
    PointContext {
        clock: CLOCK,
        model: "m".to_owned(),
        stimulus: case.stimulus,
        load: Load {
            streaming: true,
            concurrency: Some(3),
            request_rate: None,
            n_requests: exchanges.len() as u64,
            isl: Some(32),
            osl: Some(12),
            n_gpus: 1,
            slos: theirs["input_config"]["input"]["goodput"].as_object().into_iter().flatten().map(slo).collect(),
        },
        input_config: InputConfig {
            url: String::new(),
            extra: Map::new(),
            n_prompts: 20,
            n_warmup: 2,
            seed: 100,
            artifact_directory: String::new(),
            tokenizer: String::new(),
            telemetry_urls: Vec::new(),
        },
        payloads: Vec::new(),
        telemetry: None,
        measured: None,
        exchanges: Some(exchanges),
        options: ArtifactOptions { genai_perf_compat: true, ..ArtifactOptions::default() },
    }
}

fn check(case: &Case) {
    let records: Vec<RequestRecord> = profile_export::parse(case.records, CLOCK).unwrap();
    let exchanges = exchanges(&serde_json::from_str(case.raw).unwrap());
    assert!(records.len() == 20 && exchanges.len() == 20, "{} {}", records.len(), exchanges.len());
    for (record, exchange) in records.iter().zip(&exchanges) {
        let answer: Vec<u64> = record.chunks.iter().filter(|c| c.kind == ChunkKind::Content).map(|c| c.at_ns).collect();
        assert_eq!((record.start_ns, answer), (exchange.start_ns, answer_stamps(exchange)), "request {}", record.index);
    }
    let artifacts = render_point(&Arc::new(records), &context(case, exchanges));
    let file = |name: &str| {
        let (_, content) = artifacts.files.iter().find(|(path, _)| path.ends_with(&format!("/{name}"))).expect("the file is rendered");
        String::from_utf8(content.to_vec()).expect("it is text")
    };
    assert_eq!(file("profile_export_genai_perf.csv"), case.csv);
    let figures = |text: &str| text.split("\"input_config\":").next().unwrap().to_owned();
    assert_eq!(figures(&file("profile_export_genai_perf.json")), figures(case.json));
    // The window alone is not in what was read.
    let requests = |text: &str| text.split("\"window_boundaries\":").next().unwrap().to_owned();
    assert_eq!(requests(&file("profile_export.json")), requests(case.raw));
}

#[test]
fn a_mixed_run_gives_what_genai_perf_makes_of_it() {
    check(&case!("mixed-compat", Stimulus::Concurrency(3)));
}

#[test]
fn a_run_at_a_rate_gives_what_genai_perf_makes_of_it() {
    check(&case!("rate-compat", Stimulus::RequestRate(200.0)));
}
