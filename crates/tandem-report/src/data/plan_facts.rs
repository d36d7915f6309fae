//! What a report says of `plan.json`: the deployment, the knobs that somebody set, and how to run it again.

use tandem_plan::{KnobRecord, Phase, Plan, WorkerPlan};

/// How a layer begins that nobody had to set.
const DEFAULT_LAYER: &str = "built-in recipe ";

/// What a report says of a plan.
#[derive(Debug, Clone)]
pub(crate) struct PlanFacts {
    pub(crate) hash: String,
    pub(crate) engine: String,
    pub(crate) gpu_type: String,
    pub(crate) n_nodes: u32,
    /// Groups of equal workers, prefill first.
    pub(crate) workers: Vec<WorkerGroup>,
    /// Every knob in order of name.
    pub(crate) knobs: Vec<Knob>,
    pub(crate) routing: String,
    recipe: String,
}

/// Workers that differ in nothing but their place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WorkerGroup {
    pub(crate) phase: Phase,
    pub(crate) n: usize,
    pub(crate) layout: String,
    pub(crate) n_ranks: usize,
    pub(crate) max_batch_size: u32,
    pub(crate) max_num_tokens: u32,
    pub(crate) kv_blocks: u32,
    pub(crate) block_size: u32,
    pub(crate) mtp_size: u32,
}

/// A knob, its value as text, and who set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Knob {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) layer: String,
    pub(crate) is_default: bool,
}

impl PlanFacts {
    pub(crate) fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let plan: Plan = serde_json::from_str(text)?;
        Ok(Self::of(&plan))
    }

    fn of(plan: &Plan) -> Self {
        let mut workers: Vec<WorkerGroup> = Vec::new();
        for worker in &plan.workers {
            let group = worker_group(worker);
            match workers.iter_mut().find(|known| WorkerGroup { n: 1, ..(*known).clone() } == group) {
                Some(known) => known.n += 1,
                None => workers.push(group),
            }
        }
        let knobs: Vec<Knob> = plan.knobs.iter().map(|(name, record)| knob(name, record)).collect();
        PlanFacts {
            hash: plan.hash(),
            engine: kebab(&plan.engine),
            gpu_type: plan.hardware.gpu_type.name().to_owned(),
            n_nodes: plan.n_nodes,
            workers,
            routing: kebab(&plan.frontend.routing),
            recipe: plan.recipe.clone(),
            knobs,
        }
    }

    /// Knobs that are not as the built-in recipe has them.
    pub(crate) fn set_knobs(&self) -> impl Iterator<Item = &Knob> {
        self.knobs.iter().filter(|knob| !knob.is_default)
    }

    pub(crate) fn knob(&self, name: &str) -> Option<&str> {
        self.knobs.iter().find(|knob| knob.name == name).map(|knob| knob.value.as_str())
    }

    /// The built-in recipe below all layers: knobs remember it, whatever the recipe file is called.
    fn base_recipe(&self) -> &str {
        self.knobs.iter().find_map(|knob| knob.layer.strip_prefix(DEFAULT_LAYER)).unwrap_or(&self.recipe)
    }

    /// A command that leads to the same knobs from the built-in recipe, whatever layers they came from.
    pub(crate) fn command(&self, is_simulated: bool) -> String {
        let verb = if is_simulated { "tandem simulate" } else { "tandem run" };
        let mut words = vec![verb.to_owned(), quoted(self.base_recipe())];
        for knob in self.set_knobs() {
            words.push(format!("--set {}", quoted(&format!("{}={}", knob.name, knob.value))));
        }
        words.join(" ")
    }
}

fn worker_group(worker: &WorkerPlan) -> WorkerGroup {
    let layout = &worker.layout;
    let attention = if layout.attention_dp { ", attention DP" } else { "" };
    WorkerGroup {
        phase: worker.phase,
        n: 1,
        layout: format!("TP {} PP {} EP {}{attention}", layout.tp, layout.pp, layout.ep),
        n_ranks: worker.ranks.len(),
        max_batch_size: worker.limits.max_batch_size,
        max_num_tokens: worker.limits.max_num_tokens,
        kv_blocks: worker.kv.n_blocks,
        block_size: worker.kv.block_size,
        mtp_size: worker.mtp_size,
    }
}

fn knob(name: &str, record: &KnobRecord) -> Knob {
    Knob {
        name: name.to_owned(),
        value: value_text(&record.value),
        layer: record.layer.clone(),
        is_default: record.layer.starts_with(DEFAULT_LAYER),
    }
}

/// As `--set` takes it: lists joined by commas, texts without quotes.
fn value_text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(items) => items.iter().map(value_text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// The name that a unit variant has in files.
fn kebab(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// A word as a POSIX shell takes it literally.
pub(crate) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,/:@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_only_where_a_shell_needs_it() {
        let cases = [("A=1,2", "A=1,2"), ("", "''"), ("A=x y", "'A=x y'"), ("it's", r"'it'\''s'"), ("$(x)", "'$(x)'")];
        for (word, expected) in cases {
            assert_eq!(quoted(word), expected);
        }
    }

    #[test]
    fn values_are_written_as_they_are_set() {
        let text = |json: &str| value_text(&serde_json::from_str(json).unwrap());
        assert_eq!((text("[1,4]"), text("\"a b\""), text("true")), ("1,4".into(), "a b".into(), "true".into()));
    }
}
