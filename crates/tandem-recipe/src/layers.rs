//! One source of knob values: where it is, how it is read, and what each value's origin is called.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::error::RecipeError;
use crate::knobs::{KNOBS, Knob};
use crate::recipe::MAX_CASES;
use crate::value::{Value, ValueError};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The default that the built-in recipe has.
    Builtin {
        /// Name of the recipe.
        recipe: &'static str,
    },
    /// The user's hardware table.
    Hardware {
        /// Its path as given.
        path: String,
    },
    /// The site file: facts of a cluster.
    Site {
        /// Its path as given.
        path: String,
        /// Line of the value, from 1.
        line: u64,
    },
    /// The recipe file.
    File {
        /// Its path as given.
        path: String,
        /// Line of the value, from 1.
        line: u64,
    },
    /// An environment variable.
    Environment {
        /// The variable.
        variable: String,
    },
    /// A flag of the command line.
    CommandLine {
        /// The flag as given, e.g. `--set NCTX=3`.
        flag: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Builtin { recipe } => write!(f, "built-in recipe {recipe}"),
            Origin::Hardware { path } => write!(f, "hardware table {path}"),
            Origin::Site { path, line } => write!(f, "site file {path}:{line}"),
            Origin::File { path, line } => write!(f, "recipe file {path}:{line}"),
            Origin::Environment { variable } => write!(f, "environment variable {variable}"),
            Origin::CommandLine { flag } => write!(f, "command line {flag}"),
        }
    }
}

/// One or several values of a knob (several make a sweep) and their origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The values in the order given; never empty.
    pub values: Vec<Value>,
    /// Where they came from.
    pub origin: Origin,
}

/// All values of one source.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Layer {
    /// Settings by knob name.
    pub settings: BTreeMap<&'static str, Setting>,
}

impl Layer {
    /// Adds a knob from texts.
    pub(crate) fn set(&mut self, knob: &'static Knob, texts: &[String], origin: Origin) -> Result<(), RecipeError> {
        let mut values = Vec::with_capacity(texts.len());
        for text in texts {
            let value = knob.kind.parse(text).map_err(|problem| RecipeError::Value { knob: knob.name, origin: origin.clone(), problem })?;
            if values.contains(&value) {
                return Err(RecipeError::Repeated { knob: knob.name, origin, value });
            }
            values.push(value);
        }
        if values.is_empty() {
            return Err(RecipeError::Value { knob: knob.name, origin, problem: ValueError::Missing });
        }
        self.settings.insert(knob.name, Setting { values, origin });
        Ok(())
    }

    /// Adds the knob called `name` from a file.
    pub(crate) fn set_raw(&mut self, name: &str, raw: &Raw, origin: Origin) -> Result<(), RecipeError> {
        let knob = find_knob(name, &origin)?;
        self.set(knob, &raw.texts(knob, &origin)?, origin)
    }

    /// Reads environment variables: each knob's own variable, an empty one as if it were not set.
    ///
    /// # Errors
    /// [`RecipeError`] for a bad value, or for a variable that is set but only resembles a knob's.
    pub fn from_environment(env: &BTreeMap<String, String>) -> Result<Layer, RecipeError> {
        let mut layer = Layer::default();
        for knob in KNOBS {
            let variable = knob.env_name();
            let Some(text) = env.get(&variable).filter(|text| !text.trim().is_empty()) else { continue };
            let texts = if knob.kind.splits() { text.split_whitespace().map(str::to_owned).collect() } else { vec![text.clone()] };
            layer.set(knob, &texts, Origin::Environment { variable })?;
        }
        for name in env.keys() {
            misspelt_variable(name)?;
        }
        Ok(layer)
    }

    /// Reads `NAME=VALUE` texts; a comma separates the values of a sweep, `LO..HI` is every whole number from LO to HI.
    ///
    /// # Errors
    /// [`RecipeError`] for an unknown name, a bad value or a text without `=`.
    pub fn from_sets(sets: &[String]) -> Result<Layer, RecipeError> {
        let mut layer = Layer::default();
        for set in sets {
            let origin = Origin::CommandLine { flag: format!("--set {set}") };
            let Some((name, text)) = set.split_once('=') else { return Err(RecipeError::SetWithoutValue { text: set.clone() }) };
            let knob = find_knob(name.trim(), &origin)?;
            let texts: Vec<String> =
                if knob.kind.splits() { text.split(',').flat_map(expand_range).collect() } else { vec![text.to_owned()] };
            layer.set(knob, &texts, origin)?;
        }
        Ok(layer)
    }
}

/// A parsed recipe file: `base` and the rest.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileLayer {
    pub(crate) base: Option<(String, u64)>,
    pub(crate) layer: Layer,
}

impl FileLayer {
    /// Reads a recipe file.
    pub(crate) fn parse(path: &str, text: &str) -> Result<FileLayer, RecipeError> {
        let mut file = FileLayer::default();
        for (name, value) in Entries::parse(path, text)?.0 {
            let line = value.referenced.line();
            let origin = Origin::File { path: path.to_owned(), line };
            if name != "base" {
                file.layer.set_raw(&name, &value.value, origin)?;
            } else if let Raw::One(base) = value.value {
                file.base = Some((base, line));
            } else {
                return Err(RecipeError::BadBase { path: path.to_owned(), line });
            }
        }
        Ok(file)
    }
}

/// The whole numbers of `LO..HI`, both included; any other text as it is, for the knob's kind to judge.
fn expand_range(text: &str) -> Vec<String> {
    let bounds = text.split_once("..").and_then(|(low, high)| Some((low.trim().parse::<u64>().ok()?, high.trim().parse::<u64>().ok()?)));
    match bounds {
        Some((low, high)) if low <= high && high - low < MAX_CASES as u64 => (low..=high).map(|n| n.to_string()).collect(),
        _ => vec![text.to_owned()],
    }
}

/// The knob called `name`, or an error with the nearest name.
pub(crate) fn find_knob(name: &str, origin: &Origin) -> Result<&'static Knob, RecipeError> {
    Knob::find(name).ok_or_else(|| RecipeError::UnknownKnob { name: name.to_owned(), origin: origin.clone(), nearest: nearest_knob(name) })
}

/// The knob whose name is most like `name`, if any is like it at all.
pub(crate) fn nearest_knob(name: &str) -> Option<&'static str> {
    nearest(name, KNOBS.iter().map(|k| k.name))
}

/// The candidate most like `name` without regard to case, if the likeness is more than chance.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let upper = name.to_ascii_uppercase();
    candidates
        .map(|c| (strsim::jaro_winkler(&upper, &c.to_ascii_uppercase()), c))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

/// A misspelt `GEN_MTP_SZIE=3` would silently run without MTP: variables in the recipe's own families must be knobs.
fn misspelt_variable(name: &str) -> Result<(), RecipeError> {
    let is_family = ["CTX_", "GEN_"].iter().any(|prefix| name.starts_with(prefix));
    let is_known = KNOBS.iter().any(|k| k.env_name() == name);
    let near = KNOBS.iter().map(Knob::env_name).find(|known| strsim::damerau_levenshtein(known, name) <= 2 && known.len() > 5);
    if is_known || !(is_family || name.starts_with("TANDEM_") && near.is_some()) {
        return Ok(());
    }
    let origin = Origin::Environment { variable: name.to_owned() };
    Err(RecipeError::UnknownKnob { name: name.to_owned(), origin, nearest: nearest_knob(name.trim_start_matches("TANDEM_")) })
}

/// The YAML reader's message without the position, which stands before it.
fn yaml_message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter);
    let line = text.lines().next().unwrap_or_default();
    line.rsplit_once(" at line ").map_or(line, |(message, _)| message).to_owned()
}

/// A mapping in file order; a repeated key is already an error of the YAML reader.
#[derive(Debug)]
pub(crate) struct Entries(pub(crate) Vec<(String, Spanned<Raw>)>);

impl Entries {
    /// Reads a YAML mapping.
    pub(crate) fn parse(path: &str, text: &str) -> Result<Entries, RecipeError> {
        serde_saphyr::from_str(text).map_err(|error| {
            let place = error.location();
            RecipeError::Yaml {
                path: path.to_owned(),
                line: place.map_or(0, |l| l.line()),
                column: place.map_or(0, |l| l.column()),
                message: yaml_message(&error),
            }
        })
    }
}

/// What stands behind a key.
#[derive(Debug)]
pub(crate) enum Raw {
    Null,
    One(String),
    Many(Vec<Raw>),
    Mapping(Entries),
}

impl Raw {
    /// The values of a knob, one or several.
    pub(crate) fn texts(&self, knob: &'static Knob, origin: &Origin) -> Result<Vec<String>, RecipeError> {
        let wrong = |problem| RecipeError::Value { knob: knob.name, origin: origin.clone(), problem };
        let one = |raw: &Raw| match raw {
            Raw::One(text) => Ok(text.clone()),
            Raw::Null => Err(wrong(ValueError::Missing)),
            Raw::Many(_) => Err(wrong(ValueError::Shape { found: "nested list" })),
            Raw::Mapping(_) => Err(wrong(ValueError::Shape { found: "mapping" })),
        };
        match self {
            Raw::Many(items) => items.iter().map(one).collect(),
            single => one(single).map(|text| vec![text]),
        }
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping of knob names to values")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Entries(entries))
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or a list of values")
    }
    fn visit_bool<E: de::Error>(self, v: bool) -> Result<Raw, E> {
        Ok(Raw::One(v.to_string()))
    }
    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Raw, E> {
        Ok(Raw::One(v.to_string()))
    }
    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Raw, E> {
        Ok(Raw::One(v.to_string()))
    }
    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Raw, E> {
        Ok(Raw::One(v.to_string()))
    }
    fn visit_str<E: de::Error>(self, v: &str) -> Result<Raw, E> {
        Ok(Raw::One(v.to_owned()))
    }
    fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }
    fn visit_none<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::Many(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Raw, A::Error> {
        EntriesVisitor.visit_map(map).map(Raw::Mapping)
    }
}
