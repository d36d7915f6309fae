//! From the bytes of a request body to a checked request.
//!
//! Unknown fields are ignored, as OpenAI does. A known field that asks for something this
//! server does not do is refused, unless its value asks for nothing (`"n": 1`, `"tools": []`).

mod fields;
mod messages;
mod refusals;

pub use messages::{ChatMessage, Role};

use serde_json::Value;

use self::fields::Fields;
use super::{Api, ApiError, UsageMode};

/// Stop strings of one request at most, as OpenAI.
const MAX_STOPS: usize = 4;

/// What is to be continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A conversation, for the model's chat template.
    Chat(Vec<ChatMessage>),
    /// Plain text.
    Text(String),
    /// Text that the client has tokenized itself.
    Tokens(Vec<u32>),
}

/// A request whose every field has a possible value; only what depends on the server (model, lengths) is still open.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// Model that the client asks for.
    pub model: String,
    /// What is to be continued.
    pub prompt: Prompt,
    /// Whether the response is a stream of events.
    pub stream: bool,
    /// Where a stream carries token counts.
    pub usage: UsageMode,
    /// Tokens to generate at most; `None` = as many as fit.
    pub max_tokens: Option<u32>,
    /// Tokens before which the response does not end.
    pub min_tokens: u32,
    /// Whether end-of-sequence tokens are ignored.
    pub ignore_eos: bool,
    /// Strings that end the response and are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the response.
    pub stop_token_ids: Vec<u32>,
    /// 0 = greedy.
    pub temperature: f32,
    /// Nucleus, 1 = off.
    pub top_p: f32,
    /// Most likely candidates, 0 = all.
    pub top_k: u32,
    /// Seed, if the client wants the same answer again.
    pub seed: Option<u64>,
}

impl GenerateRequest {
    /// Reads the body of a request to `api`.
    ///
    /// # Errors
    /// [`ApiError`] with status 400 that names the field which is wrong.
    pub fn parse(api: Api, body: &[u8]) -> Result<Self, ApiError> {
        let tree: Value = serde_json::from_slice(body)
            .map_err(|e| ApiError::bare(400, "invalid_request_error", Some("invalid_json"), format!("the body is not valid JSON: {e}")))?;
        let Value::Object(mut tree) = tree else {
            return Err(ApiError::bare(400, "invalid_request_error", Some("invalid_json"), "the body must be a JSON object"));
        };
        let model = match tree.get("model") {
            Some(Value::String(model)) => model.clone(),
            Some(Value::Null) | None => return Err(missing("model")),
            Some(other) => return Err(ApiError::invalid("model", format!("must be a string, not {}", fields::kind_of(other)))),
        };
        let prompt = match api {
            Api::Chat => Prompt::Chat(messages::take(&mut tree)?),
            Api::Completion => take_prompt(&mut tree)?,
        };
        let top = Fields::new(&tree, "");
        refusals::check(api, &top)?;
        let nested = top.object("nvext")?;
        let nvext = nested.map(|map| Fields::new(map, "nvext."));
        if let Some(nvext) = &nvext {
            refusals::check_nvext(nvext)?;
        }
        let (stream, usage) = stream_options(&top)?;
        let (max_tokens, min_tokens) = lengths(api, &top)?;
        let sampling = Sampling::parse(&top, nvext.as_ref())?;
        let ignore_eos = nvext.as_ref().map_or(Ok(None), |n| n.bool("ignore_eos"))?.or(top.bool("ignore_eos")?).unwrap_or(false);
        Ok(GenerateRequest {
            model,
            prompt,
            stream,
            usage,
            max_tokens,
            min_tokens,
            ignore_eos,
            stop: stops(&top)?,
            stop_token_ids: top.tokens("stop_token_ids", 64)?.unwrap_or_default(),
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            seed: top.seed("seed")?,
        })
    }
}

struct Sampling {
    temperature: f32,
    top_p: f32,
    top_k: u32,
}

impl Sampling {
    fn parse(top: &Fields<'_>, nvext: Option<&Fields<'_>>) -> Result<Self, ApiError> {
        let greedy = nvext.map_or(Ok(None), |n| n.bool("greed_sampling"))?.unwrap_or(false);
        let temperature = top.number("temperature", 0.0, 2.0)?.unwrap_or(1.0);
        let top_p = top.number("top_p", 0.0, 1.0)?.unwrap_or(1.0);
        if top_p == 0.0 {
            return Err(ApiError::invalid("top_p", "must be greater than 0 and at most 1"));
        }
        let top_k = nvext.map_or(Ok(None), |n| n.top_k("top_k"))?.or(top.top_k("top_k")?).unwrap_or(0);
        Ok(Sampling { temperature: if greedy { 0.0 } else { temperature }, top_p, top_k })
    }
}

fn missing(field: &'static str) -> ApiError {
    ApiError { code: Some("missing_required_parameter"), ..ApiError::invalid(field, "is missing") }
}

fn take_prompt(tree: &mut serde_json::Map<String, Value>) -> Result<Prompt, ApiError> {
    // A batch of one is no batch; some clients always send an array.
    let prompt = match tree.get_mut("prompt").map(Value::take) {
        Some(Value::Array(mut items)) if items.len() == 1 && matches!(items[0], Value::String(_) | Value::Array(_)) => items.pop(),
        other => other,
    };
    match prompt {
        None | Some(Value::Null) => Err(missing("prompt")),
        Some(Value::String(text)) if text.is_empty() => Err(ApiError::invalid("prompt", "must not be empty")),
        Some(Value::String(text)) => Ok(Prompt::Text(text)),
        Some(Value::Array(items)) if items.is_empty() => Err(ApiError::invalid("prompt", "must not be empty")),
        Some(Value::Array(items)) if matches!(items[0], Value::String(_) | Value::Array(_)) => {
            Err(ApiError::unsupported("prompt", "several prompts in one request are not supported; send one request a prompt"))
        }
        Some(Value::Array(items)) => fields::token_ids("prompt", &items).map(Prompt::Tokens),
        Some(other) => {
            Err(ApiError::invalid("prompt", format!("must be a string or an array of token ids, not {}", fields::kind_of(&other))))
        }
    }
}

fn stream_options(top: &Fields<'_>) -> Result<(bool, UsageMode), ApiError> {
    let stream = top.bool("stream")?.unwrap_or(false);
    let Some(options) = top.object("stream_options")? else { return Ok((stream, UsageMode::Never)) };
    if !stream {
        return Err(ApiError::invalid("stream_options", "is only allowed when 'stream' is true"));
    }
    let options = Fields::new(options, "stream_options.");
    let at_end = options.bool("include_usage")?.unwrap_or(false);
    let always = options.bool("continuous_usage_stats")?.unwrap_or(false);
    Ok((
        stream,
        if always {
            UsageMode::Always
        } else if at_end {
            UsageMode::AtEnd
        } else {
            UsageMode::Never
        },
    ))
}

fn lengths(api: Api, top: &Fields<'_>) -> Result<(Option<u32>, u32), ApiError> {
    let old = top.integer("max_tokens", 1)?;
    let new = if api == Api::Chat { top.integer("max_completion_tokens", 1)? } else { None };
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        return Err(ApiError::invalid("max_completion_tokens", format!("is {new} but 'max_tokens' is {old}; send one of them")));
    }
    let (name, max) = if new.is_some() { ("max_completion_tokens", new) } else { ("max_tokens", old) };
    let min = top.integer("min_tokens", 0)?.unwrap_or(0);
    if let Some(max) = max
        && min > max
    {
        return Err(ApiError::invalid("min_tokens", format!("is {min}, more than '{name}' {max}")));
    }
    Ok((max, min))
}

fn stops(top: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let stops = match top.get("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => {
            if many.len() > MAX_STOPS {
                return Err(ApiError::invalid("stop", format!("has {} strings; at most {MAX_STOPS} are allowed", many.len())));
            }
            let text = |(i, item): (usize, &Value)| match item {
                Value::String(text) => Ok(text.clone()),
                other => Err(ApiError::invalid(format!("stop[{i}]"), format!("must be a string, not {}", fields::kind_of(other)))),
            };
            many.iter().enumerate().map(text).collect::<Result<_, _>>()?
        }
        Some(other) => {
            return Err(ApiError::invalid("stop", format!("must be a string or an array of strings, not {}", fields::kind_of(other))));
        }
    };
    if stops.iter().any(String::is_empty) {
        return Err(ApiError::invalid("stop", "must not contain an empty string"));
    }
    Ok(stops)
}

#[cfg(test)]
mod tests;
