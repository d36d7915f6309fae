//! Fields of OpenAI's API that this server does not implement: fine when they ask for nothing, refused otherwise.

use serde_json::Value;

use super::super::{Api, ApiError};
use super::fields::Fields;

pub(super) fn check(api: Api, top: &Fields<'_>) -> Result<(), ApiError> {
    for name in ["n", "best_of"] {
        if let Some(n) = top.integer(name, 1)?
            && n > 1
        {
            return Err(top.unsupported(name, format!("is {n}; only 1 is supported")));
        }
    }
    for name in ["presence_penalty", "frequency_penalty"] {
        if top.number(name, -2.0, 2.0)?.is_some_and(|p| p != 0.0) {
            return Err(top.unsupported(name, "is not supported; only 0 is"));
        }
    }
    repetition_penalty(top)?;
    for name in ["tools", "functions", "logit_bias"] {
        match top.get(name) {
            None => {}
            Some(Value::Array(items)) if items.is_empty() => {}
            Some(Value::Object(items)) if items.is_empty() => {}
            Some(_) => return Err(top.unsupported(name, "is not supported")),
        }
    }
    for name in ["tool_choice", "function_call"] {
        match top.get(name) {
            None => {}
            Some(Value::String(choice)) if choice == "none" || choice == "auto" => {}
            Some(_) => return Err(top.unsupported(name, "is not supported")),
        }
    }
    response_format(top)?;
    modalities(top)?;
    logprobs(api, top)?;
    if top.bool("echo")?.unwrap_or(false) {
        return Err(top.unsupported("echo", "is not supported"));
    }
    match top.get("suffix") {
        None => Ok(()),
        Some(Value::String(suffix)) if suffix.is_empty() => Ok(()),
        Some(_) => Err(top.unsupported("suffix", "is not supported")),
    }
}

pub(super) fn check_nvext(nvext: &Fields<'_>) -> Result<(), ApiError> {
    repetition_penalty(nvext)?;
    if nvext.get("token_data").is_some() {
        return Err(nvext.unsupported("token_data", "is not supported; send token ids as the 'prompt' of /v1/completions"));
    }
    if nvext.bool("use_raw_prompt")?.unwrap_or(false) {
        return Err(nvext.unsupported("use_raw_prompt", "is not supported; send raw text to /v1/completions"));
    }
    Ok(())
}

fn repetition_penalty(fields: &Fields<'_>) -> Result<(), ApiError> {
    if fields.number("repetition_penalty", 0.0, 10.0)?.is_some_and(|p| p != 1.0) {
        return Err(fields.unsupported("repetition_penalty", "is not supported; only 1 is"));
    }
    Ok(())
}

fn response_format(top: &Fields<'_>) -> Result<(), ApiError> {
    let Some(format) = top.object("response_format")? else { return Ok(()) };
    match format.get("type") {
        Some(Value::String(kind)) if kind == "text" => Ok(()),
        _ => Err(top.unsupported("response_format", "only {\"type\": \"text\"} is supported")),
    }
}

fn modalities(top: &Fields<'_>) -> Result<(), ApiError> {
    match top.get("modalities") {
        None => Ok(()),
        Some(Value::Array(items)) if items.iter().all(|v| v == "text") => Ok(()),
        Some(_) => Err(top.unsupported("modalities", "only [\"text\"] is supported")),
    }
}

fn logprobs(api: Api, top: &Fields<'_>) -> Result<(), ApiError> {
    let wanted = match api {
        Api::Chat => top.bool("logprobs")?.unwrap_or(false),
        Api::Completion => match top.get("logprobs") {
            Some(Value::Bool(wanted)) => *wanted,
            _ => top.integer("logprobs", 0)?.is_some(),
        },
    };
    if wanted {
        return Err(top.unsupported("logprobs", "is not supported"));
    }
    if top.integer("top_logprobs", 0)?.is_some_and(|n| n > 0) {
        return Err(top.unsupported("top_logprobs", "is not supported"));
    }
    Ok(())
}
