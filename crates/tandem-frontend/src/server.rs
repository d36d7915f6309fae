//! The two listeners and their tasks: accept, serve, drain, stop.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tandem_plan::{Phase, Plan};
use tandem_tokenizer::Tokenizer;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::control::serve_worker;
use crate::http::handle;
use crate::patience::Patience;
use crate::shared::Shared;

/// Requests under way at shutdown have this long to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection is closed when the head of its next request takes longer than this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// A client that reads nothing of its response for this long is given up.
const READ_PATIENCE: Duration = Duration::from_secs(60);
/// Connections beyond those that could all carry a request.
const SPARE_CONNECTIONS: usize = 1024;
/// Open files of everything else: workers, listeners, logs, the runtime.
const RESERVED_FILES: usize = 256;
/// Connections on the control port at once, those that have not said hello included.
const SPARE_LINKS: usize = 64;

/// What the Plan does not say.
#[derive(Debug, Clone)]
pub struct Options {
    /// Clients must send it as a bearer token; none lets everybody in.
    pub api_key: Option<String>,
    /// The model's tokenizer and chat template.
    pub tokenizer: Arc<Tokenizer>,
}

/// Why a frontend cannot serve.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The plan has nobody for a phase.
    #[error("the plan has no {0} workers")]
    NoWorkers(Phase),
    /// A listener is unusable.
    #[error("the address of a listener cannot be read")]
    Listener(#[source] std::io::Error),
}

/// Serves `plan` until `shutdown` is cancelled: clients on `http`, workers on `control`.
///
/// At shutdown no new connections are taken, requests under way get two seconds to end, and
/// then everything is closed. Runs on any tokio runtime; one thread is enough for tens of
/// thousands of chunks a second.
///
/// # Errors
/// [`ServeError`] when the plan or a listener cannot be served at all.
pub async fn serve(
    plan: Plan,
    http: TcpListener,
    control: TcpListener,
    options: Options,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let shared = Arc::new(Shared::new(&plan, options)?);
    let address = |l: &TcpListener| l.local_addr().map_err(ServeError::Listener);
    info!(http = %address(&http)?, control = %address(&control)?, model = shared.model, plan_hash = shared.plan_hash, "frontend serves");
    let max_connections = affordable_connections(shared.limits.in_flight as usize + SPARE_CONNECTIONS);
    let max_links = plan.workers.len() + SPARE_LINKS;
    let mut links = JoinSet::new();
    let mut clients = JoinSet::new();
    let (http_shared, control_shared) = (Arc::clone(&shared), Arc::clone(&shared));
    tokio::join!(
        async {
            let serve_one = |stream| serve_client(Arc::clone(&http_shared), stream, shutdown.clone());
            accept_all(&http, &mut clients, max_connections, &shutdown, serve_one).await;
            // No listener, no new clients; those that are here finish while the workers are still connected.
            drop(http);
            if timeout(DRAIN_TIMEOUT, async { while clients.join_next().await.is_some() {} }).await.is_err() {
                warn!(n_connections = clients.len(), "requests were cut off at shutdown");
                clients.shutdown().await;
            }
            http_shared.closing.cancel();
        },
        async {
            let serve_one = |stream| serve_worker(Arc::clone(&control_shared), stream);
            accept_all(&control, &mut links, max_links, &control_shared.closing, serve_one).await;
            while links.join_next().await.is_some() {}
        },
    );
    info!("frontend stopped");
    Ok(())
}

/// Raises the limit of open files to what `wanted` client connections need; the number of connections that it then allows.
///
/// Shells give 1024 files by default, fewer than the requests that one frontend can have in flight.
fn affordable_connections(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = (wanted + RESERVED_FILES) as u64;
    let reachable = maximum.map_or(needed, |maximum| maximum.min(needed));
    if current.is_none_or(|current| current >= needed) {
        return wanted;
    }
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(reachable), maximum });
    let files = match raised {
        Ok(()) => reachable,
        Err(_) => current.unwrap_or(needed),
    };
    let connections = usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(RESERVED_FILES).max(1);
    if connections < wanted {
        warn!(wanted, connections, "the limit of open files allows fewer connections than wanted; raise it (ulimit -n)");
    }
    connections.min(wanted)
}

/// Spawns a task for each connection until `stop`, never more than `most` at once.
async fn accept_all<F>(
    listener: &TcpListener,
    tasks: &mut JoinSet<()>,
    most: usize,
    stop: &CancellationToken,
    serve_one: impl Fn(TcpStream) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    warn!(%error, "a connection's task panicked");
                }
            }
            accepted = listener.accept(), if tasks.len() < most => match accepted {
                Ok((stream, _)) => { tasks.spawn(serve_one(stream)); }
                Err(error) => {
                    // Out of file descriptors, most likely: they come back when connections end.
                    warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(20)).await;
                }
            },
        }
    }
}

async fn serve_client(shared: Arc<Shared>, stream: TcpStream, shutdown: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "cannot set TCP_NODELAY on a client's connection");
    }
    let service = service_fn(move |request| handle(Arc::clone(&shared), request));
    let stream = TokioIo::new(Patience::new(stream, READ_PATIENCE));
    let connection = http1::Builder::new().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).serve_connection(stream, service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a client's connection ended with an error");
    }
}
