//! `--set NAME=…` as axes of a space: lists, ranges with steps, and knobs that follow from others.
//!
//! `A,B,C` is a list; `LO..HI` every whole number, `LO..HI:STEP` every STEP-th, `LO..HI:xF` each F times the one before; pieces can be
//! mixed. An expression of other knobs makes a derived knob: `CONCURRENCY=GEN_MAX_BATCH_SIZE*GEN_WORLD_SIZE`.

use tandem_recipe::value::{Kind, ValueError};
use tandem_recipe::{Knob, Value};
use thiserror::Error;

use crate::expression::{Expression, ExpressionError};

/// Values of one axis, at most.
const MAX_VALUES: usize = 10_000;

/// Why a text is no axis.
#[derive(Debug, Error)]
pub enum AxisError {
    /// A range that ends before it begins, or never.
    #[error("{knob}: the range `{text}` has no values, or more than {MAX_VALUES}")]
    Range {
        /// The knob.
        knob: &'static str,
        /// What was written.
        text: String,
    },
    /// A value that the knob cannot have.
    #[error("{knob}")]
    Value {
        /// The knob.
        knob: &'static str,
        /// Why.
        #[source]
        problem: ValueError,
    },
    /// An expression that is none.
    #[error("{knob}")]
    Expression {
        /// The knob.
        knob: &'static str,
        /// Why.
        #[source]
        problem: ExpressionError,
    },
    /// A derived knob that depends on a derived knob.
    #[error("{knob} follows from {on}, which follows from other knobs itself")]
    Chained {
        /// The knob.
        knob: &'static str,
        /// The other.
        on: String,
    },
}

/// What `--set` asks to vary, and what is left for the recipe.
#[derive(Debug, Clone, Default)]
pub struct Axes {
    /// Knobs with their values, in the order given; the last varies fastest.
    pub axes: Vec<(&'static Knob, Vec<Value>)>,
    /// Knobs that follow from others.
    pub derived: Vec<(&'static Knob, Expression)>,
    /// `NAME=VALUE` for the recipe: single values, and names that it shall complain about.
    pub rest: Vec<String>,
}

impl Axes {
    /// Sorts the texts of `--set`; a later one replaces an earlier one of the same name.
    ///
    /// # Errors
    /// [`AxisError`] of the first that is wrong.
    pub fn parse(sets: &[String]) -> Result<Self, AxisError> {
        let mut all = Axes::default();
        for set in sets {
            let (name, text) = set.split_once('=').unwrap_or((set, ""));
            let Some(knob) = Knob::find(name.trim()).filter(|k| k.kind.splits() && k.name != "GPU_TYPE") else {
                all.rest.push(set.clone());
                continue;
            };
            all.axes.retain(|(k, _)| k.name != knob.name);
            all.derived.retain(|(k, _)| k.name != knob.name);
            if let Some(expression) = derived(knob, text)? {
                all.derived.push((knob, expression));
                continue;
            }
            let values = values(knob, text)?;
            // A single value stays with the recipe, which knows its layer.
            if values.len() == 1 { all.rest.push(format!("{name}={}", values[0])) } else { all.axes.push((knob, values)) }
        }
        for (knob, expression) in &all.derived {
            if let Some(on) = expression.names().into_iter().find(|name| all.derived.iter().any(|(k, _)| k.name == *name)) {
                return Err(AxisError::Chained { knob: knob.name, on: on.to_owned() });
            }
        }
        Ok(all)
    }
}

/// The expression of a derived knob: a text in which another knob is named.
fn derived(knob: &'static Knob, text: &str) -> Result<Option<Expression>, AxisError> {
    let names_a_knob = |text: &str| text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| Knob::find(word).is_some());
    if !names_a_knob(text) {
        return Ok(None);
    }
    Expression::parse(text).map(Some).map_err(|problem| AxisError::Expression { knob: knob.name, problem })
}

/// The values of a list of single values and ranges, each once.
fn values(knob: &'static Knob, text: &str) -> Result<Vec<Value>, AxisError> {
    let mut values: Vec<Value> = Vec::new();
    for piece in text.split(',') {
        let texts = if piece.contains("..") { range(knob, piece)? } else { vec![piece.to_owned()] };
        for text in texts {
            let value = knob.kind.parse(&text).map_err(|problem| AxisError::Value { knob: knob.name, problem })?;
            if !values.contains(&value) {
                values.push(value);
            }
        }
    }
    Ok(values)
}

fn range(knob: &'static Knob, piece: &str) -> Result<Vec<String>, AxisError> {
    let wrong = || AxisError::Range { knob: knob.name, text: piece.to_owned() };
    let (low, rest) = piece.split_once("..").ok_or_else(wrong)?;
    let (high, step) = rest.split_once(':').unwrap_or((rest, "1"));
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|x| x.is_finite()).ok_or_else(wrong);
    let (low, high) = (number(low)?, number(high)?);
    let (factor, step) = match step.trim().strip_prefix('x') {
        Some(factor) => (number(factor)?, 0.0),
        None => (1.0, number(step)?),
    };
    let grows = factor > 1.0 && low > 0.0 || factor == 1.0 && step > 0.0;
    if !grows || low > high {
        return Err(wrong());
    }
    let mut texts = Vec::new();
    let mut x = low;
    // A little beyond the end, for steps such as 0.1.
    while x <= high + (high - low).abs() * 1e-9 {
        if texts.len() == MAX_VALUES {
            return Err(wrong());
        }
        // Twelve digits: 0.1 + 0.2 is 0.3. Factors need not meet whole numbers: the nearest one is meant.
        let is_whole = factor > 1.0 && matches!(knob.kind, Kind::Int { .. });
        let rounded = if is_whole { x.round() } else { (x * 1e12).round() / 1e12 };
        texts.push(rounded.to_string());
        #[expect(clippy::cast_precision_loss, reason = "at most ten thousand")]
        let n = texts.len() as f64;
        x = if factor > 1.0 { x * factor } else { low + n * step };
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Vec<String> {
        let axes = Axes::parse(&[text.to_owned()]).unwrap();
        axes.axes.iter().flat_map(|(_, values)| values.iter().map(ToString::to_string)).collect()
    }

    #[test]
    fn lists_ranges_and_steps() {
        assert_eq!(one("NCTX=1,2,4"), ["1", "2", "4"]);
        assert_eq!(one("NCTX=1..4"), ["1", "2", "3", "4"]);
        assert_eq!(one("NCTX=1..9:4,16"), ["1", "5", "9", "16"]);
        assert_eq!(one("CONCURRENCY=64..1024:x2"), ["64", "128", "256", "512", "1024"]);
        assert_eq!(one("CONCURRENCY=4..20:x1.5"), ["4", "6", "9", "14"]);
        assert_eq!(one("NCTX=1..4:x1.2"), ["1", "2", "3", "4"], "each once");
        assert_eq!(one("GEN_GPU_MEMORY_FRACTION=0.7..0.9:0.1"), ["0.7", "0.8", "0.9"]);
        assert_eq!(one("GEN_ATTENTION_DP=true,false"), ["true", "false"]);
    }

    #[test]
    fn single_values_and_unknown_names_stay_with_the_recipe() {
        let axes = Axes::parse(&["NCTX=3".to_owned(), "NTCX=3".to_owned(), "MODEL=a,b".to_owned()]).unwrap();
        assert_eq!(axes.rest, ["NCTX=3", "NTCX=3", "MODEL=a,b"]);
        assert!(axes.axes.is_empty());
    }

    #[test]
    fn a_knob_can_follow_from_others_but_not_from_a_derived_one() {
        let axes = Axes::parse(&["CONCURRENCY=GEN_MAX_BATCH_SIZE*GEN_WORLD_SIZE".to_owned()]).unwrap();
        assert_eq!(axes.derived[0].1.names(), ["GEN_MAX_BATCH_SIZE", "GEN_WORLD_SIZE"]);
        let chained = ["CONCURRENCY=NGEN*2".to_owned(), "NGEN=NCTX*2".to_owned()];
        assert!(matches!(Axes::parse(&chained), Err(AxisError::Chained { .. })));
    }

    #[test]
    fn wrong_ranges_and_values_are_errors() {
        for text in ["NCTX=4..1", "NCTX=1..4:0", "NCTX=0..4:x2", "NCTX=1..4:x1", "NCTX=1..1e9", "NCTX=a..b"] {
            assert!(matches!(Axes::parse(&[text.to_owned()]), Err(AxisError::Range { .. })), "{text}");
        }
        for text in ["NCTX=1,x", "NCTX=1..3:0.5", "GEN_MAX_BATCH_SIZE=0..2"] {
            assert!(matches!(Axes::parse(&[text.to_owned()]), Err(AxisError::Value { .. })), "{text}");
        }
    }
}
