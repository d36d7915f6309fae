//! Typed access to the fields of a JSON object, with errors that name the field.

use serde_json::{Map, Value};

use super::super::ApiError;

/// One object of the request and how its fields are called in errors.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    prefix: &'static str,
}

impl<'a> Fields<'a> {
    /// Fields of `map`, whose full names start with `prefix`.
    pub(super) fn new(map: &'a Map<String, Value>, prefix: &'static str) -> Self {
        Fields { map, prefix }
    }

    /// The value of `name`; null counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    pub(super) fn error(&self, name: &str, message: impl Into<String>) -> ApiError {
        ApiError::invalid(format!("{}{name}", self.prefix), message)
    }

    pub(super) fn unsupported(&self, name: &str, message: impl Into<String>) -> ApiError {
        ApiError::unsupported(format!("{}{name}", self.prefix), message)
    }

    fn wrong_type(&self, name: &str, expected: &str, value: &Value) -> ApiError {
        self.error(name, format!("must be {expected}, not {}", kind_of(value)))
    }

    pub(super) fn bool(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong_type(name, "a boolean", other)),
        }
    }

    pub(super) fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.wrong_type(name, "an object", other)),
        }
    }

    /// A number between `low` and `high`, both allowed.
    pub(super) fn number(&self, name: &str, low: f64, high: f64) -> Result<Option<f32>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Number(number)) => match number.as_f64() {
                Some(value) if (low..=high).contains(&value) => Ok(Some(narrow(value))),
                _ => Err(self.error(name, format!("is {number}; must be between {low} and {high}"))),
            },
            Some(other) => Err(self.wrong_type(name, "a number", other)),
        }
    }

    /// A whole number of at least `low` that fits 32 bits.
    pub(super) fn integer(&self, name: &str, low: u32) -> Result<Option<u32>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Number(number)) => match number.as_u64().map(u32::try_from) {
                Some(Ok(value)) if value >= low => Ok(Some(value)),
                _ => Err(self.error(name, format!("is {number}; must be an integer between {low} and {}", u32::MAX))),
            },
            Some(other) => Err(self.wrong_type(name, "an integer", other)),
        }
    }

    /// `top_k`: -1 and 0 both mean all candidates.
    pub(super) fn top_k(&self, name: &str) -> Result<Option<u32>, ApiError> {
        match self.get(name) {
            Some(Value::Number(number)) if number.as_i64() == Some(-1) => Ok(Some(0)),
            _ => self.integer(name, 0),
        }
    }

    /// Any 64-bit integer; negative ones are taken by their bits.
    pub(super) fn seed(&self, name: &str) -> Result<Option<u64>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Number(number)) => match number.as_u64().or(number.as_i64().map(i64::cast_unsigned)) {
                Some(value) => Ok(Some(value)),
                None => Err(self.error(name, format!("is {number}; must be a 64-bit integer"))),
            },
            Some(other) => Err(self.wrong_type(name, "an integer", other)),
        }
    }

    /// An array of at most `most` token ids.
    pub(super) fn tokens(&self, name: &str, most: usize) -> Result<Option<Vec<u32>>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(items)) if items.len() > most => {
                Err(self.error(name, format!("has {} entries; at most {most} are allowed", items.len())))
            }
            Some(Value::Array(items)) => token_ids(name, items).map(Some),
            Some(other) => Err(self.wrong_type(name, "an array of token ids", other)),
        }
    }
}

/// The token ids of the array `name`.
pub(super) fn token_ids(name: &str, items: &[Value]) -> Result<Vec<u32>, ApiError> {
    let id = |(i, item): (usize, &Value)| {
        let value = item.as_u64().and_then(|v| u32::try_from(v).ok());
        value.ok_or_else(|| ApiError::invalid(format!("{name}[{i}]"), format!("must be a token id, not {}", shown(item))))
    };
    items.iter().enumerate().map(id).collect()
}

/// The JSON type of a value, for errors.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        other => kind_of(other).to_owned(),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the caller has checked the range; sampling needs no more than f32")]
fn narrow(value: f64) -> f32 {
    value as f32
}
