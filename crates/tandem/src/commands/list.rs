//! `tandem list`: the recipes that ship, then the workloads of an llmb installation if there is one.

use std::io::Write;

use tandem_recipe::builtin::{BUILTINS, DEFAULT_RECIPE};

use super::llmb;
use crate::cli_llmb::ListArgs;
use crate::exit::Failure;

pub(crate) fn list(args: &ListArgs) -> Result<(), Failure> {
    if !args.workloads.is_empty() {
        return llmb::list::workloads(&args.workloads);
    }
    let mut out = std::io::stdout().lock();
    for recipe in BUILTINS {
        let gpus: Vec<&str> = recipe.gpu_types.iter().map(|g| g.name()).collect();
        let default = if recipe.name == DEFAULT_RECIPE { " (default)" } else { "" };
        // A reader that has gone has seen enough.
        let _ = writeln!(out, "{}{default}\n  {}\n  GPU types: {}", recipe.name, recipe.about, gpus.join(", "));
    }
    drop(out);
    if llmb::has_installation()
        && let Err(failure) = llmb::list::workloads(&[])
    {
        // It was asked for recipes as well, and got them.
        super::progress::say(&format!("warning: the llmb installation is left out: {:#}", failure.error));
    }
    Ok(())
}
