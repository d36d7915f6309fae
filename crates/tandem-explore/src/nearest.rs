//! Advice when nothing is left: the nearest change that leaves something.

use crate::screening::Screening;
use crate::search::Simulated;
use crate::space::{Slo, Space};

/// What to change so that at least one point passes; none when something did.
#[must_use]
pub fn nearest(space: &mut Space, screening: &Screening) -> Option<String> {
    if !screening.points.is_empty() {
        return None;
    }
    // The later a point failed, the nearer it came.
    if let Some((_, point)) = screening.nearest_slo {
        let figures = point.figures();
        let missed = space.limits.slos.clone().into_iter().filter(|slo| slo.miss(&figures) > 1.0);
        let relaxed: Vec<String> = missed.map(|slo| format!("--slo {}:{}", slo.metric.name(), slo.shown(&figures))).collect();
        let at = describe(space, point.index);
        return Some(format!("{} would be met by {at} ({} GPUs, {:.0} tokens/s/GPU)", relaxed.join(" "), point.gpus, point.per_gpu));
    }
    let others = screening.refusals.iter().filter(|(reason, _)| !reason.starts_with("more GPUs") && !reason.starts_with("condition"));
    if let Some((reason, refusal)) = others.max_by_key(|(_, r)| r.n) {
        return Some(format!("most points fail by: {reason}. {}: {}", describe(space, refusal.index), refusal.example));
    }
    if let Some((gpus, index)) = screening.nearest_budget {
        let at = describe(space, index);
        return Some(format!("the smallest deployment of the space takes {gpus} GPUs: --max-gpus {gpus} would admit {at}"));
    }
    screening.refusals.iter().next().map(|(reason, _)| format!("no point of the space satisfies the {reason}"))
}

/// The same for the simulated points when none of them meets the SLOs: what would have to be relaxed for the one that comes nearest.
#[must_use]
pub fn nearest_simulated(simulated: &[Simulated], slos: &[Slo]) -> Option<String> {
    if simulated.is_empty() || simulated.iter().any(|p| p.meets) {
        return None;
    }
    let worst = |p: &Simulated| slos.iter().map(|slo| slo.miss(&p.figures())).fold(0.0, f64::max);
    let point = simulated.iter().min_by(|a, b| worst(a).total_cmp(&worst(b)))?;
    let figures = point.figures();
    let missed = slos.iter().filter(|slo| slo.miss(&figures) > 1.0);
    let relaxed: Vec<String> = missed.map(|slo| format!("--slo {}:{}", slo.metric.name(), slo.shown(&figures))).collect();
    let knobs: Vec<String> = point.knobs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let at = if knobs.is_empty() { "the recipe".to_owned() } else { knobs.join(" ") };
    Some(format!("{} would be met by {at} ({} GPUs, {:.0} tokens/s/GPU)", relaxed.join(" "), point.screened.gpus, figures.per_gpu))
}

fn describe(space: &mut Space, index: usize) -> String {
    let Ok(variant) = space.variant(index) else { return "a point".to_owned() };
    let variant = variant.clone();
    let knobs: Vec<String> = space.knobs(&variant).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    if knobs.is_empty() { "the recipe".to_owned() } else { knobs.join(" ") }
}
