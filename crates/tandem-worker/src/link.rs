//! The connection to the frontend: dial, register, then carry messages both ways and heartbeats.
//!
//! Whatever ends a connection, the engine thread releases everything before another is made.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tandem_wire::frame::{self, FrameError};
use tandem_wire::worker::{FromWorker, HEARTBEAT_MS, ToWorker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::inbox::Command;
use crate::options::WorkerError;
use crate::outgoing::Outbox;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For the answer to the registration.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// A frontend that takes no bytes for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two tries to connect: doubles from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Keeps the worker connected to its frontend.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) address: String,
    pub(crate) hello: FromWorker,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) connect_within: Duration,
    pub(crate) reconnect: bool,
}

/// Why a connection or a try to make one ended.
#[derive(Debug)]
enum End {
    Io(io::Error),
    Protocol(FrameError),
    Rejected(String),
    /// The engine thread is gone; its own error says more.
    Engine,
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        End::Io(error)
    }
}

impl Link {
    /// Runs until the worker cannot go on; none when the engine thread has ended, whose own error says why. Dropping the
    /// future closes the connection.
    pub(crate) async fn run(self) -> Option<WorkerError> {
        let mut within = Some(self.connect_within);
        loop {
            let (mut reader, writer) = match self.dial(within).await {
                Ok(halves) => halves,
                Err(error) => return Some(error),
            };
            tracing::info!(frontend = self.address, "registered");
            let end = tokio::select! {
                end = self.read(&mut reader) => end,
                end = self.write(writer) => end,
            };
            let (answer, released) = oneshot::channel();
            self.commands.send(Command::Disconnected(answer)).await.ok()?;
            released.await.ok()?;
            match end {
                End::Io(error) if self.reconnect => tracing::warn!(%error, "lost the frontend, dialling again"),
                End::Io(error) => return Some(WorkerError::FrontendLost(error)),
                End::Protocol(error) => return Some(WorkerError::Protocol(error)),
                End::Rejected(reason) => return Some(WorkerError::Rejected { reason }),
                End::Engine => return None,
            }
            within = None;
        }
    }

    /// Connects and registers; tries again until `within` has passed (for ever without).
    async fn dial(&self, within: Option<Duration>) -> Result<(Reader, OwnedWriteHalf), WorkerError> {
        let begin = Instant::now();
        let mut pause = BACKOFF.0;
        loop {
            let error = match self.register().await {
                Ok(halves) => return Ok(halves),
                Err(End::Rejected(reason)) => return Err(WorkerError::Rejected { reason }),
                Err(End::Protocol(error)) => return Err(WorkerError::Protocol(error)),
                Err(End::Engine) => io::Error::other("the engine thread has ended"),
                Err(End::Io(error)) => error,
            };
            if let Some(within) = within
                && begin.elapsed() + pause > within
            {
                return Err(WorkerError::Connect { address: self.address.clone(), within, source: error });
            }
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    async fn register(&self) -> Result<(Reader, OwnedWriteHalf), End> {
        let stream = limited(CONNECT_TIMEOUT, TcpStream::connect(&self.address)).await?;
        stream.set_nodelay(true)?;
        let (read_half, mut writer) = stream.into_split();
        let mut reader = Reader { half: read_half, buffer: BytesMut::with_capacity(64 << 10) };
        let mut hello = Vec::new();
        frame::encode(&self.hello, &mut hello).map_err(End::Protocol)?;
        limited(WRITE_TIMEOUT, writer.write_all(&hello)).await?;
        match timeout(WELCOME_TIMEOUT, reader.next()).await {
            Err(_) => Err(End::Io(io::ErrorKind::TimedOut.into())),
            Ok(message) => match message? {
                ToWorker::Welcome => Ok((reader, writer)),
                ToWorker::Rejected { reason } => Err(End::Rejected(reason)),
                _ => Err(End::Io(io::Error::other("the frontend sent requests before its welcome"))),
            },
        }
    }

    async fn read(&self, reader: &mut Reader) -> End {
        loop {
            match reader.next().await {
                Ok(ToWorker::Rejected { reason }) => return End::Rejected(reason),
                Ok(message) => {
                    if self.commands.send(Command::Message(message)).await.is_err() {
                        return End::Engine;
                    }
                }
                Err(end) => return end,
            }
        }
    }

    async fn write(&self, mut writer: OwnedWriteHalf) -> End {
        let mut beat = interval(Duration::from_millis(HEARTBEAT_MS));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = Vec::new();
        loop {
            tokio::select! {
                kept_up = self.outbox.take(&mut buffer) => if !kept_up {
                    return End::Io(io::Error::other("the frontend does not read"));
                },
                _ = beat.tick() => {
                    buffer.clear();
                    let heartbeat = FromWorker::Heartbeat { stats: self.outbox.stats() };
                    if let Err(error) = frame::encode(&heartbeat, &mut buffer) {
                        return End::Protocol(error);
                    }
                }
            }
            if let Err(error) = limited(WRITE_TIMEOUT, writer.write_all(&buffer)).await {
                return End::Io(error);
            }
        }
    }
}

async fn limited<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Cuts messages out of the stream.
#[derive(Debug)]
struct Reader {
    half: OwnedReadHalf,
    buffer: BytesMut,
}

impl Reader {
    async fn next(&mut self) -> Result<ToWorker, End> {
        loop {
            if let Some((message, n_used)) = frame::decode(&self.buffer).map_err(End::Protocol)? {
                self.buffer.advance(n_used);
                return Ok(message);
            }
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return Err(End::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}
