//! Whole runs against a scripted server: counts, order, concurrency, stamps, connections, stopping.

mod scripted;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use scripted::{LAST_CHUNK, STREAM_HEAD, Server, Signals, Then, chunked, content, ending, good_answer, header, prompt_len, put};
use tandem_load::pacing::Arrivals;
use tandem_load::{ApiKey, ByteTexts, Lengths, LoadError, LoadReport, LoadSpec, NoProgress, Snapshot, StopSignal, run};
use tandem_metrics::{FailureKind, LoadPhase, Outcome};
use tandem_plan::Nanos;

#[allow(clippy::unwrap_used, reason = "a helper of tests")]
fn spec(server: &Server, concurrency: u32, n_warmup: u32, n_requests: u32) -> LoadSpec {
    let mut spec = LoadSpec::closed_loop(&server.url(), "m", concurrency, n_requests, 24, 3).unwrap();
    spec.load.n_warmup = n_warmup;
    spec.timeouts.no_progress = Nanos::from_millis(20_000);
    spec
}

#[allow(clippy::unwrap_used, reason = "a helper of tests")]
fn go(spec: &LoadSpec) -> LoadReport {
    run(spec, Arc::new(ByteTexts { template_tokens: 0 }), &mut NoProgress, &Arc::new(StopSignal::new())).unwrap()
}

fn assert_all_ok(report: &LoadReport, n: usize) {
    assert_eq!(report.records.len(), n);
    for record in &report.records {
        assert_eq!(record.outcome, Outcome::Ok, "{}", record.x_request_id);
    }
}

#[test]
fn every_request_is_one_record_in_order_with_the_servers_counts() {
    let server = Server::start(|request, stream| {
        put(stream, &good_answer(request, 3));
        Then::Keep
    });
    let report = go(&spec(&server, 4, 8, 20));
    assert_all_ok(&report, 28);
    assert!(report.is_complete());
    let ids: Vec<_> = report.records.iter().map(|r| r.x_request_id.clone()).collect();
    let wanted: Vec<_> = (0..8).map(|i| format!("warmup-{i}")).chain((0..20).map(|i| format!("profiling-{i}"))).collect();
    assert_eq!(ids, wanted);
    for record in &report.records {
        assert_eq!((record.chunks.len(), record.osl.server, record.isl.client, record.isl.server), (3, Some(3), Some(24), Some(24)));
        assert!(
            record.scheduled_ns <= record.start_ns && record.start_ns <= record.ack_ns.unwrap() && record.ack_ns.unwrap() <= record.end_ns
        );
    }
    assert_eq!((report.n_isl_mismatches, report.n_repeated_prompts, report.health.n_chunks), (0, 0, 84));
    assert_eq!(server.counts.n_requests.load(Ordering::SeqCst), 28);
    assert!(server.counts.n_connections.load(Ordering::SeqCst) <= 4, "connections are kept");
    assert_eq!(report.health.receive.n_connects, 4);
}

#[test]
fn the_closed_loop_holds_its_concurrency_and_never_exceeds_it() {
    // Each answer waits until as many requests are in flight as the loop is to hold: a loop that holds fewer would never end.
    const CONCURRENCY: u32 = 6;
    const N: u32 = 40;
    let seen = Arc::new(Signals::default());
    let in_server = seen.clone();
    let busy = Arc::new(Mutex::new((0usize, 0usize)));
    let in_script = busy.clone();
    let server = Server::start(move |request, stream| {
        {
            let mut busy = in_script.lock().unwrap();
            busy.0 += 1;
            busy.1 = busy.1.max(busy.0);
        }
        // Announced only once counted: an answer then leaves after all that it waited for have been counted.
        in_server.raise("request");
        let n = request.id.split_once('-').unwrap().1.parse::<usize>().unwrap();
        assert!(in_server.wait("request", (n + CONCURRENCY as usize).min(N as usize)), "fewer than {CONCURRENCY} in flight");
        in_script.lock().unwrap().0 -= 1;
        put(stream, &good_answer(request, 1));
        Then::Keep
    });
    let report = go(&spec(&server, CONCURRENCY, 0, N));
    assert_all_ok(&report, N as usize);
    assert_eq!(busy.lock().unwrap().1, CONCURRENCY as usize);
    assert_eq!(report.health.in_flight_peak, CONCURRENCY);
}

#[test]
fn warmup_is_handed_over_without_draining() {
    let seen = Arc::new(Signals::default());
    let in_server = seen.clone();
    let server = Server::start(move |request, stream| {
        in_server.raise(&request.id);
        // The last warm-up request is answered only after a measured one has arrived.
        if request.id == "warmup-3" {
            assert!(in_server.wait("profiling-0", 1), "the measured phase waited for the warm-up to drain");
        }
        put(stream, &good_answer(request, 1));
        Then::Keep
    });
    let report = go(&spec(&server, 2, 4, 4));
    assert_all_ok(&report, 8);
    let warm_end = report.records.iter().filter(|r| r.phase == LoadPhase::Warmup).map(|r| r.end_ns).max().unwrap();
    let first = report.records.iter().find(|r| r.phase == LoadPhase::Profiling).unwrap();
    assert!(first.start_ns < warm_end);
}

#[test]
fn stamps_lie_between_the_servers_write_and_the_end_and_follow_its_order() {
    for kernel_stamps in [true, false] {
        type Writes = Vec<(String, Vec<Instant>, Instant)>;
        let writes: Arc<Mutex<Writes>> = Arc::default();
        let log = writes.clone();
        let server = Server::start(move |request, stream| {
            let mut times = Vec::new();
            put(stream, STREAM_HEAD);
            for _ in 0..5 {
                times.push(Instant::now());
                put(stream, &chunked(&content("x")));
            }
            log.lock().unwrap().push((request.id.clone(), times, request.received));
            put(stream, &chunked(&ending(prompt_len(request), 5)));
            put(stream, LAST_CHUNK);
            Then::Keep
        });
        let mut spec = spec(&server, 2, 0, 10);
        spec.kernel_stamps = kernel_stamps;
        let report = go(&spec);
        assert_all_ok(&report, 10);
        // Kernel stamps come from the wall clock; its mapping is good to well under this.
        let slack = if kernel_stamps { 1_000_000 } else { 0 };
        for (id, times, received) in writes.lock().unwrap().iter() {
            let record = report.records.iter().find(|r| r.x_request_id == *id).unwrap();
            assert!(record.start_ns <= report.clock.at(*received).0);
            let stamps: Vec<_> = record.chunks.iter().map(|c| c.at_ns).collect();
            assert!(stamps.is_sorted() && stamps.len() == 5);
            for (stamp, written) in stamps.iter().zip(times) {
                assert!(stamp + slack >= report.clock.at(*written).0, "stamped {stamp} before it was written");
                assert!(*stamp <= record.end_ns);
            }
        }
        if !kernel_stamps {
            assert_eq!(report.health.receive.stamp_source(), "clock");
        }
    }
}

#[test]
fn http_chunks_need_not_match_events() {
    for n in [1, 3, 7, 1000] {
        let server = Server::start(move |request, stream| {
            let events: String = (0..3).map(|_| content("é🦀")).chain([ending(prompt_len(request), 3)]).collect();
            let pieces: Vec<_> = events.as_bytes().chunks(n).collect();
            let mut answer = STREAM_HEAD.as_bytes().to_vec();
            for piece in pieces {
                answer.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                answer.extend_from_slice(piece);
                answer.extend_from_slice(b"\r\n");
            }
            answer.extend_from_slice(LAST_CHUNK.as_bytes());
            for part in answer.chunks(11) {
                let _ = std::io::Write::write_all(stream, part);
            }
            Then::Keep
        });
        let report = go(&spec(&server, 1, 0, 2));
        assert_all_ok(&report, 2);
        assert!(report.records.iter().all(|r| r.chunks.len() == 3));
    }
}

#[test]
fn whole_responses_are_read_by_length_and_until_the_connection_closes() {
    let server = Server::start(|request, stream| {
        assert!(request.body.get("stream").is_none());
        let n = prompt_len(request);
        let body = format!(
            r#"{{"choices":[{{"message":{{"content":"abc"}},"finish_reason":"length"}}],"usage":{{"prompt_tokens":{n},"completion_tokens":3}}}}"#
        );
        if request.id.ends_with('1') {
            put(stream, &format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{body}"));
            return Then::Close;
        }
        put(stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        Then::Keep
    });
    let mut spec = spec(&server, 2, 0, 6);
    spec.streaming = false;
    let report = go(&spec);
    assert_all_ok(&report, 6);
    assert!(report.records.iter().all(|r| r.chunks.len() == 1 && r.osl.server == Some(3) && r.finish_reason.as_deref() == Some("length")));
}

#[test]
fn connections_that_the_server_closes_are_replaced_whether_it_says_so_or_not() {
    for says_so in [true, false] {
        let server = Server::start(move |request, stream| {
            let head = if says_so { STREAM_HEAD.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n") } else { STREAM_HEAD.to_owned() };
            put(stream, &good_answer(request, 2).replace(STREAM_HEAD, &head));
            Then::Close
        });
        let report = go(&spec(&server, 3, 0, 30));
        assert_all_ok(&report, 30);
        assert_eq!(server.counts.n_requests.load(Ordering::SeqCst), 30, "none was sent twice to a server that read it");
        assert!(says_so || report.health.receive.n_connects >= 30);
    }
}

#[test]
fn bytes_that_nobody_asked_for_cost_the_connection_but_not_the_request() {
    let server = Server::start(|request, stream| {
        put(stream, &(good_answer(request, 1) + "HTTP/1.1 200 OK\r\n"));
        Then::Keep
    });
    let report = go(&spec(&server, 1, 0, 4));
    assert_all_ok(&report, 4);
    assert!(report.health.receive.n_unasked >= 1);
}

#[test]
fn a_large_request_to_a_slow_reader_arrives_whole() {
    let server = Server::start(|request, stream| {
        assert_eq!(prompt_len(request), 3_000_000);
        put(stream, &good_answer(request, 1));
        Then::Keep
    });
    let mut spec = spec(&server, 2, 0, 3);
    spec.isl = Lengths::Fixed(3_000_000);
    assert_all_ok(&go(&spec), 3);
}

#[test]
fn the_request_carries_what_the_recipe_asks_for() {
    let heads: Arc<Mutex<Vec<(String, serde_json::Value)>>> = Arc::default();
    let log = heads.clone();
    let server = Server::start(move |request, stream| {
        log.lock().unwrap().push((request.head.clone(), request.body.clone()));
        put(stream, &good_answer(request, 1));
        Then::Keep
    });
    let mut spec = spec(&server, 1, 0, 1);
    spec.api_key = Some(ApiKey::new("sesame"));
    spec.headers.push(("X-Team".into(), "perf".into()));
    assert!(!format!("{spec:?}").contains("sesame"));
    assert_all_ok(&go(&spec), 1);
    let heads = heads.lock().unwrap();
    let (head, body) = &heads[0];
    assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"));
    assert_eq!((header(head, "authorization"), header(head, "x-team")), (Some("Bearer sesame"), Some("perf")));
    assert_eq!((&body["max_tokens"], &body["min_tokens"], &body["ignore_eos"]), (&3.into(), &3.into(), &true.into()));
    assert_eq!(
        (&body["ignore_eos"], &body["stream"], &body["stream_options"]["include_usage"]),
        (&true.into(), &true.into(), &true.into())
    );
}

#[test]
fn a_rate_sends_at_its_own_times_whatever_the_answers_do() {
    let server = Server::start(|request, stream| {
        put(stream, &good_answer(request, 1));
        Then::Keep
    });
    let mut spec = spec(&server, 1, 0, 40);
    (spec.load.arrivals, spec.load.max_in_flight) = (Arrivals::Constant { rate: 1000.0 }, None);
    let report = go(&spec);
    assert_all_ok(&report, 40);
    for pair in report.records.windows(2) {
        assert!((pair[1].scheduled_ns - pair[0].scheduled_ns).abs_diff(1_000_000) <= 1);
    }
    assert!(report.records.iter().all(|r| r.start_ns >= r.scheduled_ns));
    assert!(report.health.schedule_lag.1 >= report.health.schedule_lag.0);
}

#[test]
fn a_stopped_run_lets_requests_in_flight_end_and_says_what_is_missing() {
    let stop = Arc::new(StopSignal::new());
    let in_script = stop.clone();
    let server = Server::start(move |request, stream| {
        if request.id == "profiling-5" {
            in_script.stop();
        }
        put(stream, &good_answer(request, 1));
        Then::Keep
    });
    let report = run(&spec(&server, 2, 0, 1_000_000), Arc::new(ByteTexts { template_tokens: 0 }), &mut NoProgress, &stop).unwrap();
    assert!(!report.is_complete() && report.health.receive.stopped);
    assert!(report.records.len() >= 6);
    let n_sent = report.records.len();
    assert_all_ok(&report, n_sent);
    assert_eq!(n_sent + report.health.receive.n_not_sent as usize, 1_000_000);
}

#[test]
fn requests_in_flight_are_cancelled_after_the_grace_time_or_at_once_when_told_so() {
    for (grace_ms, at_once) in [(1, false), (60_000, true)] {
        let (seen, stop) = (Arc::new(Signals::default()), Arc::new(StopSignal::new()));
        let in_server = seen.clone();
        let server = Server::start(move |_, stream| {
            put(stream, STREAM_HEAD);
            put(stream, &chunked(&content("x")));
            in_server.raise("request");
            // Waits for the client to go away.
            let _ = std::io::Read::read(stream, &mut [0; 1]);
            Then::Close
        });
        let mut spec = spec(&server, 3, 0, 10);
        spec.timeouts.grace = Nanos::from_millis(grace_ms);
        let stopper = std::thread::spawn({
            let stop = stop.clone();
            move || {
                assert!(seen.wait("request", 3));
                if at_once { stop.stop_now() } else { stop.stop() }
            }
        });
        let report = run(&spec, Arc::new(ByteTexts { template_tokens: 0 }), &mut NoProgress, &stop).unwrap();
        stopper.join().unwrap();
        assert_eq!((report.records.len(), report.health.receive.n_not_sent), (3, 7));
        assert!(report.records.iter().all(|r| r.outcome.failure() == Some(FailureKind::Cancelled)));
    }
}

#[test]
fn several_receive_threads_share_one_load_and_lose_nothing() {
    let server = Server::start(|request, stream| {
        put(stream, &good_answer(request, 3));
        Then::Keep
    });
    for (n_threads, arrivals, cap) in [
        (3, Arrivals::ClosedLoop, Some(8)),
        (2, Arrivals::Constant { rate: 2000.0 }, None),
        (4, Arrivals::Constant { rate: 5000.0 }, Some(2)),
    ] {
        let mut spec = spec(&server, 8, 10, 60);
        (spec.load.arrivals, spec.load.max_in_flight, spec.receive_threads) = (arrivals, cap, Some(n_threads));
        let report = go(&spec);
        assert_all_ok(&report, 70);
        assert!(report.is_complete());
        assert_eq!(report.health.n_receive_threads(), (n_threads as usize).min(cap.unwrap_or(99)));
        assert_eq!(report.health.n_chunks, 210);
        assert!(report.health.in_flight_peak as usize <= cap.unwrap_or(usize::MAX));
        let ids: std::collections::HashSet<_> = report.records.iter().map(|r| r.x_request_id.as_str()).collect();
        assert_eq!(ids.len(), 70, "no request was sent twice");
    }
}

#[test]
fn progress_ends_with_the_whole_count() {
    let server = Server::start(|request, stream| {
        put(stream, &good_answer(request, 2));
        Then::Keep
    });
    let mut last = None;
    let mut show = |s: &Snapshot| last = Some(*s);
    run(&spec(&server, 2, 1, 5), Arc::new(ByteTexts { template_tokens: 0 }), &mut show, &Arc::new(StopSignal::new())).unwrap();
    let last = last.unwrap();
    assert_eq!((last.n_total, last.n_sent, last.n_done, last.n_failed, last.n_chunks, last.n_in_flight()), (6, 6, 6, 0, 12, 0));
}

#[test]
fn a_server_that_is_not_there_is_an_error_before_any_request() {
    let server = Server::start(|_, _| Then::Close);
    let spec = spec(&server, 1, 0, 1);
    drop(server);
    let result = run(&spec, Arc::new(ByteTexts { template_tokens: 0 }), &mut NoProgress, &Arc::new(StopSignal::new()));
    assert!(matches!(result, Err(LoadError::Unreachable { .. })));
}
