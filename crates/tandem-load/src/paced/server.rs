//! The paced server's loop: send what is due, sleep until the next due time or event, read.

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
use crate::clock::Clock;
use crate::health::thread_cpu;
use crate::transport::timer::Timer;

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
const TIMER: Token = Token(usize::MAX - 2);
const READ_BYTES: usize = 64 << 10;

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
    waker: Arc<Waker>,
    thread: Option<JoinHandle<io::Result<EmissionLog>>>,
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
        let mut listener = listen()?;
        let address = listener.local_addr()?;
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let stop = Arc::new(AtomicBool::new(false));
        let server = Server::new(config, listener, poll, stop.clone())?;
        let thread = std::thread::Builder::new().name("paced-server".to_owned()).spawn(move || server.run())?;
        Ok(Self { address, stop, waker, thread: Some(thread) })
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
        self.end().unwrap_or_else(|| Err(io::Error::other("the paced server's thread panicked")))
    }

    fn end(&mut self) -> Option<io::Result<EmissionLog>> {
        self.stop.store(true, Ordering::Relaxed);
        // A loop that has ended already needs no waking.
        let _ = self.waker.wake();
        self.thread.take()?.join().ok()
    }
}

impl Drop for PacedServer {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// A listener with a queue long enough for a thousand clients that connect at once.
fn listen() -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}

struct Server {
    config: PacedConfig,
    answers: Answers,
    clock: Clock,
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
    fn new(config: PacedConfig, listener: TcpListener, poll: Poll, stop: Arc<AtomicBool>) -> io::Result<Self> {
        let clock = Clock::start();
        Ok(Self {
            answers: Answers::new(config.tokens_per_chunk.max(1), config.n_prompt),
            timer: Timer::new(poll.registry(), TIMER)?,
            log: EmissionLog { clock, emissions: Vec::new(), n_busy_peak: 0, n_connections: 0, cpu: Duration::ZERO },
            config,
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

    /// Sends everything that is due, at its own time each: sending takes a while when many are due together.
    fn emit_due(&mut self) {
        let until = self.clock.now();
        while let Some(Reverse((due, i))) = self.due.peek().copied().filter(|Reverse((due, _))| *due <= until) {
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
        match connection.read(buffer, || self.clock.now()) {
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
