//! What the live page is told: the knobs that it has sliders for, and what any setting of them would do.

use std::num::ParseFloatError;

use serde_json::{Map, Value as Json, json};
use tandem_explore::{Exploration, State};
use tandem_plan::{Phase, Plan};
use tandem_recipe::{Knob, Value, Variant};
use tandem_sim::predict::{Interval, Prediction};

use super::{Search, read};

/// Dots of the cloud that the page gets, at most.
const MAX_CLOUD: usize = 3000;

/// Sliders that every page has, besides the axes of its space, with their usual values; the first seven are always in sight.
const USUAL: [(&str, &str); 19] = [
    ("NCTX", "1 2 3 4 5 6 7 8 10 12 16"),
    ("NGEN", "1 2 3 4"),
    ("GEN_WORLD_SIZE", "4 8 16 32"),
    ("GEN_MAX_BATCH_SIZE", "8 16 32 64 128 256 512"),
    ("CONCURRENCY", "16 32 64 128 256 512 1024 2048 4096"),
    ("ISL", "1024 2048 4096 8150 16384"),
    ("OSL", "128 256 512 1024 2048 4096"),
    ("GEN_MTP_SIZE", "0 1 2 3"),
    ("WEIGHT_DTYPE", "fp8 nvfp4 nvfp4-v2 bf16"),
    ("GEN_TENSOR_PARALLEL_SIZE", "0 1 2 4 8 16 32"),
    ("GEN_EXPERT_PARALLEL_SIZE", "0 1 2 4 8 16 32"),
    ("GEN_ATTENTION_DP", "true false"),
    ("GEN_EPLB_NUM_SLOTS", "0 256 288 320"),
    ("GEN_GPU_MEMORY_FRACTION", "0.5 0.6 0.7 0.75 0.8 0.85 0.9 0.95"),
    ("CTX_WORLD_SIZE", "4 8 16"),
    ("CTX_ATTENTION_DP", "true false"),
    ("CTX_MAX_BATCH_SIZE", "1 2 4 8 16"),
    ("CTX_MAX_NUM_TOKENS", "2048 4096 8192 16384 32768"),
    ("STREAM_INTERVAL", "1 5 10 20 50"),
];
/// So many of them are in sight without unfolding.
const IN_SIGHT: usize = 7;

/// Answers what settings would do.
pub(super) struct Predictor {
    search: Search,
    recipe: String,
    /// What the command line gave besides the axes, to be repeated.
    given: Vec<String>,
}

impl Predictor {
    pub(super) fn new(search: Search, recipe: String, given: Vec<String>) -> Self {
        Predictor { search, recipe, given }
    }

    /// The sliders and the frontier.
    pub(super) fn space(&self, result: &Exploration) -> Json {
        let every = (result.screening.points.len() / MAX_CLOUD).max(1);
        let cloud: Vec<_> = result.screening.points.iter().step_by(every).map(|p| json!([p.per_user, p.per_gpu])).collect();
        let frontier: Vec<_> = result.frontier().iter().map(|p| json!([p.corner().x, p.corner().y])).collect();
        json!({"recipe": format!("{} · {}", self.recipe, result.about.join(" · ")), "axes": self.sliders(), "cloud": cloud, "frontier": frontier})
    }

    fn sliders(&self) -> Vec<Json> {
        let space = &self.search.space;
        let first = space.original();
        let slider = |name: &str, doc: &str, values: Vec<String>, current: &str, is_axis: bool, is_folded: bool| {
            let at = values.iter().position(|v| v == current).unwrap_or(0);
            json!({"name": name, "doc": doc, "values": values, "at": at, "is_axis": is_axis, "is_folded": is_folded})
        };
        let of_axis = |(knob, values): &(&'static Knob, Vec<Value>)| {
            let values = values.iter().map(Value::to_string).collect();
            slider(knob.name, knob.doc, values, &first.value(knob.name).to_string(), true, false)
        };
        let mut sliders: Vec<Json> = space.axes.iter().map(of_axis).collect();
        let types = space.gpu_types();
        if types.len() > 1 {
            sliders.insert(0, slider("GPU_TYPE", "Type of the devices.", types, first.gpu().name(), true, false));
        }
        for (i, (name, usual)) in USUAL.into_iter().enumerate() {
            let is_there = space.axes.iter().any(|(k, _)| k.name == name) || space.derived.iter().any(|(k, _)| k.name == name);
            let Some(knob) = Knob::find(name).filter(|_| !is_there) else { continue };
            let current = first.value(name).to_string();
            let mut values: Vec<String> = usual.split(' ').map(str::to_owned).collect();
            if !values.contains(&current) {
                values.push(current.clone());
            }
            if let Ok(mut numbers) = values.iter().map(|v| Ok((v.parse::<f64>()?, v.clone()))).collect::<Result<Vec<_>, ParseFloatError>>()
            {
                numbers.sort_by(|a, b| a.0.total_cmp(&b.0));
                values = numbers.into_iter().map(|(_, text)| text).collect();
            }
            sliders.push(slider(name, knob.doc, values, &current, false, i >= IN_SIGHT));
        }
        sliders
    }

    /// What the knobs would do; an error when one of them is none or has no such value.
    pub(super) fn answer(&mut self, knobs: &Map<String, Json>) -> Result<Json, String> {
        let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let settings: Vec<(String, String)> = knobs.iter().map(|(name, value)| (name.clone(), text(value))).collect();
        let mut variant = self.search.space.with(&settings)?;
        let command = self.command(&variant, &settings);
        let plan = match variant.plan(&read) {
            Ok(plan) => plan,
            Err(error) => {
                let verdict = format!("Does not work: {}", tandem_explore::explain(&error));
                return Ok(
                    json!({"fits": false, "verdict": verdict, "knob": error.blame.knob, "prediction": null, "gpus": 0, "notes": [], "memory": [], "command": command}),
                );
            }
        };
        let prediction = self.predict(&plan);
        let mut notes = tandem_recipe::table::notes(&plan);
        notes.extend(prediction.iter().flat_map(|p| p.extrapolates.iter().map(|reason| format!("extrapolated: {reason}"))));
        if prediction.is_none() {
            notes.push("not predicted: costs are known of ENGINE=dynamo-trtllm, modeled, and cpu with --calibration".to_owned());
        }
        let bound = self.search.pricer.bound(&mut variant, &read).map(|bound| bound.name());
        let memory: Vec<Json> = [Phase::Prefill, Phase::Decode].into_iter().filter_map(|phase| memory(&plan, phase)).collect();
        Ok(json!({
            "fits": true,
            "verdict": format!("Fits, on {} GPUs", plan.n_devices()),
            "gpus": plan.n_devices(),
            "bound": bound,
            "prediction": prediction.as_ref().map(prediction_json),
            "notes": notes,
            "memory": memory,
            "command": command,
        }))
    }

    /// How to see the plan of a variant: what the search was given, the knobs of the space, and those that were set on the page.
    fn command(&self, variant: &Variant, settings: &[(String, String)]) -> String {
        let mut sets = self.search.space.knobs(variant);
        sets.extend(settings.iter().filter(|(name, _)| !sets.iter().any(|(known, _)| known == name)).cloned().collect::<Vec<_>>());
        let mut words =
            vec!["tandem".to_owned(), "plan".to_owned(), self.recipe.clone(), "--gpu-type".to_owned(), variant.gpu().to_string()];
        words.extend(self.given.iter().cloned());
        let sets = sets.iter().filter(|(name, _)| name != "GPU_TYPE");
        words.extend(sets.flat_map(|(name, value)| ["--set".to_owned(), format!("{name}={value}")]));
        words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }

    fn predict(&mut self, plan: &Plan) -> Option<Prediction> {
        let key = State::key(plan);
        let state = self.search.state.get_or_insert_with(|| State::new(&self.search.pricer));
        if let Some(known) = state.get(&key) {
            return Some(known.clone());
        }
        let prediction = self.search.pricer.predict(plan).into_iter().next()?;
        state.put(&key, prediction.clone());
        Some(prediction)
    }
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let is_plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "_-./=:,+%@".contains(c));
    if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

fn prediction_json(p: &Prediction) -> Json {
    let interval = |i: &Interval| json!({"value": i.value, "low": i.low, "high": i.high});
    let inverse = |x: f64| if x > 0.0 { 1.0 / x } else { 0.0 };
    json!({
        "tokens_per_gpu": interval(&p.tokens_per_gpu),
        "tokens_per_user": {"value": inverse(p.tpot.value), "low": inverse(p.tpot.high), "high": inverse(p.tpot.low)},
        "tpot_s": interval(&p.tpot),
        "ttft_median_s": interval(&p.ttft_median),
        "ttft_p99_s": interval(&p.ttft_p99),
    })
}

fn memory(plan: &Plan, phase: Phase) -> Option<Json> {
    let worker = plan.workers_of(phase).next()?;
    let m = &worker.memory;
    let parts = [m.device, m.weights, m.workspace, m.kv, m.margin].map(|bytes| bytes.to_string());
    let counts = [m.sequences.to_string(), worker.limits.max_batch_size.to_string()];
    Some(std::iter::once(phase.to_string()).chain(parts).chain(counts).collect::<Vec<_>>().into())
}
