//! Turns what a user wrote into [`Plan`](tandem_plan::Plan)s and into the engine's configuration files.
//!
//! Layers (built-in recipe, site file, recipe file, environment, command line) become one immutable [`Recipe`] in which
//! every value remembers where it came from; a recipe with lists expands into cases, and the planner makes one Plan of
//! each deployment. This crate is pure: texts come in as arguments, nothing is read, started or timed.
//!
//! Reading order: `knobs` (the one table of names, types, ranges and docs), `value` (parsing one value), `layers` (one
//! source of values), `builtin` (the recipes that ship), `recipe` (all layers together), `planner` (recipe to plans),
//! `render` (engine configuration files), `table`, `explain`, `reference` (texts for people).
//!
//! Not here: what a configuration costs in time (`tandem-sim`), starting it (`tandem-launch`).

pub mod builtin;
mod checks;
pub mod error;
pub mod explain;
pub mod knobs;
pub mod layers;
mod placement;
pub mod planner;
pub mod recipe;
pub mod reference;
pub mod render;
pub mod site;
pub mod table;
pub mod value;

pub use error::{PlanError, RecipeError};
pub use explain::explain;
pub use knobs::{KNOBS, Knob, Settings};
pub use layers::{Layer, Origin};
pub use planner::plans;
pub use recipe::{Inputs, Recipe, RecipeSource, TextFile, load_recipe};
pub use reference::knob_reference_markdown;
pub use render::{render_configs, render_configs_in};
pub use site::Cluster;
pub use table::plan_table;
pub use value::Value;
