//! From screened points to simulated ones, their frontier, and what is kept between calls.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value as Json, json};
use tandem_plan::Plan;
use tandem_sim::predict::{Interval, Prediction};
use tandem_sim::screen::Bound;
use tandem_sim::virtual_time::Calibration;

use crate::frontier::{Corner, distinct, gap, pareto};
use crate::pricing::Pricer;
use crate::propose::Proposal;
use crate::screening::{Screened, Screening};
use crate::space::{Figures, Limits, Slo, SloMetric};

/// A first token that takes longer is rarely meant.
const SLOW_TTFT_S: f64 = 10.0;
/// Columns of the plane in which the band is thinned out.
const COLUMNS: usize = 32;

/// Which screened points to simulate: those within `width` (0.15 = 15 %) of the screen's frontier, at most `max_points`.
///
/// When there are too many, the nearest of each stretch of tokens/s/user, so that all of the frontier is seen.
#[must_use]
pub fn band(points: &[Screened], width: f64, max_points: usize) -> Vec<usize> {
    let corners: Vec<Corner> = points.iter().map(|p| Corner { x: p.per_user, y: p.per_gpu }).collect();
    let frontier: Vec<Corner> = pareto(&corners).into_iter().map(|i| corners[i]).collect();
    let near = corners.iter().enumerate().map(|(i, c)| (gap(&frontier, *c), i)).filter(|(gap, _)| *gap <= 1.0 + width);
    let mut near: Vec<(f64, usize)> = near.collect();
    near.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (left, right) = near.iter().fold((f64::INFINITY, 0.0), |(a, b), (_, i)| (f64::min(a, corners[*i].x), f64::max(b, corners[*i].x)));
    let mut columns: Vec<Vec<usize>> = vec![Vec::new(); COLUMNS];
    for (_, i) in near {
        let place = if right > left { (corners[i].x / left).ln() / (right / left).ln() } else { 0.0 };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a column's number")]
        let column = ((place * COLUMNS as f64) as usize).min(COLUMNS - 1);
        columns[column].push(i);
    }
    let longest = columns.iter().map(Vec::len).max().unwrap_or(0);
    let rounds = (0..longest).flat_map(|round| columns.iter().filter_map(move |c| c.get(round)));
    rounds.copied().take(max_points).collect()
}

/// A point that was simulated.
#[derive(Debug, Clone, PartialEq)]
pub struct Simulated {
    /// What the screen said.
    pub screened: Screened,
    /// The knobs that tell points apart.
    pub knobs: Vec<(String, String)>,
    /// Names the plan, whatever its values came from.
    pub key: String,
    /// What the simulator says.
    pub prediction: Prediction,
    /// Whether it meets every SLO.
    pub meets: bool,
    /// Whether nothing that meets the SLOs beats it.
    pub on_frontier: bool,
}

impl Simulated {
    /// Its place in the plane.
    #[must_use]
    pub fn corner(&self) -> Corner {
        Corner { x: per_user(&self.prediction.tpot).value, y: self.prediction.tokens_per_gpu.value }
    }

    pub(crate) fn figures(&self) -> Figures {
        let corner = self.corner();
        Figures {
            per_gpu: corner.y,
            per_user: corner.x,
            ttft_s: self.prediction.ttft_median.value,
            ttft_p99_s: Some(self.prediction.ttft_p99.value),
        }
    }

    /// Tokens/s/user with its interval.
    #[must_use]
    pub fn per_user(&self) -> Interval {
        per_user(&self.prediction.tpot)
    }
}

fn per_user(tpot: &Interval) -> Interval {
    let inverse = |x: f64| if x > 0.0 { 1.0 / x } else { 0.0 };
    Interval { value: inverse(tpot.value), low: inverse(tpot.high), high: inverse(tpot.low) }
}

/// A load point of a run folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The run's name and its load.
    pub name: String,
    /// Its place in the plane.
    pub corner: Corner,
    /// Median TTFT, seconds.
    pub ttft_s: Option<f64>,
    /// GPUs.
    pub gpus: u32,
    /// Whether the run itself was simulated.
    pub is_simulated: bool,
    /// As [`Simulated::key`], when the run has a plan.
    pub key: Option<String>,
}

/// Predictions that are kept between calls, by the plan's key.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Names what the predictions come from.
    model: String,
    predictions: BTreeMap<String, Prediction>,
}

impl State {
    /// An empty state for predictions of `pricer`.
    #[must_use]
    pub fn new(pricer: &Pricer) -> Self {
        // FNV-1a: enough to notice other constants. The architecture is part of each plan.
        let costs = pricer.calibration.as_ref().map(Calibration::to_json);
        let tables = pricer.model.table_sources().join(" ");
        let gpus = format!("{:?}", pricer.model.gpus());
        let text = pricer.model.constants.to_json() + &costs.unwrap_or_default() + &tables + &gpus;
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        State { model: format!("{} {hash:016x}", env!("CARGO_PKG_VERSION")), predictions: BTreeMap::new() }
    }

    /// The key of a plan: its hash without where its values came from.
    #[must_use]
    pub fn key(plan: &Plan) -> String {
        let mut plan = plan.clone();
        plan.knobs.clear();
        plan.hash()
    }

    /// A prediction from before.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Prediction> {
        self.predictions.get(key)
    }

    /// Keeps a prediction; returns the line to append to the file.
    pub fn put(&mut self, key: &str, prediction: Prediction) -> String {
        let line = json!({"model": self.model, "plan": key, "prediction": prediction_json(&prediction)}).to_string() + "\n";
        self.predictions.insert(key.to_owned(), prediction);
        line
    }

    /// Reads lines from before; those of another model, and a last one that was cut off, are passed over. Returns how many were taken.
    pub fn read(&mut self, text: &str) -> usize {
        for line in text.lines() {
            let Ok(json) = serde_json::from_str::<Json>(line) else { continue };
            if json["model"] == self.model.as_str()
                && let (Some(key), Some(prediction)) = (json["plan"].as_str(), prediction_from(&json["prediction"]))
            {
                self.predictions.insert(key.to_owned(), prediction);
            }
        }
        self.predictions.len()
    }
}

pub(crate) fn interval_json(i: &Interval) -> Json {
    json!({"value": i.value, "low": i.low, "high": i.high})
}

pub(crate) fn prediction_json(p: &Prediction) -> Json {
    json!({
        "concurrency": p.concurrency,
        "tokens_per_second": p.tokens_per_second,
        "tokens_per_gpu": interval_json(&p.tokens_per_gpu),
        "tpot_s": interval_json(&p.tpot),
        "ttft_median_s": interval_json(&p.ttft_median),
        "ttft_p99_s": interval_json(&p.ttft_p99),
        "extrapolates": p.extrapolates,
        "operators": p.operators,
    })
}

fn words(json: &Json) -> Option<Vec<String>> {
    Some(json.as_array()?.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect())
}

fn prediction_from(json: &Json) -> Option<Prediction> {
    let interval = |name: &str| {
        let part = &json[name];
        Some(Interval { value: part["value"].as_f64()?, low: part["low"].as_f64()?, high: part["high"].as_f64()? })
    };
    Some(Prediction {
        concurrency: u32::try_from(json["concurrency"].as_u64()?).ok()?,
        tokens_per_second: json["tokens_per_second"].as_f64()?,
        tokens_per_gpu: interval("tokens_per_gpu")?,
        tpot: interval("tpot_s")?,
        ttft_median: interval("ttft_median_s")?,
        ttft_p99: interval("ttft_p99_s")?,
        extrapolates: words(&json["extrapolates"])?,
        operators: words(&json["operators"]).unwrap_or_default(),
    })
}

/// The whole result.
#[derive(Debug, Clone)]
pub struct Exploration {
    /// Name of the recipe.
    pub recipe: String,
    /// The space in words: a line for each axis, derived knob and limit.
    pub about: Vec<String>,
    /// The service levels of the search.
    pub slos: Vec<Slo>,
    /// What was screened.
    pub screening: Screening,
    /// What was simulated, best tokens/s/GPU first.
    pub simulated: Vec<Simulated>,
    /// What was measured.
    pub measured: Vec<Measured>,
    /// What to measure next, best first.
    pub proposals: Vec<Proposal>,
    /// What became of a search that was cut short; none for a whole one.
    pub cut_short: Option<String>,
}

/// Judges simulated points by the SLOs and marks their frontier.
#[must_use]
pub fn explored(mut simulated: Vec<Simulated>, limits: &Limits) -> Vec<Simulated> {
    for point in &mut simulated {
        let figures = point.figures();
        point.meets = limits.slos.iter().all(|slo| slo.miss(&figures) <= 1.0);
        point.on_frontier = false;
    }
    simulated.sort_by(|a, b| b.corner().y.total_cmp(&a.corner().y).then_with(|| a.screened.index.cmp(&b.screened.index)));
    let able: Vec<usize> = (0..simulated.len()).filter(|&i| simulated[i].meets).collect();
    let corners: Vec<Corner> = able.iter().map(|&i| simulated[i].corner()).collect();
    for i in distinct(&corners, &pareto(&corners)) {
        simulated[able[i]].on_frontier = true;
    }
    simulated
}

impl Exploration {
    /// The frontier, tokens/s/user ascending.
    #[must_use]
    pub fn frontier(&self) -> Vec<&Simulated> {
        let mut frontier: Vec<&Simulated> = self.simulated.iter().filter(|p| p.on_frontier).collect();
        frontier.sort_by(|a, b| a.corner().x.total_cmp(&b.corner().x));
        frontier
    }

    /// Counts of what became of all points, in words.
    #[must_use]
    pub fn counts(&self) -> String {
        let s = &self.screening;
        let mut text = format!("{} points screened, {} passed, {} simulated\n", s.n, s.points.len(), self.simulated.len());
        let mut reasons: Vec<_> = s.refusals.iter().collect();
        reasons.sort_by_key(|(_, refusal)| std::cmp::Reverse(refusal.n));
        for (reason, refusal) in reasons {
            let _ = writeln!(text, "  {:>8}  {reason}", refusal.n);
        }
        text
    }

    /// What to know before the frontier is believed.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let frontier = self.frontier();
        let of = |n: usize| format!("{n} of the {} points of the frontier", frontier.len());
        let mut remarks: Vec<String> = self.cut_short.iter().cloned().collect();
        let slow: Vec<f64> = frontier.iter().map(|p| p.prediction.ttft_median.value).filter(|&s| s > SLOW_TTFT_S).collect();
        let judged = self.slos.iter().any(|slo| matches!(slo.metric, SloMetric::Ttft | SloMetric::TtftP99));
        if !slow.is_empty() && !judged {
            let worst = slow.iter().copied().fold(0.0, f64::max);
            remarks.push(format!(
                "{} wait more than {SLOW_TTFT_S} s for their first token (up to {worst:.0} s): nothing was asked of it; --slo ttft:5000 would",
                of(slow.len())
            ));
        }
        for name in ["ISL", "OSL"] {
            let mut lengths: Vec<&str> =
                self.simulated.iter().flat_map(|p| &p.knobs).filter(|(knob, _)| knob == name).map(|(_, value)| value.as_str()).collect();
            lengths.sort_unstable();
            lengths.dedup();
            if lengths.len() > 1 {
                remarks.push(format!("{name} varies: points with less to do look better, so a frontier of one {name} says more"));
            }
        }
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        frontier.iter().flat_map(|p| &p.prediction.extrapolates).for_each(|reason| *reasons.entry(reason.as_str()).or_insert(0) += 1);
        remarks.extend(reasons.into_iter().map(|(reason, n)| format!("extrapolated for {}: {reason}", of(n))));
        remarks
    }

    /// The expected gain of each proposal in words. While nothing is measured there is nothing that the first one could add to.
    #[must_use]
    pub fn gains(&self) -> Vec<String> {
        let is_first = self.measured.iter().all(|m| m.is_simulated);
        let text = |(i, p): (usize, &Proposal)| {
            if is_first && i == 0 { "the first".to_owned() } else { format!("+{:.1} %", p.gain * 100.0) }
        };
        self.proposals.iter().enumerate().map(text).collect()
    }

    /// How many of the points that passed are limited by what.
    #[must_use]
    pub fn bounds(&self) -> BTreeMap<Bound, usize> {
        let mut bounds = BTreeMap::new();
        for point in &self.screening.points {
            *bounds.entry(point.bound).or_insert(0) += 1;
        }
        bounds
    }
}
