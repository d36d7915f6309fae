//! Clients whose clocks are not the coordinator's: agents of this host behind relays that shift every time, and drift.

use std::collections::HashMap;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use serde_json::{Value, json};
use tandem_metrics::RunClock;
use tandem_metrics::artifacts::profile_export;
use tandem_plan::Nanos;

use super::wire::{FromAgent, MAX_FRAME, ToAgent, monotonic_ns, receive, send};
use super::{Fleet, Prepared, Token, serve_one};
use crate::paced::{PacedConfig, PacedServer};
use crate::progress::NoProgress;
use crate::prompts::texts::{ByteTexts, Texts};
use crate::spec::LoadSpec;
use crate::stop::StopSignal;

/// How much faster the other clocks run, in parts of a million; a bad quartz.
const DRIFT_PPM: u64 = 200;

/// A clock beside this host's.
#[derive(Clone, Copy)]
struct OtherClock {
    ahead_ns: u64,
    since: u64,
}

impl OtherClock {
    /// How far it is ahead now.
    fn ahead(self) -> u64 {
        self.ahead_ns + (monotonic_ns() - self.since) * DRIFT_PPM / 1_000_000
    }
}

/// Passes messages between a coordinator and an agent, with the agent's times on another clock.
fn relay(front: &TcpListener, agent: &str, clock: OtherClock) -> io::Result<()> {
    let (mut coordinator, _) = front.accept()?;
    let mut agent = TcpStream::connect(agent)?;
    let (mut to_coordinator, mut from_agent) = (coordinator.try_clone()?, agent.try_clone()?);
    let answers = thread::spawn(move || {
        while let Ok(mut message) = receive::<FromAgent>(&mut from_agent, MAX_FRAME) {
            match &mut message {
                FromAgent::Welcome { boot_id, .. } => *boot_id = "another host".to_owned(),
                FromAgent::Pong { monotonic_ns } => *monotonic_ns += clock.ahead(),
                FromAgent::Records { lines } => {
                    let records = profile_export::parse(lines, RunClock { wall_origin_ns: 0 }).unwrap();
                    let shifted = RunClock { wall_origin_ns: clock.ahead() };
                    lines.clear();
                    records.iter().for_each(|record| profile_export::write_line(lines, record, shifted, true));
                }
                _ => {}
            }
            if send(&mut to_coordinator, &message).is_err() {
                break;
            }
        }
    });
    while let Ok(mut message) = receive::<ToAgent>(&mut coordinator, MAX_FRAME) {
        if let ToAgent::Start { at_ns } = &mut message {
            *at_ns -= clock.ahead();
        }
        send(&mut agent, &message)?;
    }
    agent.shutdown(std::net::Shutdown::Both)?;
    answers.join().unwrap();
    Ok(())
}

fn spec_of(setup: &Value) -> LoadSpec {
    LoadSpec::closed_loop(setup["url"].as_str().unwrap(), "m", 4, 24, 16, 4).unwrap()
}

fn texts() -> Arc<dyn Texts> {
    Arc::new(ByteTexts { template_tokens: 0 })
}

#[allow(clippy::unnecessary_wraps, reason = "what an agent calls")]
fn prepare(setup: &Value, _: &Value) -> Result<Prepared, String> {
    Ok((spec_of(setup), texts()))
}

#[test]
fn records_of_hosts_whose_clocks_differ_and_drift_lie_on_one_clock() {
    let config = PacedConfig { ttft: Nanos::from_millis(5), itl: Nanos::from_millis(2), tokens_per_chunk: 1, n_prompt: 16 };
    let server = PacedServer::start(config).unwrap();
    let setup = json!({"url": server.url()});
    let token = Token::random().unwrap().0;
    let since = monotonic_ns();
    let (mut addresses, mut threads) = (Vec::new(), Vec::new());
    for ahead_s in [3, 7000] {
        let [listener, front] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let agent = listener.local_addr().unwrap().to_string();
        addresses.push(front.local_addr().unwrap().to_string());
        let token = token.clone();
        threads.push(thread::spawn(move || serve_one(&listener, &token, &prepare)));
        let clock = OtherClock { ahead_ns: ahead_s * 1_000_000_000, since };
        threads.push(thread::spawn(move || relay(&front, &agent, clock)));
    }
    let mut fleet = Fleet::connect(&addresses, &token).unwrap();
    let fleet_report = fleet.run((&setup, &json!(0)), &spec_of(&setup), &texts(), &mut NoProgress, &StopSignal::new()).unwrap();
    let drifted = (monotonic_ns() - since) * DRIFT_PPM / 1_000_000;
    drop(fleet);
    threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    let log = server.stop().unwrap();

    assert_eq!(fleet_report.lost, []);
    let uncertain = fleet_report.clients.iter().map(|(_, _, uncertain)| uncertain.0).collect::<Vec<_>>();
    assert!(uncertain.iter().all(|ns| *ns > 0), "the clocks were compared: {uncertain:?}");
    // A wrong clock would be off by seconds; a kernel stamp is mapped to well under a millisecond.
    let slack = uncertain.iter().max().unwrap() + drifted + 1_000_000;
    let report = &fleet_report.report;
    let emissions: HashMap<_, _> = log.emissions.iter().map(|e| (e.id.as_str(), e)).collect();
    assert_eq!(report.records.len(), 32);
    for record in &report.records {
        let emission = emissions[record.x_request_id.as_str()];
        let at = |time| report.clock.from_other(&log.clock, time).0;
        assert!(record.outcome.is_ok());
        assert!(record.start_ns <= at(emission.received) + slack, "sent before it was received");
        for (chunk, write) in record.chunks.iter().zip(&emission.writes) {
            assert!(chunk.at_ns + slack >= at(*write), "received after it was written");
        }
    }
}
