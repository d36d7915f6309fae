//! `profile_export.jsonl`: one request a line, in AIPerf's layout, and back.
//!
//! `metadata` and `metrics` (the latter for kept requests only) are AIPerf's; `error` is there only when the request
//! failed. `record` is ours: every fact that a figure is computed from, so that nothing but this file is needed to check a
//! summary. In `metadata` times are wall-clock nanoseconds; `record.chunk_ns` counts from `request_start_ns`.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::artifacts::{foreign, python};
use crate::metrics::{Kind, Metric, Unit};
use crate::record::{Chunk, ChunkKind, ChunkLog, FailureKind, LoadPhase, Outcome, RequestRecord, RunClock, TextTokens, TokenCount};

/// Why a line is not a record.
#[derive(Debug, Error)]
pub enum RecordLineError {
    /// Not JSON, or a key is missing or of another type.
    #[error("line {line}: not a record")]
    Json {
        /// Number of the line, from 1.
        line: usize,
        /// What exactly.
        #[source]
        source: serde_json::Error,
    },
    /// A name that is not in the vocabulary.
    #[error("line {line}: unknown {key} '{name}'")]
    UnknownName {
        /// Number of the line, from 1.
        line: usize,
        /// Where it stands.
        key: &'static str,
        /// The name.
        name: String,
    },
    /// A time before the run's origin.
    #[error("line {line}: {key} is before the run's origin")]
    BeforeOrigin {
        /// Number of the line, from 1.
        line: usize,
        /// Which time.
        key: &'static str,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Metadata {
    session_num: u64,
    x_request_id: String,
    turn_index: u32,
    credit_issued_ns: u64,
    request_start_ns: u64,
    request_ack_ns: Option<u64>,
    request_end_ns: u64,
    worker_id: String,
    /// There is one of it here; AIPerf's readers insist on the key.
    record_processor_id: String,
    benchmark_phase: String,
    was_cancelled: bool,
}

/// Ours.
#[derive(Debug, Serialize, Deserialize)]
struct Facts {
    index: u64,
    point: u32,
    outcome: String,
    http_status: Option<u16>,
    finish_reason: Option<String>,
    isl_client: Option<u32>,
    isl_server: Option<u32>,
    osl_client: Option<u32>,
    osl_server: Option<u32>,
    /// When the request's last byte left, ns after `request_start_ns`; absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    send_stamp_ns: Option<u64>,
    /// Tokens of the messages without the chat template and of the answer without reasoning, where they were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt_text_tokens: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer_text_tokens: Option<u32>,
    /// Arrival of each output chunk, ns after `request_start_ns`.
    chunk_ns: Vec<u64>,
    /// Tokens of each chunk, null where unknown; absent if all are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    chunk_tokens: Vec<Option<u32>>,
    /// One letter a chunk: `r` for reasoning, `c` for content; absent if all are content.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    chunk_kinds: String,
    /// Indices of chunks that shared a read with an earlier one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    clumped_chunks: Vec<usize>,
}

#[derive(Debug, Serialize, Deserialize)]
struct LineFailure {
    code: Option<u16>,
    r#type: String,
    message: String,
}

#[derive(Debug, Deserialize)]
struct Line {
    metadata: Metadata,
    record: Facts,
    error: Option<LineFailure>,
}

/// The file's text: the records in the order given.
#[must_use]
pub fn render<'a>(records: impl IntoIterator<Item = &'a RequestRecord>, clock: RunClock, streaming: bool) -> String {
    let mut out = String::new();
    records.into_iter().for_each(|record| write_line(&mut out, record, clock, streaming));
    out
}

/// Appends one record as a line.
pub fn write_line(out: &mut String, record: &RequestRecord, clock: RunClock, streaming: bool) {
    out.push_str("{\"metadata\":");
    push_json(out, &metadata(record, clock));
    out.push_str(",\"metrics\":{");
    if record.is_kept() {
        write_metrics(out, record, streaming);
    }
    out.push_str("},\"record\":");
    push_json(out, &facts(record));
    if let Outcome::Failed { kind, message } = &record.outcome {
        let code = match kind {
            FailureKind::HttpStatus => record.http_status,
            FailureKind::Cancelled => Some(499),
            _ => None,
        };
        out.push_str(",\"error\":");
        push_json(out, &LineFailure { code, r#type: foreign::error_type(*kind).to_owned(), message: message.to_string() });
    }
    out.push_str("}\n");
}

fn push_json(out: &mut String, value: &impl Serialize) {
    out.push_str(&serde_json::to_string(value).expect("plain data with string keys is serialisable"));
}

fn metadata(record: &RequestRecord, clock: RunClock) -> Metadata {
    Metadata {
        session_num: record.session,
        x_request_id: record.x_request_id.clone(),
        turn_index: record.turn,
        credit_issued_ns: clock.wall_ns(record.scheduled_ns),
        request_start_ns: clock.wall_ns(record.start_ns),
        request_ack_ns: record.ack_ns.map(|ns| clock.wall_ns(ns)),
        request_end_ns: clock.wall_ns(record.end_ns),
        worker_id: format!("worker_{}", record.worker),
        record_processor_id: "record_processor_0".to_owned(),
        benchmark_phase: record.phase.as_str().to_owned(),
        was_cancelled: record.outcome.failure() == Some(FailureKind::Cancelled),
    }
}

fn facts(record: &RequestRecord) -> Facts {
    let chunks = &record.chunks;
    let any = |wanted: fn(&Chunk) -> bool| chunks.iter().any(|chunk| wanted(&chunk));
    let letter = |chunk: Chunk| if chunk.kind == ChunkKind::Reasoning { 'r' } else { 'c' };
    Facts {
        index: record.index,
        point: record.point,
        outcome: record.outcome.as_str().to_owned(),
        http_status: record.http_status,
        finish_reason: record.finish_reason.clone(),
        isl_client: record.isl.client,
        isl_server: record.isl.server,
        osl_client: record.osl.client,
        osl_server: record.osl.server,
        send_stamp_ns: record.sent_ns.map(|ns| ns.saturating_sub(record.start_ns)),
        prompt_text_tokens: record.text_tokens.prompt,
        answer_text_tokens: record.text_tokens.answer,
        chunk_ns: chunks.iter().map(|chunk| chunk.at_ns.saturating_sub(record.start_ns)).collect(),
        chunk_tokens: if any(|c| c.n_tokens.is_some()) { chunks.iter().map(|c| c.n_tokens).collect() } else { Vec::new() },
        chunk_kinds: if any(|c| c.kind == ChunkKind::Reasoning) { chunks.iter().map(letter).collect() } else { String::new() },
        clumped_chunks: chunks.iter().enumerate().filter(|(_, chunk)| chunk.clumped).map(|(i, _)| i).collect(),
    }
}

fn write_metrics(out: &mut String, record: &RequestRecord, streaming: bool) {
    let mut separator = "";
    for entry in foreign::TABLE.iter().filter(|entry| entry.in_record_line && (streaming || !entry.metric.streaming_only)) {
        let start = out.len();
        let _ = write!(out, "{separator}\"{}\":{{\"value\":", entry.tag);
        if write_value(out, record, entry.metric) {
            let _ = write!(out, ",\"unit\":\"{}\"}}", entry.unit);
            separator = ",";
        } else {
            out.truncate(start);
        }
    }
}

/// Appends the value of a metric; false if it has none.
fn write_value(out: &mut String, record: &RequestRecord, metric: &Metric) -> bool {
    match metric.kind {
        Kind::Record(value) => value(record).map(|raw| write_number(out, raw, metric.unit)).is_some(),
        Kind::Pooled(append) => {
            let mut values = Vec::new();
            append(record, &mut values);
            out.push('[');
            for (i, &(raw, _)) in values.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                write_number(out, raw, metric.unit);
            }
            out.push(']');
            !values.is_empty()
        }
        Kind::Aggregate(_) | Kind::Derived(_) => false,
    }
}

/// Times are whole nanoseconds, so their milliseconds are written exactly; tokens as integers.
fn write_number(out: &mut String, raw: f64, unit: Unit) {
    let is_whole = (0.0..9.0e15).contains(&raw) && raw.fract() == 0.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and in range")]
    let whole = raw as u64;
    match unit {
        Unit::Milliseconds if is_whole => {
            let fraction = format!("{:06}", whole % 1_000_000);
            let fraction = fraction.trim_end_matches('0');
            let _ = write!(out, "{}.{}", whole / 1_000_000, if fraction.is_empty() { "0" } else { fraction });
        }
        Unit::Tokens if is_whole => {
            let _ = write!(out, "{whole}");
        }
        _ => out.push_str(&python::repr(raw * unit.scale())),
    }
}

/// Reads a whole file; empty lines are skipped.
///
/// # Errors
/// At the first line that is not a record.
pub fn parse(text: &str, clock: RunClock) -> Result<Vec<RequestRecord>, RecordLineError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(i, line)| parse_line(line, i + 1, clock)).collect()
}

/// Reads one line; `number` is for messages.
///
/// # Errors
/// If it is not a record.
pub fn parse_line(text: &str, number: usize, clock: RunClock) -> Result<RequestRecord, RecordLineError> {
    let line: Line = serde_json::from_str(text).map_err(|source| RecordLineError::Json { line: number, source })?;
    let Line { metadata, record: facts, error } = line;
    let since_origin = |wall_ns: u64, key: &'static str| {
        wall_ns.checked_sub(clock.wall_origin_ns).ok_or(RecordLineError::BeforeOrigin { line: number, key })
    };
    let unknown = |key: &'static str, name: &str| RecordLineError::UnknownName { line: number, key, name: name.to_owned() };
    let start_ns = since_origin(metadata.request_start_ns, "request_start_ns")?;
    let outcome = match FailureKind::from_name(&facts.outcome) {
        Some(kind) => Outcome::failed(kind, error.map(|error| error.message).unwrap_or_default()),
        None if facts.outcome == "ok" => Outcome::Ok,
        None => return Err(unknown("record.outcome", &facts.outcome)),
    };
    let worker = metadata.worker_id.strip_prefix("worker_").and_then(|digits| digits.parse().ok());
    Ok(RequestRecord {
        index: facts.index,
        point: facts.point,
        session: metadata.session_num,
        turn: metadata.turn_index,
        worker: worker.ok_or_else(|| unknown("metadata.worker_id", &metadata.worker_id))?,
        phase: LoadPhase::from_name(&metadata.benchmark_phase)
            .ok_or_else(|| unknown("metadata.benchmark_phase", &metadata.benchmark_phase))?,
        scheduled_ns: since_origin(metadata.credit_issued_ns, "credit_issued_ns")?,
        start_ns,
        sent_ns: facts.send_stamp_ns.map(|ns| start_ns.saturating_add(ns)),
        ack_ns: metadata.request_ack_ns.map(|ns| since_origin(ns, "request_ack_ns")).transpose()?,
        end_ns: since_origin(metadata.request_end_ns, "request_end_ns")?,
        chunks: chunks(&facts, start_ns),
        isl: TokenCount { client: facts.isl_client, server: facts.isl_server },
        osl: TokenCount { client: facts.osl_client, server: facts.osl_server },
        text_tokens: TextTokens { prompt: facts.prompt_text_tokens, answer: facts.answer_text_tokens },
        x_request_id: metadata.x_request_id,
        finish_reason: facts.finish_reason,
        http_status: facts.http_status,
        outcome,
    })
}

fn chunks(facts: &Facts, start_ns: u64) -> ChunkLog {
    let kinds = facts.chunk_kinds.as_bytes();
    let chunk = |(i, &offset_ns): (usize, &u64)| Chunk {
        at_ns: start_ns.saturating_add(offset_ns),
        n_tokens: facts.chunk_tokens.get(i).copied().flatten(),
        kind: if kinds.get(i) == Some(&b'r') { ChunkKind::Reasoning } else { ChunkKind::Content },
        clumped: facts.clumped_chunks.binary_search(&i).is_ok(),
    };
    facts.chunk_ns.iter().enumerate().map(chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: RunClock = RunClock { wall_origin_ns: 1_795_488_137_000_000_000 };

    fn record() -> RequestRecord {
        let mut record = RequestRecord::issued(7, "c2df74d5", 1, LoadPhase::Profiling, 1_000);
        record.worker = 3;
        record.start_ns = 2_000;
        record.ack_ns = Some(50_002_500);
        record.chunks = [
            Chunk { at_ns: 50_002_000, n_tokens: Some(1), kind: ChunkKind::Reasoning, clumped: false },
            Chunk { at_ns: 60_002_000, n_tokens: Some(2), kind: ChunkKind::Content, clumped: true },
            Chunk { at_ns: 75_502_001, n_tokens: None, kind: ChunkKind::Content, clumped: false },
        ]
        .into_iter()
        .collect();
        record.end_ns = 76_000_000;
        record.isl = TokenCount { client: Some(128), server: Some(131) };
        record.osl = TokenCount { client: None, server: Some(4) };
        record.finish_reason = Some("length".to_owned());
        record.http_status = Some(200);
        record
    }

    #[test]
    fn a_kept_request_is_written_with_its_metrics() {
        let text = render([&record()], CLOCK, true);
        insta::assert_snapshot!(text, @r#"{"metadata":{"session_num":7,"x_request_id":"c2df74d5","turn_index":0,"credit_issued_ns":1795488137000001000,"request_start_ns":1795488137000002000,"request_ack_ns":1795488137050002500,"request_end_ns":1795488137076000000,"worker_id":"worker_3","record_processor_id":"record_processor_0","benchmark_phase":"profiling","was_cancelled":false},"metrics":{"request_latency":{"value":75.500001,"unit":"ms"},"time_to_first_token":{"value":50.0,"unit":"ms"},"time_to_second_token":{"value":10.0,"unit":"ms"},"inter_token_latency":{"value":8.5,"unit":"ms"},"output_token_throughput_per_user":{"value":117.6470588235294,"unit":"tokens/sec/user"},"output_sequence_length":{"value":4,"unit":"tokens"},"input_sequence_length":{"value":128,"unit":"tokens"},"time_to_first_output_token":{"value":60.0,"unit":"ms"},"inter_chunk_latency":{"value":[10.0,15.500001],"unit":"ms"},"prefill_throughput_per_user":{"value":2560.0,"unit":"tokens/sec/user"},"e2e_output_token_throughput":{"value":52.980131748607526,"unit":"tokens/sec/user"},"effective_latency":{"value":75.501001,"unit":"ms"}},"record":{"index":7,"point":1,"outcome":"ok","http_status":200,"finish_reason":"length","isl_client":128,"isl_server":131,"osl_client":null,"osl_server":4,"chunk_ns":[50000000,60000000,75500001],"chunk_tokens":[1,2,null],"chunk_kinds":"rcc","clumped_chunks":[1]}}"#);
    }

    #[test]
    fn a_failed_request_is_written_with_its_error_and_without_metrics() {
        let mut record = record();
        record.outcome = Outcome::failed(FailureKind::Cancelled, "interrupted \"here\"");
        record.chunks = ChunkLog::new();
        let text = render([&record], CLOCK, true);
        assert!(text.contains(r#""metrics":{},"#), "{text}");
        assert!(text.contains(r#""error":{"code":499,"type":"RequestCancellationError","message":"interrupted \"here\""}}"#), "{text}");
        assert!(text.contains(r#""was_cancelled":true"#), "{text}");
    }

    #[test]
    fn the_code_of_an_error_is_the_status_only_if_the_status_is_the_error() {
        let mut record = record();
        record.http_status = Some(503);
        record.outcome = Outcome::failed(FailureKind::HttpStatus, "busy");
        let text = render([&record], CLOCK, true);
        assert!(text.contains(r#""error":{"code":503,"type":"HttpStatusError","message":"busy"}}"#), "{text}");
        record.http_status = Some(200);
        record.outcome = Outcome::failed(FailureKind::Truncated, "no end");
        let text = render([&record], CLOCK, true);
        assert!(text.contains(r#""error":{"code":null,"type":"TruncatedResponseError","message":"no end"}}"#), "{text}");
    }

    #[test]
    fn metrics_of_a_stream_are_left_out_without_streaming() {
        let text = render([&record()], CLOCK, false);
        assert!(text.contains("request_latency") && !text.contains("time_to_first_token") && !text.contains("inter_chunk_latency"));
    }

    #[test]
    fn a_line_that_is_no_record_is_named() {
        let text = render([&record()], CLOCK, true);
        let message = |text: &str, clock| parse(text, clock).unwrap_err().to_string();
        assert_eq!(message(&format!("{text}\n{{}}"), CLOCK), "line 3: not a record");
        assert_eq!(message(&text.replace("\"ok\"", "\"fine\""), CLOCK), "line 1: unknown record.outcome 'fine'");
        let later = RunClock { wall_origin_ns: CLOCK.wall_origin_ns + 1_500 };
        assert_eq!(message(&text, later), "line 1: credit_issued_ns is before the run's origin");
    }
}
