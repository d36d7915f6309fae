//! Every point of a space through the checks of a plan, the limits, and the screen; those that fail are counted by reason.

use std::collections::BTreeMap;
use std::error::Error;
use std::ops::Range;

use tandem_recipe::error::{PlanError, Problem};
use tandem_recipe::planner::ReadFile;
use tandem_sim::screen::Bound;

use crate::pricing::Pricer;
use crate::space::{Figures, Space, gpus, operand};

/// A point that passed, with the screen's estimate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Screened {
    /// Its place in the space.
    pub index: usize,
    /// GPUs of all servers.
    pub gpus: u32,
    /// Tokens/s/GPU.
    pub per_gpu: f64,
    /// Tokens/s/user.
    pub per_user: f64,
    /// Mean time to first token, seconds.
    pub ttft_s: f64,
    /// What limits it.
    pub bound: Bound,
}

/// Points that failed for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// How many.
    pub n: usize,
    /// The first of them.
    pub index: usize,
    /// What was wrong with it, and a hint if there is one.
    pub example: String,
}

/// What is left of a space, and why the rest is not.
#[derive(Debug, Clone, Default)]
pub struct Screening {
    /// Points of the space.
    pub n: usize,
    /// Points that passed, in order of the space.
    pub points: Vec<Screened>,
    /// Reasons against the others.
    pub refusals: BTreeMap<String, Refusal>,
    /// The point that misses its SLOs by the smallest factor, with that factor.
    pub nearest_slo: Option<(f64, Screened)>,
    /// The point with the fewest GPUs above the budget.
    pub nearest_budget: Option<(u32, usize)>,
}

impl Screening {
    fn refuse(&mut self, reason: &str, index: usize, example: impl FnOnce() -> String) {
        if let Some(refusal) = self.refusals.get_mut(reason) {
            refusal.n += 1;
        } else {
            self.refusals.insert(reason.to_owned(), Refusal { n: 1, index, example: example() });
        }
    }

    /// Adds the screening of points that come later in the same space.
    pub fn merge(&mut self, later: Screening) {
        self.n += later.n;
        self.points.extend(later.points);
        for (reason, refusal) in later.refusals {
            match self.refusals.get_mut(&reason) {
                Some(known) => known.n += refusal.n,
                None => drop(self.refusals.insert(reason, refusal)),
            }
        }
        // Of equals the earlier one, as if all had been screened in one go.
        if let Some(slo) = later.nearest_slo.filter(|(miss, _)| self.nearest_slo.is_none_or(|(least, _)| *miss < least)) {
            self.nearest_slo = Some(slo);
        }
        if let Some(budget) = later.nearest_budget.filter(|(gpus, _)| self.nearest_budget.is_none_or(|(least, _)| *gpus < least)) {
            self.nearest_budget = Some(budget);
        }
    }
}

/// Screens the points of `range`; [`Screening::merge`] puts stretches of a space together.
pub fn screen(space: &mut Space, pricer: &Pricer, read: ReadFile<'_>, range: Range<usize>) -> Screening {
    let mut screening = Screening { n: range.len(), ..Screening::default() };
    let limits = space.limits.clone();
    for index in range {
        let variant = match space.variant(index) {
            Ok(variant) => variant,
            Err(why) => {
                screening.refuse("a derived knob has no value", index, || why);
                continue;
            }
        };
        let devices = gpus(variant);
        if let Some(max) = limits.max_gpus.filter(|&max| devices > f64::from(max)) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a product of small whole numbers, saturating")]
            let devices = devices as u32;
            screening.refuse("more GPUs than the budget", index, || format!("{devices} GPUs; the budget is {max}"));
            if screening.nearest_budget.is_none_or(|(least, _)| devices < least) {
                screening.nearest_budget = Some((devices, index));
            }
            continue;
        }
        let unmet = limits.conditions.iter().find(|c| !matches!(c.holds(&|name| operand(variant, name)), Ok(true)));
        if let Some(condition) = unmet {
            screening.refuse(&format!("condition `{}`", condition.text), index, || "it does not hold".to_owned());
            continue;
        }
        let sketch = match variant.sketch(read) {
            Ok(sketch) => sketch,
            Err(error) => {
                screening.refuse(&reason(&error), index, || explain(&error));
                continue;
            }
        };
        let point = match pricer.screen(variant, &sketch, index, read) {
            Ok(point) => point,
            Err(why) => {
                screening.refuse("step costs of this engine are not known", index, || why);
                continue;
            }
        };
        let figures = point.figures();
        let worst = limits.slos.iter().map(|slo| (slo.miss(&figures), slo)).max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((miss, slo)) = worst.filter(|(miss, _)| *miss > 1.0) {
            screening.refuse(&format!("misses the SLO {}", slo.metric.name()), index, || {
                format!("{} {}; the limit is {}", slo.metric.name(), slo.shown(&figures), slo.limit)
            });
            if screening.nearest_slo.is_none_or(|(least, _)| miss < least) {
                screening.nearest_slo = Some((miss, point));
            }
            continue;
        }
        screening.points.push(point);
    }
    screening
}

impl Screened {
    pub(crate) fn figures(&self) -> Figures {
        Figures { per_gpu: self.per_gpu, per_user: self.per_user, ttft_s: self.ttft_s, ttft_p99_s: None }
    }
}

/// What kind of impossibility it is, for counting.
fn reason(error: &PlanError) -> String {
    let kind = match &error.problem {
        Problem::OutOfMemory { phase, .. } => format!("out of memory, {phase}"),
        Problem::KvStarved { phase, .. } => format!("KV cache too small for the batch, {phase}"),
        Problem::TooMuchLoad { .. } => "more load than the frontend admits".to_owned(),
        Problem::TooLong { .. } => "sequences longer than the model's".to_owned(),
        _ => "layout or limits that do not go together".to_owned(),
    };
    format!("{kind} ({})", error.blame.knob)
}

/// The whole message of a plan's error, and its hint.
#[must_use]
pub fn explain(error: &PlanError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    match error.hint() {
        Some(hint) => format!("{text} (hint: {hint})"),
        None => text,
    }
}
