//! All points of a search: axes, knobs that follow from others, and what a point must satisfy.

use std::str::FromStr;

use tandem_plan::ModelConfig;
use tandem_recipe::layers::Origin;
use tandem_recipe::planner::ReadFile;
use tandem_recipe::{Knob, PlanError, Recipe, Value, Variant};
use thiserror::Error;

use crate::axes::Axes;
use crate::expression::{Expression, ExpressionError, Operand};

/// A service level: a metric and the worst value that it may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slo {
    /// The metric.
    pub metric: SloMetric,
    /// The limit, in the metric's unit.
    pub limit: f64,
}

/// What an SLO can be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SloMetric {
    /// Time per output token, ms, at most.
    Tpot,
    /// Time to first token (median; while screening the mean), ms, at most.
    Ttft,
    /// 99th percentile of the time to first token, ms, at most; only simulated points have one.
    TtftP99,
    /// Tokens/s/user, at least.
    TokensPerUser,
    /// Tokens/s/GPU, at least.
    TokensPerGpu,
}

/// Names of the metrics on the command line.
const SLO_METRICS: [(&str, SloMetric); 5] = [
    ("tpot", SloMetric::Tpot),
    ("ttft", SloMetric::Ttft),
    ("ttft_p99", SloMetric::TtftP99),
    ("tokens_per_user", SloMetric::TokensPerUser),
    ("tokens_per_gpu", SloMetric::TokensPerGpu),
];

impl SloMetric {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        SLO_METRICS.iter().find(|(_, m)| *m == self).map_or("", |(name, _)| name)
    }
}

/// What a point achieves, in the units of SLOs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figures {
    pub(crate) per_gpu: f64,
    pub(crate) per_user: f64,
    pub(crate) ttft_s: f64,
    pub(crate) ttft_p99_s: Option<f64>,
}

impl Slo {
    /// The value of its metric with four significant digits, rounded to the side on which such a limit would be met.
    pub(crate) fn shown(&self, f: &Figures) -> String {
        let value = self.value(f);
        if !value.is_finite() || value <= 0.0 {
            return value.to_string();
        }
        let scale = 10f64.powf(3.0 - value.log10().floor());
        let is_least = matches!(self.metric, SloMetric::TokensPerUser | SloMetric::TokensPerGpu);
        let rounded = if is_least { (value * scale).floor() } else { (value * scale).ceil() } / scale;
        // Nine digits hide what the division left over.
        ((rounded * 1e9).round() / 1e9).to_string()
    }

    /// By how much a point misses it, as a factor; 1 or less = met.
    pub(crate) fn miss(&self, f: &Figures) -> f64 {
        match self.metric {
            SloMetric::Tpot => 1e3 / f.per_user / self.limit,
            SloMetric::Ttft => f.ttft_s * 1e3 / self.limit,
            SloMetric::TtftP99 => f.ttft_p99_s.map_or(0.0, |s| s * 1e3 / self.limit),
            SloMetric::TokensPerUser => self.limit / f.per_user,
            SloMetric::TokensPerGpu => self.limit / f.per_gpu,
        }
    }

    /// The value of its metric.
    pub(crate) fn value(&self, f: &Figures) -> f64 {
        match self.metric {
            SloMetric::TokensPerUser | SloMetric::TokensPerGpu => self.limit / self.miss(f),
            _ => self.limit * self.miss(f),
        }
    }
}

/// Why a text is no SLO.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not METRIC:LIMIT with tpot, ttft or ttft_p99 (ms, at most), tokens_per_user or tokens_per_gpu (at least)")]
pub struct SloError(String);

impl FromStr for Slo {
    type Err = SloError;

    fn from_str(text: &str) -> Result<Self, SloError> {
        let wrong = || SloError(text.to_owned());
        let (name, limit) = text.split_once(':').ok_or_else(wrong)?;
        let metric = SLO_METRICS.iter().find(|(n, _)| *n == name.trim()).ok_or_else(wrong)?.1;
        let limit: f64 = limit.trim().parse().map_err(|_| wrong())?;
        if limit > 0.0 && limit.is_finite() { Ok(Slo { metric, limit }) } else { Err(wrong()) }
    }
}

/// What every point must satisfy.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// GPUs of all servers.
    pub max_gpus: Option<u32>,
    /// Conditions over knobs.
    pub conditions: Vec<Expression>,
    /// Service levels.
    pub slos: Vec<Slo>,
}

/// Names in conditions besides knobs, which follow from them.
const FOLLOWING: [&str; 4] = ["GPUS", "CTX_GPUS", "GEN_GPUS", "TOTAL_CONCURRENCY"];

/// All points of a search.
#[derive(Debug, Clone)]
pub struct Space {
    /// One of each GPU type, which the points are set in.
    variants: Vec<Variant>,
    /// The same, never changed.
    originals: Vec<Variant>,
    /// Knobs with their values; the last varies fastest, GPU types slowest.
    pub axes: Vec<(&'static Knob, Vec<Value>)>,
    /// Knobs that follow from others.
    pub derived: Vec<(&'static Knob, Expression)>,
    /// What every point must satisfy.
    pub limits: Limits,
}

impl Space {
    /// The points of `recipe` along its own lists and along `axes`.
    ///
    /// A decode step must hold the batch, so `GEN_MAX_NUM_TOKENS` follows from the batch and MTP sizes when those vary and nobody sets it.
    ///
    /// # Errors
    /// [`ExpressionError`] when a condition names what is no knob.
    pub fn new(recipe: &Recipe, axes: Axes, limits: Limits) -> Result<Self, ExpressionError> {
        let origin = Origin::CommandLine { flag: "--set".to_owned() };
        let gpus = recipe.gpu_types();
        let is_set = |name: &str| axes.axes.iter().any(|(k, _)| k.name == name) || axes.derived.iter().any(|(k, _)| k.name == name);
        let mut all: Vec<_> = recipe.sweeps(gpus[0]).into_iter().filter(|(k, _)| !is_set(k.name)).collect();
        let mut derived = axes.derived.clone();
        let varies = |name: &str| is_set(name) || all.iter().any(|(k, _)| k.name == name);
        let tokens = Knob::find("GEN_MAX_NUM_TOKENS").expect("the table has it");
        let given = is_set(tokens.name) || gpus.iter().any(|&gpu| recipe.history(tokens, gpu).len() > 1);
        let from_derived = derived.iter().any(|(k, _)| ["GEN_MAX_BATCH_SIZE", "GEN_MTP_SIZE"].contains(&k.name));
        if !given && !from_derived && (varies("GEN_MAX_BATCH_SIZE") || varies("GEN_MTP_SIZE")) {
            derived.push((tokens, Expression::parse("GEN_MAX_BATCH_SIZE * (1 + GEN_MTP_SIZE)")?));
        }
        all.extend(axes.axes);
        for condition in &limits.conditions {
            check_names(condition)?;
        }
        let variants: Vec<Variant> = gpus.iter().map(|&gpu| Variant::new(recipe, gpu, origin.clone())).collect();
        // A word where a number should be, such as a knob in small letters, is a mistake at every point.
        for condition in &limits.conditions {
            condition.holds(&|name| operand(&variants[0], name))?;
        }
        Ok(Space { originals: variants.clone(), variants, axes: all, derived, limits })
    }

    /// Number of points; saturates.
    #[must_use]
    pub fn len(&self) -> usize {
        self.axes.iter().map(|(_, values)| values.len()).fold(self.variants.len(), usize::saturating_mul)
    }

    /// Never: a recipe has at least one GPU type, an axis at least one value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The variant of point `index`, with all its knobs.
    ///
    /// # Errors
    /// Why a derived knob has no value there.
    pub fn variant(&mut self, index: usize) -> Result<&mut Variant, String> {
        let mut rest = index;
        let n = self.variants.len();
        let per_gpu = self.len() / n;
        let variant = &mut self.variants[(index / per_gpu.max(1)).min(n - 1)];
        for (knob, values) in self.axes.iter().rev() {
            let value = &values[rest % values.len()];
            rest /= values.len();
            if variant.value(knob.name) != value {
                variant.set(knob, value.clone());
            }
        }
        follow(variant, &self.derived)?;
        Ok(variant)
    }

    /// The recipe as it was given, on its first GPU type.
    #[must_use]
    pub fn original(&self) -> &Variant {
        &self.originals[0]
    }

    /// The architecture that every point serves.
    ///
    /// # Errors
    /// [`PlanError`] when there is no readable `config.json`.
    pub fn architecture(&mut self, read: ReadFile<'_>) -> Result<ModelConfig, PlanError> {
        self.variants[0].architecture(read).cloned()
    }

    /// Names of the GPU types.
    #[must_use]
    pub fn gpu_types(&self) -> Vec<String> {
        self.variants.iter().map(|v| v.gpu().name().to_owned()).collect()
    }

    /// The recipe with knobs of any value, inside or outside the space; knobs that follow do so unless they are given.
    ///
    /// # Errors
    /// What is wrong with a name or a value.
    pub fn with(&self, settings: &[(String, String)]) -> Result<Variant, String> {
        let gpu = settings.iter().find(|(name, _)| name == "GPU_TYPE").map(|(_, value)| value);
        let variant = match gpu {
            None => self.originals.first(),
            Some(gpu) => self.originals.iter().find(|v| v.gpu().name() == gpu),
        };
        let mut variant = variant.ok_or_else(|| format!("GPU_TYPE is one of {}", self.gpu_types().join(", ")))?.clone();
        for (name, text) in settings.iter().filter(|(name, _)| name != "GPU_TYPE") {
            let knob = Knob::find(name).ok_or_else(|| format!("there is no knob `{name}`"))?;
            // Paths of models are for whoever starts the search, not for a page.
            if !knob.kind.splits() {
                return Err(format!("{name} cannot be changed here"));
            }
            variant.set(knob, knob.kind.parse(text).map_err(|error| format!("{name}: {error}"))?);
        }
        let derived: Vec<_> = self.derived.iter().filter(|(k, _)| !settings.iter().any(|(name, _)| name == k.name)).cloned().collect();
        follow(&mut variant, &derived)?;
        Ok(variant)
    }

    /// The knobs that tell the points apart, with their values in `variant`.
    #[must_use]
    pub fn knobs(&self, variant: &Variant) -> Vec<(String, String)> {
        let gpu = (self.variants.len() > 1).then(|| ("GPU_TYPE".to_owned(), variant.gpu().name().to_owned()));
        let names = self.axes.iter().map(|(k, _)| k.name).chain(self.derived.iter().map(|(k, _)| k.name));
        gpu.into_iter().chain(names.map(|name| (name.to_owned(), variant.value(name).to_string()))).collect()
    }
}

/// Sets the knobs that follow from others.
fn follow(variant: &mut Variant, derived: &[(&'static Knob, Expression)]) -> Result<(), String> {
    for (knob, expression) in derived {
        let operand = expression.value(&|name| operand(variant, name)).map_err(|error| format!("{}: {error}", knob.name))?;
        let value = knob.kind.parse(&operand.to_string()).map_err(|error| format!("{} = {}: {error}", knob.name, expression.text))?;
        if *variant.value(knob.name) != value {
            variant.set(knob, value);
        }
    }
    Ok(())
}

/// Words in capitals are meant to be knobs.
fn check_names(condition: &Expression) -> Result<(), ExpressionError> {
    let is_shouted = |name: &str| name.chars().any(char::is_uppercase) && !name.chars().any(char::is_lowercase);
    let is_known = |name: &str| Knob::find(name).is_some() || FOLLOWING.contains(&name);
    match condition.names().into_iter().find(|name| is_shouted(name) && !is_known(name)) {
        None => Ok(()),
        Some(name) => Err(ExpressionError::Syntax {
            text: condition.text.clone(),
            expected: "a knob, GPUS, CTX_GPUS, GEN_GPUS or TOTAL_CONCURRENCY",
            at: name.to_owned(),
        }),
    }
}

/// What a name in an expression is worth.
pub(crate) fn operand(variant: &Variant, name: &str) -> Option<Operand> {
    let product = |a: &str, b: &str| Some(Operand::Number(number(variant.value(a))? * number(variant.value(b))?));
    match name {
        "CTX_GPUS" => product("NCTX", "CTX_WORLD_SIZE"),
        "GEN_GPUS" => product("NGEN", "GEN_WORLD_SIZE"),
        "TOTAL_CONCURRENCY" => product("CONCURRENCY", "NGEN"),
        "GPUS" => Some(Operand::Number(gpus(variant))),
        _ => {
            Knob::find(name)?;
            let value = variant.value(name);
            Some(number(value).map_or_else(|| Operand::Text(value.to_string()), Operand::Number))
        }
    }
}

/// GPUs of all servers.
pub(crate) fn gpus(variant: &Variant) -> f64 {
    let knob = |name: &str| number(variant.value(name)).unwrap_or(0.0);
    knob("NCTX") * knob("CTX_WORLD_SIZE") + knob("NGEN") * knob("GEN_WORLD_SIZE")
}

fn number(value: &Value) -> Option<f64> {
    match value {
        #[expect(clippy::cast_precision_loss, reason = "knobs are far below 2^53")]
        Value::Int(n) => Some(*n as f64),
        #[expect(clippy::cast_precision_loss, reason = "devices are far below 2^53 bytes")]
        Value::Size(bytes) => Some(bytes.0 as f64),
        Value::Float(x) => Some(*x),
        Value::Bool(b) => Some(f64::from(u8::from(*b))),
        Value::Text(_) => None,
    }
}
