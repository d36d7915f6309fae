//! Load modes against a scripted server: rates, traces, durations, varying lengths, conversations.

mod scripted;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use scripted::{LAST_CHUNK, STREAM_HEAD, Server, Then, chunked, content, ending, good_answer, prompt_len, put};
use serde_json::{Value, json};
use tandem_load::pacing::Arrivals;
use tandem_load::prompts::trace::parse_trace;
use tandem_load::{ByteTexts, Lengths, LoadReport, LoadSpec, NoProgress, Prompts, StopSignal, Turns, run};
use tandem_metrics::{LoadPhase, Outcome};
use tandem_plan::Nanos;

#[allow(clippy::unwrap_used, reason = "a helper of tests")]
fn spec(server: &Server, concurrency: u32, n_requests: u32) -> LoadSpec {
    let mut spec = LoadSpec::closed_loop(&server.url(), "m", concurrency, n_requests, 24, 3).unwrap();
    spec.load.n_warmup = 0;
    spec.timeouts.no_progress = Nanos::from_millis(20_000);
    spec
}

#[allow(clippy::unwrap_used, reason = "a helper of tests")]
fn go(spec: &LoadSpec) -> LoadReport {
    let report = run(spec, Arc::new(ByteTexts { template_tokens: 0 }), &mut NoProgress, &Arc::new(StopSignal::new())).unwrap();
    report.records.iter().for_each(|r| assert_eq!(r.outcome, Outcome::Ok, "{}", r.x_request_id));
    report
}

fn osl_of(body: &Value) -> usize {
    body["max_tokens"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
}

#[test]
fn a_trace_is_sent_at_its_times_with_its_lengths() {
    let server = Server::start(|request, stream| {
        put(stream, &good_answer(request, osl_of(&request.body)));
        Then::Keep
    });
    let lines = [(0, 600, 2), (40, 700, 3), (60, 20, 4)];
    let line =
        |(t, i, o): &(u32, u32, u32)| json!({"timestamp": t, "input_length": i, "output_length": o, "hash_ids": [5]}).to_string() + "\n";
    let trace = parse_trace(&lines.iter().map(line).collect::<String>(), 2.0).unwrap();
    let mut spec = spec(&server, 1, 3);
    spec.load.max_in_flight = None;
    spec.load.arrivals = Arrivals::Trace(trace.iter().map(|r| r.due).collect());
    spec.prompts = Prompts::Trace(trace.into());
    let report = go(&spec);
    assert_eq!(report.records.iter().map(|r| r.isl.client.unwrap()).collect::<Vec<_>>(), [600, 700, 20]);
    assert_eq!(report.records.iter().map(|r| r.osl.server.unwrap()).collect::<Vec<_>>(), [2, 3, 4]);
    let first = report.records[0].scheduled_ns;
    let due: Vec<_> = report.records.iter().map(|r| (r.scheduled_ns - first) / 1_000_000).collect();
    assert_eq!(due, [0, 80, 120]);
    assert!(report.records.iter().all(|r| r.start_ns >= r.scheduled_ns));
    assert_eq!((report.n_isl_mismatches, report.n_osl_mismatches), (0, 0));
}

#[test]
fn a_duration_ends_a_closed_loop_and_all_that_was_sent_is_finished() {
    let server = Server::start(|request, stream| {
        put(stream, &good_answer(request, 3));
        Then::Keep
    });
    let mut spec = spec(&server, 2, 0);
    (spec.load.n_warmup, spec.load.n_requests, spec.load.duration) = (3, u32::MAX - 3, Some(Nanos::from_millis(200)));
    let report = go(&spec);
    let measured: Vec<_> = report.records.iter().filter(|r| r.phase == LoadPhase::Profiling).collect();
    assert_eq!(report.records.len() - measured.len(), 3);
    let (first, last) = (measured[0].start_ns, measured.last().unwrap().start_ns);
    // A sender may lose its core between the decision and the stamp, so the bound is far from the duration.
    assert!(measured.len() > 1 && last - first <= 5_000_000_000, "{} requests in {} ns", measured.len(), last - first);
    assert!(report.is_complete());
}

#[test]
fn a_server_that_counts_or_answers_other_lengths_is_noticed() {
    let server = Server::start(|request, stream| {
        let n = prompt_len(request) + usize::from(request.id == "profiling-1");
        put(stream, STREAM_HEAD);
        put(stream, &chunked(&content("x")));
        put(stream, &chunked(&ending(n, 5)));
        put(stream, LAST_CHUNK);
        Then::Keep
    });
    let mut spec = spec(&server, 2, 10);
    (spec.isl, spec.osl) = (Lengths::Uniform(10, 30), Lengths::Uniform(6, 9));
    let report = go(&spec);
    assert_eq!((report.n_isl_mismatches, report.n_osl_mismatches), (1, 10));
}

#[test]
fn conversations_send_the_actual_answers_back_and_are_held_open_while_the_user_thinks() {
    type Seen = Mutex<Vec<(String, Value)>>;
    let seen: Arc<Seen> = Arc::default();
    let log = seen.clone();
    let server = Server::start(move |request, stream| {
        let mut log = log.lock().unwrap();
        log.push((request.id.clone(), request.body["messages"].clone()));
        put(stream, STREAM_HEAD);
        put(stream, &chunked(&content(&format!("answer to {} ", request.id))));
        put(stream, &chunked(&content("ends")));
        put(stream, &chunked(&ending(prompt_len(request), 3)));
        put(stream, LAST_CHUNK);
        Then::Keep
    });
    let mut spec = spec(&server, 2, 5);
    (spec.turns, spec.load.n_turns_max) = (Some(Turns { min: 1, max: 3, think_ms: Lengths::Fixed(30) }), 3);
    (spec.load.n_warmup, spec.seed) = (1, 5);
    let report = go(&spec);
    let seen: HashMap<_, _> = seen.lock().unwrap().drain(..).collect();
    let mut n_later = 0;
    for phase in [LoadPhase::Warmup, LoadPhase::Profiling] {
        let records: Vec<_> = report.records.iter().filter(|r| r.phase == phase).collect();
        for (i, record) in records.iter().enumerate() {
            assert_eq!(record.index, i as u64);
            let messages = seen[&record.x_request_id].as_array().unwrap();
            assert_eq!(messages.len(), 2 * record.turn as usize + 1);
            if record.turn > 0 {
                n_later += 1;
                let before = records.iter().find(|r| (r.session, r.turn) == (record.session, record.turn - 1)).unwrap();
                let answer = &messages[messages.len() - 2];
                assert_eq!(*answer, json!({"role": "assistant", "content": format!("answer to {} ends", before.x_request_id)}));
                assert_eq!(messages[..messages.len() - 2], seen[&before.x_request_id].as_array().unwrap()[..]);
                assert_eq!(record.scheduled_ns, before.end_ns + 30_000_000);
                assert!(record.start_ns >= record.scheduled_ns);
            }
        }
    }
    assert!(n_later > 2, "seed 5 has longer conversations");
    assert_eq!(report.records.iter().filter(|r| r.turn == 0).count(), 6);
    // Two conversations at a time: at the start of a third, one of the first two is over.
    let mut spans: HashMap<_, (u64, u64)> = HashMap::new();
    for r in &report.records {
        let span = spans.entry((r.phase, r.session)).or_insert((r.start_ns, r.end_ns));
        *span = (span.0.min(r.start_ns), span.1.max(r.end_ns));
    }
    for (start, _) in spans.values() {
        assert!(spans.values().filter(|(s, e)| s <= start && start < e).count() <= 2);
    }
    assert!(report.is_complete());
}

#[test]
fn a_failed_turn_ends_its_conversation() {
    let server = Server::start(|request, stream| {
        if request.id == "profiling-1" {
            put(stream, "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n");
        } else {
            put(stream, &good_answer(request, 3));
        }
        Then::Keep
    });
    let mut spec = spec(&server, 1, 2);
    (spec.turns, spec.load.n_turns_max) = (Some(Turns { min: 3, max: 3, think_ms: Lengths::Fixed(0) }), 3);
    let report = run(&spec, Arc::new(ByteTexts { template_tokens: 0 }), &mut NoProgress, &Arc::new(StopSignal::new())).unwrap();
    let turns: Vec<_> = report.records.iter().map(|r| (r.session, r.turn, r.outcome.is_ok())).collect();
    assert_eq!(turns, [(0, 0, true), (0, 1, false), (1, 0, true), (1, 1, true), (1, 2, true)]);
}
