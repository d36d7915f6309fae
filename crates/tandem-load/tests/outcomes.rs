//! Every way in which a request can fail, over real sockets: each is a record with its outcome, and the load goes on.

mod scripted;

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use scripted::{LAST_CHUNK, STREAM_HEAD, Server, Then, chunked, content, event, good_answer, put};
use tandem_load::{ByteTexts, LoadReport, LoadSpec, NoProgress, StopSignal, run};
use tandem_metrics::{ChunkKind, FailureKind};
use tandem_plan::Nanos;

#[allow(clippy::unwrap_used, reason = "a helper of tests")]
fn go(url: &str, n: u32, change: impl FnOnce(&mut LoadSpec)) -> LoadReport {
    let mut spec = LoadSpec::closed_loop(url, "m", 2, n, 24, 3).unwrap();
    spec.load.n_warmup = 0;
    change(&mut spec);
    run(&spec, Arc::new(ByteTexts { template_tokens: 0 }), &mut NoProgress, &Arc::new(StopSignal::new())).unwrap()
}

#[allow(clippy::unwrap_used, reason = "a helper of tests")]
fn index(id: &str) -> usize {
    id.split_once('-').unwrap().1.parse().unwrap()
}

/// Keeps a connection open and silent until the client leaves.
fn wait_for_client_to_leave(stream: &mut TcpStream) -> Then {
    while matches!(stream.read(&mut [0; 64]), Ok(1..)) {}
    Then::Close
}

#[test]
fn faults_of_the_answer_have_their_outcomes_and_good_requests_between_them_are_unharmed() {
    let error_body = r#"{"error":{"message":"no room","code":503}}"#;
    let faults: Vec<(&str, String, bool, FailureKind)> = vec![
        ("status", format!("HTTP/1.1 503 Busy\r\nContent-Length: {}\r\n\r\n{error_body}", error_body.len()), true, FailureKind::HttpStatus),
        ("status without length", "HTTP/1.1 500 Oops\r\n\r\nbroken".into(), false, FailureKind::HttpStatus),
        ("error event", format!("{STREAM_HEAD}{}{LAST_CHUNK}", chunked(&event(error_body))), true, FailureKind::SseError),
        (
            "error event after output",
            format!("{STREAM_HEAD}{}{}{LAST_CHUNK}", chunked(&content("x")), chunked(&event(error_body))),
            true,
            FailureKind::SseError,
        ),
        ("cut in the head", "HTTP/1.1 200 OK\r\nContent-".into(), false, FailureKind::Truncated),
        ("cut in a chunk", format!("{STREAM_HEAD}ff\r\ndata: {{"), false, FailureKind::Truncated),
        ("cut between events", format!("{STREAM_HEAD}{}", chunked(&content("x"))), false, FailureKind::Truncated),
        ("closed without a word", String::new(), false, FailureKind::Truncated),
        ("cut in a body", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{".into(), false, FailureKind::Truncated),
        ("stream that just ends", format!("{STREAM_HEAD}{}{LAST_CHUNK}", chunked(&content("x"))), true, FailureKind::Truncated),
        ("not HTTP", "SSH-2.0-OpenSSH_9\r\n\r\n".into(), false, FailureKind::BadResponse),
        ("broken chunk", format!("{STREAM_HEAD}zz\r\n"), false, FailureKind::BadResponse),
        ("not JSON", format!("{STREAM_HEAD}{}{LAST_CHUNK}", chunked(&event("<html>"))), true, FailureKind::BadResponse),
        ("no output", format!("{STREAM_HEAD}{}{LAST_CHUNK}", chunked("data: [DONE]\n\n")), true, FailureKind::BadResponse),
        ("a web page", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>".into(), true, FailureKind::BadResponse),
    ];
    let n = faults.len();
    let answers: Vec<_> = faults.iter().map(|(_, answer, keep, _)| (answer.clone(), *keep)).collect();
    let server = Server::start(move |request, stream| {
        // Every second request is a good one.
        match index(&request.id) {
            i if i % 2 == 0 => {
                let (answer, keep) = &answers[i / 2];
                put(stream, answer);
                if *keep { Then::Keep } else { Then::Close }
            }
            _ => {
                put(stream, &good_answer(request, 3));
                Then::Keep
            }
        }
    });
    let report = go(&server.url(), 2 * u32::try_from(n).unwrap(), |_| {});
    assert_eq!(report.records.len(), 2 * n);
    for record in &report.records {
        let i = usize::try_from(record.index).unwrap();
        if i % 2 == 0 {
            let (name, _, _, kind) = &faults[i / 2];
            assert_eq!(record.outcome.failure(), Some(*kind), "{name}: {:?}", record.outcome);
        } else {
            assert!(record.outcome.is_ok(), "after {}: {:?}", faults[i / 2].0, record.outcome);
        }
    }
}

#[test]
fn an_event_cut_in_half_and_a_reset_keep_the_output_that_came_before() {
    let server = Server::start(|request, stream| {
        put(stream, STREAM_HEAD);
        put(stream, &chunked(&content("x")));
        match index(&request.id) {
            // The chunk that holds half an event is whole, so only the event's end is missing.
            0 => put(stream, &chunked("data: {\"choices\":[{\"del")),
            // Unread bytes make the close a reset.
            1 => socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO)).unwrap(),
            _ => {
                put(stream, &chunked(&scripted::ending(24, 1)));
                put(stream, LAST_CHUNK);
                return Then::Keep;
            }
        }
        Then::Close
    });
    let report = go(&server.url(), 6, |_| {});
    assert_eq!(report.records.len(), 6);
    for record in &report.records {
        let wanted = (record.index < 2).then_some(FailureKind::Truncated);
        assert_eq!(record.outcome.failure(), wanted, "{}: {:?}", record.index, record.outcome);
        // A reset may overtake what was sent before it.
        assert!(record.chunks.len() == 1 || record.index == 1);
    }
}

#[test]
fn reasoning_and_continuous_usage_are_counted_in_tokens_and_not_in_chunks() {
    // Eight tokens a chunk, the first two chunks reasoning, usage in each: the first token is the reasoning's.
    let server = Server::start(|request, stream| {
        put(stream, STREAM_HEAD);
        for i in 1..=4 {
            let name = if i <= 2 { "reasoning_content" } else { "content" };
            let usage = format!(r#""usage":{{"prompt_tokens":24,"completion_tokens":{}}}"#, 8 * i);
            put(stream, &chunked(&event(&format!(r#"{{"choices":[{{"delta":{{"{name}":"a b c d e f g h"}}}}],{usage}}}"#))));
        }
        put(stream, &chunked(&scripted::ending(scripted::prompt_len(request), 32)));
        put(stream, LAST_CHUNK);
        Then::Keep
    });
    let report = go(&server.url(), 4, |_| {});
    for record in &report.records {
        assert!(record.outcome.is_ok(), "{:?}", record.outcome);
        let chunks: Vec<_> = record.chunks.iter().map(|c| (c.n_tokens, c.kind)).collect();
        let (thought, said) = ((Some(8), ChunkKind::Reasoning), (Some(8), ChunkKind::Content));
        assert_eq!(chunks, [thought, thought, said, said]);
        assert_eq!(record.osl.server, Some(32));
    }
}

#[test]
fn usage_that_cannot_be_is_taken_as_the_servers_word_and_never_breaks_a_count() {
    // Counts that fall, stand still, and a prompt length that was not sent.
    let server = Server::start(|_, stream| {
        put(stream, STREAM_HEAD);
        for n in [5, 5, 2, 9] {
            let usage = format!(r#""usage":{{"prompt_tokens":7,"completion_tokens":{n}}}"#);
            put(stream, &chunked(&event(&format!(r#"{{"choices":[{{"delta":{{"content":"x"}}}}],{usage}}}"#))));
        }
        put(stream, &chunked(&scripted::ending(7, 9)));
        put(stream, LAST_CHUNK);
        Then::Keep
    });
    let report = go(&server.url(), 3, |_| {});
    for record in &report.records {
        assert!(record.outcome.is_ok());
        assert_eq!(record.chunks.iter().map(|c| c.n_tokens).collect::<Vec<_>>(), [Some(5), None, None, Some(7)]);
        assert_eq!((record.osl.server, record.isl.server), (Some(9), Some(7)));
    }
    assert_eq!(report.n_isl_mismatches, 3, "the wrong prompt length is reported");
}

#[test]
fn an_idle_connection_closed_as_it_is_used_again_is_not_the_requests_fault() {
    let server = Server::start(|request, stream| {
        if request.n_before == 1 {
            return Then::Close;
        }
        put(stream, &good_answer(request, 1));
        Then::Keep
    });
    let report = go(&server.url(), 10, |_| {});
    assert!(report.records.iter().all(|r| r.outcome.is_ok()));
    assert!(report.health.receive.n_resent >= 1);
}

#[test]
fn a_silent_server_is_no_progress() {
    let server = Server::start(|request, stream| {
        if index(&request.id) == 1 {
            put(stream, STREAM_HEAD);
            put(stream, &chunked(&content("x")));
            return wait_for_client_to_leave(stream);
        }
        put(stream, &good_answer(request, 1));
        Then::Keep
    });
    let report = go(&server.url(), 6, |s| s.timeouts.no_progress = Nanos::from_millis(2500));
    for record in &report.records {
        let wanted = (record.index == 1).then_some(FailureKind::NoProgress);
        assert_eq!(record.outcome.failure(), wanted, "{}", record.index);
    }
    let silent = &report.records[1];
    assert!(silent.end_ns - silent.start_ns >= 2_500_000_000 && silent.chunks.len() == 1);
}

#[test]
fn a_stream_that_never_ends_is_a_timeout() {
    let server = Server::start(|request, stream| {
        if index(&request.id) == 0 {
            put(stream, STREAM_HEAD);
            stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            // Pings until the client has had enough.
            while !matches!(stream.read(&mut [0; 1]), Ok(0)) {
                if std::io::Write::write_all(stream, chunked(": ping\n\n").as_bytes()).is_err() {
                    break;
                }
            }
            return Then::Close;
        }
        put(stream, &good_answer(request, 1));
        Then::Keep
    });
    let report = go(&server.url(), 4, |s| s.timeouts.request = Nanos::from_millis(2500));
    for record in &report.records {
        assert_eq!(record.outcome.failure(), (record.index == 0).then_some(FailureKind::Timeout), "{}", record.index);
    }
}

#[test]
fn a_server_that_dies_leaves_a_record_for_every_request() {
    let server = Server::start(|request, stream| {
        if index(&request.id) >= 5 {
            return Then::Die;
        }
        put(stream, &good_answer(request, 1));
        Then::Keep
    });
    let report = go(&server.url(), 200, |_| {});
    assert_eq!(report.records.len(), 200);
    let n_ok = report.records.iter().filter(|r| r.outcome.is_ok()).count();
    let n_refused = report.records.iter().filter(|r| r.outcome.failure() == Some(FailureKind::ConnectError)).count();
    assert!(n_ok <= 6, "{n_ok} ended well");
    assert!(n_refused >= 150, "{n_refused} were refused");
}
