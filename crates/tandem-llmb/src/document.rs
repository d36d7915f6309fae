//! A YAML document as values in file order, and the one error.

/// Why a file or a request cannot be used; the text is for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LlmbError(pub String);

impl LlmbError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        LlmbError(text.into())
    }
}

/// Parses YAML with mappings in file order.
pub(crate) fn yaml(what: &str, text: &str) -> Result<serde_json::Value, LlmbError> {
    serde_saphyr::from_str(text).map_err(|e| LlmbError(format!("{what}: {e}")))
}

/// A scalar as the tools print it; none for null, lists and mappings.
pub(crate) fn scalar(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::String(s) => Some(s.clone()),
        serde_json::Value::Number(n) => Some(n.to_string()),
        serde_json::Value::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}
