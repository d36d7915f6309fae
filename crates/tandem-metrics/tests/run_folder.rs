//! A rendered run folder holds together: checked by `tests/check_run.py`, which shares no code with this crate.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tandem_metrics::artifacts::{
    ArtifactOptions, InputConfig, PointArtifacts, PointContext, RunContext, RunKind, Stimulus, render_point, render_run,
};
use tandem_metrics::{Chunk, ChunkKind, FailureKind, Load, LoadPhase, Outcome, RequestRecord, RunClock, Slo, Verdict};

const MS: u64 = 1_000_000;
const N_GPUS: u32 = 3;

/// What varies between the folders under test.
#[derive(Clone, Copy)]
struct Case {
    streaming: bool,
    reasoning: bool,
    n_failed: usize,
    concurrencies: &'static [u32],
    slo: Option<(&'static str, f64)>,
}

const PLAIN: Case = Case { streaming: true, reasoning: false, n_failed: 0, concurrencies: &[4], slo: None };

/// A closed loop in which request `i` takes over the slot of request `i - concurrency`.
fn records(case: &Case, concurrency: u32) -> Vec<RequestRecord> {
    let n_warmup = concurrency as usize;
    let n = n_warmup + 4 * concurrency as usize;
    let mut records: Vec<RequestRecord> = Vec::with_capacity(n);
    for i in 0..n {
        let (phase, index) = if i < n_warmup { (LoadPhase::Warmup, i) } else { (LoadPhase::Profiling, i - n_warmup) };
        let free_ns = i.checked_sub(concurrency as usize).map_or(i as u64 * 1_000, |before| records[before].end_ns);
        let mut record = RequestRecord::issued(index as u64, format!("request-{i}"), 0, phase, free_ns);
        record.start_ns = free_ns + 20_123;
        fill(&mut record, case, i as u64);
        records.push(record);
    }
    for record in records.iter_mut().rev().take(case.n_failed) {
        record.outcome = Outcome::failed(FailureKind::Timeout, "no answer in 1 s");
    }
    records
}

fn fill(record: &mut RequestRecord, case: &Case, i: u64) {
    let first = record.start_ns + 50 * MS + (i * 7_919_333) % (9 * MS);
    record.ack_ns = Some(first - 12_000);
    if case.streaming {
        let mut at_ns = first;
        for j in 0..9 {
            let kind = if case.reasoning && j < 3 { ChunkKind::Reasoning } else { ChunkKind::Content };
            let n_tokens = Some(if case.reasoning && j > 0 { 2 } else { 1 });
            record.chunks.push(Chunk { at_ns, n_tokens, kind, clumped: j == 5 });
            at_ns += 10 * MS + (i * 104_729 + j * 15_485_863) % MS;
        }
    } else {
        record.chunks.push(Chunk::content(first + 80 * MS));
    }
    record.end_ns = record.chunks.last().expect("there is a chunk").at_ns + 30_000;
    record.isl.client = Some(128);
    record.isl.server = Some(128);
    record.osl.server = Some(if case.reasoning { 17 } else { 9 });
    record.finish_reason = Some("length".to_owned());
    record.http_status = Some(200);
}

fn point(case: &Case, concurrency: u32) -> PointArtifacts {
    let osl = if case.reasoning { 17 } else { 9 };
    let slos = case.slo.map(|(name, limit)| Slo::new(name, limit).expect("the metric exists")).into_iter().collect();
    let n_requests = u64::from(4 * concurrency);
    let extra: Map<String, Value> = [("max_tokens".to_owned(), json!(osl)), ("ignore_eos".to_owned(), json!(true))].into_iter().collect();
    let context = PointContext {
        clock: RunClock { wall_origin_ns: 1_795_488_137_000_000_001 },
        model: "nano".to_owned(),
        stimulus: Stimulus::Concurrency(concurrency),
        load: Load {
            streaming: case.streaming,
            concurrency: Some(concurrency),
            request_rate: None,
            n_requests,
            isl: Some(128),
            osl: Some(osl),
            n_gpus: N_GPUS,
            slos,
        },
        input_config: InputConfig {
            url: "127.0.0.1:8000".to_owned(),
            extra,
            n_prompts: n_requests,
            n_warmup: u64::from(concurrency),
            seed: 100,
            artifact_directory: ".".to_owned(),
            tokenizer: "bytes".to_owned(),
            telemetry_urls: Vec::new(),
        },
        payloads: vec![json!({"model": "nano", "messages": [{"role": "user", "content": "hello"}], "stream": case.streaming})],
        telemetry: None,
        measured: None,
        exchanges: None,
        options: ArtifactOptions::default(),
    };
    render_point(&Arc::new(records(case, concurrency)), &context)
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_folder(case: &Case, folder: &Path) {
    let points: Vec<PointArtifacts> = case.concurrencies.iter().map(|&concurrency| point(case, concurrency)).collect();
    let planned: Vec<Value> = case.concurrencies.iter().map(|c| json!({"concurrency": c, "n_requests": 4 * c, "n_warmup": c})).collect();
    let osl = if case.reasoning { 17 } else { 9 };
    let plan = json!({"load": {"isl": 128, "osl": osl, "streaming": case.streaming, "points": planned}});
    let context = RunContext {
        kind: RunKind::Measured,
        recipe: "nano".to_owned(),
        model: "nano".to_owned(),
        plan_hash: sha256(&plan.to_string()),
        versions: vec![("tandem".to_owned(), "0.1.0".to_owned())],
        machines: vec!["localhost".to_owned()],
        n_gpus: N_GPUS,
        started_wall_ns: 1_795_488_130_000_000_000,
        ended_wall_ns: 1_795_488_150_500_000_000,
        is_partial: false,
        reasons: Vec::new(),
    };
    let mut files = render_run(&points, &context);
    files.extend(points.into_iter().flat_map(|point| point.files));
    let mut put = |name: &str, text: String| files.push((name.to_owned(), text.into()));
    put("plan.json", format!("{plan:#}\n"));
    put("events.jsonl", "{\"event\":\"ready\"}\n".to_owned());
    put("configs/deployment.yaml", format!("num_prefill_servers: 2\nnum_decode_servers: 1\ntotal_gpus: {N_GPUS}\n"));
    put("configs/prefill.yaml", "max_batch_size: 1\n".to_owned());
    put("configs/decode.yaml", "max_batch_size: 4\n".to_owned());
    put("configs/machines.txt", "localhost\n".to_owned());
    for log in ["output_server", "output_prefill_1", "output_prefill_2", "output_decode_1", "bench", "prefill", "decode"] {
        put(&format!("logs/{log}.log"), String::new());
    }
    for (name, content) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a file has a folder")).expect("the folder can be made");
        fs::write(path, content.to_vec()).expect("the file can be written");
    }
}

/// Exit code and output of the checker; none where there is no Python, which is reported.
fn check(arguments: &[&str], folder: &Path) -> Option<(Option<i32>, String)> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/check_run.py");
    match Command::new("python3").arg("-B").arg(script).args(arguments).arg(folder).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            Some((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
        }
        Err(error) => {
            tandem_testkit::not_run("tests/check_run.py", format!("python3: {error}"));
            None
        }
    }
}

fn assert_agrees(case: Case) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_folder(&case, folder.path());
    if let Some((code, text)) = check(&[], folder.path()) {
        assert_eq!(code, Some(0), "{text}");
    }
}

#[test]
fn a_streaming_run_agrees_with_its_records() {
    assert_agrees(PLAIN);
}

#[test]
fn a_run_without_streaming_agrees_with_its_records() {
    assert_agrees(Case { streaming: false, slo: Some(("request_latency", 135.0)), ..PLAIN });
}

#[test]
fn reasoning_and_chunks_of_several_tokens_agree_with_their_records() {
    assert_agrees(Case { reasoning: true, slo: Some(("output_throughput_per_user", 190.0)), ..PLAIN });
}

#[test]
fn failures_and_several_load_points_agree_with_their_records() {
    assert_agrees(Case { n_failed: 2, concurrencies: &[1, 8, 32], slo: Some(("ttft", 54.0)), ..PLAIN });
}

#[test]
fn a_run_in_which_everything_failed_agrees_with_its_records() {
    assert_agrees(Case { n_failed: 1000, slo: Some(("ttft", 54.0)), ..PLAIN });
}

#[test]
fn the_checker_notices_every_corruption() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_folder(&PLAIN, folder.path());
    if let Some((code, text)) = check(&["--self-test"], folder.path()) {
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("corruptions noticed"), "{text}");
    }
}

#[test]
fn a_run_with_failures_says_so_first() {
    let case = Case { n_failed: 3, ..PLAIN };
    let point = point(&case, 4);
    assert_eq!(point.summary.validity.verdict(), Verdict::Invalid);
    let text = tandem_metrics::artifacts::perf_summary::render(&[&point.summary]);
    assert!(text.starts_with("INVALID: 3 of 16 requests failed: 3 timeout\n====="), "{text}");
}
