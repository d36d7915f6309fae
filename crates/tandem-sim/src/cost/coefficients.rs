//! The fitted constants of the step-time model, common to all GPUs and software stacks.

use serde_json::{Map, Value};

/// What a fit may move. Efficiencies are fractions of peak, the rest are as their names say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coefficients {
    /// Fraction of the memory bandwidth that decode reaches.
    pub hbm: f64,
    /// Fraction of the tensor rate in decode's matrix products.
    pub decode_tensor: f64,
    /// Fraction of the tensor rate in decode's attention.
    pub decode_attention: f64,
    /// Fraction of the network bandwidth.
    pub comm: f64,
    /// Seconds of every layer in decode, whatever its size.
    pub layer_s: f64,
    /// Seconds per layer and doubling of the ranks, for synchronisation.
    pub sync_s: f64,
    /// Load of the fullest expert rank over the mean.
    pub imbalance: f64,
    /// Seconds of host work per running sequence of a rank and step.
    pub host_seq_s: f64,
    /// Seconds of host work per step.
    pub host_step_s: f64,
    /// Probability that a drafted token is accepted, given that the ones before it were.
    pub acceptance: f64,
    /// Fraction of the tensor rate in prefill's matrix products.
    pub prefill_tensor: f64,
    /// Fraction of the tensor rate in prefill's attention.
    pub prefill_attention: f64,
    /// Seconds of every prefill iteration.
    pub prefill_step_s: f64,
    /// Factor on prefill iterations of the first burst.
    pub burst: f64,
    /// Seconds of TTFT that neither queues nor computes, TensorRT-LLM: client, frontend, tokenizer, hand-over, and the way back.
    pub request_s: f64,
    /// The same, other stacks.
    pub request_other_s: f64,
}

/// Name, getter and setter of each constant, in the order of the file.
type Field = (&'static str, fn(&Coefficients) -> f64, fn(&mut Coefficients, f64));

macro_rules! field {
    ($name:ident) => {
        (stringify!($name), |c| c.$name, |c, v| c.$name = v)
    };
}

const FIELDS: [Field; 16] = [
    field!(hbm),
    field!(decode_tensor),
    field!(decode_attention),
    field!(comm),
    field!(layer_s),
    field!(sync_s),
    field!(imbalance),
    field!(host_seq_s),
    field!(host_step_s),
    field!(acceptance),
    field!(prefill_tensor),
    field!(prefill_attention),
    field!(prefill_step_s),
    field!(burst),
    field!(request_s),
    field!(request_other_s),
];

impl Coefficients {
    /// Where a fit starts.
    pub const START: Coefficients = Coefficients {
        hbm: 0.65,
        decode_tensor: 0.25,
        decode_attention: 0.4,
        comm: 0.5,
        layer_s: 45e-6,
        sync_s: 10e-6,
        imbalance: 1.15,
        host_seq_s: 2e-6,
        host_step_s: 1e-3,
        acceptance: 0.7,
        prefill_tensor: 0.4,
        prefill_attention: 0.4,
        prefill_step_s: 20e-3,
        burst: 1.1,
        request_s: 50e-3,
        request_other_s: 90e-3,
    };

    /// Names of the constants that `vector` holds, in its order.
    #[must_use]
    pub fn names() -> [&'static str; 16] {
        FIELDS.map(|f| f.0)
    }

    /// The value of constant `index` of [`Coefficients::names`].
    #[must_use]
    pub fn get(&self, index: usize) -> f64 {
        FIELDS[index].1(self)
    }

    /// Sets constant `index` of [`Coefficients::names`].
    pub fn set(&mut self, index: usize, value: f64) {
        FIELDS[index].2(self, value);
    }

    /// As a JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let fields: Map<String, Value> = FIELDS.iter().map(|f| (f.0.to_owned(), Value::from(f.1(self)))).collect();
        Value::Object(fields)
    }

    /// From a JSON object; `Err` names the constant that is missing or not a positive number.
    ///
    /// # Errors
    /// The name of the first unusable constant.
    pub fn from_json(json: &Value) -> Result<Self, &'static str> {
        let mut coefficients = Coefficients::START;
        for field in FIELDS {
            let value = json[field.0].as_f64().filter(|v| v.is_finite() && *v >= 0.0).ok_or(field.0)?;
            field.2(&mut coefficients, value);
        }
        Ok(coefficients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_survive_json() {
        assert_eq!(Coefficients::from_json(&Coefficients::START.to_json()), Ok(Coefficients::START));
    }

    #[test]
    fn a_missing_constant_is_named() {
        let mut json = Coefficients::START.to_json();
        json.as_object_mut().unwrap().remove("comm");
        assert_eq!(Coefficients::from_json(&json), Err("comm"));
    }
}
