//! The conversation of a chat request.

use serde_json::{Map, Value};

use super::super::ApiError;
use super::fields::kind_of;
use super::missing;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The operator (OpenAI's `system` and `developer`).
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that chat templates know.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said; text parts are joined.
    pub content: String,
}

/// Takes the messages out of the request.
pub(super) fn take(tree: &mut Map<String, Value>) -> Result<Vec<ChatMessage>, ApiError> {
    match tree.get_mut("messages").map(Value::take) {
        None | Some(Value::Null) => Err(missing("messages")),
        Some(Value::Array(items)) if items.is_empty() => Err(ApiError::invalid("messages", "must not be empty")),
        Some(Value::Array(items)) => items.into_iter().enumerate().map(|(i, item)| message(i, item)).collect(),
        Some(other) => Err(ApiError::invalid("messages", format!("must be an array, not {}", kind_of(&other)))),
    }
}

fn message(i: usize, item: Value) -> Result<ChatMessage, ApiError> {
    let Value::Object(mut item) = item else {
        return Err(ApiError::invalid(format!("messages[{i}]"), format!("must be an object, not {}", kind_of(&item))));
    };
    let role = match item.get("role") {
        Some(Value::String(role)) => match role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => {
                let shown: String = other.chars().take(32).collect();
                let message = format!("'{shown}' is not one of 'system', 'developer', 'user', 'assistant'");
                return Err(ApiError::invalid(format!("messages[{i}].role"), message));
            }
        },
        Some(other) => return Err(ApiError::invalid(format!("messages[{i}].role"), format!("must be a string, not {}", kind_of(other)))),
        None => return Err(ApiError::invalid(format!("messages[{i}].role"), "is missing")),
    };
    for field in ["tool_calls", "function_call", "audio"] {
        if item.get(field).is_some_and(|v| !v.is_null() && v.as_array().is_none_or(|a| !a.is_empty())) {
            return Err(ApiError::unsupported(format!("messages[{i}].{field}"), "is not supported"));
        }
    }
    let content = match item.get_mut("content").map(Value::take) {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => join_parts(i, parts)?,
        // An assistant message may be empty, as OpenAI allows.
        None | Some(Value::Null) if role == Role::Assistant => String::new(),
        None | Some(Value::Null) => return Err(ApiError::invalid(format!("messages[{i}].content"), "is missing")),
        Some(other) => {
            let message = format!("must be a string or an array of text parts, not {}", kind_of(&other));
            return Err(ApiError::invalid(format!("messages[{i}].content"), message));
        }
    };
    Ok(ChatMessage { role, content })
}

fn join_parts(i: usize, parts: Vec<Value>) -> Result<String, ApiError> {
    let mut joined = String::new();
    for (k, part) in parts.iter().enumerate() {
        let name = || format!("messages[{i}].content[{k}]");
        let Value::Object(part) = part else {
            return Err(ApiError::invalid(name(), format!("must be an object, not {}", kind_of(part))));
        };
        match part.get("type") {
            Some(Value::String(kind)) if kind == "text" => {}
            Some(Value::String(kind)) => {
                let shown: String = kind.chars().take(32).collect();
                return Err(ApiError::unsupported(format!("{}.type", name()), format!("'{shown}' is not supported; only 'text' is")));
            }
            _ => return Err(ApiError::invalid(format!("{}.type", name()), "must be 'text'")),
        }
        match part.get("text") {
            Some(Value::String(text)) => joined.push_str(text),
            _ => return Err(ApiError::invalid(format!("{}.text", name()), "must be a string")),
        }
    }
    Ok(joined)
}
