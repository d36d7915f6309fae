//! The small trained checkpoint that is compiled into the binary.

/// The files of a built-in model.
#[derive(Clone, Copy)]
pub struct BuiltinModel {
    /// Text of config.json.
    pub config_json: &'static str,
    /// Text of tokenizer.json.
    pub tokenizer_json: &'static str,
    /// Bytes of model.safetensors.
    pub weights: &'static [u8],
}

impl std::fmt::Debug for BuiltinModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuiltinModel").field("weight_bytes", &self.weights.len()).finish_non_exhaustive()
    }
}

const NANO: BuiltinModel = BuiltinModel {
    config_json: include_str!("../../../../models/nano/config.json"),
    tokenizer_json: include_str!("../../../../models/nano/tokenizer.json"),
    weights: include_bytes!("../../../../models/nano/model.safetensors"),
};

/// The built-in model called `name` (`nano`), if there is one.
#[must_use]
pub fn builtin_model(name: &str) -> Option<BuiltinModel> {
    (name == "nano").then_some(NANO)
}
