//! The coordinator's side: has several clients drive one load and puts together what they return.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tandem_metrics::artifacts::profile_export;
use tandem_metrics::{RequestRecord, RunClock};
use tandem_plan::Nanos;

use super::digest;
use super::token::{Token, nonce};
use super::wire::{FromAgent, MAX_FIRST_FRAME, MAX_FRAME, PROTOCOL, ToAgent, boot_id, monotonic_ns, receive, send};
use crate::clock::Clock;
use crate::error::LoadError;
use crate::health::ClientHealth;
use crate::progress::{Progress, Snapshot};
use crate::prompts::texts::Texts;
use crate::run::{LoadReport, describe_load, order};
use crate::spec::{LoadSpec, Share};
use crate::stop::{Stop, StopSignal};

/// How long a client may say nothing before it counts as lost; a process that dies is noticed at once.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long connecting and proving may take.
const GREETING: Duration = Duration::from_secs(10);
/// Readings of a foreign clock; the tightest counts.
const N_PINGS: usize = 16;
/// From the word to begin until the load begins, at least.
const LEAD: Duration = Duration::from_millis(100);
/// How often stopping and progress are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// The slots of client k are numbered from k times this.
const WORKERS: u32 = 1_000_000;

/// Clients that have proven themselves.
#[derive(Debug)]
pub struct Fleet {
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    name: String,
    stream: TcpStream,
    /// Its monotonic clock minus ours, nanoseconds.
    ahead_ns: i64,
    /// What that may be wrong by; zero for clients of this host.
    uncertain_ns: u64,
    lost: bool,
}

/// What a load from several clients yields.
#[derive(Debug)]
pub struct FleetReport {
    /// As one client's would be.
    pub report: LoadReport,
    /// Clients that were lost, and how.
    pub lost: Vec<(String, String)>,
    /// Name of each client, its records, and what their times may be shifted by against those of others; a latency is never affected.
    pub clients: Vec<(String, usize, Nanos)>,
}

fn failed(name: &str, reason: impl Into<String>) -> LoadError {
    LoadError::Client { name: name.to_owned(), reason: reason.into() }
}

impl Fleet {
    /// Connects to agents at `addresses` (`host:port`).
    ///
    /// # Errors
    /// [`LoadError::Client`] for the first that is not there, has another token or is of another version.
    pub fn connect(addresses: &[String], token: &Token) -> Result<Self, LoadError> {
        let clients = addresses.iter().map(|address| Client::connect(address, token)).collect::<Result<_, _>>()?;
        Ok(Self { clients })
    }

    /// Clients.
    #[must_use]
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Drives `spec` (the whole load) from all clients. They make it of `setup` and `point` themselves, and are compared with it.
    ///
    /// # Errors
    /// [`LoadError`] when a client cannot begin; once the load runs, a lost client is in the report.
    pub fn run(
        &mut self,
        (setup, point): (&Value, &Value),
        spec: &LoadSpec,
        texts: &Arc<dyn Texts>,
        progress: &mut dyn Progress,
        stop: &StopSignal,
    ) -> Result<FleetReport, LoadError> {
        let n = u32::try_from(self.clients.len()).unwrap_or(u32::MAX);
        if let Some(client) = self.clients.iter().find(|client| client.lost) {
            return Err(failed(&client.name, "was lost before"));
        }
        for index in 0..n {
            LoadSpec { share: Share { index, n }, ..spec.clone() }.check()?;
        }
        if spec.keep.exchanges {
            return Err(LoadError::Spec { field: "clients", reason: "what was on the wire is kept by one client only".into() });
        }
        let digest = digest(spec, texts)?;
        let (clock, (to_main, events)) = (Clock::start(), channel());
        let mut parts = Vec::new();
        for (index, client) in (0..n).zip(&mut self.clients) {
            let prepare = ToAgent::Prepare { setup: setup.clone(), point: point.clone(), share: Share { index, n } };
            let reading = client.stream.try_clone().and_then(|reading| send(&mut client.stream, &prepare).map(|()| reading));
            let reading = reading.map_err(|e| failed(&client.name, e.to_string()))?;
            let (to_main, k) = (to_main.clone(), parts.len());
            // It ends with the part's last message, or with the connection.
            let reader = thread::Builder::new().name("load-client".into()).spawn(move || follow(reading, k, &to_main));
            reader.map_err(|source| LoadError::System { action: "start a thread", source })?;
            parts.push(Part::default());
        }
        drop(to_main);
        let mut course = Course { clients: &mut self.clients, parts, clock, digest, started: false, error: None, level: Stop::No };
        loop {
            match events.recv_timeout(LOOK) {
                Ok((k, event)) => course.take(k, event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            course.pass_on(stop.level());
            if course.started {
                progress.show(&course.snapshot(spec));
            }
        }
        course.finish(spec)
    }
}

impl Client {
    fn connect(address: &str, token: &Token) -> Result<Self, LoadError> {
        let bad = |e: std::io::Error| failed(address, e.to_string());
        let mut last = failed(address, "has no address");
        for socket in address.to_socket_addrs().map_err(bad)? {
            match TcpStream::connect_timeout(&socket, GREETING) {
                Ok(stream) => return Self::greet(address, stream, token),
                Err(error) => last = bad(error),
            }
        }
        Err(last)
    }

    fn greet(name: &str, mut stream: TcpStream, token: &Token) -> Result<Self, LoadError> {
        let bad = |e: std::io::Error| failed(name, e.to_string());
        stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(GREETING))).map_err(bad)?;
        let FromAgent::Challenge { protocol, nonce: theirs } = receive(&mut stream, MAX_FIRST_FRAME).map_err(bad)? else {
            return Err(failed(name, "is no agent"));
        };
        if protocol != PROTOCOL {
            return Err(failed(name, format!("speaks version {protocol} of the protocol, not {PROTOCOL}")));
        }
        let own = nonce()?;
        let proof = token.proof("coordinator", [&theirs, &own]);
        send(&mut stream, &ToAgent::Proof { nonce: own.clone(), proof }).map_err(bad)?;
        let turned_away = |e: std::io::Error| failed(name, format!("does not accept the token ({e})"));
        let FromAgent::Welcome { proof, version, boot_id: theirs_boot } = receive(&mut stream, MAX_FIRST_FRAME).map_err(turned_away)?
        else {
            return Err(failed(name, "is no agent"));
        };
        if !token.accepts(&proof, "agent", [&own, &theirs]) {
            return Err(failed(name, "does not have the token"));
        }
        if version != env!("CARGO_PKG_VERSION") {
            return Err(failed(name, format!("is tandem {version}, not {}", env!("CARGO_PKG_VERSION"))));
        }
        let same_host = !theirs_boot.is_empty() && theirs_boot == boot_id();
        let (ahead_ns, uncertain_ns) = if same_host { (0, 0) } else { compare_clocks(&mut stream).map_err(bad)? };
        stream.set_read_timeout(Some(PATIENCE)).map_err(bad)?;
        Ok(Self { name: name.to_owned(), stream, ahead_ns, uncertain_ns, lost: false })
    }
}

/// How far the other side's monotonic clock is ahead, and half the round trip of the tightest reading (Cristian, 1989).
fn compare_clocks(stream: &mut TcpStream) -> std::io::Result<(i64, u64)> {
    let mut best = (0, u64::MAX);
    for _ in 0..N_PINGS {
        let before = monotonic_ns();
        send(stream, &ToAgent::Ping)?;
        let FromAgent::Pong { monotonic_ns: theirs } = receive(stream, MAX_FIRST_FRAME)? else {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "does not tell its time"));
        };
        let half = (monotonic_ns() - before) / 2;
        if half < best.1 {
            best = (theirs.wrapping_sub(before + half).cast_signed(), half);
        }
    }
    Ok(best)
}

type Event = Result<FromAgent, String>;

/// Hands on what a client says, until it has said everything.
fn follow(mut stream: TcpStream, k: usize, to_main: &Sender<(usize, Event)>) {
    loop {
        let event = receive::<FromAgent>(&mut stream, MAX_FRAME).map_err(|e| e.to_string());
        let last = matches!(event, Err(_) | Ok(FromAgent::Done { .. } | FromAgent::Failed { .. }));
        if to_main.send((k, event)).is_err() || last {
            return;
        }
    }
}

/// What is known of one client's part.
#[derive(Debug, Default)]
struct Part {
    is_ready: bool,
    is_over: bool,
    records: Vec<RequestRecord>,
    snapshot: Option<Snapshot>,
    health: Option<ClientHealth>,
    n_repeated_prompts: u32,
    n_isl_mismatches: u32,
    n_osl_mismatches: u32,
    lost: Option<String>,
}

/// A load under way.
struct Course<'a> {
    clients: &'a mut [Client],
    parts: Vec<Part>,
    clock: Clock,
    digest: String,
    started: bool,
    /// Why it could not begin.
    error: Option<LoadError>,
    /// The order to stop that clients have.
    level: Stop,
}

impl Course<'_> {
    fn take(&mut self, k: usize, event: Event) {
        let (name, part) = (self.clients[k].name.clone(), &mut self.parts[k]);
        match event {
            Ok(FromAgent::Ready { digest }) if digest == self.digest => part.is_ready = true,
            Ok(FromAgent::Ready { .. }) => {
                self.give_up(failed(&name, "would send other requests: it has other files, or another tokenizer"))
            }
            Ok(FromAgent::Progress { snapshot }) => part.snapshot = Some(snapshot),
            Ok(FromAgent::Records { lines }) => {
                // Its lines count from its monotonic clock's zero.
                let origin = self.clock.origin_monotonic_nanos().wrapping_add_signed(self.clients[k].ahead_ns);
                match profile_export::parse(&lines, RunClock { wall_origin_ns: origin }) {
                    Ok(records) => part.records.extend(records),
                    Err(error) => self.lose(k, format!("its records cannot be read: {error}")),
                }
            }
            Ok(FromAgent::Done { health, n_repeated_prompts, n_isl_mismatches, n_osl_mismatches }) => {
                (part.n_repeated_prompts, part.n_isl_mismatches, part.n_osl_mismatches) =
                    (n_repeated_prompts, n_isl_mismatches, n_osl_mismatches);
                (part.health, part.is_over) = (Some(*health), true);
            }
            Ok(FromAgent::Failed { message }) => {
                part.is_over = true;
                if self.started { self.lose(k, message) } else { self.give_up(failed(&name, message)) }
            }
            Ok(FromAgent::Challenge { .. } | FromAgent::Welcome { .. } | FromAgent::Pong { .. }) => {}
            Err(reason) => {
                self.clients[k].lost = true;
                if self.started { self.lose(k, format!("the connection ended: {reason}")) } else { self.give_up(failed(&name, reason)) }
            }
        }
        if !self.started && self.error.is_none() && self.parts.iter().all(|part| part.is_ready) {
            self.start();
        }
    }

    /// Names the time at which all begin.
    fn start(&mut self) {
        let uncertain = self.clients.iter().map(|client| client.uncertain_ns).max().unwrap_or(0);
        let at = monotonic_ns() + u64::try_from(LEAD.as_nanos()).unwrap_or(0) + 10 * uncertain;
        for client in &mut *self.clients {
            // One that cannot be told is noticed by its reader.
            let _ = send(&mut client.stream, &ToAgent::Start { at_ns: at.wrapping_add_signed(client.ahead_ns) });
        }
        self.started = true;
    }

    /// A part is missing: what the others still send would not be the load.
    fn lose(&mut self, k: usize, why: String) {
        let part = &mut self.parts[k];
        if part.is_over && part.health.is_some() {
            return;
        }
        part.is_over = true;
        part.lost.get_or_insert(why);
        self.pass_on(Stop::Graceful);
    }

    fn give_up(&mut self, error: LoadError) {
        self.error.get_or_insert(error);
        self.pass_on(Stop::Now);
    }

    fn pass_on(&mut self, level: Stop) {
        if level > self.level {
            self.level = level;
            for client in &mut *self.clients {
                let _ = send(&mut client.stream, &ToAgent::Stop { now: level == Stop::Now });
            }
        }
    }

    /// All counts together. Live percentiles are those of the client whose are worst; the report's are of all records.
    fn snapshot(&self, spec: &LoadSpec) -> Snapshot {
        let mut all = Snapshot {
            elapsed: Nanos::ZERO,
            n_total: spec.n_total(),
            n_sent: 0,
            n_done: 0,
            n_failed: 0,
            n_chunks: 0,
            n_tokens: 0,
            ttft: None,
            tpot: None,
            of_duration: None,
        };
        for s in self.parts.iter().filter_map(|part| part.snapshot) {
            all.elapsed = all.elapsed.max(s.elapsed);
            all.n_sent += s.n_sent;
            all.n_done += s.n_done;
            all.n_failed += s.n_failed;
            all.n_chunks += s.n_chunks;
            all.n_tokens += s.n_tokens;
            all.ttft = all.ttft.max(s.ttft);
            all.tpot = all.tpot.max(s.tpot);
            all.of_duration = all.of_duration.max(s.of_duration);
        }
        all
    }

    fn finish(mut self, spec: &LoadSpec) -> Result<FleetReport, LoadError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let mut health: Option<ClientHealth> = None;
        let (mut records, mut lost, mut clients) = (Vec::new(), Vec::new(), Vec::new());
        let (mut n_repeated_prompts, mut n_isl_mismatches, mut n_osl_mismatches) = (0, 0, 0);
        for ((k, part), client) in (0..).zip(&mut self.parts).zip(&*self.clients) {
            clients.push((client.name.clone(), part.records.len(), Nanos(client.uncertain_ns)));
            lost.extend(part.lost.take().map(|why| (client.name.clone(), why)));
            records.extend(part.records.drain(..).map(|mut record| {
                record.worker = record.worker.saturating_add(WORKERS.saturating_mul(k));
                (record, None)
            }));
            n_repeated_prompts += part.n_repeated_prompts;
            n_isl_mismatches += part.n_isl_mismatches;
            n_osl_mismatches += part.n_osl_mismatches;
            if let Some(own) = part.health.take() {
                match &mut health {
                    Some(all) => all.merge(&own),
                    None => health = Some(own),
                }
            }
        }
        let has_turns = records.iter().any(|(record, _): &(RequestRecord, _)| record.turn > 0);
        order(&mut records, has_turns);
        let records: Vec<RequestRecord> = records.into_iter().map(|(record, _)| record).collect();
        let mut health = health.unwrap_or_default();
        health.receive.stopped |= !lost.is_empty();
        describe_load(&mut health, &records, spec, spec.load.max_in_flight);
        let report =
            LoadReport { records, clock: self.clock, health, n_repeated_prompts, n_isl_mismatches, n_osl_mismatches, exchanges: None };
        Ok(FleetReport { report, lost, clients })
    }
}
