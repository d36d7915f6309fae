//! The side that drives its part of a load for a coordinator.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tandem_metrics::RunClock;
use tandem_metrics::artifacts::profile_export;
use tandem_plan::Nanos;

use super::digest;
use super::token::{Token, nonce};
use super::wire::{FromAgent, MAX_FIRST_FRAME, MAX_FRAME, PROTOCOL, ToAgent, boot_id, monotonic_ns, receive, send};
use crate::clock::Clock;
use crate::error::LoadError;
use crate::gate::Gate;
use crate::progress::Snapshot;
use crate::prompts::texts::Texts;
use crate::run::{LoadReport, run_from};
use crate::spec::LoadSpec;
use crate::stop::{Stop, StopSignal};

/// How long a peer may take to prove itself.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// Bytes of records in one message, about.
const RECORD_BYTES: usize = 4 << 20;
/// How long a wait sleeps before it looks whether the run has been stopped.
const NAP: Duration = Duration::from_millis(20);

/// A load that is ready to be split, and its texts.
pub type Prepared = (LoadSpec, Arc<dyn Texts>);

/// Serves the next coordinator until it leaves. `prepare` makes the whole load of what the coordinator sends as setup and point, or says
/// why it cannot.
///
/// # Errors
/// When the connection breaks before the coordinator has proven itself, or it cannot.
pub fn serve_one(
    listener: &TcpListener,
    token: &Token,
    prepare: &(dyn Fn(&Value, &Value) -> Result<Prepared, String> + Sync),
) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    greet(&mut stream, token)?;
    stream.set_read_timeout(None)?;
    let writer = Arc::new(Mutex::new(stream.try_clone()?));
    thread::scope(|scope| {
        let mut current: Option<(Arc<Order>, thread::ScopedJoinHandle<'_, ()>)> = None;
        // Whatever ends the connection ends the run: nobody would get its records.
        while let Ok(message) = receive::<ToAgent>(&mut stream, MAX_FRAME) {
            match (message, &current) {
                (ToAgent::Ping, _) => tell(&writer, &FromAgent::Pong { monotonic_ns: monotonic_ns() }),
                (ToAgent::Start { at_ns }, Some((order, _))) => order.start(at_ns),
                (ToAgent::Stop { now }, Some((order, _))) => order.stop(now),
                (ToAgent::Prepare { setup, point, share }, _) => {
                    // The run before is over: its coordinator has all of it.
                    if let Some((order, thread)) = current.take() {
                        order.stop(true);
                        let _ = thread.join();
                    }
                    let order = Arc::new(Order { stop: Arc::new(StopSignal::new()), begin: Mutex::new(None), told: Condvar::new() });
                    let (writer, own) = (writer.clone(), order.clone());
                    let work = move || {
                        let done =
                            prepare(&setup, &point).and_then(|(spec, texts)| drive(&LoadSpec { share, ..spec }, texts, &writer, &own));
                        if let Err(message) = done {
                            tell(&writer, &FromAgent::Failed { message });
                        }
                    };
                    current = Some((order, scope.spawn(work)));
                }
                _ => {}
            }
        }
        if let Some((order, _)) = &current {
            order.stop(true);
        }
    });
    Ok(())
}

fn greet(stream: &mut TcpStream, token: &Token) -> io::Result<()> {
    let own = nonce().map_err(io::Error::other)?;
    send(stream, &FromAgent::Challenge { protocol: PROTOCOL, nonce: own.clone() })?;
    let ToAgent::Proof { nonce: theirs, proof } = receive(stream, MAX_FIRST_FRAME)? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "expected a proof"));
    };
    if !token.accepts(&proof, "coordinator", [&own, &theirs]) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a coordinator without the token was turned away"));
    }
    let proof = token.proof("agent", [&theirs, &own]);
    send(stream, &FromAgent::Welcome { proof, version: env!("CARGO_PKG_VERSION").to_owned(), boot_id: boot_id() })
}

/// A coordinator that is gone hears nothing; reading notices it.
fn tell(writer: &Mutex<TcpStream>, message: &FromAgent) {
    let _ = send(&mut *writer.lock().unwrap_or_else(PoisonError::into_inner), message);
}

/// What the coordinator has said about the run under way.
struct Order {
    stop: Arc<StopSignal>,
    begin: Mutex<Option<u64>>,
    told: Condvar,
}

impl Order {
    fn start(&self, at_ns: u64) {
        *self.begin.lock().unwrap_or_else(PoisonError::into_inner) = Some(at_ns);
        self.told.notify_all();
    }

    fn stop(&self, now: bool) {
        if now {
            self.stop.stop_now();
        } else {
            self.stop.stop();
        }
        self.told.notify_all();
    }
}

/// Opens at the time that the coordinator names when it has heard that all is ready.
struct Agreed {
    order: Arc<Order>,
    writer: Arc<Mutex<TcpStream>>,
    digest: String,
}

impl Gate for Agreed {
    fn wait(&self, clock: &Clock) -> Nanos {
        tell(&self.writer, &FromAgent::Ready { digest: self.digest.clone() });
        let stopped = || self.order.stop.level() != Stop::No;
        let mut begin = self.order.begin.lock().unwrap_or_else(PoisonError::into_inner);
        while begin.is_none() && !stopped() {
            begin = self.order.told.wait_timeout(begin, NAP).unwrap_or_else(PoisonError::into_inner).0;
        }
        let Some(at) = *begin else { return clock.now() };
        let at = Nanos(at.saturating_sub(clock.origin_monotonic_nanos()));
        while clock.now() < at && !stopped() {
            thread::sleep(NAP.min(at.saturating_sub(clock.now()).into()));
        }
        at
    }
}

fn drive(spec: &LoadSpec, texts: Arc<dyn Texts>, writer: &Arc<Mutex<TcpStream>>, order: &Arc<Order>) -> Result<(), String> {
    let digest = digest(spec, &texts).map_err(|e| told(&e))?;
    let gate = Arc::new(Agreed { order: order.clone(), writer: writer.clone(), digest });
    let mut last = Instant::now();
    let mut progress = |snapshot: &Snapshot| {
        if last.elapsed() >= PROGRESS_EVERY {
            last = Instant::now();
            tell(writer, &FromAgent::Progress { snapshot: *snapshot });
        }
    };
    let report = run_from(spec, texts, &mut progress, &order.stop, gate).map_err(|e| told(&e))?;
    hand_over(&report, spec.streaming, writer);
    Ok(())
}

fn hand_over(report: &LoadReport, streaming: bool, writer: &Mutex<TcpStream>) {
    let clock = RunClock { wall_origin_ns: report.clock.origin_monotonic_nanos() };
    let mut lines = String::new();
    for (i, record) in report.records.iter().enumerate() {
        profile_export::write_line(&mut lines, record, clock, streaming);
        if lines.len() >= RECORD_BYTES || i + 1 == report.records.len() {
            tell(writer, &FromAgent::Records { lines: std::mem::take(&mut lines) });
        }
    }
    let LoadReport { health, n_repeated_prompts, n_isl_mismatches, n_osl_mismatches, .. } = report;
    tell(
        writer,
        &FromAgent::Done {
            health: Box::new(health.clone()),
            n_repeated_prompts: *n_repeated_prompts,
            n_isl_mismatches: *n_isl_mismatches,
            n_osl_mismatches: *n_osl_mismatches,
        },
    );
}

/// An error with its causes, for the other side.
fn told(error: &LoadError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
