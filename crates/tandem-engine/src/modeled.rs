//! An engine that computes nothing: it sleeps for what [`ModeledCosts`] says and answers
//! deterministic printable tokens, to test serving paths and to deploy mocks.
//!
//! Its KV cache is real and small, and its text depends on it: each layer holds a chain of
//! hashes over the tokens so far, and the next token is a function of the last link. So
//! prefill in chunks, prefill in one process and decode in another, or any other way gives
//! one text, and KV that was lost, swapped or damaged on its way gives another. What is
//! written by [`Engine::kv_write`] is checked link by link.
//!
//! Not here: where costs come from (the Plan), real computation (`cpu`).

use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use tandem_plan::{KvDtype, KvPlan, ModeledCosts};

use crate::engine::{Batch, BatchEntry, Engine, EngineError, EngineInfo, KvRead, Sampling, StepObserver, StepOutput};

/// Layers of the cache: two, so that layer-wise transfer has something to order.
const N_LAYERS: usize = 2;

/// Bytes of one token in one layer: its chain hash, then the token.
const ENTRY_BYTES: usize = 8;

/// First printable byte and how many there are.
const PRINTABLE: (u32, u32) = (32, 95);

/// A step that begins within this time after the one before is back to back with it.
const BACK_TO_BACK: Duration = Duration::from_millis(1);

/// One token's cache in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Link {
    hash: u32,
    token: u32,
}

impl Link {
    /// The link after `self` (none before the first token).
    fn next(before: Option<Link>, layer: usize, token: u32) -> Link {
        let seed = before.map_or(0x9e37_79b9, |l| l.hash);
        Link { hash: mix(seed ^ mix(token.wrapping_add(0x85eb_ca6b)).rotate_left(u32::try_from(layer).unwrap_or(0) + 1)), token }
    }

    fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        ((u64::from(self.token) << 32) | u64::from(self.hash)).to_le_bytes()
    }

    fn from_bytes(bytes: [u8; ENTRY_BYTES]) -> Link {
        let [h0, h1, h2, h3, t0, t1, t2, t3] = bytes;
        Link { hash: u32::from_le_bytes([h0, h1, h2, h3]), token: u32::from_le_bytes([t0, t1, t2, t3]) }
    }
}

/// Avalanche of 32 bits.
fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// The cache: for each layer one entry for each token of each block.
#[derive(Debug)]
struct Cache {
    block_size: usize,
    layers: Vec<Vec<Link>>,
}

impl Cache {
    fn index(&self, blocks: &[u32], token: usize) -> usize {
        blocks[token / self.block_size] as usize * self.block_size + token % self.block_size
    }

    fn link(&self, layer: usize, blocks: &[u32], token: usize) -> Link {
        self.layers[layer][self.index(blocks, token)]
    }

    /// Extends the chain of one layer by an entry's tokens.
    fn extend(&mut self, layer: usize, entry: &BatchEntry) {
        let start = entry.start as usize;
        let mut before = (start > 0).then(|| self.link(layer, &entry.blocks, start - 1));
        for (i, &token) in entry.tokens.iter().enumerate() {
            let link = Link::next(before, layer, token);
            let at = self.index(&entry.blocks, start + i);
            self.layers[layer][at] = link;
            before = Some(link);
        }
    }
}

impl KvRead for Cache {
    fn kv_read(&self, layer: usize, blocks: &[u32], tokens: Range<usize>, out: &mut Vec<u8>) {
        out.reserve(tokens.len() * ENTRY_BYTES);
        for t in tokens {
            out.extend_from_slice(&self.link(layer, blocks, t).to_bytes());
        }
    }
}

/// When steps begin and end.
#[derive(Debug)]
struct Clock {
    costs: ModeledCosts,
    /// When the last step returned, and how much later that was than modeled.
    last: Option<(Instant, Duration)>,
}

impl Clock {
    /// The modeled duration of a batch.
    fn cost(&self, batch: &Batch) -> Duration {
        let (mut n_tokens, mut n_seqs) = (0usize, 0usize);
        for entry in &batch.entries {
            if entry.decode {
                n_seqs += 1;
            } else {
                n_tokens += entry.tokens.len();
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let us = self.costs.step_us + self.costs.prefill_token_us * n_tokens as f64 + self.costs.decode_seq_us * n_seqs as f64;
        Duration::try_from_secs_f64(us / 1e6).unwrap_or_default()
    }

    /// When a step that is asked for now begins: oversleep of the step before is taken off if they are back to back,
    /// so that it does not add up over many steps. Other time between steps is the caller's and stays.
    fn begin(&self) -> Instant {
        let now = Instant::now();
        match self.last {
            Some((returned, late)) if now - returned < BACK_TO_BACK => now - late,
            _ => now,
        }
    }

    fn finish(&mut self, end: Instant) {
        sleep_until(end);
        let now = Instant::now();
        self.last = Some((now, now - end));
    }
}

fn sleep_until(end: Instant) {
    let rest = end.saturating_duration_since(Instant::now());
    if !rest.is_zero() {
        thread::sleep(rest);
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct ModeledEngine {
    info: EngineInfo,
    cache: Cache,
    clock: Clock,
}

impl ModeledEngine {
    /// An engine with the cache of `kv` (its dtype apart) and tokens below `vocab_size`.
    #[must_use]
    pub fn new(costs: ModeledCosts, kv: &KvPlan, vocab_size: u32) -> Self {
        let (block_size, n_blocks) = (kv.block_size as usize, kv.n_blocks as usize);
        let info = EngineInfo {
            name: "modeled",
            n_kv_layers: N_LAYERS,
            kv_values_per_token: ENTRY_BYTES,
            kv_dtype: KvDtype::Fp8,
            block_size,
            n_blocks,
            vocab_size: vocab_size as usize,
        };
        let cache = Cache { block_size, layers: vec![vec![Link::default(); n_blocks * block_size]; N_LAYERS] };
        Self { info, cache, clock: Clock { costs, last: None } }
    }

    /// Whether the first `n_tokens` tokens of a sequence are one unbroken chain in every layer, over the same tokens.
    ///
    /// # Errors
    /// [`EngineError::Batch`] with the first token that is not.
    pub fn verify(&self, blocks: &[u32], n_tokens: usize) -> Result<(), EngineError> {
        for layer in 0..N_LAYERS {
            let mut before = None;
            for t in 0..n_tokens {
                let link = self.cache.link(layer, blocks, t);
                if link != Link::next(before, layer, self.cache.link(0, blocks, t).token) {
                    return Err(broken_chain(layer, t));
                }
                before = Some(link);
            }
        }
        Ok(())
    }

    fn check_entry(&self, entry: &BatchEntry) -> Result<(), EngineError> {
        let end = entry.start as usize + entry.tokens.len();
        if entry.tokens.is_empty() || (entry.decode && entry.sampling.is_none()) {
            return Err(EngineError::Batch("an entry has nothing to compute".into()));
        }
        self.check_blocks(&entry.blocks, end)?;
        // In tests the KV that a decode begins with is checked as a whole: pieces may have arrived in any order.
        if cfg!(debug_assertions) && entry.decode && entry.sampling.as_ref().is_some_and(|s| s.output_index == 1) {
            self.verify(&entry.blocks, entry.start as usize)?;
        }
        match entry.tokens.iter().find(|&&t| t as usize >= self.info.vocab_size) {
            Some(t) => Err(EngineError::Batch(format!("token {t} is outside the vocabulary of {}", self.info.vocab_size))),
            None => Ok(()),
        }
    }

    fn check_blocks(&self, blocks: &[u32], end: usize) -> Result<(), EngineError> {
        let n_needed = end.div_ceil(self.info.block_size);
        let Some(used) = blocks.get(..n_needed) else {
            return Err(EngineError::Batch(format!("{end} tokens need {n_needed} blocks and have {}", blocks.len())));
        };
        match used.iter().find(|&&b| b as usize >= self.info.n_blocks) {
            Some(b) => Err(EngineError::Batch(format!("block {b} is outside the cache of {}", self.info.n_blocks))),
            None => Ok(()),
        }
    }

    /// The token after an entry: a function of the chains' last links, printable, not banned.
    fn choose(&self, entry: &BatchEntry, sampling: &Sampling) -> u32 {
        let last = entry.start as usize + entry.tokens.len() - 1;
        let hash = (0..N_LAYERS).fold(0, |h, layer| mix(h ^ self.cache.link(layer, &entry.blocks, last).hash));
        let (first, n) = PRINTABLE;
        let vocab = u32::try_from(self.info.vocab_size).unwrap_or(u32::MAX);
        let (first, n) = if first + n <= vocab { (first, n) } else { (0, vocab) };
        let candidates = (0..n).map(|i| first + (hash % n + i) % n);
        candidates.into_iter().find(|t| !sampling.banned.contains(t)).unwrap_or(first)
    }
}

fn broken_chain(layer: usize, token: usize) -> EngineError {
    EngineError::Batch(format!("the KV of token {token} in layer {layer} does not follow from the tokens before"))
}

impl KvRead for ModeledEngine {
    fn kv_read(&self, layer: usize, blocks: &[u32], tokens: Range<usize>, out: &mut Vec<u8>) {
        self.cache.kv_read(layer, blocks, tokens, out);
    }
}

impl Engine for ModeledEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn step(&mut self, batch: &Batch, observer: &mut dyn StepObserver) -> Result<StepOutput, EngineError> {
        batch.entries.iter().try_for_each(|e| self.check_entry(e))?;
        let (begin, cost) = (self.clock.begin(), self.clock.cost(batch));
        let has_prefill = batch.entries.iter().any(|e| !e.decode);
        for layer in 0..N_LAYERS {
            batch.entries.iter().for_each(|e| self.cache.extend(layer, e));
            // Only prompts are sent while they are computed; a step of decoding sleeps once.
            if has_prefill && layer + 1 < N_LAYERS {
                let part = u32::try_from(layer + 1).unwrap_or(1);
                sleep_until(begin + cost * part / u32::try_from(N_LAYERS).unwrap_or(1));
            } else if layer + 1 == N_LAYERS {
                self.clock.finish(begin + cost);
            }
            observer.layer_done(layer, &self.cache);
        }
        let choose = |e: &BatchEntry| e.sampling.as_ref().map_or_else(Vec::new, |s| vec![self.choose(e, s)]);
        Ok(StepOutput { tokens: batch.entries.iter().map(choose).collect() })
    }

    fn kv_write(&mut self, layer: usize, blocks: &[u32], tokens: Range<usize>, bytes: &[u8]) -> Result<(), EngineError> {
        if layer >= N_LAYERS || bytes.len() != tokens.len() * ENTRY_BYTES {
            return Err(EngineError::Batch(format!("{} bytes do not fit {} tokens of layer {layer}", bytes.len(), tokens.len())));
        }
        self.check_blocks(blocks, tokens.end)?;
        let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
        let mut before = None;
        for (t, entry) in tokens.zip(entries) {
            let link = Link::from_bytes(*entry);
            // The first link of a piece that starts later cannot be checked: pieces need not arrive in order.
            let checkable = t == 0 || before.is_some();
            if checkable && link != Link::next(before, layer, link.token) {
                return Err(broken_chain(layer, t));
            }
            let at = self.cache.index(blocks, t);
            self.cache.layers[layer][at] = link;
            before = Some(link);
        }
        Ok(())
    }
}
