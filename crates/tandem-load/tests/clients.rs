//! One load from several clients: it is the load that one alone would make, and a client that is lost is named.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![cfg(unix)]

mod scripted;

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use scripted::{Server, Signals, Then, good_answer, put};
use serde_json::{Value, json};
use tandem_load::clients::{Fleet, FleetReport, Prepared, Token, serve_one};
use tandem_load::pacing::Arrivals;
use tandem_load::{ByteTexts, LoadError, LoadReport, LoadSpec, NoProgress, StopSignal, Texts, run};
use tandem_metrics::{LoadPhase, Outcome};

const N_WARMUP: u32 = 5;
const N: u32 = 31;

fn spec_of(setup: &Value) -> LoadSpec {
    let concurrency = u32::try_from(setup["concurrency"].as_u64().unwrap()).unwrap();
    let mut spec = LoadSpec::closed_loop(setup["url"].as_str().unwrap(), "m", concurrency, N, 24, 3).unwrap();
    spec.load.n_warmup = N_WARMUP;
    if let Some(rate) = setup["rate"].as_f64() {
        (spec.load.arrivals, spec.load.max_in_flight) = (Arrivals::Gamma { rate, shape: 1.0 }, None);
    }
    spec
}

fn texts() -> Arc<dyn Texts> {
    Arc::new(ByteTexts { template_tokens: 0 })
}

#[allow(clippy::unnecessary_wraps, reason = "what an agent calls")]
fn prepare(setup: &Value, _: &Value) -> Result<Prepared, String> {
    Ok((spec_of(setup), texts()))
}

/// Agents on threads of this process.
struct Agents {
    token: Token,
    addresses: Vec<String>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Agents {
    fn start(n: usize, prepare: fn(&Value, &Value) -> Result<Prepared, String>) -> Self {
        let token = Token::random().unwrap().0;
        let (mut addresses, mut threads) = (Vec::new(), Vec::new());
        for _ in 0..n {
            let (listener, token) = (TcpListener::bind("127.0.0.1:0").unwrap(), token.clone());
            addresses.push(listener.local_addr().unwrap().to_string());
            threads.push(std::thread::spawn(move || serve_one(&listener, &token, &prepare)));
        }
        Self { token, addresses, threads }
    }

    /// Each has served one coordinator.
    fn join(self) -> Vec<io::Result<()>> {
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

fn drive(fleet: &mut Fleet, setup: &Value) -> Result<FleetReport, LoadError> {
    fleet.run((setup, &json!(0)), &spec_of(setup), &texts(), &mut NoProgress, &StopSignal::new())
}

/// What the requests of a run said, by their names.
type Said = Arc<Mutex<BTreeSet<(String, String)>>>;

fn noting_server() -> (Server, Said) {
    let said = Said::default();
    let notes = said.clone();
    let server = Server::start(move |request, stream| {
        notes.lock().unwrap().insert((request.id.clone(), request.body["messages"][0]["content"].to_string()));
        put(stream, &good_answer(request, 3));
        Then::Keep
    });
    (server, said)
}

fn ids(report: &LoadReport) -> Vec<String> {
    report.records.iter().map(|record| record.x_request_id.clone()).collect()
}

#[test]
fn three_clients_send_what_one_would_and_their_records_become_one_list() {
    for rate in [None, Some(2000.0)] {
        let (server, said) = noting_server();
        let setup = json!({"url": server.url(), "concurrency": 7, "rate": rate});
        let alone = run(&spec_of(&setup), texts(), &mut NoProgress, &Arc::new(StopSignal::new())).unwrap();
        let by_one = std::mem::take(&mut *said.lock().unwrap());
        let agents = Agents::start(3, prepare);
        let mut fleet = Fleet::connect(&agents.addresses, &agents.token).unwrap();
        let FleetReport { report, lost, clients } = drive(&mut fleet, &setup).unwrap();
        assert_eq!(*said.lock().unwrap(), by_one, "the same prompts under the same names");
        assert_eq!((ids(&report), lost.len()), (ids(&alone), 0));
        assert_eq!(clients.iter().map(|(_, n, _)| n).sum::<usize>(), (N_WARMUP + N) as usize);
        assert!(clients.iter().all(|(_, n, _)| (11..=13).contains(n)), "{clients:?}");
        for record in &report.records {
            assert_eq!((&record.outcome, record.chunks.len(), record.osl.server), (&Outcome::Ok, 3, Some(3)));
            let times = [record.scheduled_ns, record.start_ns, record.sent_ns.unwrap(), record.ack_ns.unwrap(), record.end_ns];
            assert!(
                record.scheduled_ns <= record.start_ns && record.start_ns <= record.end_ns && times.iter().all(|t| *t > 0),
                "{times:?}"
            );
        }
        let health = &report.health;
        assert_eq!((health.n_chunks, health.receive.n_sends, health.n_receive_threads()), (108, 36, 3));
        assert_eq!(health.in_flight_nominal, if rate.is_none() { Some(7) } else { None });
        if rate.is_some() {
            // One schedule, from which each takes its requests: gaps between due times are those that one client has.
            let gaps = |report: &LoadReport| -> Vec<u64> {
                let due: Vec<u64> = report.records.iter().map(|r| r.scheduled_ns).collect();
                due.windows(2).map(|w| w[1] - w[0]).collect()
            };
            assert!(gaps(&report).iter().zip(gaps(&alone)).all(|(a, b)| a.abs_diff(b) <= 1));
        }
        // The clients stay for the next point.
        let again = drive(&mut fleet, &setup).unwrap();
        assert_eq!(ids(&again.report), ids(&alone));
        drop(fleet);
        assert!(agents.join().iter().all(Result::is_ok));
    }
}

#[test]
fn all_clients_together_hold_the_concurrency_and_never_exceed_it() {
    const CONCURRENCY: usize = 6;
    let (seen, busy) = (Arc::new(Signals::default()), Arc::new(Mutex::new((0usize, 0usize))));
    let (in_server, in_script) = (seen.clone(), busy.clone());
    // The first answers wait until as many requests are in flight as the load is to hold.
    let server = Server::start(move |request, stream| {
        {
            let mut busy = in_script.lock().unwrap();
            busy.0 += 1;
            busy.1 = busy.1.max(busy.0);
        }
        in_server.raise("request");
        assert!(in_server.wait("request", CONCURRENCY), "fewer than {CONCURRENCY} in flight");
        in_script.lock().unwrap().0 -= 1;
        put(stream, &good_answer(request, 1));
        Then::Keep
    });
    let agents = Agents::start(4, prepare);
    let mut fleet = Fleet::connect(&agents.addresses, &agents.token).unwrap();
    let report = drive(&mut fleet, &json!({"url": server.url(), "concurrency": CONCURRENCY})).unwrap().report;
    assert!(report.records.iter().all(|r| r.outcome.is_ok()) && report.is_complete());
    assert_eq!(busy.lock().unwrap().1, CONCURRENCY);
    assert!(report.health.in_flight_peak as usize <= CONCURRENCY);
    drop(fleet);
    agents.join();
}

/// Passes everything on until it is told to cut both connections.
fn cutting_relay(to: String, cut: Arc<AtomicBool>) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(to).unwrap();
        let pump = |mut from: TcpStream, mut to: TcpStream, cut: Arc<AtomicBool>| {
            std::thread::spawn(move || {
                from.set_read_timeout(Some(std::time::Duration::from_millis(5))).unwrap();
                let mut piece = [0; 4096];
                while !cut.load(Ordering::SeqCst) {
                    match from.read(&mut piece) {
                        Ok(0) => break,
                        Ok(n) => to.write_all(&piece[..n]).unwrap(),
                        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                        Err(_) => break,
                    }
                }
                let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
            })
        };
        let there = pump(client.try_clone().unwrap(), server.try_clone().unwrap(), cut.clone());
        let back = pump(server, client, cut);
        there.join().unwrap();
        back.join().unwrap();
    });
    (address, thread)
}

#[test]
fn a_client_that_is_lost_is_named_and_the_others_stop() {
    let (seen, cut) = (Arc::new(Signals::default()), Arc::new(AtomicBool::new(false)));
    let (in_server, cutting) = (seen.clone(), cut.clone());
    let server = Server::start(move |request, stream| {
        in_server.raise("request");
        // With all four in flight one client is lost; what is in flight at the other still ends well.
        assert!(in_server.wait("request", 4));
        cutting.store(true, Ordering::SeqCst);
        assert!(in_server.wait("lost", 1));
        put(stream, &good_answer(request, 3));
        Then::Keep
    });
    let agents = Agents::start(2, prepare);
    let (relay, relay_thread) = cutting_relay(agents.addresses[1].clone(), cut);
    let addresses = [agents.addresses[0].clone(), relay.clone()];
    let mut fleet = Fleet::connect(&addresses, &agents.token).unwrap();
    let waiting = {
        let seen = seen.clone();
        std::thread::spawn(move || {
            relay_thread.join().unwrap();
            seen.raise("lost");
        })
    };
    let setup = json!({"url": server.url(), "concurrency": 4});
    let FleetReport { report, lost, .. } = drive(&mut fleet, &setup).unwrap();
    waiting.join().unwrap();
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0].0, relay);
    assert!(!report.is_complete(), "the load was not whole");
    assert!(report.records.len() < (N_WARMUP + N) as usize && report.records.iter().all(|r| r.outcome.is_ok()));
    assert!(
        report.records.iter().filter(|r| r.phase == LoadPhase::Profiling).all(|r| r.index.is_multiple_of(2)),
        "those of the client that is left"
    );
    assert!(matches!(drive(&mut fleet, &setup), Err(LoadError::Client { name, .. }) if name == relay), "it stays lost");
    drop(fleet);
    agents.join();
}

#[test]
fn clients_that_cannot_take_part_are_named_before_any_request() {
    let (server, said) = noting_server();
    let setup = json!({"url": server.url(), "concurrency": 2});
    // Another token.
    let agents = Agents::start(1, prepare);
    let error = Fleet::connect(&agents.addresses, &Token::random().unwrap().0).unwrap_err();
    assert!(matches!(&error, LoadError::Client { name, reason } if *name == agents.addresses[0] && reason.contains("token")), "{error}");
    assert_eq!(agents.join()[0].as_ref().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    // Nobody there.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    assert!(matches!(Fleet::connect(&[free], &Token::random().unwrap().0), Err(LoadError::Client { .. })));
    // One that fails, and one that would send something else.
    let failing: fn(&Value, &Value) -> Result<Prepared, String> = |_, _| Err("no such file".into());
    let other: fn(&Value, &Value) -> Result<Prepared, String> = |setup, _| Ok((LoadSpec { seed: 7, ..spec_of(setup) }, texts()));
    for (prepare, why) in [(failing, "no such file"), (other, "other requests")] {
        let agents = Agents::start(1, prepare);
        let mut fleet = Fleet::connect(&agents.addresses, &agents.token).unwrap();
        let error = drive(&mut fleet, &setup).unwrap_err();
        assert!(matches!(&error, LoadError::Client { reason, .. } if reason.contains(why)), "{error}");
        drop(fleet);
        agents.join();
    }
    assert!(said.lock().unwrap().is_empty());
    // More clients than requests in flight.
    let agents = Agents::start(3, prepare);
    let mut fleet = Fleet::connect(&agents.addresses, &agents.token).unwrap();
    assert!(matches!(drive(&mut fleet, &setup), Err(LoadError::Spec { field: "clients", .. })));
    drop(fleet);
    agents.join();
}
