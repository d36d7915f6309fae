//! GenAI-Perf 0.0.16 itself wrote the expected files (see `data/genai_perf/generate.py`); ours equal them to the byte.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tandem_metrics::artifacts::telemetry::{GPU_METRICS, GpuSample};
use tandem_metrics::artifacts::{ArtifactOptions, InputConfig, PointContext, Stimulus, Telemetry, foreign, render_point};
use tandem_metrics::{Chunk, Load, LoadPhase, RequestRecord, RunClock, Slo, Stats};

/// Some instant before the first request of every case.
const CLOCK: RunClock = RunClock { wall_origin_ns: 1_795_488_000_000_000_000 };

fn u64_of(value: &Value) -> u64 {
    value.as_u64().expect("the case files hold whole numbers here")
}

fn u32_of(value: &Value) -> u32 {
    u32::try_from(u64_of(value)).expect("the case files hold small numbers here")
}

fn record(index: usize, request: &Value) -> RequestRecord {
    let start_ns = u64_of(&request["start"]) - CLOCK.wall_origin_ns;
    let mut record = RequestRecord::issued(index as u64, format!("r{index}"), 0, LoadPhase::Profiling, start_ns);
    let chunks = request["chunks"].as_array().expect("each request has chunks");
    record.chunks = chunks.iter().map(|c| Chunk { n_tokens: Some(u32_of(&c[1])), ..Chunk::content(start_ns + u64_of(&c[0])) }).collect();
    record.end_ns = record.chunks.last().expect("each request has a chunk").at_ns;
    record.isl.client = Some(u32_of(&request["isl"]));
    record.osl.client = Some(chunks.iter().map(|c| u32_of(&c[1])).sum());
    record
}

/// Raw series become statistics and then get their unit, as GenAI-Perf does it.
fn telemetry(series: &Map<String, Value>) -> Option<Telemetry> {
    let factor = |tag: &str| match tag {
        "gpu_memory_used" | "total_gpu_memory" => 1.048576 * 1e-3,
        "sm_utilization" => 100.0,
        "pcie_transmit_throughput" => 1.0 / 1024.0,
        _ => 1.0,
    };
    let mut samples = Vec::new();
    for metric in GPU_METRICS.iter().filter(|metric| series.contains_key(metric.tag)) {
        for (gpu, values) in series[metric.tag].as_object().expect("one series a GPU") {
            let values: Vec<f64> = values.as_array().expect("a series").iter().filter_map(Value::as_f64).collect();
            let stats = Stats::of(&values).expect("it has values").scaled(factor(metric.tag));
            samples.push(GpuSample { tag: metric.tag, gpu: gpu.clone(), stats });
        }
    }
    (!samples.is_empty()).then_some(Telemetry { samples })
}

fn check(case: &str, json_text: &str, csv_text: &str) {
    let case: Value = serde_json::from_str(case).expect("the case file is JSON");
    let requests = case["requests"].as_array().expect("a case has requests");
    let records: Vec<RequestRecord> = requests.iter().enumerate().map(|(i, request)| record(i, request)).collect();
    let slo = |(tag, limit): (&String, &Value)| {
        let name = foreign::metric_of(tag).expect("the case uses metrics that we know").name;
        Slo::new(name, limit.as_f64().expect("a limit is a number")).expect("it is an SLO")
    };
    let (isl, osl) = (u32_of(&case["isl"]), u32_of(&case["osl"]));
    let n = records.len() as u64;
    let extra = json!({"max_tokens": osl, "min_tokens": osl, "ignore_eos": true});
    let context = PointContext {
        clock: CLOCK,
        model: "deepseek-r1-dynamo".to_owned(),
        stimulus: Stimulus::Concurrency(4),
        load: Load {
            streaming: case["streaming"] == true,
            concurrency: Some(4),
            request_rate: None,
            n_requests: n,
            isl: Some(isl),
            osl: Some(osl),
            n_gpus: 8,
            slos: case["goodput"].as_object().expect("a map").iter().map(slo).collect(),
        },
        input_config: InputConfig {
            url: "127.0.0.1:9000".to_owned(),
            extra: extra.as_object().expect("a map").clone(),
            n_prompts: n,
            n_warmup: 8,
            seed: 100,
            artifact_directory: "out".to_owned(),
            tokenizer: "tok".to_owned(),
            telemetry_urls: vec!["http://127.0.0.1:9400/metrics".to_owned()],
        },
        payloads: Vec::new(),
        telemetry: telemetry(case["telemetry"].as_object().expect("a map")),
        measured: None,
        exchanges: None,
        options: ArtifactOptions::default(),
    };
    let artifacts = render_point(&Arc::new(records), &context);
    let file = |name: &str| {
        let path = format!("deepseek-r1-dynamo-openai-chat-concurrency4/{name}");
        let (_, content) = artifacts.files.iter().find(|(found, _)| *found == path).expect("the file is rendered");
        String::from_utf8(content.to_vec()).expect("it is text")
    };
    assert_same(&file("profile_export_genai_perf.csv"), csv_text);
    assert_same(&file("profile_export_genai_perf.json"), json_text);
}

/// Names the first line that differs before comparing the whole.
fn assert_same(ours: &str, theirs: &str) {
    for (i, (ours, theirs)) in ours.lines().zip(theirs.lines()).enumerate() {
        assert_eq!(ours, theirs, "line {}", i + 1);
    }
    assert!(ours == theirs, "they differ in length or line ends");
}

macro_rules! golden {
    ($name:ident, $file:literal) => {
        #[test]
        fn $name() {
            check(
                include_str!(concat!("data/genai_perf/", $file, ".requests.json")),
                include_str!(concat!("data/genai_perf/", $file, ".json")),
                include_str!(concat!("data/genai_perf/", $file, ".csv")),
            );
        }
    };
}

golden!(a_streaming_run_with_goodput_and_telemetry_is_written_as_genai_perf_writes_it, "streaming");
golden!(a_run_without_streaming_is_written_as_genai_perf_writes_it, "non_streaming");
golden!(a_slow_run_with_responses_of_all_lengths_is_written_as_genai_perf_writes_it, "slow");
golden!(a_run_of_single_tokens_is_written_as_genai_perf_writes_it, "one_token");
