//! Recipes and plans as the tests below make them.

use std::collections::BTreeMap;
use std::io;

use tandem_plan::Plan;
use tandem_recipe::{Inputs, PlanError, Recipe, RecipeError, RecipeSource, TextFile, load_recipe, plans};

/// Inputs for built-in recipe `name` with `--set` texts; `deepseek-r1/h100` also gives the GPU type.
pub(crate) fn inputs(name: &str, sets: &[&str]) -> Inputs {
    let (name, gpu) = name.split_once('/').map_or((name, None), |(name, gpu)| (name, Some(gpu.to_owned())));
    Inputs {
        recipe: Some(RecipeSource::Builtin(name.to_owned())),
        sets: sets.iter().map(|s| (*s).to_owned()).collect(),
        gpu_type: gpu,
        ..Inputs::default()
    }
}

/// Inputs for a recipe file called `r.yaml`.
pub(crate) fn file_inputs(text: &str) -> Inputs {
    let file = TextFile { path: "r.yaml".to_owned(), text: text.to_owned() };
    Inputs { recipe: Some(RecipeSource::File(file)), ..Inputs::default() }
}

/// Environment variables.
pub(crate) fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// Compares with `snapshots/NAME.snap`.
pub(crate) fn snapshot(name: &str, text: &str) {
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, { insta::assert_snapshot!(name, text) });
}

/// No model directory exists.
pub(crate) fn no_files(_path: &str) -> io::Result<String> {
    Err(io::Error::new(io::ErrorKind::NotFound, "no such file"))
}

/// The plans of a recipe that reads no files.
pub(crate) fn plans_of(inputs: &Inputs) -> Vec<Plan> {
    let recipe = load_recipe(inputs).expect("the recipe is valid");
    plans(&recipe, &no_files).expect("the recipe has a plan")
}

/// The only plan of a built-in recipe with `--set` texts.
pub(crate) fn plan(name: &str, sets: &[&str]) -> Plan {
    let mut all = plans_of(&inputs(name, sets));
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// What a user sees when `inputs` fail: message, causes, hint and exit code.
pub(crate) fn failure(inputs: &Inputs) -> String {
    match load_recipe(inputs) {
        Err(error) => recipe_failure(&error),
        Ok(recipe) => plan_failure(&recipe),
    }
}

fn recipe_failure(error: &RecipeError) -> String {
    report(error, error.hint(), error.exit_code())
}

fn plan_failure(recipe: &Recipe) -> String {
    let error: PlanError = plans(recipe, &no_files).expect_err("the recipe fails");
    report(&error, error.hint(), error.exit_code())
}

fn report(error: &dyn std::error::Error, hint: Option<String>, code: u8) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(&format!(": {source}"));
        cause = source.source();
    }
    let hint = hint.map(|h| format!("\nhint: {h}")).unwrap_or_default();
    format!("error: {text}{hint}\nexit {code}")
}
