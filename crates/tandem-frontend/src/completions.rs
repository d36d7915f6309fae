//! `/v1/chat/completions` and `/v1/completions`: from a body to a response.

use std::sync::Arc;

use bytes::BytesMut;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use tandem_plan::Phase;
use tandem_tokenizer::{ChatMessage, Tokenizer, TokenizerError};
use tandem_wire::openai::{Api, ApiError, ChunkWriter, FinalText, GenerateRequest, Prompt};
use tandem_wire::worker::SamplingParams;
use tokio::time::Instant;

use crate::failures::api_error;
use crate::generation::{Generation, Job, Served};
use crate::http::{ResponseBody, json_response, read_body, shown, with_type};
use crate::lifecycle::Failure;
use crate::metrics::Outcome;
use crate::reply::{EventBody, Reply, Whole};
use crate::shared::{Shared, Ticket, random};
use crate::text::{TextRules, TextStream};

const PREFILL: HeaderName = HeaderName::from_static("x-tandem-prefill");
const DECODE: HeaderName = HeaderName::from_static("x-tandem-decode");
const PREFILL_WORKER: HeaderName = HeaderName::from_static("x-tandem-prefill-worker");
const DECODE_WORKER: HeaderName = HeaderName::from_static("x-tandem-decode-worker");

/// Text from this size on is tokenized on another thread, so that it does not hold up the streams of this one.
const LONG_TEXT_BYTES: usize = 16 << 10;

/// Answers one request.
pub(crate) async fn answer(
    shared: &Arc<Shared>,
    api: Api,
    headers: &HeaderMap,
    body: Incoming,
    request_id: HeaderValue,
) -> Result<Response<ResponseBody>, ApiError> {
    let endpoint = if api == Api::Chat { "chat" } else { "completions" };
    let ticket = shared.admit(endpoint, request_id);
    let body = read_body(shared.limits.body_bytes, body).await;
    let Some(mut ticket) = ticket else {
        let message = format!("{} requests are in the system, no more are taken", shared.limits.in_flight);
        return Err(ApiError { retry_after_s: Some(1), ..ApiError::bare(429, "rate_limit_error", Some("queue_full"), message) });
    };
    let prepared = match body {
        Ok(body) => prepare(shared, api, headers, &body, &ticket).await,
        Err(error) => Err(error),
    };
    match prepared {
        Ok(prepared) => prepared.respond(shared, api, ticket).await,
        Err(error) => {
            ticket.ended(if error.status == 503 { Outcome::Unavailable } else { Outcome::Invalid });
            Err(error)
        }
    }
}

/// A request that may run.
struct Prepared {
    request: GenerateRequest,
    job: Job,
    rules: TextRules,
}

async fn prepare(shared: &Arc<Shared>, api: Api, headers: &HeaderMap, body: &[u8], ticket: &Ticket) -> Result<Prepared, ApiError> {
    let mut request = GenerateRequest::parse(api, body)?;
    if request.model != shared.model {
        let message = format!("the model '{}' does not exist; this server has '{}'", shown(&request.model), shared.model);
        let error = ApiError::bare(404, "invalid_request_error", Some("model_not_found"), message);
        return Err(ApiError { param: Some("model".into()), ..error });
    }
    let prefill = wanted(shared, headers, &PREFILL, Phase::Prefill)?;
    let decode = wanted(shared, headers, &DECODE, Phase::Decode)?;
    let prompt = tokenize(shared, std::mem::replace(&mut request.prompt, Prompt::Tokens(Vec::new()))).await?;
    let max_tokens = output_limit(shared, api, &request, prompt.len())?;
    let sampling = SamplingParams {
        max_tokens,
        min_tokens: request.min_tokens,
        ignore_eos: request.ignore_eos,
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        seed: request.seed.unwrap_or_else(random),
        stop_token_ids: request.stop_token_ids.clone(),
    };
    for phase in [Phase::Prefill, Phase::Decode] {
        if !shared.workers.has(phase) {
            return Err(api_error(&Failure::NoWorker(phase)));
        }
    }
    let mut end_tokens = request.stop_token_ids.clone();
    end_tokens.extend_from_slice(&shared.eos);
    let rules = TextRules {
        tokenizer: Arc::clone(&shared.tokenizer),
        marks: if api == Api::Chat { shared.marks } else { None },
        stops: request.stop.clone(),
        min_tokens: request.min_tokens,
        end_tokens,
    };
    let deadline = Instant::from_std(ticket.arrived + shared.limits.timeout);
    let job = Job { prompt, sampling, streaming: request.stream, prefill, decode, deadline };
    Ok(Prepared { request, job, rules })
}

/// The worker that a header asks for by name.
fn wanted(shared: &Shared, headers: &HeaderMap, header: &HeaderName, phase: Phase) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(header) else { return Ok(None) };
    let name = String::from_utf8_lossy(value.as_bytes()).into_owned();
    if shared.workers.knows(phase, &name) {
        return Ok(Some(name));
    }
    Err(ApiError::invalid(header.as_str().to_owned(), format!("there is no {phase} worker '{}'", shown(&name))))
}

async fn tokenize(shared: &Shared, prompt: Prompt) -> Result<Vec<u32>, ApiError> {
    let param = if matches!(prompt, Prompt::Chat(_)) { "messages" } else { "prompt" };
    let n_bytes = match &prompt {
        Prompt::Tokens(tokens) => {
            if let Some(at) = tokens.iter().position(|&t| t >= shared.limits.vocab) {
                let message = format!("is {}, but the vocabulary has {} tokens", tokens[at], shared.limits.vocab);
                return Err(ApiError::invalid(format!("prompt[{at}]"), message));
            }
            0
        }
        Prompt::Text(text) => text.len(),
        Prompt::Chat(messages) => messages.iter().map(|m| m.content.len()).sum(),
    };
    let tokens = if n_bytes >= LONG_TEXT_BYTES {
        let tokenizer = Arc::clone(&shared.tokenizer);
        let encoded = tokio::task::spawn_blocking(move || encode(&tokenizer, prompt)).await;
        encoded.map_err(|_| ApiError::bare(500, "server_error", Some("tokenizer_failed"), "the tokenizer failed"))?
    } else {
        encode(&shared.tokenizer, prompt)
    };
    match tokens {
        Ok(tokens) if tokens.is_empty() => Err(ApiError::invalid(param, "has no tokens")),
        Ok(tokens) => Ok(tokens),
        Err(error) => Err(ApiError::invalid(param, error.to_string())),
    }
}

/// Tokens to generate at most.
fn output_limit(shared: &Shared, api: Api, request: &GenerateRequest, n_prompt: usize) -> Result<u32, ApiError> {
    let param = if api == Api::Chat { "messages" } else { "prompt" };
    let context = shared.limits.context;
    let too_long = |message: String| {
        let error = ApiError::bare(400, "invalid_request_error", Some("context_length_exceeded"), message);
        ApiError { param: Some(param.into()), ..error }
    };
    let n_prompt = match u32::try_from(n_prompt) {
        Ok(n) if n <= shared.limits.prompt => n,
        _ => return Err(too_long(format!("the prompt has {n_prompt} tokens; at most {} are possible", shared.limits.prompt))),
    };
    let room = context - n_prompt;
    let max_tokens = request.max_tokens.unwrap_or(room);
    if max_tokens > room {
        let total = u64::from(n_prompt) + u64::from(max_tokens);
        let message = format!(
            "the maximum context length is {context} tokens, but {total} were asked for: {n_prompt} of the prompt and {max_tokens} to generate"
        );
        return Err(too_long(message));
    }
    if request.min_tokens > max_tokens {
        return Err(ApiError::invalid(
            "min_tokens",
            format!("is {}, but at most {max_tokens} tokens can be generated", request.min_tokens),
        ));
    }
    Ok(max_tokens)
}

impl Prepared {
    async fn respond(self, shared: &Arc<Shared>, api: Api, ticket: Ticket) -> Result<Response<ResponseBody>, ApiError> {
        let Prepared { request, job, rules } = self;
        let id = format!("{}-{:016x}", if api == Api::Chat { "chatcmpl" } else { "cmpl" }, random() ^ shared.id_salt);
        let created = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(shared.started, |d| d.as_secs());
        let n_prompt = u32::try_from(job.prompt.len()).expect("a prompt fits the context length");
        shared.metrics.prompt_tokens.inc_by(u64::from(n_prompt));
        let text = TextStream::new(rules, &job.prompt);
        let reply = Reply::new(Arc::clone(shared), Generation::new(Arc::clone(shared), job), text, n_prompt, ticket);
        let (mut response, served) = if request.stream {
            let writer = ChunkWriter::new(api, request.usage, &id, created, &shared.model);
            let mut events = EventBody::new(reply, writer);
            events.begin().await?;
            let served = events.served().clone();
            let mut response = with_type(StatusCode::OK, "text/event-stream", ResponseBody::Events(Box::new(events)));
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            (response, served)
        } else {
            whole(shared, api, reply, &id, created).await?
        };
        for (name, worker) in [(PREFILL_WORKER, served.prefill), (DECODE_WORKER, served.decode)] {
            if let Some(value) = worker.and_then(|w| HeaderValue::from_str(&w.name).ok()) {
                response.headers_mut().insert(name, value);
            }
        }
        Ok(response)
    }
}

async fn whole(shared: &Shared, api: Api, mut reply: Reply, id: &str, created: u64) -> Result<(Response<ResponseBody>, Served), ApiError> {
    let mut text = Whole::default();
    let finish = loop {
        match std::future::poll_fn(|cx| reply.poll_step(cx, &mut text)).await {
            Ok(Some(finish)) => break finish,
            Ok(None) => {}
            Err(failure) => return Err(api_error(&failure)),
        }
    };
    let reasoning = reply.usage().reasoning_tokens.is_some_and(|n| n > 0).then_some(text.reasoning.as_str());
    let mut body = BytesMut::with_capacity(text.content.len() + text.reasoning.len() + 512);
    FinalText { content: &text.content, reasoning, finish, usage: reply.usage() }.write(api, id, created, &shared.model, &mut body);
    Ok((json_response(StatusCode::OK, body.freeze()), reply.served().clone()))
}

fn encode(tokenizer: &Tokenizer, prompt: Prompt) -> Result<Vec<u32>, TokenizerError> {
    match prompt {
        Prompt::Tokens(tokens) => Ok(tokens),
        Prompt::Text(text) => {
            let mut tokens = tokenizer.encode(&text)?;
            // As the models' own tokenizers do with text that is no chat.
            if let Some(bos) = tokenizer.bos_id().filter(|bos| tokens.first() != Some(bos)) {
                tokens.insert(0, bos);
            }
            Ok(tokens)
        }
        Prompt::Chat(messages) => {
            let borrowed: Vec<ChatMessage<'_>> =
                messages.iter().map(|m| ChatMessage { role: m.role.as_str(), content: &m.content }).collect();
            tokenizer.encode_chat(&borrowed, true)
        }
    }
}
