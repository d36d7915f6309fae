//! The steady state of a closed loop in microseconds: what a simulation would say, roughly, for exhaustive searches.
//!
//! A closed queueing network of three stations with the step costs of the simulator: prefill workers that serve batches, their KV
//! links, and decode workers whose step time grows with the batch and whose slots are limited. With `n` sequences in decode the
//! throughput is `X(n) = n / D(n)`, and by Little's law the requests in the system are `n + X × (time before decode)`; the `n` at
//! which that is the concurrency is found by bisection. What the slots cannot take waits before them.
//!
//! Reading order: `stations` (times of each), this file (the fixpoint), `sketch` (from a recipe's variant). Not here: distributions (the simulator has them: a screen
//! knows means only), the first burst of a run without warm-up, and random lengths beyond their means.
//!
//! Beside the simulator, over 600 deployments drawn at random (`tests/screen.rs` has the distribution and checks it): the output rate is
//! off by 1 % in the median and 5 % at the 90th percentile, TPOT by 0.1 and 2 %, mean TTFT by 1 and 25 %. TTFT is worst where requests
//! go round in groups that formed by chance: short outputs, large prefill batches.

mod sketch;
mod stations;

use crate::des::{Deployment, Load};
pub use sketch::{Sketched, screen_sketch};
use stations::{Decode, Prefill};

/// Halvings of the interval in which the number of sequences lies: a millionth of it is left.
const HALVINGS: u32 = 20;

/// What limits the throughput of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bound {
    /// Prefill iterations: requests wait for them.
    Prefill,
    /// The links between prefill and decode.
    Transfer,
    /// The batch limit of decode ranks: requests wait for a slot.
    DecodeSlots,
    /// The KV cache of decode ranks, which holds fewer sequences than the batch limit.
    KvCache,
    /// The load: more requests in flight would give more tokens.
    Concurrency,
}

impl Bound {
    /// Words for tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Bound::Prefill => "prefill",
            Bound::Transfer => "transfer",
            Bound::DecodeSlots => "decode slots",
            Bound::KvCache => "KV cache",
            Bound::Concurrency => "concurrency",
        }
    }
}

/// Means of the steady state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Output tokens per second of the measured part of a run, its end included.
    pub output_rate: f64,
    /// Seconds per output token after the first.
    pub tpot: f64,
    /// Seconds to the first token.
    pub ttft: f64,
    /// Sequences in decode, over all workers.
    pub in_decode: f64,
    /// What limits the throughput.
    pub bound: Bound,
}

/// Estimates `load` on `deployment`; `warmup` of the load's requests are not measured.
///
/// Source: mean-value analysis of closed networks (Reiser and Lavenberg 1980) with load-dependent stations.
#[must_use]
pub fn screen(deployment: &Deployment, load: &Load, warmup: u32) -> Estimate {
    let concurrency = f64::from(load.concurrency.min(load.requests).max(1));
    let decode = Decode::new(&deployment.decode, load);
    let prefill = Prefill::new(deployment, load);
    let slots = decode.slots.min(concurrency);
    // Requests in the system when `n` sequences are in decode; infinite beyond what prefill can feed.
    let in_system = |n: f64| {
        let rate = decode.rate(n);
        n + rate * (prefill.seconds(rate) + decode.entry(n))
    };
    let is_full = in_system(slots) <= concurrency;
    let n = if is_full { slots } else { bisect(0.0, slots, |n| in_system(n) > concurrency) };
    let rate = decode.rate(n);
    let bound = if is_full && concurrency > slots * (1.0 + 1e-9) {
        if decode.kv_binds { Bound::KvCache } else { Bound::DecodeSlots }
    } else if rate > 0.9 * prefill.link_capacity {
        Bound::Transfer
    } else if rate > 0.9 * prefill.capacity {
        Bound::Prefill
    } else {
        Bound::Concurrency
    };
    // Requests that never wait for each other start and end together, in waves; those that do are spread over time.
    let staggered = (rate / prefill.capacity).max(rate / prefill.link_capacity).max(1.0 - n / concurrency).min(1.0);
    let osl = load.osl.mean();
    let first = decode.step(n);
    Estimate {
        output_rate: rate * osl * measured_share(load, warmup, concurrency * staggered),
        tpot: if osl > 1.0 { first * (decode.steps - 1.0) / (osl - 1.0) } else { 0.0 },
        // Little's law for everything before decode, and the step that gives the first token.
        ttft: ((concurrency - n) / rate).max(prefill.seconds(rate) + decode.entry(n)) + first,
        in_decode: n,
        bound,
    }
}

/// Throughput of a run over that of its steady state, when the ends of `staggered` of the requests in flight are spread over time.
///
/// When the first measured request is sent, those others in flight are not measured; they end first, at the rate of the steady state.
fn measured_share(load: &Load, warmup: u32, staggered: f64) -> f64 {
    let measured = f64::from(load.requests.saturating_sub(warmup)).max(1.0);
    measured / (measured + staggered.min(measured))
}

/// The largest argument in the interval, nearly, at which `above` does not hold yet; it holds from some point on.
fn bisect(mut low: f64, mut high: f64, above: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if above(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    f64::midpoint(low, high)
}
