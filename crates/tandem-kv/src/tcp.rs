//! Moving frames over a TCP stream, with a deadline on progress rather than on completion.
//!
//! A large piece may take as long as it takes while bytes flow; a peer that neither reads nor
//! writes for [`KvTimeouts::stall`] is given up. Nothing here knows tickets.

use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::wire::{self, Frame, HEADER_BYTES, PREAMBLE, WireError};

/// How long each side waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvTimeouts {
    /// Sender: for a connection to be established.
    pub connect: Duration,
    /// Both: for any progress of a read or write that has begun.
    pub stall: Duration,
    /// Sender: for the acknowledgement after a commit. A push also fails this long after its target's deadline.
    pub ack: Duration,
    /// Sender: how long a connection without transfers is kept. The receiver keeps it five times as long, so that the
    /// side which knows of new transfers is the one that closes.
    pub idle: Duration,
}

impl Default for KvTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            stall: Duration::from_secs(20),
            ack: Duration::from_secs(10),
            idle: Duration::from_secs(60),
        }
    }
}

/// Why a connection ended.
#[derive(Debug, Error)]
pub(crate) enum LinkError {
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("the peer closed the connection")]
    Closed,
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("no progress for {0:?}")]
    Stalled(Duration),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the peer does not read its answers")]
    AnswersUnread,
    #[error("unexpected frame")]
    Unexpected,
    #[error("no transfer for a long time")]
    Idle,
    #[error("shut down")]
    ShutDown,
}

impl LinkError {
    /// The error and its sources on one line, for reasons that travel in events.
    pub(crate) fn one_line(&self) -> String {
        let mut line = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            line.push_str(": ");
            line.push_str(&error.to_string());
            source = error.source();
        }
        line
    }
}

/// Connects, or says why not within the deadline.
pub(crate) async fn connect(address: &str, timeouts: &KvTimeouts) -> Result<TcpStream, LinkError> {
    let late = |_| LinkError::Connect(io::ErrorKind::TimedOut.into());
    let stream = timeout(timeouts.connect, TcpStream::connect(address)).await.map_err(late)?.map_err(LinkError::Connect)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The next frame's header; `Closed` when the peer ended the stream between two frames. Waits for its first byte up to
/// `patience`, or forever.
pub(crate) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    patience: Option<Duration>,
    stall: Duration,
) -> Result<Frame, LinkError> {
    let mut header = [0; HEADER_BYTES];
    let first = stream.read(&mut header);
    let n = match patience {
        Some(limit) => timeout(limit, first).await.map_err(|_| LinkError::Idle)??,
        None => first.await?,
    };
    if n == 0 {
        return Err(LinkError::Closed);
    }
    read_exact(stream, &mut header[n..], stall).await?;
    Ok(wire::decode(&header)?)
}

/// Reads the peer's preamble.
pub(crate) async fn read_preamble(stream: &mut (impl AsyncRead + Unpin), stall: Duration) -> Result<(), LinkError> {
    let mut preamble = [0; PREAMBLE.len()];
    read_exact(stream, &mut preamble, stall).await?;
    if preamble == PREAMBLE { Ok(()) } else { Err(WireError::Preamble.into()) }
}

/// Reads a payload into a buffer of its own.
pub(crate) async fn read_payload(stream: &mut (impl AsyncRead + Unpin), n_bytes: usize, stall: Duration) -> Result<Bytes, LinkError> {
    let mut payload = BytesMut::with_capacity(n_bytes);
    let mut limited = stream.take(n_bytes as u64);
    while payload.len() < n_bytes {
        progress(stall, limited.read_buf(&mut payload)).await?;
    }
    Ok(payload.freeze())
}

/// Reads past a payload that nobody wants.
pub(crate) async fn skip_payload(stream: &mut (impl AsyncRead + Unpin), mut n_bytes: usize, stall: Duration) -> Result<(), LinkError> {
    let mut scratch = vec![0; n_bytes.min(64 << 10)];
    while n_bytes > 0 {
        let wanted = n_bytes.min(scratch.len());
        n_bytes -= progress(stall, stream.read(&mut scratch[..wanted])).await?;
    }
    Ok(())
}

/// Writes a header and its payload, in one system call where the socket takes it.
pub(crate) async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    header: &[u8],
    payload: &[u8],
    stall: Duration,
) -> Result<(), LinkError> {
    let mut rest = Buf::chain(header, payload);
    while rest.has_remaining() {
        progress(stall, stream.write_buf(&mut rest)).await?;
    }
    Ok(())
}

async fn read_exact(stream: &mut (impl AsyncRead + Unpin), mut into: &mut [u8], stall: Duration) -> Result<(), LinkError> {
    while !into.is_empty() {
        let n = progress(stall, stream.read(into)).await?;
        into = &mut into[n..];
    }
    Ok(())
}

/// One read or write that must move at least one byte within `stall`.
async fn progress(stall: Duration, io: impl Future<Output = io::Result<usize>>) -> Result<usize, LinkError> {
    match timeout(stall, io).await {
        Err(_) => Err(LinkError::Stalled(stall)),
        Ok(Ok(0)) => Err(LinkError::Closed),
        Ok(result) => Ok(result?),
    }
}
