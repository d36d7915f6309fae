//! HTTP: which request goes where, who may ask, how large a body may be.
//!
//! Seven paths need no framework; what they do is in `completions` and `health`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use subtle::ConstantTimeEq;
use tandem_wire::openai::{Api, ApiError};
use tokio::time::timeout;

use crate::reply::EventBody;
use crate::shared::Shared;
use crate::{completions, health};

/// A client has this long to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// A refused body is read and thrown away up to this size, so that the client gets to read the refusal.
const DRAIN_BYTES: usize = 64 << 20;
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The body of a response.
#[derive(Debug)]
pub(crate) enum ResponseBody {
    /// All of it.
    Whole(Option<Bytes>),
    /// Events as they come.
    Events(Box<EventBody>),
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            ResponseBody::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            ResponseBody::Events(events) => Pin::new(&mut **events).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Whole(bytes) => bytes.is_none(),
            ResponseBody::Events(events) => events.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            ResponseBody::Events(events) => events.size_hint(),
        }
    }
}

/// Answers one request.
pub(crate) async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<ResponseBody>, Infallible> {
    let request_id = match request.headers().get(&X_REQUEST_ID) {
        Some(id) if id.len() <= 256 => id.clone(),
        _ => HeaderValue::from_str(&format!("{:016x}", crate::shared::random())).expect("hexadecimal digits are valid in a header"),
    };
    let (head, body) = request.into_parts();
    let mut body = Some(body);
    let answered = route(&shared, &head, &mut body, &request_id).await;
    if let Some(unread) = body {
        // Closing a connection over unread bytes resets it, and the client would lose the answer.
        let _ = read_body(0, unread).await;
    }
    let mut response = answered.unwrap_or_else(|error| error_response(&error));
    response.headers_mut().insert(X_REQUEST_ID, request_id);
    Ok(response)
}

/// Answers one request; takes the body out if it needs it.
async fn route(
    shared: &Arc<Shared>,
    head: &Parts,
    body: &mut Option<Incoming>,
    request_id: &HeaderValue,
) -> Result<Response<ResponseBody>, ApiError> {
    let path = head.uri.path();
    if path.starts_with("/v1/") {
        authorize(shared, head)?;
    }
    let api = match path {
        "/v1/chat/completions" => Some(Api::Chat),
        "/v1/completions" => Some(Api::Completion),
        _ => None,
    };
    if let Some(api) = api {
        allow(head, &Method::POST)?;
        let body = body.take().expect("nobody has taken the body yet");
        return completions::answer(shared, api, &head.headers, body, request_id.clone()).await;
    }
    let page = match path {
        "/health" => health::health(shared),
        "/ready" => health::ready(shared),
        "/live" => json_response(StatusCode::OK, Bytes::from_static(b"{\"status\":\"live\"}")),
        "/metrics" => health::metrics(shared)?,
        "/v1/models" => health::models(shared),
        other => match other.strip_prefix("/v1/models/") {
            Some(model) => health::model(shared, model)?,
            None => {
                let message = format!("there is nothing at {} {}", head.method, shown(other));
                return Err(ApiError::bare(404, "invalid_request_error", Some("unknown_url"), message));
            }
        },
    };
    allow(head, &Method::GET)?;
    Ok(page)
}

fn allow(head: &Parts, method: &Method) -> Result<(), ApiError> {
    if head.method == *method || (method == Method::GET && head.method == Method::HEAD) {
        return Ok(());
    }
    let message = format!("{} is not allowed here, {method} is", head.method);
    Err(ApiError::bare(405, "invalid_request_error", Some("method_not_allowed"), message))
}

/// Checks the API key in a time that does not depend on where a wrong one differs.
fn authorize(shared: &Shared, head: &Parts) -> Result<(), ApiError> {
    let Some(key) = &shared.api_key else { return Ok(()) };
    let given = head.headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let given = given.and_then(|v| v.split_at_checked(7)).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer ")).map(|(_, k)| k);
    match given {
        Some(given) if bool::from(given.ct_eq(key.as_bytes())) => Ok(()),
        Some(_) => Err(ApiError::bare(401, "invalid_request_error", Some("invalid_api_key"), "the API key is wrong")),
        None => {
            let message = "an API key is required: send it as 'Authorization: Bearer KEY'";
            Err(ApiError::bare(401, "invalid_request_error", Some("missing_api_key"), message))
        }
    }
}

/// Reads the whole body.
///
/// # Errors
/// 413 over the limit, 408 when it does not come in time, 400 when it breaks off.
pub(crate) async fn read_body(limit: usize, body: Incoming) -> Result<Bytes, ApiError> {
    match timeout(BODY_TIMEOUT, collect(limit, body)).await {
        Ok(result) => result,
        Err(_) => {
            let message = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
            Err(ApiError::bare(408, "timeout_error", Some("body_timeout"), message))
        }
    }
}

async fn collect(limit: usize, mut body: Incoming) -> Result<Bytes, ApiError> {
    let announced = body.size_hint().exact().map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let mut too_large = announced > limit;
    let mut collected = BytesMut::with_capacity(if too_large { 0 } else { announced });
    let mut n_bytes = 0usize;
    while let Some(frame) = body.frame().await {
        let broken = |e| ApiError::bare(400, "invalid_request_error", Some("broken_body"), format!("the body cannot be read: {e}"));
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        n_bytes = n_bytes.saturating_add(data.len());
        too_large |= n_bytes > limit;
        if !too_large {
            collected.extend_from_slice(&data);
        } else if n_bytes > limit.saturating_add(DRAIN_BYTES) {
            break;
        }
    }
    if too_large {
        let message = format!("the body is larger than {limit} bytes");
        return Err(ApiError::bare(413, "invalid_request_error", Some("body_too_large"), message));
    }
    Ok(collected.freeze())
}

/// A response with a JSON body.
pub(crate) fn json_response(status: StatusCode, body: Bytes) -> Response<ResponseBody> {
    with_type(status, "application/json", ResponseBody::Whole(Some(body)))
}

/// A response with a body of the given media type.
pub(crate) fn with_type(status: StatusCode, media_type: &'static str, body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

fn error_response(error: &ApiError) -> Response<ResponseBody> {
    let mut body = BytesMut::new();
    error.write_json(&mut body);
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_response(status, body.freeze());
    if let Some(seconds) = error.retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// The beginning of what a client sent, for a message.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}
