//! Servers that prefill and decode in the same steps, in closed form: a stand-in that lets such rows be priced, not a simulation.
//!
//! Per request a server spends `prefill` seconds and, spread over its batch, the decode steps; both share its time, so with a batch of
//! `B` the time per token is `step / accepted + B · prefill / output tokens`.

use crate::cost::{DecodeLoad, PrefillLoad};
use crate::fit::Constants;
use crate::model::Model;
use crate::rows::Scenario;

/// Throughput and latency of an aggregated configuration, seconds and tokens per second and GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Aggregated {
    pub(crate) tokens_per_gpu: f64,
    pub(crate) tpot: f64,
    pub(crate) ttft_median: f64,
    pub(crate) ttft_p99: f64,
}

/// Seconds of a server per prompt.
fn prompt_seconds(model: &Model, s: &Scenario) -> f64 {
    let ranks = f64::from(s.decode.layout.attention_dp_size());
    let prompt = s.load.isl.mean();
    let each = PrefillLoad { rank_tokens: prompt, rank_pairs: prompt * prompt / 2.0, tokens: prompt * ranks };
    model.prefill_cost(s, model.factors(s).prefill).iteration(each) / ranks
}

/// Time per output token without the correction for aggregated servers.
pub(crate) fn time_per_token(model: &Model, s: &Scenario) -> f64 {
    let batch = s.expected_batch();
    let server = batch * f64::from(s.decode.layout.attention_dp_size());
    let context = s.load.isl.mean() + s.load.osl.mean() / 2.0;
    let cost = model.decode_cost(s, model.factors(s).decode);
    let step = cost.step(DecodeLoad { rank_sequences: batch, rank_context: batch * context, sequences: server });
    step / cost.tokens_per_step() + server * prompt_seconds(model, s) / s.load.osl.mean()
}

/// Predicts an aggregated configuration.
pub(crate) fn aggregated(model: &Model, constants: &Constants, s: &Scenario) -> Aggregated {
    let tpot = time_per_token(model, s) * crate::fit::aggregated_correction(constants, s).exp();
    let prompt = prompt_seconds(model, s);
    let per_server = f64::from(s.load.concurrency) / f64::from(s.decode.workers);
    let burst = per_server * prompt;
    let ttft_median = model.request_s(s) + 2.0 * prompt * f64::from(s.decode.layout.attention_dp_size());
    let latency = ttft_median + 0.1 * burst / 2.0 + tpot * s.load.osl.mean();
    let tokens_per_gpu = 0.96 * f64::from(s.load.concurrency) * s.load.osl.mean() / latency / s.gpus;
    Aggregated { tokens_per_gpu, tpot, ttft_median, ttft_p99: ttft_median + 0.9 * burst }
}
