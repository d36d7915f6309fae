//! All layers together: one immutable recipe, and the cases that its lists expand into.

use std::collections::BTreeMap;

use tandem_plan::{Bytes, GpuType, KnobRecord};

use crate::builtin::{self, Builtin, DEFAULT_RECIPE};
use crate::error::{Blame, RecipeError};
use crate::knobs::{KNOBS, Knob, Scope, Settings};
use crate::layers::{FileLayer, Layer, Origin, Setting, nearest};
use crate::value::Value;

/// The most cases that one recipe may expand into.
pub const MAX_CASES: usize = 100_000;

/// A file that the caller has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// Its path as given: errors and provenance name it.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// Which recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecipeSource {
    /// One that ships, by name.
    Builtin(String),
    /// A YAML file: `base: NAME` and knobs.
    File(TextFile),
}

/// Everything that a recipe is made from, low layers first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Which recipe; none = the default one.
    pub recipe: Option<RecipeSource>,
    /// The site file, if there is one.
    pub site: Option<TextFile>,
    /// The environment variables of the process.
    pub env: BTreeMap<String, String>,
    /// `--set NAME=VALUE`, in order; a later one replaces an earlier one of the same name.
    pub sets: Vec<String>,
    /// `--gpu-type`.
    pub gpu_type: Option<String>,
    /// What the user's own hardware table says of nodes.
    pub hardware: Vec<NodeFacts>,
}

/// What a hardware table says of one type's nodes; it stands above the built-in defaults and below everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// Path of the table.
    pub path: String,
    /// The type's name in the table.
    pub name: String,
    /// Memory of one device.
    pub device_memory: Bytes,
    /// Devices of one node.
    pub devices_per_node: u32,
}

/// A recipe with the values of every layer, checked one by one.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Name for reports: the built-in recipe's, or the file's name without its extension.
    pub name: String,
    builtin: &'static Builtin,
    /// Site file, recipe file, environment, command line.
    layers: Vec<Layer>,
    gpus: Vec<GpuType>,
    hardware: Vec<NodeFacts>,
}

/// Combines the layers.
///
/// # Errors
/// [`RecipeError`] naming layer, line and knob of the first thing that is wrong.
pub fn load_recipe(inputs: &Inputs) -> Result<Recipe, RecipeError> {
    let (name, builtin, file) = match &inputs.recipe {
        None => (DEFAULT_RECIPE.to_owned(), find_builtin(DEFAULT_RECIPE)?, Layer::default()),
        Some(RecipeSource::Builtin(name)) => {
            let builtin = find_builtin(name)?;
            (builtin.name.to_owned(), builtin, Layer::default())
        }
        Some(RecipeSource::File(file)) => load_file(file)?,
    };
    let site = match &inputs.site {
        Some(file) => crate::site::load(file)?,
        None => Layer::default(),
    };
    let mut command_line = Layer::from_sets(&inputs.sets)?;
    if let Some(gpu) = &inputs.gpu_type {
        let knob = Knob::find("GPU_TYPE").expect("the table has GPU_TYPE");
        let texts: Vec<String> = gpu.split(',').map(str::to_owned).collect();
        command_line.set(knob, &texts, Origin::CommandLine { flag: format!("--gpu-type {gpu}") })?;
    }
    let mut recipe = Recipe {
        name,
        builtin,
        layers: vec![site, file, Layer::from_environment(&inputs.env)?, command_line],
        gpus: Vec::new(),
        hardware: inputs.hardware.clone(),
    };
    recipe.gpus = recipe.choose_gpus()?;
    let n_cases = recipe.gpus.iter().map(|&gpu| recipe.n_cases(gpu)).fold(0usize, usize::saturating_add);
    if n_cases > MAX_CASES {
        return Err(RecipeError::TooManyCases { n_cases, max: MAX_CASES });
    }
    Ok(recipe)
}

fn find_builtin(name: &str) -> Result<&'static Builtin, RecipeError> {
    builtin::find(name).ok_or_else(|| RecipeError::UnknownRecipe {
        name: name.to_owned(),
        nearest: nearest(name, builtin::BUILTINS.iter().map(|b| b.name)),
    })
}

fn load_file(file: &TextFile) -> Result<(String, &'static Builtin, Layer), RecipeError> {
    let parsed = FileLayer::parse(&file.path, &file.text)?;
    let Some((base, line)) = parsed.base else { return Err(RecipeError::NoBase { path: file.path.clone() }) };
    let builtin = builtin::find(&base).ok_or_else(|| RecipeError::BadBase { path: file.path.clone(), line })?;
    let stem = file.path.rsplit('/').next().unwrap_or(&file.path);
    let stem = stem.strip_suffix(".yaml").or_else(|| stem.strip_suffix(".yml")).unwrap_or(stem);
    Ok((stem.to_owned(), builtin, parsed.layer))
}

impl Recipe {
    /// The built-in recipe that it starts from.
    #[must_use]
    pub fn base(&self) -> &'static Builtin {
        self.builtin
    }

    /// The GPU types that it is planned for.
    #[must_use]
    pub fn gpu_types(&self) -> &[GpuType] {
        &self.gpus
    }

    /// The value of `knob` on `gpu` in every layer that sets it, lowest first; the last one holds.
    #[must_use]
    pub fn history(&self, knob: &'static Knob, gpu: GpuType) -> Vec<Setting> {
        let text = self.builtin.default_of(knob, gpu);
        let value = knob.kind.parse(&text).expect("defaults are valid, a test checks each");
        let builtin = Setting { values: vec![value], origin: Origin::Builtin { recipe: self.builtin.name } };
        std::iter::once(builtin)
            .chain(self.of_table(knob, gpu))
            .chain(self.layers.iter().filter_map(|l| l.settings.get(knob.name).cloned()))
            .collect()
    }

    /// What the hardware table says of a knob.
    fn of_table(&self, knob: &Knob, gpu: GpuType) -> Option<Setting> {
        let facts = self.hardware.iter().find(|facts| facts.name == gpu.table_name())?;
        let value = match knob.name {
            "DEVICE_MEMORY" => Value::Size(facts.device_memory),
            "SBATCH_GPUS_PER_NODE" => Value::Int(u64::from(facts.devices_per_node)),
            _ => return None,
        };
        Some(Setting { values: vec![value], origin: Origin::Hardware { path: facts.path.clone() } })
    }

    fn setting(&self, knob: &'static Knob, gpu: GpuType) -> Setting {
        self.history(knob, gpu).pop().expect("the built-in layer always has a value")
    }

    /// The chosen GPU types: those of the highest layer that names some, or the recipe's only one.
    fn choose_gpus(&mut self) -> Result<Vec<GpuType>, RecipeError> {
        let known = || self.builtin.gpu_types.iter().map(|g| g.name()).collect::<Vec<_>>().join(", ");
        let only = match self.builtin.gpu_types {
            [one] => Some(*one),
            _ => None,
        };
        let chosen = self.layers.iter().rev().find_map(|l| l.settings.get("GPU_TYPE")).cloned();
        let Some(setting) = chosen else {
            return only.map(|gpu| vec![gpu]).ok_or_else(|| RecipeError::NoGpuType { recipe: self.builtin.name, known: known() });
        };
        let gpus: Vec<GpuType> = setting.values.iter().filter_map(|v| v.to_string().parse().ok()).collect();
        let Some(wrong) = gpus.iter().find(|g| !self.builtin.is_for(**g)) else { return Ok(gpus) };
        // A cluster's site file states what its nodes have; a recipe for the host's cores runs there all the same.
        if let (Some(only), Origin::Site { .. }) = (only, &setting.origin) {
            self.layers[0].settings.remove("GPU_TYPE");
            return Ok(vec![only]);
        }
        Err(RecipeError::WrongGpuType { recipe: self.builtin.name, origin: setting.origin, gpu: wrong.name().to_owned(), known: known() })
    }

    fn n_cases(&self, gpu: GpuType) -> usize {
        let lists = KNOBS.iter().filter(|k| k.name != "GPU_TYPE").map(|k| self.setting(k, gpu).values.len());
        lists.fold(1usize, usize::saturating_mul)
    }

    /// The knobs with several values on `gpu`, GPU types aside, in the order of the table.
    #[must_use]
    pub fn sweeps(&self, gpu: GpuType) -> Vec<(&'static Knob, Vec<Value>)> {
        let lists = KNOBS.iter().filter(|k| k.name != "GPU_TYPE").map(|k| (k, self.setting(k, gpu).values));
        lists.filter(|(_, values)| values.len() > 1).collect()
    }

    /// The case with the first value of every list.
    pub(crate) fn first_case(&self, gpu: GpuType) -> Case {
        let choice = |knob: &'static Knob| {
            let setting = self.setting(knob, gpu);
            let first = if knob.name == "GPU_TYPE" { Value::Text(gpu.name().to_owned()) } else { setting.values[0].clone() };
            Choice { knob, values: vec![first], origin: setting.origin }
        };
        Case { recipe: self.name.clone(), gpu, choices: KNOBS.iter().map(choice).collect() }
    }

    /// One case for each deployment, in the order of the table; its load points are inside.
    pub(crate) fn cases(&self) -> Vec<Case> {
        self.gpus.iter().flat_map(|&gpu| self.cases_on(gpu)).collect()
    }

    fn cases_on(&self, gpu: GpuType) -> Vec<Case> {
        let mut cases = vec![Case { recipe: self.name.clone(), gpu, choices: Vec::with_capacity(KNOBS.len()) }];
        for knob in KNOBS {
            let mut setting = self.setting(knob, gpu);
            if knob.name == "GPU_TYPE" {
                setting.values = vec![Value::Text(gpu.name().to_owned())];
            }
            // Load points stay together, every other list makes cases.
            let options: Vec<Vec<Value>> =
                if knob.scope == Scope::Point { vec![setting.values] } else { setting.values.into_iter().map(|v| vec![v]).collect() };
            cases = cases
                .into_iter()
                .flat_map(|case| options.iter().map(move |values| (case.clone(), values.clone())).collect::<Vec<_>>())
                .map(|(mut case, values)| {
                    case.choices.push(Choice { knob, values, origin: setting.origin.clone() });
                    case
                })
                .collect();
        }
        cases
    }
}

/// The values of one knob in a case.
#[derive(Debug, Clone)]
struct Choice {
    knob: &'static Knob,
    values: Vec<Value>,
    origin: Origin,
}

/// One deployment of a recipe: a value for every knob, several only for those that make load points.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) recipe: String,
    pub(crate) gpu: GpuType,
    choices: Vec<Choice>,
}

impl Case {
    /// Gives a knob one value.
    pub(crate) fn set(&mut self, knob: &'static Knob, value: Value, origin: &Origin) {
        let choice = self.choices.iter_mut().find(|c| c.knob.name == knob.name).expect("a case has every knob of the table");
        if choice.values.len() != 1 || choice.values[0] != value {
            choice.values = vec![value];
        }
        if choice.origin != *origin {
            choice.origin = origin.clone();
        }
    }

    /// The first value of a knob.
    pub(crate) fn value(&self, name: &str) -> &Value {
        &self.choice(name).values[0]
    }

    fn choice(&self, name: &str) -> &Choice {
        self.choices.iter().find(|c| c.knob.name == name).expect("a case has every knob of the table")
    }

    /// The settings of its first load point.
    pub(crate) fn settings(&self) -> Settings {
        Settings::from_values(|name| self.choice(name).values[0].clone())
    }

    /// The settings of each load point, concurrency varying fastest.
    pub(crate) fn points(&self) -> Vec<Settings> {
        let mut points = vec![BTreeMap::new()];
        for choice in self.choices.iter().rev().filter(|c| c.knob.scope == Scope::Point) {
            points = points
                .into_iter()
                .flat_map(|point| {
                    choice.values.iter().map(move |value| {
                        let mut point: BTreeMap<&str, Value> = point.clone();
                        point.insert(choice.knob.name, value.clone());
                        point
                    })
                })
                .collect();
        }
        let value = |point: &BTreeMap<&str, Value>, name| point.get(name).unwrap_or_else(|| &self.choice(name).values[0]).clone();
        points.iter().map(|point| Settings::from_values(|name| value(point, name))).collect()
    }

    /// The knob to change, for an error.
    pub(crate) fn blame(&self, name: &str) -> Blame {
        let choice = self.choice(name);
        Blame { knob: choice.knob.name, value: choice.values[0].clone(), origin: choice.origin.clone() }
    }

    /// As [`Case::blame`] for a knob of a load point, with that point's value.
    pub(crate) fn blame_point(&self, name: &str, value: u32) -> Blame {
        Blame { value: Value::Int(u64::from(value)), ..self.blame(name) }
    }

    /// Every knob with value and layer, as the Plan keeps them.
    pub(crate) fn records(&self) -> BTreeMap<String, KnobRecord> {
        self.choices
            .iter()
            .map(|c| {
                let value = match c.values.as_slice() {
                    [one] => one.to_json(),
                    many => many.iter().map(Value::to_json).collect(),
                };
                (c.knob.name.to_owned(), KnobRecord { value, layer: c.origin.to_string() })
            })
            .collect()
    }
}
