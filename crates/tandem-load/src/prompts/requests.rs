//! All requests of a run, one after the other: warm-up first, then the measured ones.
//!
//! The prompt of a request depends on the seed, its phase and its index alone, so that a run with another
//! warm-up, concurrency or number of requests sends the same measured prompts.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;
use tandem_metrics::LoadPhase;

use super::body::BodyTemplate;
use super::texts::Texts;
use crate::error::LoadError;
use crate::spec::LoadSpec;
use crate::transport::request::RequestHead;

/// A prompt that has been seen before is drawn again this often; prompts of very few tokens may not have enough different ones.
const MAX_REDRAWS: u32 = 8;

/// Makes the requests of a run.
pub(crate) struct Requests {
    head: RequestHead,
    body: BodyTemplate,
    texts: Arc<dyn Texts>,
    n_tokens: u32,
    seed: u64,
    n_warmup: u32,
    n_requests: u32,
    next: u32,
    seen: HashSet<u64>,
    n_repeated: Arc<AtomicU32>,
}

impl Requests {
    /// The requests that `spec` asks for; repeated prompts are counted in `n_repeated`.
    ///
    /// # Errors
    /// [`LoadError::Spec`] or [`LoadError::Prompts`].
    pub(crate) fn new(spec: &LoadSpec, texts: Arc<dyn Texts>, n_repeated: Arc<AtomicU32>) -> Result<Self, LoadError> {
        let n_tokens = if spec.isl_includes_template {
            let n = spec.isl.checked_sub(texts.template_tokens()).filter(|n| *n > 0);
            n.ok_or_else(|| LoadError::Prompts {
                isl: spec.isl,
                reason: format!("the chat template alone takes {} tokens", texts.template_tokens()),
            })?
        } else {
            spec.isl
        };
        Ok(Self {
            head: RequestHead::new(&spec.target, spec.streaming, spec.api_key.as_ref(), &spec.headers)?,
            body: BodyTemplate::new(spec)?,
            texts,
            n_tokens,
            seed: spec.seed,
            n_warmup: spec.load.n_warmup,
            n_requests: spec.load.n_requests,
            next: 0,
            seen: HashSet::new(),
            n_repeated,
        })
    }

    fn prompt(&mut self, phase: LoadPhase, index: u32) -> String {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(prompt_seed(self.seed, phase, index));
        let mut text = String::new();
        for _ in 0..=MAX_REDRAWS {
            text.clear();
            self.texts.write(self.n_tokens, &mut rng, &mut text);
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            if self.seen.insert(hasher.finish()) {
                return text;
            }
        }
        self.n_repeated.fetch_add(1, Ordering::Relaxed);
        text
    }
}

impl Iterator for Requests {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let n = self.next;
        let (phase, index) = match n.checked_sub(self.n_warmup) {
            None => (LoadPhase::Warmup, n),
            Some(i) if i < self.n_requests => (LoadPhase::Profiling, i),
            Some(_) => return None,
        };
        self.next += 1;
        let prompt = self.prompt(phase, index);
        let mut body = Vec::with_capacity(prompt.len() + 512);
        self.body.write(&prompt, &mut body);
        Some(self.head.request(phase, index, &body))
    }
}

/// The bodies of the first `n` measured requests of a run, as they are sent: for `inputs.json`.
///
/// # Errors
/// As a run's own.
pub fn payloads(spec: &LoadSpec, texts: Arc<dyn Texts>, n: usize) -> Result<Vec<serde_json::Value>, LoadError> {
    let mut requests = Requests::new(spec, texts, Arc::default())?;
    let template = requests.body.clone();
    let body = |index| {
        let mut out = Vec::new();
        template.write(&requests.prompt(LoadPhase::Profiling, index), &mut out);
        serde_json::from_slice(&out).expect("a body is JSON")
    };
    let n = u32::try_from(n).unwrap_or(u32::MAX).min(spec.load.n_requests);
    Ok((0..n).map(body).collect())
}

/// Spreads seed, phase and index over 64 bits (the finalizer of SplitMix64).
fn prompt_seed(seed: u64, phase: LoadPhase, index: u32) -> u64 {
    let phase = match phase {
        LoadPhase::Warmup => 1u64,
        LoadPhase::Profiling => 2,
    };
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (phase << 32 | u64::from(index));
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::texts::ByteTexts;
    use super::*;

    fn requests(change: impl FnOnce(&mut LoadSpec)) -> (Vec<String>, u32) {
        let mut spec = LoadSpec::closed_loop("h", "m", 2, 50, 12, 4).unwrap();
        change(&mut spec);
        let n_repeated = Arc::new(AtomicU32::new(0));
        let texts = Arc::new(ByteTexts { template_tokens: 3 });
        let all = Requests::new(&spec, texts, n_repeated.clone()).unwrap().map(|b| String::from_utf8(b).unwrap()).collect();
        (all, n_repeated.load(Ordering::Relaxed))
    }

    fn prompt(request: &str) -> String {
        let body: serde_json::Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
        body["messages"][0]["content"].as_str().unwrap().to_owned()
    }

    #[test]
    fn prompts_are_all_different_and_of_the_asked_length() {
        let (all, n_repeated) = requests(|_| {});
        let prompts: HashSet<_> = all.iter().map(|r| prompt(r)).collect();
        assert_eq!((all.len(), prompts.len(), n_repeated), (54, 54, 0));
        assert!(prompts.iter().all(|p| p.len() == 12));
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_warmup_does_not_shift_measured_prompts() {
        assert_eq!(requests(|_| {}), requests(|_| {}));
        let (with, _) = requests(|_| {});
        let (without, _) = requests(|s| s.load.n_warmup = 0);
        assert_eq!(with[4..], without[..]);
        let (other, _) = requests(|s| s.seed = 101);
        assert!(with.iter().zip(&other).all(|(a, b)| prompt(a) != prompt(b)));
    }

    #[test]
    fn the_template_is_subtracted_when_asked() {
        let (all, _) = requests(|s| s.isl_includes_template = true);
        assert!(all.iter().all(|r| prompt(r).len() == 9));
        let spec = LoadSpec { isl_includes_template: true, ..LoadSpec::closed_loop("h", "m", 1, 1, 3, 1).unwrap() };
        let result = Requests::new(&spec, Arc::new(ByteTexts { template_tokens: 3 }), Arc::default());
        assert!(matches!(result.err(), Some(LoadError::Prompts { isl: 3, .. })));
    }

    #[test]
    fn prompts_too_short_to_be_all_different_are_counted() {
        let (all, n_repeated) = requests(|s| s.isl = 1);
        let prompts: HashSet<_> = all.iter().map(|r| prompt(r)).collect();
        assert_eq!(prompts.len() + n_repeated as usize, all.len());
        assert!(n_repeated >= 28);
    }
}
