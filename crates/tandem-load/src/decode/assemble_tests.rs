//! Tests of the assembly of records from bytes.

use super::*;
use tandem_metrics::TokenCount;
use tandem_wire::sse::{write_data, write_done};

const TICKET: Ticket = Ticket { phase: LoadPhase::Profiling, index: 3, scheduled: None };
const STREAM: Head = Head { status: 200, kind: BodyKind::EventStream };
const WHOLE: Head = Head { status: 200, kind: BodyKind::Whole };

fn run(head: Head, reads: &[&[u8]], failure: Option<Failure>) -> (Finished, u32) {
    let mut assembly = Assembly::new(Common { isl: 5, osl: 4, keep_text: true, keep_answer: false, keep_events: true });
    assembly.start(1, TICKET, Nanos(10), Nanos(11));
    assembly.head(Nanos(20), head);
    let mut n_clumped = 0;
    for (read, at) in reads.iter().zip(30..) {
        n_clumped += assembly.body(Nanos(at), read).n_clumped;
    }
    let (finished, _) = assembly.end(Nanos(99), failure).unwrap();
    assert!(assembly.end(Nanos(100), None).is_none());
    (finished, n_clumped)
}

fn sse(events: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    events.iter().for_each(|e| write_data(e.as_bytes(), &mut out));
    out
}

fn kind(finished: &Finished) -> Option<FailureKind> {
    finished.record.outcome.failure()
}

const ROLE: &str = r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#;
const A: &str = r#"{"choices":[{"delta":{"content":"a"}}]}"#;
const THINK: &str = r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#;
const STOP: &str = r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#;
const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}"#;

#[test]
fn a_stream_becomes_a_record() {
    let (finished, n_clumped) = run(STREAM, &[&sse(&[ROLE, THINK]), &sse(&[A]), &sse(&[STOP, USAGE, "[DONE]"])], None);
    let r = &finished.record;
    assert_eq!((r.index, r.worker, r.x_request_id.as_str()), (3, 1, "profiling-3"));
    assert_eq!((r.scheduled_ns, r.start_ns, r.ack_ns, r.end_ns), (10, 11, Some(20), 99));
    assert_eq!((r.isl, r.osl), (TokenCount { client: Some(5), server: Some(5) }, TokenCount { client: None, server: Some(2) }));
    assert_eq!((r.finish_reason.as_deref(), r.http_status, &r.outcome), (Some("length"), Some(200), &Outcome::Ok));
    let chunks: Vec<_> = r.chunks.iter().map(|c| (c.at_ns, c.kind, c.clumped)).collect();
    assert_eq!(chunks, [(30, ChunkKind::Reasoning, false), (31, ChunkKind::Content, false)]);
    assert_eq!((n_clumped, finished.uncounted.is_none()), (0, true));
}

#[test]
fn every_split_of_the_bytes_gives_the_same_record_but_for_stamps() {
    let stream = sse(&[ROLE, THINK, A, A, STOP, USAGE, "[DONE]"]);
    let strip = |mut f: Finished| {
        let kinds: Vec<_> = f.record.chunks.iter().map(|c| (c.kind, c.n_tokens)).collect();
        f.record.chunks = ChunkLog::new();
        f.events.iter_mut().for_each(|event| event.0 = 0);
        (format!("{f:?}"), kinds)
    };
    let whole = strip(run(STREAM, &[&stream], None).0);
    assert_eq!(whole.1.len(), 3);
    for cut in 0..=stream.len() {
        assert_eq!(strip(run(STREAM, &[&stream[..cut], &stream[cut..]], None).0), whole, "cut at {cut}");
    }
    assert_eq!(strip(run(STREAM, &stream.chunks(1).collect::<Vec<_>>(), None).0), whole);
}

#[test]
fn a_chunk_split_over_reads_is_stamped_by_its_last_and_clumps_are_marked() {
    let stream = sse(&[A, A, A, "[DONE]"]);
    let (finished, n_clumped) = run(STREAM, &[&stream[..10], &stream[10..]], None);
    let chunks: Vec<_> = finished.record.chunks.iter().map(|c| (c.at_ns, c.clumped)).collect();
    assert_eq!(chunks, [(31, false), (31, true), (31, true)]);
    assert_eq!(n_clumped, 2);
}

#[test]
fn continuous_usage_gives_the_tokens_of_each_chunk() {
    let chunk = |n| format!(r#"{{"choices":[{{"delta":{{"content":"x"}}}}],"usage":{{"prompt_tokens":5,"completion_tokens":{n}}}}}"#);
    let (finished, _) = run(STREAM, &[&sse(&[&chunk(1), &chunk(4), &chunk(9), "[DONE]"])], None);
    let tokens: Vec<_> = finished.record.chunks.iter().map(|c| c.n_tokens).collect();
    assert_eq!(tokens, [Some(1), Some(3), Some(5)]);
    assert_eq!(finished.record.osl.server, Some(9));
}

#[test]
fn a_whole_response_is_one_chunk_at_its_end() {
    let body = br#"{"choices":[{"message":{"content":"abc"},"finish_reason":"length"}],"usage":{"prompt_tokens":5,"completion_tokens":4}}"#;
    let (finished, _) = run(WHOLE, &[&body[..7], &body[7..]], None);
    assert_eq!(finished.record.outcome, Outcome::Ok);
    assert_eq!(finished.record.chunks.iter().map(|c| c.at_ns).collect::<Vec<_>>(), [99]);
    assert_eq!(finished.record.osl.server, Some(4));
}

#[test]
fn output_that_the_server_does_not_count_is_kept_for_counting() {
    let (mut finished, _) = run(STREAM, &[&sse(&[THINK, A, "[DONE]"])], None);
    count_output(&mut finished, &|text| u32::try_from(text.len()).ok());
    assert_eq!((finished.record.osl.client, finished.uncounted.is_none()), (Some(3), true));
    let counts: Vec<_> = finished.record.chunks.iter().map(|c| c.n_tokens).collect();
    assert_eq!(counts, [Some(2), Some(1)]);
}

#[test]
fn several_tokens_a_chunk_are_counted_where_they_make_up_the_whole() {
    // A token is a word here; five tokens are not what the words make up.
    for (n_said, expected) in [(4, [Some(2), Some(2)]), (5, [None, None])] {
        let usage = format!(r#"{{"choices":[],"usage":{{"completion_tokens":{n_said}}}}}"#);
        let content = |text: &str| format!(r#"{{"choices":[{{"delta":{{"content":"{text}"}}}}]}}"#);
        let (mut finished, _) = run(STREAM, &[&sse(&[&content("a b "), &content("c d ")]), &sse(&[STOP, &usage, "[DONE]"])], None);
        count_output(&mut finished, &|text| u32::try_from(text.split_whitespace().count()).ok());
        assert_eq!(finished.record.chunks.iter().map(|c| c.n_tokens).collect::<Vec<_>>(), expected);
        assert_eq!(finished.record.osl, TokenCount { client: None, server: Some(n_said) });
    }
}

#[test]
fn events_are_kept_as_they_were_sent() {
    let stream = [&sse(&[ROLE, A]), b"event: note\ndata: {}\n\n".as_slice(), &sse(&[STOP, USAGE, "[DONE]"])].concat();
    let (whole, (pieces, _)) = (run(STREAM, &[&stream], None).0, run(STREAM, &[&stream[..40], &stream[40..]], None));
    let texts = |f: &Finished| f.events.iter().map(|(_, text)| text.clone()).collect::<String>();
    assert_eq!(texts(&whole).as_bytes(), stream);
    assert_eq!(texts(&pieces).as_bytes(), stream);
    assert_eq!((whole.events.len(), pieces.events[0].0, whole.events[0].0), (6, 31, 30));
    let body = r#"{"choices":[{"message":{"content":"abc"},"finish_reason":"length"}]}"#;
    assert_eq!(run(WHOLE, &[body.as_bytes()], None).0.events, [(99, body.to_owned())]);
}

#[test]
fn each_way_to_fail_has_its_outcome() {
    let cut = || Some(Failure::new(FailureKind::Truncated, "closed"));
    let error = r#"{"error":{"message":"out of blocks","code":500}}"#;
    let named = b"event: error\ndata: gone\n\n";
    let not_found = Head { status: 404, kind: BodyKind::Whole };
    for (name, head, body, failure, wanted) in [
        ("cut", STREAM, sse(&[A]), cut(), Some(FailureKind::Truncated)),
        ("cut after the end marker", STREAM, sse(&[A, "[DONE]"]), cut(), None),
        ("no end marker", STREAM, sse(&[A]), None, Some(FailureKind::Truncated)),
        ("a finish reason is enough", STREAM, sse(&[A, STOP]), None, None),
        ("error event", STREAM, sse(&[A, error, "[DONE]"]), None, Some(FailureKind::SseError)),
        ("named error event", STREAM, named.to_vec(), None, Some(FailureKind::SseError)),
        ("error event, then cut", STREAM, sse(&[error]), cut(), Some(FailureKind::SseError)),
        ("not json", STREAM, sse(&["<html>"]), None, Some(FailureKind::BadResponse)),
        ("no output", STREAM, sse(&[ROLE, STOP, "[DONE]"]), None, Some(FailureKind::BadResponse)),
        ("error body with status 200", WHOLE, error.into(), None, Some(FailureKind::SseError)),
        ("not json, whole", WHOLE, b"oops".to_vec(), None, Some(FailureKind::BadResponse)),
        ("status", not_found, error.into(), None, Some(FailureKind::HttpStatus)),
        ("status, then cut", not_found, Vec::new(), cut(), Some(FailureKind::HttpStatus)),
        ("timeout", STREAM, sse(&[A]), Some(Failure::new(FailureKind::Timeout, "late")), Some(FailureKind::Timeout)),
    ] {
        assert_eq!(kind(&run(head, &[&body], failure).0), wanted, "{name}");
    }
}

#[test]
fn the_message_of_an_error_status_is_the_servers() {
    let head = Head { status: 429, kind: BodyKind::Whole };
    let (finished, _) = run(head, &[br#"{"error":{"message":"queue full"}}"#], None);
    assert_eq!(finished.record.outcome, Outcome::failed(FailureKind::HttpStatus, "429: queue full"));
}

#[test]
fn nothing_of_one_request_leaks_into_the_next() {
    let mut assembly = Assembly::new(Common { isl: 5, osl: 4, keep_text: true, keep_answer: false, keep_events: true });
    assembly.start(0, TICKET, Nanos(0), Nanos(0));
    assembly.head(Nanos(1), STREAM);
    assembly.body(Nanos(2), b"data: {\"choices\":[{\"del");
    assembly.end(Nanos(3), Some(Failure::new(FailureKind::Timeout, "late")));
    assembly.start(0, TICKET, Nanos(4), Nanos(4));
    assembly.head(Nanos(5), STREAM);
    let mut stream = sse(&[A]);
    write_done(&mut stream);
    assembly.body(Nanos(6), &stream);
    assert_eq!(assembly.end(Nanos(7), None).unwrap().0.record.outcome, Outcome::Ok);
}
