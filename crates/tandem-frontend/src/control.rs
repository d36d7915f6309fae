//! The side of the frontend that workers dial: registration, messages in, messages out, loss.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tandem_wire::frame::{self, FrameError};
use tandem_wire::worker::{FromWorker, HEARTBEAT_MS, PROTOCOL_VERSION, ToWorker};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::lifecycle::Input;
use crate::shared::Shared;
use crate::workers::Worker;

/// A connection that has not said hello by then is closed.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A worker that is silent for three heartbeats is gone.
const SILENCE: Duration = Duration::from_millis(3 * HEARTBEAT_MS);
/// A worker that takes no byte for this long is as good as gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Room for what one read brings in.
const READ_BYTES: usize = 64 << 10;

/// Why a worker's connection ended.
#[derive(Debug, Error)]
enum LinkError {
    #[error("the worker closed the connection")]
    Closed,
    #[error("the worker was silent for {} ms", SILENCE.as_millis())]
    Silent,
    #[error("the worker did not read for {} s", WRITE_TIMEOUT.as_secs())]
    Stuck,
    #[error("reading from the worker failed")]
    Read(#[source] std::io::Error),
    #[error("writing to the worker failed")]
    Write(#[source] std::io::Error),
    #[error("the worker sent something else than the protocol says")]
    Frame(#[from] FrameError),
    #[error("the registration was refused: {0}")]
    Rejected(String),
}

/// Serves one connection of a worker until either side ends it.
pub(crate) async fn serve_worker(shared: Arc<Shared>, stream: TcpStream) {
    let Ok(peer) = stream.peer_addr() else { return };
    if let Err(error) = stream.set_nodelay(true) {
        warn!(%peer, %error, "cannot set TCP_NODELAY on a control connection");
    }
    let (reader, mut writer) = stream.into_split();
    let mut reader = FrameReader { stream: reader, buffer: BytesMut::with_capacity(READ_BYTES) };
    let registered = match timeout(HELLO_TIMEOUT, reader.next()).await {
        Ok(Ok(hello)) => register(&shared, hello, peer),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(LinkError::Rejected("no hello in time".into())),
    };
    let worker = match registered {
        Ok(worker) => worker,
        Err(error) => {
            warn!(%peer, %error, "a worker's registration failed");
            let reason = error.to_string();
            let _ = write(&mut writer, &encoded(&ToWorker::Rejected { reason })).await;
            return;
        }
    };
    let welcome = encoded(&ToWorker::Welcome);
    info!(worker = worker.name, %peer, "worker registered");
    let end = match write(&mut writer, &welcome).await {
        Ok(()) => tokio::select! {
            error = read_loop(&shared, &worker, &mut reader) => error,
            error = write_loop(&worker, &mut writer) => error,
            () = shared.closing.cancelled() => LinkError::Closed,
        },
        Err(error) => error,
    };
    shared.workers.remove(&worker);
    shared.inflight.lose(worker.phase, worker.key);
    if shared.closing.is_cancelled() {
        info!(worker = worker.name, "worker disconnected at shutdown");
    } else {
        let source = std::error::Error::source(&end).map(ToString::to_string);
        warn!(worker = worker.name, %end, source, "worker lost");
    }
}

fn encoded(message: &ToWorker) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(message, &mut bytes).expect("a greeting is far below the frame limit");
    bytes
}

fn register(shared: &Shared, hello: FromWorker, peer: std::net::SocketAddr) -> Result<Arc<Worker>, LinkError> {
    let FromWorker::Hello { version, plan_hash, name, phase, max_seq_len: _ } = hello else {
        return Err(LinkError::Rejected("the first message was not a hello".into()));
    };
    if version != PROTOCOL_VERSION {
        return Err(LinkError::Rejected(format!("the worker speaks protocol {version}, the frontend {PROTOCOL_VERSION}")));
    }
    if plan_hash != shared.plan_hash {
        return Err(LinkError::Rejected(format!("the worker runs plan {plan_hash}, the frontend {}", shared.plan_hash)));
    }
    shared.workers.register(&name, phase, peer).map_err(LinkError::Rejected)
}

struct FrameReader {
    stream: OwnedReadHalf,
    buffer: BytesMut,
}

impl FrameReader {
    /// The next message; cancel-safe, for what was read stays in the buffer.
    async fn next(&mut self) -> Result<FromWorker, LinkError> {
        loop {
            if let Some((message, used)) = frame::decode(&self.buffer)? {
                self.buffer.advance(used);
                return Ok(message);
            }
            self.buffer.reserve(READ_BYTES);
            match timeout(SILENCE, self.stream.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => return Err(LinkError::Closed),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(LinkError::Read(error)),
                Err(_) => return Err(LinkError::Silent),
            }
        }
    }
}

async fn read_loop(shared: &Shared, worker: &Worker, reader: &mut FrameReader) -> LinkError {
    loop {
        let message = match reader.next().await {
            Ok(message) => message,
            Err(error) => return error,
        };
        let (phase, key) = (worker.phase, worker.key);
        match message {
            FromWorker::Tokens { events } => shared.inflight.post_tokens(phase, key, events),
            FromWorker::Reserved { id, target } => shared.inflight.post(phase, key, id, Input::Reserved(target)),
            FromWorker::Failed { id, kind, message } => {
                shared.inflight.post(phase, key, id, Input::Failed { from: phase, kind, message });
            }
            FromWorker::Heartbeat { stats } => worker.set_stats(stats),
            FromWorker::Hello { .. } => return LinkError::Rejected("a second hello".into()),
        }
    }
}

async fn write_loop(worker: &Worker, writer: &mut OwnedWriteHalf) -> LinkError {
    let mut bytes = Vec::new();
    loop {
        worker.outbox.take(&mut bytes).await;
        if let Err(error) = write(writer, &bytes).await {
            return error;
        }
        bytes.clear();
    }
}

/// Writes all of `bytes`; fails when the peer takes none of them for [`WRITE_TIMEOUT`].
async fn write(writer: &mut OwnedWriteHalf, mut bytes: &[u8]) -> Result<(), LinkError> {
    while !bytes.is_empty() {
        match timeout(WRITE_TIMEOUT, writer.write(bytes)).await {
            Ok(Ok(0)) => return Err(LinkError::Closed),
            Ok(Ok(n)) => bytes = &bytes[n..],
            Ok(Err(error)) => return Err(LinkError::Write(error)),
            Err(_) => return Err(LinkError::Stuck),
        }
    }
    Ok(())
}
