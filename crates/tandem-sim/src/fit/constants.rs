//! The file of fitted constants: the shipped one, or a user's own.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use thiserror::Error;

use super::coordinates::{DECODE_SCALES, PREFILL_SCALES};
use super::features::{DECODE, PREFILL};
use super::field::Field;
use super::routing::routing_of;
use crate::cost::Coefficients;
use crate::des::WorkerChoice;
use crate::rows::Scenario;

const SHIPPED: &str = include_str!("../../data/constants.json");
/// Version of the file's form.
const SCHEMA: u64 = 2;

/// Everything a fit produces.
#[derive(Debug, Clone, PartialEq)]
pub struct Constants {
    /// Constants of the analytic step times.
    pub coefficients: Coefficients,
    /// Weights of the decode correction, in the order of [`DECODE`].
    pub decode: Vec<f64>,
    /// What the decode features leave over.
    pub decode_field: Field,
    /// Weights of the prefill correction, in the order of [`PREFILL`].
    pub prefill: Vec<f64>,
    /// What the prefill features leave over.
    pub prefill_field: Field,
    /// Weights of the correction for aggregated servers, in the order of [`DECODE`].
    pub aggregated: Vec<f64>,
    /// How decode workers are chosen, by GPU, stack and class of prompt lengths; the least loaded where nothing is said.
    pub routing: BTreeMap<String, WorkerChoice>,
    /// Where they come from.
    pub provenance: Provenance,
}

/// From what the constants were fitted, and how well they predict what they were not fitted on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Provenance {
    /// Words for people.
    pub source: String,
    /// Rows that were fitted.
    pub rows: u64,
    /// Whether measured tables of operators took the place of roofline terms.
    pub tables: bool,
    /// Out-of-fold spread by metric and group (`tpot`, `tpot gb200 trt`, …): 80 % of |ln(predicted / measured)| lie below.
    pub spread: BTreeMap<String, f64>,
    /// Configurations by GPU, stack and weights, and the range of their batches.
    pub support: BTreeMap<String, Support>,
}

/// What a group of fitted rows covered.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Support {
    /// Rows.
    pub rows: u64,
    /// Smallest and largest batch of an attention rank in decode.
    pub batch: (f64, f64),
    /// Latest month since January 2026.
    pub latest: f64,
}

/// Why a file of constants cannot be used.
#[derive(Debug, Error)]
pub enum ConstantsError {
    /// Not JSON.
    #[error("constants are not JSON")]
    Json(#[from] serde_json::Error),
    /// Another form.
    #[error("constants have schema {0}, this version reads {SCHEMA}")]
    Schema(u64),
    /// A value is missing.
    #[error("constants: `{0}` is missing or not a number")]
    Missing(String),
}

impl Constants {
    /// The constants that ship.
    #[must_use]
    pub fn shipped() -> Self {
        Constants::from_json(SHIPPED).expect("a test reads the shipped constants")
    }

    /// The analytic model without any correction.
    #[must_use]
    pub fn uncorrected() -> Self {
        Constants {
            coefficients: Coefficients::START,
            decode: vec![0.0; DECODE.len()],
            decode_field: Field::default(),
            prefill: vec![0.0; PREFILL.len()],
            prefill_field: Field::default(),
            aggregated: vec![0.0; DECODE.len()],
            routing: BTreeMap::new(),
            provenance: Provenance::default(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ConstantsError`] naming what is wrong.
    pub fn from_json(text: &str) -> Result<Self, ConstantsError> {
        let json: Value = serde_json::from_str(text)?;
        let schema = json["schema"].as_u64().unwrap_or(0);
        if schema != SCHEMA {
            return Err(ConstantsError::Schema(schema));
        }
        let coefficients = Coefficients::from_json(&json["coefficients"]).map_err(|name| ConstantsError::Missing(name.to_owned()))?;
        Ok(Constants {
            coefficients,
            decode: weights(&json, "decode", &DECODE)?,
            decode_field: field(&json, "decode_field", DECODE_SCALES.len())?,
            prefill: weights(&json, "prefill", &PREFILL)?,
            prefill_field: field(&json, "prefill_field", PREFILL_SCALES.len())?,
            aggregated: weights(&json, "aggregated", &DECODE)?,
            routing: routing(&json["routing"]),
            provenance: provenance(&json["provenance"]),
        })
    }

    /// How the decode workers of a scenario are chosen.
    #[must_use]
    pub fn routing_of(&self, s: &Scenario) -> WorkerChoice {
        routing_of(&self.routing, s)
    }

    /// The file's text.
    #[must_use]
    pub fn to_json(&self) -> String {
        let named = |names: &[&str], w: &[f64]| -> Value {
            let pairs = names.iter().zip(w).map(|(name, w)| ((*name).to_owned(), Value::from(rounded(*w))));
            Value::Object(pairs.collect())
        };
        let support: BTreeMap<&String, Value> = self.provenance.support.iter().map(|(k, s)| (k, support_json(s))).collect();
        let spread: BTreeMap<&String, f64> = self.provenance.spread.iter().map(|(k, v)| (k, rounded(*v))).collect();
        let mut json = json!({
            "schema": SCHEMA,
            "provenance": {"source": self.provenance.source, "rows": self.provenance.rows, "spread": spread, "support": support},
            "coefficients": self.coefficients.to_json(),
            "decode": named(&DECODE, &self.decode),
            "prefill": named(&PREFILL, &self.prefill),
            "aggregated": named(&DECODE, &self.aggregated),
            "routing": self.routing.iter().map(|(group, routing)| (group.clone(), routing.name().into())).collect::<serde_json::Map<_, _>>(),
            "decode_field": self.decode_field.to_lines(),
            "prefill_field": self.prefill_field.to_lines(),
        });
        if self.provenance.tables {
            json["provenance"]["tables"] = true.into();
        }
        serde_json::to_string_pretty(&json).expect("a JSON value has a text") + "\n"
    }
}

/// Six decimals: more would only pretend, and make every refit differ everywhere.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

fn support_json(s: &Support) -> Value {
    json!({"rows": s.rows, "batch": [rounded(s.batch.0), rounded(s.batch.1)], "latest": rounded(s.latest)})
}

/// Weights by name; a name that the file lacks has no weight.
fn weights(json: &Value, list: &str, names: &[&str]) -> Result<Vec<f64>, ConstantsError> {
    let object = json[list].as_object().ok_or_else(|| ConstantsError::Missing(list.to_owned()))?;
    Ok(names.iter().map(|name| object.get(*name).and_then(Value::as_f64).unwrap_or(0.0)).collect())
}

fn field(json: &Value, list: &str, dims: usize) -> Result<Field, ConstantsError> {
    let lines = json[list].as_array().map(|lines| lines.iter().filter_map(Value::as_str));
    lines.and_then(|lines| Field::from_lines(lines, dims)).ok_or_else(|| ConstantsError::Missing(list.to_owned()))
}

/// Routings by group; a name that this version does not know is the least loaded worker.
fn routing(json: &Value) -> BTreeMap<String, WorkerChoice> {
    let named = |value: &Value| WorkerChoice::ALL.into_iter().find(|r| value.as_str() == Some(r.name()));
    json.as_object().into_iter().flatten().filter_map(|(group, value)| Some((group.clone(), named(value)?))).collect()
}

fn provenance(json: &Value) -> Provenance {
    let support = |s: &Value| Support {
        rows: s["rows"].as_u64().unwrap_or(0),
        batch: (s["batch"][0].as_f64().unwrap_or(0.0), s["batch"][1].as_f64().unwrap_or(0.0)),
        latest: s["latest"].as_f64().unwrap_or(0.0),
    };
    let object = |name: &str| json[name].as_object().cloned().unwrap_or_default();
    Provenance {
        source: json["source"].as_str().unwrap_or_default().to_owned(),
        rows: json["rows"].as_u64().unwrap_or(0),
        tables: json["tables"].as_bool().unwrap_or(false),
        spread: object("spread").into_iter().filter_map(|(k, v)| Some((k, v.as_f64()?))).collect(),
        support: object("support").into_iter().map(|(k, v)| (k, support(&v))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_constants_are_read_and_written_alike() {
        let shipped = Constants::shipped();
        assert_eq!(Constants::from_json(&shipped.to_json()).unwrap().to_json(), shipped.to_json());
    }

    #[test]
    fn another_schema_is_refused() {
        assert!(matches!(Constants::from_json(r#"{"schema": 9}"#), Err(ConstantsError::Schema(9))));
    }
}
