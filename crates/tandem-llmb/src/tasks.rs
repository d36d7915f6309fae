//! Task files, YAML and text.

use serde_json::{Map, Value};

use crate::document::{LlmbError, scalar, yaml};
use crate::flags::check_variable;
use crate::generate::Task;
use crate::metadata::split_size;

/// Tasks of a YAML file, in the tools' order: sweeps of list-valued parameters outermost, then dtype, scale, repeats.
///
/// # Errors
/// In the tools' own words.
pub fn yaml_tasks(path: &str, text: &str) -> Result<Vec<Task>, LlmbError> {
    let all = yaml(path, text)?;
    let mut tasks = Vec::new();
    for (header, section) in all.as_object().into_iter().flatten() {
        let (key, Some(size)) = split_size(header) else { return Err(LlmbError(format!("Invalid YAML header: '{header}'"))) };
        for task in section["tasks"].as_array().into_iter().flatten() {
            expand(key, &size, section, task, &mut tasks)?;
        }
    }
    if tasks.is_empty() {
        return Err(LlmbError(format!("{path}: no tasks; ensure you have at least one entry under 'tasks:'")));
    }
    Ok(tasks)
}

fn expand(key: &str, size: &str, section: &Value, task: &Value, tasks: &mut Vec<Task>) -> Result<(), LlmbError> {
    let inherited = |name: &str| if task[name].is_null() { &section[name] } else { &task[name] };
    let list = |name: &str, kind: &str| -> Result<Vec<String>, LlmbError> {
        match inherited(name) {
            Value::Null => Err(LlmbError(format!("Missing required field '{name}' in task: {task}"))),
            Value::Array(items) => Ok(items.iter().filter_map(scalar).collect()),
            Value::Object(_) => Err(LlmbError(format!("'{name}' must be {kind} or list, got {}", inherited(name)))),
            one => Ok(scalar(one).into_iter().collect()),
        }
    };
    let dtypes = list("dtypes", "a string")?;
    let scales = list("scales", "an integer")?;
    let scales = scales.iter().map(|s| s.parse::<u32>().map_err(|_| LlmbError(format!("'scales' must be an integer or list, got {s}"))));
    let scales: Vec<u32> = scales.collect::<Result<_, _>>()?;
    let flag = |name: &str| inherited(name).as_bool().unwrap_or(false);
    let (profile, add_profile) = (flag("profile"), flag("add_profile"));
    if profile && add_profile {
        return Err(LlmbError::new("Cannot specify both 'profile' and 'add_profile' in the same task"));
    }
    let repeats = inherited("repeats").as_u64().unwrap_or(1);
    let mut env = Map::new();
    for source in [&section["defaults"]["env"], &task["overrides"]["env"]] {
        env.extend(source.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())));
    }
    let env: Vec<(String, String)> = env.iter().filter_map(|(name, value)| Some((name.clone(), scalar(value)?))).collect();
    env.iter().try_for_each(|(name, value)| check_variable("YAML env", name, value))?;
    for params in sweep(&section["defaults"]["params"], &task["overrides"]["params"]) {
        for dtype in &dtypes {
            for &scale in &scales {
                let one = |profile| Task {
                    workload: key.to_owned(),
                    size: size.to_owned(),
                    dtype: dtype.clone(),
                    scale,
                    profile,
                    proxy: task["proxy"].as_bool().unwrap_or(false),
                    env: env.clone(),
                    params: params.clone(),
                };
                tasks.extend((0..repeats).map(|_| one(profile)));
                tasks.extend(add_profile.then(|| one(true)));
            }
        }
    }
    Ok(())
}

/// Every combination of list-valued overrides, keys in file order, the last varying fastest; lists in defaults do not sweep.
fn sweep(defaults: &Value, overrides: &Value) -> Vec<Vec<(String, String)>> {
    let text = |value: &Value| scalar(value).unwrap_or_else(|| value.to_string());
    let mut combinations = vec![Map::new()];
    for (name, value) in defaults.as_object().into_iter().flatten() {
        combinations[0].insert(name.clone(), Value::String(text(value)));
    }
    for (name, value) in overrides.as_object().into_iter().flatten() {
        let values: Vec<String> = value.as_array().map_or_else(|| vec![text(value)], |list| list.iter().map(text).collect());
        let with = |map: &Map<String, Value>, value: &String| {
            let mut map = map.clone();
            map.insert(name.clone(), Value::String(value.clone()));
            map
        };
        combinations = combinations.iter().flat_map(|map| values.iter().map(move |value| with(map, value))).collect();
    }
    let pairs = |map: Map<String, Value>| map.iter().filter_map(|(name, value)| Some((name.clone(), scalar(value)?))).collect();
    combinations.into_iter().map(pairs).collect()
}

/// Tasks of a text file: `KEY_SIZE:` and lines `(dtype, [scales], repeats[, profile])`. Names may have hyphens.
///
/// # Errors
/// Every line that cannot be read, with its number; the tools skip them without a word.
pub fn text_tasks(path: &str, text: &str) -> Result<Vec<Task>, LlmbError> {
    let mut tasks = Vec::new();
    let mut wrong = Vec::new();
    let mut section: Option<(&str, String)> = None;
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() {
            section = None;
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let mut fail = |what: &str| wrong.push(format!("{path}:{}: {what}: {line}", i + 1));
        if let Some(header) = line.strip_suffix(':') {
            match split_size(header) {
                (key, Some(size)) => section = Some((key, size)),
                _ => fail("no KEY_SIZE header"),
            }
            continue;
        }
        match (&section, tuple(line)) {
            (None, _) => fail("a task outside a section"),
            (_, None) => fail("no task (dtype, [scales], repeats[, profile])"),
            (Some((key, size)), Some((dtypes, scales, repeats, profile))) => {
                for dtype in &dtypes {
                    for &scale in &scales {
                        let task = Task { profile, ..Task::new(key, size, dtype, scale) };
                        tasks.extend((0..repeats).map(|_| task.clone()));
                    }
                }
            }
        }
    }
    if wrong.is_empty() { Ok(tasks) } else { Err(LlmbError(wrong.join("\n"))) }
}

/// A Python tuple of literals is a JSON list but for its brackets, quotes and the words for truth.
fn tuple(line: &str) -> Option<(Vec<String>, Vec<u32>, u64, bool)> {
    let inner = line.strip_prefix('(')?.strip_suffix(')')?.trim_end_matches(',');
    let json = format!("[{}]", inner.replace('\'', "\"").replace("True", "true").replace("False", "false"));
    let values: Vec<Value> = serde_json::from_str(&json).ok()?;
    let many = |value: &Value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    let dtypes = many(values.first()?).iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<_>>()?;
    let scales = many(values.get(1)?).iter().map(|v| v.as_u64().and_then(|n| u32::try_from(n).ok())).collect::<Option<_>>()?;
    let profile = match values.get(3) {
        None => false,
        Some(value) => value.as_bool()?,
    };
    (values.len() <= 4).then_some((dtypes, scales, values.get(2)?.as_u64()?, profile))
}
