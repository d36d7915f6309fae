//! The Parquet tables as pyarrow and DuckDB read them: every value of every record, nulls too.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tandem_metrics::artifacts::parquet;
use tandem_metrics::{Chunk, ChunkKind, FailureKind, Load, LoadPhase, Outcome, RequestRecord, RunClock};

const CLOCK: RunClock = RunClock { wall_origin_ns: 1_795_488_137_000_000_001 };
const NOT_RUN: i32 = 77;

fn records() -> Vec<RequestRecord> {
    let of = |i: u64| {
        let phase = if i < 2 { LoadPhase::Warmup } else { LoadPhase::Profiling };
        let mut record = RequestRecord::issued(i, format!("requête-{i}"), 3, phase, i * 1_000);
        record.start_ns += 17;
        for j in 0..i % 20 {
            let kind = if j < 2 { ChunkKind::Reasoning } else { ChunkKind::Content };
            let n_tokens = (!j.is_multiple_of(3)).then_some(u32::try_from(j).expect("small"));
            record.chunks.push(Chunk { at_ns: record.start_ns + 1_000_000 * (j + 1), n_tokens, kind, clumped: j % 7 == 3 });
        }
        record.end_ns = record.start_ns + 50_000_000;
        record.isl.client = Some(128);
        record.osl.server = (!i.is_multiple_of(4)).then_some(9);
        record.http_status = (!i.is_multiple_of(5)).then_some(200);
        record.finish_reason = i.is_multiple_of(3).then(|| "length".to_owned());
        if i % 10 == 9 {
            record.outcome = Outcome::failed(FailureKind::Timeout, "late");
        }
        record
    };
    (0..300).map(of).collect()
}

#[test]
fn pyarrow_and_duckdb_read_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let all = records();
    let load = Load {
        streaming: true,
        concurrency: Some(1),
        request_rate: None,
        n_requests: 298,
        isl: None,
        osl: None,
        n_gpus: 1,
        slos: Vec::new(),
    };
    std::fs::write(dir.path().join("requests.parquet"), parquet::requests(&all, CLOCK, &load)).unwrap();
    std::fs::write(dir.path().join("chunks.parquet"), parquet::chunks(&all, CLOCK)).unwrap();
    std::fs::write(dir.path().join("empty.parquet"), parquet::chunks(&[], CLOCK)).unwrap();
    let wall = |ns: u64| CLOCK.wall_origin_ns + ns;
    let request = |r: &RequestRecord| {
        json!({"point": r.point, "phase": r.phase.as_str(), "request": r.index, "x_request_id": r.x_request_id, "outcome": r.outcome.as_str(),
               "http_status": r.http_status, "finish_reason": r.finish_reason, "start_ns": wall(r.start_ns), "ack_ns": null,
               "end_ns": wall(r.end_ns), "n_chunks": r.chunks.len(), "isl": 128, "osl": r.osl.server,
               "ttft_ms": (r.is_kept()).then_some(1.0)})
    };
    let chunk = |r: &RequestRecord, i: usize, c: Chunk| {
        json!({"request": r.index, "chunk": i, "at_ns": wall(c.at_ns), "n_tokens": c.n_tokens,
               "is_reasoning": c.kind == ChunkKind::Reasoning, "is_clumped": c.clumped})
    };
    let chunks: Vec<Value> = all.iter().flat_map(|r| r.chunks.iter().enumerate().map(move |(i, c)| chunk(r, i, c))).collect();
    let expected = json!({"requests": all.iter().map(request).collect::<Vec<_>>(), "chunks": chunks});
    std::fs::write(dir.path().join("expected.json"), expected.to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients/parquet_reader.py");
    match Command::new("python3").arg(script).arg(dir.path()).output() {
        Ok(done) if done.status.code() == Some(NOT_RUN) => {}
        Ok(done) => {
            assert!(done.status.success(), "{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        }
        Err(error) => tandem_testkit::not_run("Parquet tables read by pyarrow and DuckDB", format!("python3: {error}")),
    }
}
