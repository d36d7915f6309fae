//! The performance model of a plan's architecture, and a prediction in words.

use std::fs;
use std::path::Path;

use anyhow::Context;
use tandem_plan::ModelConfig;
use tandem_sim::fit::Constants;
use tandem_sim::hardware;
use tandem_sim::model::Model;

use crate::exit::{Exit, Failure, OrExit};

/// The model of `config` on the shipped GPUs, with constants of a file or those that ship.
pub(super) fn model_of(config: ModelConfig, constants: Option<&Path>) -> Result<Model, Failure> {
    let constants = match constants {
        None => Constants::shipped(),
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Artifact)?;
            Constants::from_json(&text).with_context(|| path.display().to_string()).or_exit(Exit::Artifact)?
        }
    };
    Ok(Model::new(config, hardware::shipped(), constants))
}
