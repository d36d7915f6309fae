//! Every way in which a request can fail, over real sockets: each is a record with its outcome, and the load goes on.

mod scripted;

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use scripted::{LAST_CHUNK, STREAM_HEAD, Server, Then, chunked, content, event, good_answer, put};
use tandem_load::{ByteTexts, LoadReport, LoadSpec, NoProgress, StopSignal, run};
use tandem_metrics::FailureKind;
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
