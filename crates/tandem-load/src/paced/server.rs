//! The paced server's loop: send what is due, sleep until the next due time or event, read.
//! Several threads may share one port; the kernel spreads the connections.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use tandem_plan::Nanos;

use super::answer::Answers;
use super::connection::{After, Connection, Emission};
use crate::clock::{Clock, WallOffset};
use crate::health::thread_cpu;
use crate::transport::timer::Timer;

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
const TIMER: Token = Token(usize::MAX - 2);
const READ_BYTES: usize = 64 << 10;
/// Writes in a row before the server looks for requests again: they should not wait for a whole burst.
const MAX_WRITES: usize = 64;
/// How often the wall clock is compared with the monotonic one.
const RECALIBRATE: Nanos = Nanos::from_millis(250);

/// How the server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacedConfig {
    /// From the whole request to its first chunk.
    pub ttft: Nanos,
    /// Between chunks.
    pub itl: Nanos,
    /// Tokens in a chunk, at least 1.
    pub tokens_per_chunk: u32,
    /// What `usage.prompt_tokens` says.
    pub n_prompt: u32,
}

/// A running server; dropping it stops it.
#[derive(Debug)]
pub struct PacedServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<(Waker, JoinHandle<io::Result<EmissionLog>>)>,
}

/// What a server did.
#[derive(Debug)]
pub struct EmissionLog {
    /// The clock of all its times.
    pub clock: Clock,
    /// One for each request, in the order in which they ended.
    pub emissions: Vec<Emission>,
    /// Requests that were under way at a time at most.
    pub n_busy_peak: usize,
    /// Connections accepted.
    pub n_connections: usize,
    /// CPU time of the server's thread.
    pub cpu: Duration,
}

impl PacedServer {
    /// Starts a server on a free port of the loopback interface.
    ///
    /// # Errors
    /// When the system refuses a socket, a poll or a thread.
    pub fn start(config: PacedConfig) -> io::Result<Self> {
        Self::start_at(config, SocketAddr::from(([127, 0, 0, 1], 0)), 1)
    }

    /// Starts a server at `address` with `n_threads` threads; port 0 is a free one.
    ///
    /// # Errors
    /// When the system refuses a socket, a poll or a thread.
    pub fn start_at(config: PacedConfig, address: SocketAddr, n_threads: usize) -> io::Result<Self> {
        let mut server = Self { address, stop: Arc::new(AtomicBool::new(false)), threads: Vec::new() };
        let clock = Clock::start();
        for _ in 0..n_threads.max(1) {
            let mut listener = listen(server.address, n_threads > 1)?;
            server.address = listener.local_addr()?;
            let poll = Poll::new()?;
            poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
            let waker = Waker::new(poll.registry(), WAKER)?;
            let worker = Server::new(config, clock, listener, poll, server.stop.clone())?;
            let thread = std::thread::Builder::new().name("paced-server".to_owned()).spawn(move || worker.run())?;
            server.threads.push((waker, thread));
        }
        Ok(server)
    }

    /// Where it listens, as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops it and returns what it did.
    ///
    /// # Errors
    /// When its loop had failed.
    pub fn stop(mut self) -> io::Result<EmissionLog> {
        let mut log = None::<EmissionLog>;
        for result in self.end() {
            let one = result.unwrap_or_else(|| Err(io::Error::other("the paced server's thread panicked")))?;
            log = Some(match log {
                Some(others) => others.merged(one),
                None => one,
            });
        }
        log.ok_or_else(|| io::Error::other("the paced server had no thread"))
    }

    fn end(&mut self) -> Vec<Option<io::Result<EmissionLog>>> {
        self.stop.store(true, Ordering::Relaxed);
        // A loop that has ended already needs no waking.
        self.threads.iter().for_each(|(waker, _)| drop(waker.wake()));
        self.threads.drain(..).map(|(_, thread)| thread.join().ok()).collect()
    }
}

impl Drop for PacedServer {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl EmissionLog {
    /// Two threads' logs as one; the peaks need not have been at the same time, so their sum is an upper bound.
    fn merged(mut self, other: Self) -> Self {
        self.emissions.extend(other.emissions);
        self.n_busy_peak += other.n_busy_peak;
        self.n_connections += other.n_connections;
        self.cpu += other.cpu;
        self
    }
}

/// A listener with a queue long enough for a thousand clients that connect at once.
fn listen(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    #[cfg(unix)]
    if shared {
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReusePort, &true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}

struct Server {
    config: PacedConfig,
    answers: Answers,
    clock: Clock,
    wall: WallOffset,
    calibrated: Nanos,
    listener: TcpListener,
    poll: Poll,
    timer: Timer,
    stop: Arc<AtomicBool>,
    connections: Vec<Option<Connection>>,
    due: BinaryHeap<Reverse<(Nanos, usize)>>,
    n_busy: usize,
    log: EmissionLog,
}

impl Server {
    fn new(config: PacedConfig, clock: Clock, listener: TcpListener, poll: Poll, stop: Arc<AtomicBool>) -> io::Result<Self> {
        Ok(Self {
            answers: Answers::new(config.tokens_per_chunk.max(1), config.n_prompt),
            timer: Timer::new(poll.registry(), TIMER)?,
            log: EmissionLog { clock, emissions: Vec::new(), n_busy_peak: 0, n_connections: 0, cpu: Duration::ZERO },
            config,
            wall: WallOffset::measure(&clock),
            calibrated: clock.now(),
            clock,
            listener,
            poll,
            stop,
            connections: Vec::new(),
            due: BinaryHeap::new(),
            n_busy: 0,
        })
    }

    fn run(mut self) -> io::Result<EmissionLog> {
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; READ_BYTES];
        while !self.stop.load(Ordering::Relaxed) {
            self.emit_due();
            let wait = self.next_wait()?;
            match self.poll.poll(&mut events, Some(wait)) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    WAKER | TIMER => {}
                    Token(i) => self.handle(i, event.is_writable(), &mut buffer),
                }
            }
        }
        for i in 0..self.connections.len() {
            self.end_answer(i, false);
        }
        self.log.cpu = thread_cpu();
        Ok(self.log)
    }

    fn next_wait(&self) -> io::Result<Duration> {
        let Some(Reverse((due, _))) = self.due.peek() else { return Ok(Duration::from_secs(1)) };
        let wait: Duration = due.saturating_sub(self.clock.now()).into();
        if wait.is_zero() || Timer::is_coarse() {
            return Ok(wait);
        }
        self.timer.set(wait)?;
        Ok(Duration::from_secs(1))
    }

    /// Sends what is due, each at its own time: sending takes a while when many are due together.
    fn emit_due(&mut self) {
        let until = self.clock.now();
        if until.saturating_sub(self.calibrated) >= RECALIBRATE {
            (self.wall, self.calibrated) = (WallOffset::measure(&self.clock), until);
        }
        for _ in 0..MAX_WRITES {
            let Some(Reverse((due, i))) = self.due.peek().copied().filter(|Reverse((due, _))| *due <= until) else { return };
            self.due.pop();
            let Some(connection) = &mut self.connections[i] else { continue };
            match connection.emit(&self.answers, self.clock.now()) {
                Ok(false) => self.due.push(Reverse((due + self.config.itl, i))),
                Ok(true) => {
                    self.end_answer(i, true);
                    // A pipelined request would be waiting; ours come after the answer, with an event.
                }
                Err(_) => self.drop_connection(i),
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let i = self.connections.len();
                    let mut connection = Connection::new(stream);
                    self.poll.registry().register(connection.stream(), Token(i), Interest::READABLE | Interest::WRITABLE)?;
                    // Without it the last segment of an answer could wait for an acknowledgement.
                    connection.stream().set_nodelay(true)?;
                    self.connections.push(Some(connection));
                    self.log.n_connections += 1;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn handle(&mut self, i: usize, writable: bool, buffer: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(i).and_then(Option::as_mut) else { return };
        if writable && connection.flush().is_err() {
            return self.drop_connection(i);
        }
        match connection.read(buffer, &self.answers, || self.clock.now(), |wall| self.wall.to_clock(wall)) {
            After::Going => {}
            After::Gone => self.drop_connection(i),
            After::Asked => {
                self.n_busy += 1;
                self.log.n_busy_peak = self.log.n_busy_peak.max(self.n_busy);
                if let Some(due) = connection.first_due(self.config.ttft, self.config.itl) {
                    self.due.push(Reverse((due, i)));
                }
            }
        }
    }

    fn drop_connection(&mut self, i: usize) {
        self.end_answer(i, false);
        self.connections[i] = None;
    }

    fn end_answer(&mut self, i: usize, complete: bool) {
        let emission = self.connections[i].as_mut().and_then(|c| c.take_emission(complete));
        self.n_busy -= usize::from(emission.is_some());
        self.log.emissions.extend(emission);
    }
}
