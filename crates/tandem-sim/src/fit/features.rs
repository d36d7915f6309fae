//! What a correction may depend on. A correction is `exp(features · weights)` and multiplies the analytic time.
//!
//! Each list has a name per feature, because the shipped file names them; a ridge penalty pulls every weight towards 0, so a GPU or
//! stack without measurements gets the uncorrected analytic model.

use crate::rows::{Pool, Scenario};

/// What both corrections begin with; values by `Common::heads`.
const HEADS: [&str; 18] = [
    "all",
    "gpu:h100",
    "gpu:h200",
    "gpu:b200",
    "gpu:gb200",
    "gpu:b300",
    "gpu:gb300",
    "sglang",
    "sglang gpu:h100",
    "sglang gpu:h200",
    "sglang gpu:b200",
    "sglang gpu:gb200",
    "sglang gpu:b300",
    "sglang gpu:gb300",
    "fp4",
    "sglang fp4",
    "era",
    "sglang era",
];

/// What both corrections end with; values by `Common::cells`.
const CELLS: [&str; 7] = [
    "fp4 gpu:b200",
    "fp4 gpu:gb200",
    "fp4 gpu:b300",
    "fp4 gpu:gb300",
    "sglang fp4 gpu:b200",
    "sglang fp4 gpu:gb200",
    "sglang fp4 gpu:gb300",
];

/// `own` between [`HEADS`] and [`CELLS`].
const fn framed<const M: usize, const N: usize>(own: [&'static str; M]) -> [&'static str; N] {
    assert!(N == HEADS.len() + M + CELLS.len());
    let mut names = [""; N];
    let mut i = 0;
    while i < N {
        names[i] = if i < HEADS.len() {
            HEADS[i]
        } else if i < HEADS.len() + M {
            own[i - HEADS.len()]
        } else {
            CELLS[i - HEADS.len() - M]
        };
        i += 1;
    }
    names
}

/// Features of the decode step's correction.
pub const DECODE: [&str; 54] = framed([
    "drafts:1",
    "drafts:2",
    "drafts:3+",
    "sglang drafts",
    "attention-dp",
    "sglang attention-dp",
    "ln ranks",
    "sglang ln ranks",
    "ln batch",
    "sglang ln batch",
    "attention-dp ln batch",
    "ln context",
    "sglang ln context",
    "whole experts",
    "eplb",
    "drafts ln batch",
    "ln batch squared",
    "fp4 ln batch",
    "hopper ln batch",
    "sglang early",
    "fp4 attention-dp",
    "long output",
    "ln ranks attention-dp",
    "ln context ln batch",
    "fp4 drafts",
    "early",
    "sglang unlimited",
    "sglang unlimited fp8",
    "sglang unlimited ln batch",
]);

/// Features of the prefill iteration's correction.
pub const PREFILL: [&str; 48] = framed([
    "drafts",
    "attention-dp",
    "sglang attention-dp",
    "ln ranks",
    "sglang ln ranks",
    "ln prompt",
    "sglang ln prompt",
    "ln tokens",
    "sglang ln tokens",
    "whole experts",
    "ln load",
    "sglang ln load",
    "sglang early",
    "fp4 attention-dp",
    "early",
    "hopper ln prompt",
    "ln decode ranks",
    "sglang drafts",
    "sglang unlimited",
    "sglang unlimited fp8",
    "light",
    "sglang light",
    "fp4 ln prompt",
]);

const GPUS: [&str; 6] = ["h100", "h200", "b200", "gb200", "b300", "gb300"];

fn bit(on: bool) -> f64 {
    f64::from(u8::from(on))
}

struct Common {
    sglang: f64,
    fp4: f64,
    era: f64,
    early: f64,
    hopper: f64,
    gpu: [f64; 6],
}

impl Common {
    fn new(s: &Scenario) -> Self {
        Common {
            sglang: bit(s.stack == "sglang"),
            fp4: bit(s.weights.is_nvfp4()),
            era: s.months.clamp(-3.0, 5.0) / 3.0,
            early: bit(s.months < 0.0),
            hopper: bit(s.hardware.starts_with("h1") || s.hardware.starts_with("h2")),
            gpu: GPUS.map(|g| bit(s.hardware == g)),
        }
    }

    /// FP4 on each GPU that has it, alone and with SGLang.
    fn cells(&self) -> [f64; 7] {
        let [_, _, b200, gb200, b300, gb300] = self.gpu.map(|g| g * self.fp4);
        [b200, gb200, b300, gb300, b200 * self.sglang, gb200 * self.sglang, gb300 * self.sglang]
    }

    fn heads(&self) -> Vec<f64> {
        let mut x = vec![1.0];
        x.extend(self.gpu);
        x.push(self.sglang);
        x.extend(self.gpu.map(|g| g * self.sglang));
        x.extend([self.fp4, self.fp4 * self.sglang, self.era, self.era * self.sglang]);
        x
    }
}

fn ranks(pool: &Pool) -> f64 {
    (f64::from(pool.layout.tp) / 8.0).ln()
}

/// Values of [`DECODE`]; `batch` is the number of sequences of an attention rank.
#[must_use]
pub fn decode_features(s: &Scenario, batch: f64) -> Vec<f64> {
    let c = Common::new(s);
    let dp = bit(s.decode.layout.attention_dp);
    let ln_batch = (batch.max(1.0) / 16.0).ln();
    let ln_context = ((s.load.isl.mean() + s.load.osl.mean() / 2.0) / 4096.0).ln();
    let drafts = f64::from(s.mtp.min(3));
    let ln_ranks = ranks(&s.decode);
    let mut x = c.heads();
    x.extend([bit(s.mtp == 1), bit(s.mtp == 2), bit(s.mtp >= 3), drafts * c.sglang]);
    x.extend([dp, dp * c.sglang, ln_ranks, ln_ranks * c.sglang, ln_batch, ln_batch * c.sglang, dp * ln_batch]);
    x.extend([ln_context, ln_context * c.sglang, bit(s.decode.layout.ep <= 1), bit(s.eplb_slots > 0), drafts * ln_batch]);
    x.extend([ln_batch * ln_batch / 4.0, c.fp4 * ln_batch, c.hopper * ln_batch, c.early * c.sglang, c.fp4 * dp]);
    x.extend([bit(s.load.osl.mean() > 2.0 * s.load.isl.mean()), ln_ranks * dp, ln_context * ln_batch, c.fp4 * drafts, c.early]);
    let unlimited = c.sglang * bit(s.prefill.is_unlimited());
    x.extend([unlimited, unlimited * (1.0 - c.fp4), unlimited * ln_batch]);
    x.extend(c.cells());
    x
}

/// Values of [`PREFILL`].
#[must_use]
pub fn prefill_features(s: &Scenario) -> Vec<f64> {
    let c = Common::new(s);
    let pool = &s.prefill;
    let dp = bit(pool.layout.attention_dp);
    let prompt = s.load.isl.mean();
    let ln_prompt = (prompt / 4096.0).ln();
    let tokens = f64::from(pool.max_tokens).min(f64::from(pool.max_batch) * prompt).clamp(512.0, 131_072.0);
    let ln_tokens = (tokens / 8192.0).ln();
    let ln_load = (f64::from(s.load.concurrency) / pool.attention_ranks()).max(1.0).ln() / 3.0;
    let ln_ranks = (f64::from(pool.layout.tp) / 4.0).ln();
    let mut x = c.heads();
    x.extend([bit(s.mtp > 0), dp, dp * c.sglang, ln_ranks, ln_ranks * c.sglang, ln_prompt, ln_prompt * c.sglang]);
    x.extend([ln_tokens, ln_tokens * c.sglang, bit(pool.layout.ep <= 1), ln_load, ln_load * c.sglang]);
    x.extend([c.early * c.sglang, c.fp4 * dp, c.early, c.hopper * ln_prompt, ranks(&s.decode), c.sglang * bit(s.mtp > 0)]);
    let unlimited = c.sglang * bit(pool.is_unlimited());
    let light = bit(f64::from(s.load.concurrency) < 2.0 * pool.attention_ranks());
    x.extend([unlimited, unlimited * (1.0 - c.fp4), light, light * c.sglang, c.fp4 * ln_prompt]);
    x.extend(c.cells());
    x
}

/// Features of an aggregated server's time per output token, by which the disaggregated model is off for such servers.
#[must_use]
pub fn aggregated_features(s: &Scenario) -> Vec<f64> {
    decode_features(s, s.expected_batch())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{Row, parse};

    fn row() -> Row {
        let text = "id,kind,hardware,framework,precision,isl,osl,concurrency\nx,disagg,b200,sglang,fp8,1024,1024,64\n";
        parse(text).unwrap().0.remove(0)
    }

    #[test]
    fn every_feature_has_a_name() {
        let scenario = Scenario::new(&row());
        assert_eq!(decode_features(&scenario, 8.0).len(), DECODE.len());
        assert_eq!(prefill_features(&scenario).len(), PREFILL.len());
    }
}
