//! Weights by name: from Hugging Face directories, from the binary, or from a seed.
//!
//! Reading order: `tensor` (one tensor in its stored number format), `files` (safetensors,
//! sharded or not, mapped or built in), `dummy` (random weights of the right shapes),
//! `builtin` (the checkpoint compiled into the binary). A model asks a [`TensorSource`] for
//! each tensor with the shape that it expects; whatever does not fit is an error that names
//! tensor and file.
//!
//! Not here: what the tensors mean (`cpu::weights`) and how they are laid out for speed (`cpu::packed`).

mod builtin;
mod dummy;
mod files;
mod tensor;

pub use builtin::{BuiltinModel, builtin_model};
pub use dummy::DummySource;
pub use files::SafetensorsSource;
pub use tensor::{E4M3_MAX, Tensor, TensorData, e4m3_to_f32, f32_to_e4m3};

use tandem_plan::{ModelConfig, ModelSource};

use crate::engine::EngineError;

/// Where a model gets its tensors from.
pub trait TensorSource {
    /// The tensor called `name`, which must have exactly `shape`.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] naming the tensor and the file when it is missing, has another shape,
    /// an unknown number format, or block scales that do not fit.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, EngineError>;
}

/// Opens the weights of `source` for a model of shape `config`.
///
/// # Errors
/// [`EngineError::Io`] when a file cannot be read, [`EngineError::Checkpoint`] when a directory holds no
/// checkpoint, is truncated, or its config.json is not the plan's model; [`EngineError::Unsupported`] for
/// an unknown built-in name.
pub fn open(source: &ModelSource, config: &ModelConfig) -> Result<Box<dyn TensorSource>, EngineError> {
    let block = config.quantization_config.as_ref().map(|q| q.weight_block_size);
    match source {
        ModelSource::Checkpoint { path } => {
            files::check_config(path, config)?;
            Ok(Box::new(SafetensorsSource::open(path, block)?))
        }
        ModelSource::Builtin { name } => {
            let model = builtin_model(name).ok_or_else(|| EngineError::Unsupported {
                engine: "cpu",
                reason: format!("there is no built-in model `{name}` (built in: nano)"),
            })?;
            Ok(Box::new(SafetensorsSource::from_static(model.weights, &format!("built-in {name}"), block)?))
        }
        ModelSource::Dummy { seed } => Ok(Box::new(DummySource::new(*seed, block))),
    }
}
