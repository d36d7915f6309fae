//! `tandem list`: the recipes that ship.

use std::io::Write;

use tandem_recipe::builtin::{BUILTINS, DEFAULT_RECIPE};

use crate::exit::Failure;

pub(crate) fn list() -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for recipe in BUILTINS {
        let gpus: Vec<&str> = recipe.gpu_types.iter().map(|g| g.name()).collect();
        let default = if recipe.name == DEFAULT_RECIPE { " (default)" } else { "" };
        // A reader that has gone has seen enough.
        let _ = writeln!(out, "{}{default}\n  {}\n  GPU types: {}", recipe.name, recipe.about, gpus.join(", "));
    }
    Ok(())
}
