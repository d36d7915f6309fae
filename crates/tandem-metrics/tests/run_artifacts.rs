//! The files about a whole run, word for word.

use std::sync::Arc;
use tandem_metrics::artifacts::result::run_validity;

use tandem_metrics::artifacts::{
    ArtifactOptions, InputConfig, PointArtifacts, PointContext, RunContext, RunKind, Stimulus, render_point, render_run,
};
use tandem_metrics::{Chunk, Load, LoadPhase, Reason, RequestRecord, RunClock, Verdict};

fn point(concurrency: u32, gap_ns: u64) -> PointArtifacts {
    let of = |i: u64| {
        let mut record = RequestRecord::issued(i, format!("r{i}"), 0, LoadPhase::Profiling, i * 300_000_000);
        record.chunks = (0..3).map(|j| Chunk::content(record.start_ns + 100_000_000 + j * gap_ns)).collect();
        record.end_ns = record.start_ns + 300_000_000;
        record.isl.client = Some(5);
        record.osl.server = Some(3);
        record
    };
    let records: Vec<RequestRecord> = (0..2).map(of).collect();
    let context = PointContext {
        clock: RunClock { wall_origin_ns: 1_795_488_137_000_000_000 },
        model: "org/nano".to_owned(),
        stimulus: Stimulus::Concurrency(concurrency),
        load: Load {
            streaming: true,
            concurrency: Some(concurrency),
            request_rate: None,
            n_requests: 2,
            isl: Some(5),
            osl: Some(3),
            n_gpus: 2,
            slos: Vec::new(),
        },
        input_config: InputConfig {
            url: "127.0.0.1:8000".to_owned(),
            extra: serde_json::Map::new(),
            n_prompts: 2,
            n_warmup: 0,
            seed: 100,
            artifact_directory: ".".to_owned(),
            tokenizer: "bytes".to_owned(),
            telemetry_urls: Vec::new(),
        },
        payloads: Vec::new(),
        telemetry: None,
        measured: None,
        exchanges: None,
        options: ArtifactOptions::default(),
    };
    render_point(&Arc::new(records), &context)
}

fn run(is_partial: bool, reasons: Vec<Reason>) -> RunContext {
    RunContext {
        kind: RunKind::Simulated,
        recipe: "nano".to_owned(),
        model: "org/nano".to_owned(),
        plan_hash: "ab".repeat(32),
        versions: vec![("tandem".to_owned(), "0.1.0".to_owned())],
        machines: vec!["n0".to_owned(), "n1".to_owned()],
        n_gpus: 2,
        started_wall_ns: 1_795_488_130_000_000_000,
        ended_wall_ns: 1_795_488_140_250_000_000,
        is_partial,
        reasons,
    }
}

fn file(points: Vec<PointArtifacts>, context: &RunContext, name: &str) -> String {
    let files = render_run(&points, context);
    let (_, content) = files.into_iter().find(|(found, _)| found == name).expect("the file is rendered");
    String::from_utf8(content.to_vec()).expect("it is text")
}

#[test]
fn the_summary_of_one_point_has_the_shape_of_the_recipe() {
    let text = file(vec![point(1, 10_000_000)], &run(false, Vec::new()), "perf_summary.txt");
    let expected = "\
============================================================
PERFORMANCE OVERVIEW
============================================================
Request Throughput (req/sec)                  : 4.76
Output Token Throughput (tokens/sec)          : 14.29
Output Token Throughput per User (tps/user)   : 100.00
Output Token Throughput per GPU (tps/gpu)     : 7.14
Total Token Throughput per GPU (tokens/sec)   : 19.05
Average request latency (ms)                  : 120.00
Average time to first token [TTFT] (ms)       : 100.00
Average time per output token [TPOT] (ms)     : 10.00
";
    assert_eq!(text, expected);
}

#[test]
fn several_points_are_named_by_their_concurrency() {
    let text = file(vec![point(1, 10_000_000), point(2, 20_000_000)], &run(false, Vec::new()), "perf_summary.txt");
    let titles: Vec<&str> = text.lines().filter(|line| line.starts_with("PERFORMANCE")).collect();
    assert_eq!(titles, ["PERFORMANCE OVERVIEW (concurrency 1)", "PERFORMANCE OVERVIEW (concurrency 2)"]);
}

#[test]
fn the_files_of_a_run_are_named_relative_to_its_folder() {
    let about_run = render_run(&[point(1, 10)], &run(false, Vec::new()));
    let names: Vec<String> = point(1, 10).files.into_iter().chain(about_run).map(|(name, _)| name).collect();
    let expected = [
        "org_nano-openai-chat-concurrency1/profile_export_genai_perf.json",
        "org_nano-openai-chat-concurrency1/profile_export_genai_perf.csv",
        "org_nano-openai-chat-concurrency1/profile_export.jsonl",
        "org_nano-openai-chat-concurrency1/inputs.json",
        "perf_summary.txt",
        "result.json",
    ];
    assert_eq!(names, expected);
}

#[test]
fn the_result_of_a_run_names_its_evidence_before_its_figures() {
    let text = file(vec![point(1, 10_000_000)], &run(false, Vec::new()), "result.json");
    let head = text.split("\"request_throughput\"").next().expect("there are figures");
    insta::assert_snapshot!(head, @r#"
    {
      "schema_version": 1,
      "validity": "valid",
      "validity_reasons": [],
      "kind": "simulated",
      "partial": false,
      "recipe": "nano",
      "model": "org/nano",
      "plan_hash": "abababababababababababababababababababababababababababababababab",
      "versions": {
        "tandem": "0.1.0"
      },
      "machines": [
        "n0",
        "n1"
      ],
      "n_gpus": 2,
      "started_at": "2026-11-24T02:42:10.000000000Z",
      "ended_at": "2026-11-24T02:42:20.250000000Z",
      "duration_s": 10.25,
      "outcomes": {
        "ok": 2
      },
      "summary_point": 0,
      "summary": {
    "#);
}

#[test]
fn the_summary_stands_for_the_best_trustworthy_point() {
    let chosen = |points| {
        let result: serde_json::Value = serde_json::from_str(&file(points, &run(false, Vec::new()), "result.json")).unwrap();
        result["summary_point"].as_u64()
    };
    assert_eq!(chosen(vec![point(1, 20_000_000), point(1, 10_000_000)]), Some(1));
    let mut best_but_suspect = point(1, 10_000_000);
    let reason = Reason { verdict: Verdict::Suspect, code: "low_concurrency", message: String::new() };
    best_but_suspect.summary.validity.add(reason);
    assert_eq!(chosen(vec![point(1, 20_000_000), best_but_suspect]), Some(0));
    assert_eq!(chosen(Vec::new()), None);
}

#[test]
fn a_run_that_ended_early_is_invalid_and_says_why() {
    let died = Reason { verdict: Verdict::Invalid, code: "process_died", message: "decode-0 exited with code 1".to_owned() };
    let validity = run_validity(&[point(1, 10)], &run(true, vec![died]));
    assert_eq!(validity.verdict(), Verdict::Invalid);
    let codes: Vec<&str> = validity.reasons.iter().map(|reason| reason.code).collect();
    assert_eq!(codes, ["process_died", "partial"]);
    let text = file(Vec::new(), &run(true, Vec::new()), "result.json");
    assert!(text.contains("\"validity\": \"invalid\"") && text.contains("\"summary\": {}"), "{text}");
}
