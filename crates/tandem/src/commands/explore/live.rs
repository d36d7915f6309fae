//! The live page of `tandem explore --serve`: one page, and a JSON API that predicts what its sliders say.
//!
//! Bound to loopback. Requests that name another host are refused, so that a page from elsewhere cannot reach it through DNS. Bodies,
//! heads, connections and predictions under way are bounded.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HOST};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tandem_explore::Exploration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::answer::Predictor;
use crate::exit::{Exit, Failure, OrExit};
use crate::signals::until_stopped;

/// The largest body of a question.
const MAX_BODY: usize = 64 * 1024;
/// Connections at once.
const MAX_CONNECTIONS: usize = 32;
/// For the head of a request, and for its body.
const PATIENCE: Duration = Duration::from_secs(10);

type Reply = Response<Full<Bytes>>;

struct Shared {
    predictor: Mutex<Predictor>,
    space: Value,
    page: String,
}

/// Takes the port, on this machine only.
pub(super) fn listen(port: u16) -> Result<std::net::TcpListener, Failure> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = std::net::TcpListener::bind(address).with_context(|| format!("cannot listen on {address}")).or_exit(Exit::NotReady);
    let listener = listener.map_err(|failure| failure.with_hint("another --port, or none: any free one is taken then"))?;
    listener.set_nonblocking(true).or_exit(Exit::Bug)?;
    Ok(listener)
}

/// Serves until ctrl-C.
pub(super) fn serve(listener: std::net::TcpListener, predictor: Predictor, result: &Exploration) -> Result<(), Failure> {
    let space = predictor.space(result);
    let shared = Arc::new(Shared { predictor: Mutex::new(predictor), space, page: tandem_report::live_html() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Bug)?;
    runtime.block_on(until_stopped(false, async |shutdown| {
        let listener = TcpListener::from_std(listener).or_exit(Exit::Bug)?;
        let url = format!("live page: http://{}/ (ctrl-C ends it)\n", listener.local_addr().or_exit(Exit::Bug)?);
        super::super::report::put(std::path::Path::new("-"), url.as_bytes())?;
        accept(&listener, &shared, &shutdown).await;
        Ok(())
    }))
}

async fn accept(listener: &TcpListener, shared: &Arc<Shared>, shutdown: &CancellationToken) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            accepted = listener.accept(), if tasks.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => { tasks.spawn(connection(Arc::clone(shared), stream)); }
                // Out of file descriptors, most likely: they come back.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
        }
    }
    tasks.shutdown().await;
}

async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(handle(shared, request).await) }
    });
    let mut served = hyper::server::conn::http1::Builder::new();
    served.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = served.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection of the live page ended with an error");
    }
}

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Reply {
    if !is_local(&request) {
        return error(StatusCode::FORBIDDEN, "this server answers to 127.0.0.1 and localhost only");
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => reply(StatusCode::OK, "text/html; charset=utf-8", shared.page.clone()),
        (&Method::GET, "/api/space") => reply(StatusCode::OK, "application/json", shared.space.to_string()),
        (&Method::POST, "/api/predict") => predict(shared, request).await,
        (_, "/" | "/api/space" | "/api/predict") => error(StatusCode::METHOD_NOT_ALLOWED, "GET / and /api/space, POST /api/predict"),
        _ => error(StatusCode::NOT_FOUND, "there are /, /api/space and /api/predict"),
    }
}

/// Whether the request names this machine as its host.
fn is_local(request: &Request<Incoming>) -> bool {
    let host = request.headers().get(HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    ["127.0.0.1", "localhost"].contains(&name)
}

async fn predict(shared: Arc<Shared>, request: Request<Incoming>) -> Reply {
    let body = match tokio::time::timeout(PATIENCE, Limited::new(request.into_body(), MAX_BODY).collect()).await {
        Err(_) => return error(StatusCode::REQUEST_TIMEOUT, "the body did not come"),
        Ok(Err(_)) => return error(StatusCode::PAYLOAD_TOO_LARGE, "a question has at most 64 KiB"),
        Ok(Ok(body)) => body.to_bytes(),
    };
    let Ok(question) = serde_json::from_slice::<Value>(&body) else { return error(StatusCode::BAD_REQUEST, "the body is not JSON") };
    let Some(knobs) = question["knobs"].as_object().cloned() else {
        return error(StatusCode::BAD_REQUEST, "expected {\"knobs\": {NAME: VALUE, ...}}");
    };
    // A prediction takes milliseconds of computing: not on the thread that serves; one at a time, behind the lock.
    let work = tokio::task::spawn_blocking(move || {
        let mut predictor = shared.predictor.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        predictor.answer(&knobs)
    });
    match work.await {
        Ok(Ok(answer)) => reply(StatusCode::OK, "application/json", answer.to_string()),
        Ok(Err(why)) => error(StatusCode::BAD_REQUEST, &why),
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "the prediction failed"),
    }
}

fn error(status: StatusCode, message: &str) -> Reply {
    reply(status, "application/json", json!({"error": message}).to_string())
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    reply.headers_mut().insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    reply
}
