//! From flags, files and the environment to plans, and from a file to one plan.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use tandem_plan::plan::PLAN_SCHEMA_VERSION;
use tandem_plan::{GpuType, Plan};
use tandem_recipe::recipe::NodeFacts;
use tandem_recipe::{Inputs, PlanError, Recipe, RecipeError, RecipeSource, TextFile, load_recipe, plans};

use super::prediction;
use crate::cli::{ModelArgs, RecipeArgs};
use crate::exit::{Exit, Failure, OrExit};

/// Combines all layers that the command line names.
pub(crate) fn load(args: &RecipeArgs) -> Result<Recipe, Failure> {
    load_with(args, Vec::new())
}

/// The same with the nodes of the user's hardware table.
pub(crate) fn load_on(args: &RecipeArgs, model: &ModelArgs) -> Result<Recipe, Failure> {
    load_with(args, prediction::nodes(model)?)
}

fn load_with(args: &RecipeArgs, hardware: Vec<NodeFacts>) -> Result<Recipe, Failure> {
    let is_file = args.recipe.contains('/') || args.recipe.ends_with(".yaml") || args.recipe.ends_with(".yml");
    let recipe = if is_file { RecipeSource::File(read_text(Path::new(&args.recipe))?) } else { RecipeSource::Builtin(args.recipe.clone()) };
    let named = [("MODEL", &args.model), ("LOAD_FORMAT", &args.load_format), ("DEVICE_MEMORY", &args.device_memory)];
    let flags = named.into_iter().filter_map(|(knob, value)| value.as_ref().map(|value| format!("{knob}={value}")));
    let inputs = Inputs {
        recipe: Some(recipe),
        site: args.site.as_deref().map(read_text).transpose()?,
        env: std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect::<BTreeMap<_, _>>(),
        sets: flags.chain(args.sets.iter().cloned()).collect(),
        gpu_type: (!args.gpu_type.is_empty()).then(|| gpu_types(args)),
        hardware,
    };
    load_recipe(&inputs).map_err(recipe_failure)
}

/// The chosen GPU types, as they are written.
pub(super) fn gpu_types(args: &RecipeArgs) -> String {
    args.gpu_type.iter().map(GpuType::name).collect::<Vec<_>>().join(",")
}

/// Every deployment of a recipe.
pub(crate) fn plans_of(recipe: &Recipe) -> Result<Vec<Plan>, Failure> {
    plans(recipe, &|path| fs::read_to_string(path)).map_err(plan_failure)
}

pub(crate) fn recipe_failure(error: RecipeError) -> Failure {
    let hint = error.hint();
    Failure { exit: Exit::Recipe, error: error.into(), hint }
}

pub(crate) fn plan_failure(error: PlanError) -> Failure {
    let hint = error.hint();
    let exit = if error.exit_code() == tandem_recipe::error::EXIT_RECIPE_INVALID { Exit::Recipe } else { Exit::Infeasible };
    Failure { exit, error: error.into(), hint }
}

/// Reads a `plan.json`.
pub(crate) fn read_plan(path: &Path) -> Result<Plan, Failure> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Artifact)?;
    let plan: Plan = serde_json::from_str(&text).with_context(|| format!("{} is not a plan", path.display())).or_exit(Exit::Artifact)?;
    if plan.schema_version != PLAN_SCHEMA_VERSION {
        let message = format!("{} has plan schema {}, this program reads {PLAN_SCHEMA_VERSION}", path.display(), plan.schema_version);
        return Err(Failure::message(Exit::Artifact, message));
    }
    Ok(plan)
}

fn read_text(path: &Path) -> Result<TextFile, Failure> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Recipe)?;
    Ok(TextFile { path: path.display().to_string(), text })
}
