//! What a measured row says about the time of a decode step and of a prefill iteration.
//!
//! Decode: by Little's law the sequences in decode are throughput × TPOT × output tokens, so batch and step time of the same moment are
//! known. Prefill: the factor on iteration times with which the simulated run has the measured tail, median and throughput.

use std::collections::BTreeMap;

use crate::cost::{Correction, DecodeLoad};
use crate::des::{WorkerChoice, simulate};
use crate::model::{Factors, Model};
use crate::rows::{Kind, Measured, Row, Scenario};

/// Factors that the prefill scan tries first, as logarithms.
const SCAN: [f64; 11] = [-1.6, -1.2, -0.8, -0.5, -0.25, 0.0, 0.25, 0.5, 0.8, 1.2, 1.6];
/// Steps around the best of them.
const REFINE: [f64; 4] = [-0.16, -0.08, 0.08, 0.16];

/// A configuration at one concurrency, with what repeated runs of it measured (geometric means).
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The configuration.
    pub scenario: Scenario,
    /// Its identity without the concurrency: all points of a configuration are in one fold.
    pub key: String,
    /// How surely the knobs are those of the run.
    pub trusted: bool,
    /// Repeated runs.
    pub repeats: u32,
    /// What they measured.
    pub measured: Measured,
    /// Load of the decode steps.
    pub decode_load: Option<DecodeLoad>,
    /// What it says of prefill under each of [`WorkerChoice::ALL`].
    pub prefill: [Option<PrefillTarget>; 3],
}

/// The prefill factor with which a simulated run is most like the measured one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrefillTarget {
    /// Logarithm of the factor.
    pub ln: f64,
    /// How much the row says about it (0 to 1).
    pub weight: f64,
    /// Misfit that is left at that factor.
    pub misfit: f64,
    /// By how much the run's TPOT is longer than the simulated one with these factors, as a logarithm: ramps, waits between steps and all
    /// else that Little's law does not tell of the batch that the median request saw.
    pub tpot: f64,
}

/// Most by which a target's step time is moved for that.
const MAX_SHIFT: f64 = 0.1;

impl Target {
    /// Sequences of a decode rank as measured, or as expected where that is unknown.
    #[must_use]
    pub fn batch(&self) -> f64 {
        self.decode_load.map_or_else(|| self.scenario.expected_batch(), |l| l.rank_sequences)
    }
}

/// Groups rows by configuration and concurrency and works out their decode loads.
#[must_use]
pub fn targets(rows: &[Row]) -> Vec<Target> {
    let mut groups: BTreeMap<(String, u32), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        groups.entry((row.config_key.clone(), row.concurrency)).or_default().push(row);
    }
    groups.into_values().map(|group| target(&group)).collect()
}

fn target(group: &[&Row]) -> Target {
    let scenario = Scenario::new(group[0]);
    let mean = |get: fn(&Measured) -> Option<f64>| {
        let logs: Vec<f64> = group.iter().filter_map(|r| get(&r.measured)).map(f64::ln).collect();
        #[expect(clippy::cast_precision_loss, reason = "a handful of repeats")]
        (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
    };
    let measured = Measured {
        tokens_per_gpu: mean(|m| m.tokens_per_gpu),
        tpot: mean(|m| m.tpot),
        ttft_median: mean(|m| m.ttft_median),
        ttft_mean: mean(|m| m.ttft_mean),
        ttft_p99: mean(|m| m.ttft_p99),
    };
    Target {
        decode_load: decode_load(&scenario, &measured),
        key: group[0].config_key.clone(),
        trusted: group[0].knob_match != "none",
        repeats: u32::try_from(group.len()).unwrap_or(u32::MAX),
        prefill: [None; 3],
        measured,
        scenario,
    }
}

fn decode_load(s: &Scenario, m: &Measured) -> Option<DecodeLoad> {
    let tpot = m.tpot?;
    let osl = s.load.osl.mean();
    let concurrency = f64::from(s.load.concurrency);
    let in_decode = match (m.tokens_per_gpu, m.ttft_mean) {
        (Some(rate), _) => rate * s.gpus * tpot / steady_share(s, m, rate),
        (None, Some(ttft)) => concurrency * tpot * osl / (ttft + tpot * osl),
        (None, None) => concurrency,
    };
    let slots = s.decode.attention_ranks() * f64::from(s.decode.max_batch);
    let in_decode = in_decode.min(concurrency).min(slots);
    let sequences = (in_decode / f64::from(s.decode.workers)).max(1.0);
    let rank_sequences = (in_decode / s.decode.attention_ranks()).max(1.0);
    let context = s.load.isl.mean() + osl / 2.0;
    Some(DecodeLoad { rank_sequences, rank_context: rank_sequences * context, sequences })
}

/// Throughput of a whole run over that of its steady state.
///
/// While the first burst is prefilled the batches fill up, and as it was staggered then, they drain at the end: together about the
/// time that the burst's last requests waited longer than later ones did. The median request saw full batches.
fn steady_share(s: &Scenario, m: &Measured, tokens_per_gpu: f64) -> f64 {
    let duration = f64::from(s.load.requests) * s.load.osl.mean() / (tokens_per_gpu * s.gpus);
    match (m.ttft_p99, m.ttft_median) {
        (Some(last), Some(usual)) => (1.0 - (last - usual) / duration).clamp(0.85, 1.0),
        _ => 0.955,
    }
}

/// Finds the prefill factors of a disaggregated target, with a decode factor that gives its measured TPOT.
pub fn find_prefill(model: &Model, target: &mut Target) {
    let (Some(load), Some(tpot)) = (target.decode_load, target.measured.tpot) else { return };
    if target.scenario.kind != Kind::Disaggregated {
        return;
    }
    let cost = model.decode_cost(&target.scenario, Correction::default());
    let decode = Correction::constant((tpot * cost.tokens_per_step() / cost.step(load)).clamp(0.1, 10.0));
    let kv_tokens = model.kv_tokens(&target.scenario);
    for (i, routing) in WorkerChoice::ALL.into_iter().enumerate() {
        // A single worker has no choice.
        target.prefill[i] = if i > 0 && target.scenario.decode.workers == 1 {
            target.prefill[0]
        } else {
            Some(prefill_target(model, target, routing, decode, kv_tokens))
        };
    }
}

fn prefill_target(model: &Model, target: &Target, routing: WorkerChoice, decode: Correction, kv_tokens: u64) -> PrefillTarget {
    let run = |ln: f64| {
        let mut deployment = model.deployment_holding(&target.scenario, Factors { decode, prefill: ln.exp() }, kv_tokens);
        deployment.decode.routing = routing;
        simulate(&deployment, &target.scenario.load)
    };
    let misfit = |ln: f64| {
        let outcome = run(ln);
        let rate = outcome.output_rate / target.scenario.gpus;
        let off = |predicted: f64, measured: Option<f64>| measured.map_or(0.0, |m| (predicted / m).ln().abs().min(1.5));
        let m = &target.measured;
        let mean = if m.ttft_median.is_none() { off(outcome.ttft.mean, m.ttft_mean) } else { 0.0 };
        off(outcome.ttft.p99, m.ttft_p99) + 0.5 * off(outcome.ttft.median, m.ttft_median) + mean + 2.0 * off(rate, m.tokens_per_gpu)
    };
    let coarse: Vec<(f64, f64)> = SCAN.iter().map(|&ln| (misfit(ln), ln)).collect();
    let best = coarse.iter().copied().min_by(|a, b| a.0.total_cmp(&b.0)).expect("the scan is not empty");
    let fine: Vec<(f64, f64)> = REFINE.iter().map(|step| (misfit(best.1 + step), best.1 + step)).collect();
    let chosen = fine.iter().copied().chain([best]).min_by(|a, b| a.0.total_cmp(&b.0)).expect("the scan is not empty");
    // How much worse a factor that is 35 % off would be.
    let around = [chosen.1 - 0.3, chosen.1 + 0.3].map(|ln| misfit(ln) - chosen.0);
    let sharpness = (around[0].min(around[1]) / 0.25).clamp(0.0, 1.0);
    // A row that no factor explains says little.
    let weight = sharpness / (1.0 + 2.0 * (chosen.0 - 0.2).max(0.0));
    let tpot = target.measured.tpot.map_or(0.0, |m| (m / run(chosen.1).tpot.median).ln());
    PrefillTarget { ln: chosen.1, weight, misfit: chosen.0, tpot: if tpot.is_finite() { tpot.clamp(-MAX_SHIFT, MAX_SHIFT) } else { 0.0 } }
}
