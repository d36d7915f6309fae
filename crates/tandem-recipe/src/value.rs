//! One value of a knob: its type, how it is written, and what is wrong with a text that is not one.

use std::fmt;

use tandem_plan::{Bytes, GpuType};
use thiserror::Error;

/// The type of a knob and the values that it allows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A whole number between two bounds, both allowed.
    Int {
        /// Least value.
        min: u64,
        /// Largest value.
        max: u64,
    },
    /// A number between two bounds, both allowed.
    Float {
        /// Least value.
        min: f64,
        /// Largest value.
        max: f64,
    },
    /// `true` or `false`.
    Bool,
    /// Free text.
    Text,
    /// One of some words; case does not matter.
    Choice(&'static [&'static str]),
    /// A GPU type, or `NAME:LIKE` of a GPU of the user's own.
    Gpu,
    /// An amount of memory such as `256MiB`.
    Size,
    /// A Slurm time limit such as `1:00:00`.
    TimeLimit,
}

/// A parsed value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of [`Kind::Int`].
    Int(u64),
    /// Of [`Kind::Float`].
    Float(f64),
    /// Of [`Kind::Bool`].
    Bool(bool),
    /// Of [`Kind::Text`], [`Kind::Choice`] and [`Kind::Gpu`] (in the table's spelling) and [`Kind::TimeLimit`].
    Text(String),
    /// Of [`Kind::Size`].
    Size(Bytes),
}

/// Why a text is not a value of a kind.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ValueError {
    /// Another type.
    #[error("`{found}` is not {expected}")]
    Type {
        /// What was written.
        found: String,
        /// What it should be, with article.
        expected: &'static str,
    },
    /// Below the least value.
    #[error("{found} is below {min}, the least value that it can have")]
    Below {
        /// What was written.
        found: String,
        /// The bound.
        min: String,
    },
    /// Above the largest value.
    #[error("{found} is above {max}, the largest value that it can have")]
    Above {
        /// What was written.
        found: String,
        /// The bound.
        max: String,
    },
    /// Not one of the words.
    #[error("`{found}` is not one of {}", choices.join(", "))]
    Choice {
        /// What was written.
        found: String,
        /// The words.
        choices: &'static [&'static str],
    },
    /// Nothing at all.
    #[error("has no value")]
    Missing,
    /// A list where it is not allowed, or a mapping.
    #[error("is a {found}, expected a value or a list of values")]
    Shape {
        /// `mapping` or `nested list`.
        found: &'static str,
    },
}

impl Kind {
    /// Reads one value.
    ///
    /// # Errors
    /// [`ValueError`] when the text is of another type or out of range.
    pub fn parse(&self, text: &str) -> Result<Value, ValueError> {
        let text = text.trim();
        if text.is_empty() && !matches!(self, Kind::Text) {
            return Err(ValueError::Missing);
        }
        let wrong = |expected| ValueError::Type { found: text.to_owned(), expected };
        match *self {
            Kind::Int { min, max } => parse_int(text, min, max),
            Kind::Float { min, max } => {
                let x: f64 = text.parse().ok().filter(|x: &f64| x.is_finite()).ok_or_else(|| wrong("a number"))?;
                check_range(text, x < min, x > max, min, max)?;
                Ok(Value::Float(x))
            }
            Kind::Bool => match text.to_ascii_lowercase().as_str() {
                "true" | "1" => Ok(Value::Bool(true)),
                "false" | "0" => Ok(Value::Bool(false)),
                _ => Err(wrong("true or false")),
            },
            Kind::Text => Ok(Value::Text(text.to_owned())),
            Kind::Choice(choices) => choices
                .iter()
                .find(|c| c.eq_ignore_ascii_case(text))
                .map(|c| Value::Text((*c).to_owned()))
                .ok_or_else(|| ValueError::Choice { found: text.to_owned(), choices }),
            Kind::Gpu => {
                let gpu: GpuType = text.parse().map_err(|_| wrong(GPU_FORM))?;
                Ok(Value::Text(gpu.to_string()))
            }
            Kind::Size => match parse_size(text) {
                Some(Bytes(0)) => Err(ValueError::Below { found: text.to_owned(), min: "1".to_owned() }),
                Some(bytes) => Ok(Value::Size(bytes)),
                None => Err(wrong("an amount of memory such as 256MiB or 80GiB")),
            },
            Kind::TimeLimit if is_time_limit(text) => Ok(Value::Text(text.to_owned())),
            Kind::TimeLimit => Err(wrong("a Slurm time limit (minutes, hours:minutes:seconds or days-hours)")),
        }
    }

    /// Whether a text with separators is a list of such values: free text is never split.
    #[must_use]
    pub const fn splits(&self) -> bool {
        !matches!(self, Kind::Text | Kind::TimeLimit)
    }

    /// The type and range as the reference shows them.
    #[must_use]
    pub fn describe(&self) -> String {
        match *self {
            Kind::Int { min, max: u64::MAX } => format!("whole number, at least {min}"),
            Kind::Int { min, max } => format!("whole number, {min} to {max}"),
            Kind::Float { min, max } if max >= 1e9 => format!("number, at least {min}"),
            Kind::Float { min, max } => format!("number, {min} to {max}"),
            Kind::Bool => "true or false".to_owned(),
            Kind::Text => "text".to_owned(),
            Kind::Choice(choices) => choices.join(", "),
            Kind::Gpu => GPU_FORM.trim_start_matches("one of ").to_owned(),
            Kind::Size => "amount of memory, e.g. 256MiB, 80GiB, 85.9GB".to_owned(),
            Kind::TimeLimit => "Slurm time limit, e.g. 1:00:00".to_owned(),
        }
    }
}

impl Value {
    /// The value as JSON: sizes as bytes, everything else as it is written.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Value::Int(n) => (*n).into(),
            Value::Float(x) => (*x).into(),
            Value::Bool(b) => (*b).into(),
            Value::Text(s) => s.clone().into(),
            Value::Size(b) => b.0.into(),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Int(n) => write!(f, "{n}"),
            Value::Float(x) => write!(f, "{x}"),
            Value::Bool(b) => write!(f, "{b}"),
            Value::Text(s) => f.write_str(s),
            Value::Size(b) => write!(f, "{b}"),
        }
    }
}

/// What a GPU type looks like.
const GPU_FORM: &str = "one of gb200, b200, h100, h200, b300, gb300, cpu, or NAME:LIKE for a GPU of your own, e.g. mine:gb200";

fn parse_int(text: &str, min: u64, max: u64) -> Result<Value, ValueError> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_whole = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_whole {
        return Err(ValueError::Type { found: text.to_owned(), expected: "a whole number" });
    }
    // A negative number, or one of more digits than u64 has, is a number all the same: out of range, not of another type.
    let value = text.parse::<u64>();
    let negative = text.starts_with('-');
    check_range(text, negative || value.as_ref().is_ok_and(|&n| n < min), value.as_ref().map_or(!negative, |&n| n > max), min, max)?;
    Ok(Value::Int(value.unwrap_or(0)))
}

fn check_range(text: &str, below: bool, above: bool, min: impl fmt::Display, max: impl fmt::Display) -> Result<(), ValueError> {
    if below {
        return Err(ValueError::Below { found: text.to_owned(), min: min.to_string() });
    }
    if above {
        return Err(ValueError::Above { found: text.to_owned(), max: max.to_string() });
    }
    Ok(())
}

/// `256MiB`, `80 GiB`, `85.9GB`, `1024`, case does not matter; none when it is no size.
fn parse_size(text: &str) -> Option<Bytes> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * factor;
    // Exact below 2^53 bytes, 9 PB: more than any device.
    #[expect(clippy::cast_possible_truncation, reason = "float to integer casts saturate, and sizes are not negative")]
    Some(Bytes(bytes.round() as u64))
}

/// `minutes`, `minutes:seconds`, `hours:minutes:seconds`, each with optional `days-` before.
fn is_time_limit(text: &str) -> bool {
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let (days, rest) = text.split_once('-').map_or((None, text), |(days, rest)| (Some(days), rest));
    days.is_none_or(number) && rest.split(':').count() <= 3 && rest.split(':').all(number)
}
