//! All requests of a run that do not wait for an answer, one after the other: warm-up first, then the measured ones.
//!
//! The prompt of a request depends on the seed, its phase and its index alone, so that a run with another
//! warm-up, concurrency or number of requests sends the same measured prompts. Traces and the user's own
//! prompts are taken in order instead, warm-up included.
//!
//! What was made is noted for each request (`Made`): records get their lengths and turns from there.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use tandem_metrics::LoadPhase;
use tandem_plan::Nanos;

use super::body::BodyTemplate;
use super::files::{GivenPrompt, Message};
use super::sessions::{Script, Scripts, Turn};
use super::texts::Texts;
use super::trace::{BLOCK_TOKENS, TraceRequest};
use crate::error::LoadError;
use crate::prompts::lengths::Lengths;
use crate::spec::{Keep, LoadSpec, Prefix, Prompts, Share, Turns};
use crate::transport::request::RequestHead;

/// A prompt that has been seen before is drawn again this often; prompts of very few tokens may not have enough different ones.
const MAX_REDRAWS: u32 = 8;

/// What is known of a request from its making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    /// Its phase and index, as its ticket has them.
    pub(crate) key: (LoadPhase, u32),
    /// Prompt length as asked for.
    pub(crate) isl: Option<u32>,
    /// What the server should count: the prompt and the chat template.
    pub(crate) isl_at_server: Option<u32>,
    /// Output length asked for.
    pub(crate) osl: u32,
    /// Which conversation, from 0 in its phase.
    pub(crate) session: u32,
    /// Which turn of it, from 0.
    pub(crate) turn: u32,
    /// Tokens of the messages without the chat template; unknown unless it is by construction, or is asked for.
    pub(crate) n_text: Option<u32>,
    /// Its body, if bodies are kept.
    pub(crate) body: Option<String>,
}

/// Makes the requests of a run.
pub(crate) struct Requests {
    head: RequestHead,
    body: BodyTemplate,
    texts: Arc<dyn Texts>,
    prompts: Prompts,
    /// Texts that prompts begin with.
    prefixes: Vec<String>,
    isl: Lengths,
    osl: Lengths,
    turns: Option<Turns>,
    /// Tokens of the chat template that are part of the lengths asked for.
    n_template_within: u32,
    seed: u64,
    share: Share,
    n_warmup: u32,
    n_requests: u32,
    next: u32,
    seen: HashSet<u64>,
    n_repeated: Arc<AtomicU32>,
    scripts: Arc<Scripts>,
    /// Lengths of given prompts that have been counted.
    counted: HashMap<usize, (Option<u32>, Option<u32>)>,
    made: Vec<Made>,
    keep: Keep,
}

/// One request before it is bytes.
struct Draft {
    messages: Vec<Message>,
    isl: Option<u32>,
    isl_at_server: Option<u32>,
    osl: u32,
    later: Vec<String>,
    n_text: Option<u32>,
}

impl Requests {
    /// The requests that `spec` asks for; repeated prompts are counted in `n_repeated`, what follows an answer goes to `scripts`.
    ///
    /// # Errors
    /// [`LoadError::Spec`] or [`LoadError::Prompts`].
    pub(crate) fn new(
        spec: &LoadSpec,
        texts: Arc<dyn Texts>,
        n_repeated: Arc<AtomicU32>,
        scripts: Arc<Scripts>,
    ) -> Result<Self, LoadError> {
        let n_template_within = if spec.isl_includes_template { texts.template_tokens() } else { 0 };
        let prefix = match spec.prompts {
            Prompts::Synthetic { prefix } => prefix,
            _ => None,
        };
        let n_least = n_template_within + prefix.map_or(0, |p| p.n_tokens);
        if let (Prompts::Synthetic { .. }, Some(isl)) = (&spec.prompts, spec.isl.fixed().filter(|isl| *isl <= n_least)) {
            return Err(LoadError::Prompts { isl, reason: format!("the chat template and the prefix alone take {n_least} tokens") });
        }
        Ok(Self {
            head: RequestHead::new(&spec.target, spec.streaming, spec.api_key.as_ref(), &spec.headers)?,
            body: BodyTemplate::new(spec)?,
            prefixes: prefix.map(|p| prefixes(p, spec.seed, &*texts)).unwrap_or_default(),
            texts,
            prompts: spec.prompts.clone(),
            isl: spec.isl.clone(),
            osl: spec.osl.clone(),
            turns: spec.turns.clone(),
            n_template_within,
            seed: spec.seed,
            share: spec.share,
            n_warmup: spec.load.n_warmup,
            n_requests: spec.load.n_requests,
            next: 0,
            seen: HashSet::new(),
            n_repeated,
            scripts,
            counted: HashMap::new(),
            made: Vec::new(),
            keep: spec.keep,
        })
    }

    /// What was made, in order.
    pub(crate) fn into_made(self) -> Vec<Made> {
        self.made
    }

    /// Request (or conversation) `index` of `phase`, the `n`th of the run.
    fn draft(&mut self, phase: LoadPhase, index: u32, n: u32) -> Draft {
        // Lengths have a stream of their own, so that another distribution leaves the words as they are.
        let mut lengths = Xoshiro256PlusPlus::seed_from_u64(prompt_seed(self.seed ^ LENGTHS_SALT, phase, index));
        let mut words = Xoshiro256PlusPlus::seed_from_u64(prompt_seed(self.seed, phase, index));
        let n_turns = self.turns.as_ref().map_or(1, |turns| lengths.random_range(turns.min..=turns.max));
        match self.prompts.clone() {
            Prompts::Synthetic { .. } => {
                let osl = self.osl.draw(&mut lengths, 1);
                let n_prefix = self.prefixes.first().map_or(0, |_| self.prefix_tokens());
                let isl = self.isl.draw(&mut lengths, self.n_template_within + n_prefix + 1);
                let n_tokens = isl - self.n_template_within;
                let text = self.synthetic(n_tokens, n_prefix, &mut words);
                let later = (1..n_turns).map(|_| {
                    let mut text = String::new();
                    self.texts.write(self.isl.draw(&mut lengths, 1), &mut words, &mut text);
                    text
                });
                let later = later.collect();
                self.known(Message::user(text), isl, osl, later)
            }
            Prompts::Trace(requests) => {
                let request = &requests[n as usize % requests.len()];
                let isl = request.isl.max(self.n_template_within + 1);
                let text = self.of_trace(request, isl - self.n_template_within, &mut words);
                self.known(Message::user(text), isl, request.osl, Vec::new())
            }
            Prompts::Given { prompts, use_their_osl } => {
                let i = n as usize % prompts.len();
                let drawn = self.osl.draw(&mut lengths, 1);
                let given = &prompts[i];
                let (messages, later) = given.split(n_turns);
                self.n_repeated.fetch_add(u32::from(n as usize >= prompts.len()), Ordering::Relaxed);
                let (isl_at_server, n_answer) = self.count_given(i, given, &messages);
                let theirs = given.osl.or(n_answer).filter(|n| use_their_osl && *n > 0);
                let n_text = self.keep.text_tokens.then(|| self.count_texts(&messages)).flatten();
                Draft { messages, isl: isl_at_server, isl_at_server, osl: theirs.unwrap_or(drawn), later, n_text }
            }
        }
    }

    fn known(&self, message: Message, isl: u32, osl: u32, later: Vec<String>) -> Draft {
        let n_template = self.texts.template_tokens() - self.n_template_within;
        let n_text = isl.checked_sub(self.n_template_within);
        Draft { messages: vec![message], isl: Some(isl), isl_at_server: isl.checked_add(n_template), osl, later, n_text }
    }

    /// As GenAI-Perf counts messages: their contents with a blank between them.
    fn count_texts(&self, messages: &[Message]) -> Option<u32> {
        let contents: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
        self.texts.count(&contents.join(" "))
    }

    fn prefix_tokens(&self) -> u32 {
        match self.prompts {
            Prompts::Synthetic { prefix: Some(Prefix { n_tokens, .. }) } => n_tokens,
            _ => 0,
        }
    }

    /// A text of `n_tokens`, the first `n_prefix` of which others have too.
    fn synthetic(&mut self, n_tokens: u32, n_prefix: u32, rng: &mut Xoshiro256PlusPlus) -> String {
        let mut text = String::new();
        for _ in 0..=MAX_REDRAWS {
            text.clear();
            if !self.prefixes.is_empty() {
                text.push_str(&self.prefixes[rng.random_range(0..self.prefixes.len())]);
            }
            self.texts.write(n_tokens - n_prefix, rng, &mut text);
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            if self.seen.insert(hasher.finish()) {
                return text;
            }
        }
        self.n_repeated.fetch_add(1, Ordering::Relaxed);
        text
    }

    /// A text of `n_tokens` whose blocks are those that the trace names.
    fn of_trace(&self, request: &TraceRequest, n_tokens: u32, words: &mut Xoshiro256PlusPlus) -> String {
        let (mut text, mut left) = (String::new(), n_tokens);
        for &id in &request.hash_ids {
            let n = left.min(BLOCK_TOKENS);
            self.texts.write(n, &mut Xoshiro256PlusPlus::seed_from_u64(mix(self.seed ^ BLOCKS_SALT, id)), &mut text);
            left -= n;
        }
        self.texts.write(left, words, &mut text);
        text
    }

    /// What the server should count of a given prompt, and the length of its answer in the file.
    fn count_given(&mut self, i: usize, given: &GivenPrompt, messages: &[Message]) -> (Option<u32>, Option<u32>) {
        let texts = &self.texts;
        *self.counted.entry(i).or_insert_with(|| (texts.count_messages(messages), given.answer.as_deref().and_then(|a| texts.count(a))))
    }
}

impl Iterator for Requests {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let (n, phase, index) = loop {
            let n = self.next;
            let (phase, index) = match n.checked_sub(self.n_warmup) {
                None => (LoadPhase::Warmup, n),
                Some(i) if i < self.n_requests => (LoadPhase::Profiling, i),
                Some(_) => return None,
            };
            self.next += 1;
            // What another client sends is only counted.
            if self.share.has(index) {
                break (n, phase, index);
            }
        };
        let Draft { messages, isl, isl_at_server, osl, later, n_text } = self.draft(phase, index, n);
        let first = index * self.turns.as_ref().map_or(1, |turns| turns.max);
        let n_bytes: usize = messages.iter().map(|m| m.content.len()).sum();
        let mut body = Vec::with_capacity(n_bytes + 512);
        self.body.write(&messages, osl, &mut body);
        let keeps_body = self.keep.exchanges && phase == LoadPhase::Profiling;
        let kept = keeps_body.then(|| String::from_utf8_lossy(&body).into_owned());
        self.made.push(Made { key: (phase, first), isl, isl_at_server, osl, session: index, turn: 0, n_text, body: kept });
        if let Some(turns) = &self.turns {
            let mut pauses = Xoshiro256PlusPlus::seed_from_u64(prompt_seed(self.seed ^ PAUSES_SALT, phase, index));
            let turn = |text| Turn { text, osl, think: Nanos::from_millis(u64::from(turns.think_ms.draw(&mut pauses, 0))) };
            let later: Vec<Turn> = later.into_iter().map(turn).collect();
            let unknown = (1..).zip(&later).map(|(turn, _)| Made {
                key: (phase, first + turn),
                // History depends on the answers.
                isl: None,
                isl_at_server: None,
                osl,
                session: index,
                turn,
                n_text: None,
                body: None,
            });
            self.made.extend(unknown);
            self.scripts.put((phase, first), Script::new(messages, later));
        }
        Some(self.head.request(phase, first, &body))
    }
}

/// The bodies of the first `n` measured requests of a run, as they are sent: for `inputs.json`. Of conversations, the first turns.
///
/// # Errors
/// As a run's own.
pub fn payloads(spec: &LoadSpec, texts: Arc<dyn Texts>, n: usize) -> Result<Vec<serde_json::Value>, LoadError> {
    let mut requests = Requests::new(spec, texts, Arc::default(), Arc::default())?;
    let template = requests.body.clone();
    let body = |index| {
        let mut out = Vec::new();
        let draft = requests.draft(LoadPhase::Profiling, index, spec.load.n_warmup.saturating_add(index));
        template.write(&draft.messages, draft.osl, &mut out);
        serde_json::from_slice(&out).expect("a body is JSON")
    };
    let n = u32::try_from(n).unwrap_or(u32::MAX).min(spec.load.n_requests);
    Ok((0..n).map(body).collect())
}

/// The texts of a pool.
fn prefixes(prefix: Prefix, seed: u64, texts: &dyn Texts) -> Vec<String> {
    let text = |i: u32| {
        let mut text = String::new();
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(mix(seed ^ PREFIXES_SALT, u64::from(i)));
        texts.write(prefix.n_tokens, &mut rng, &mut text);
        text
    };
    (0..prefix.n_pool).map(text).collect()
}

/// Keep what is drawn for one purpose from depending on what is drawn for another.
const LENGTHS_SALT: u64 = 0x6c65_6e67_7468_7300;
const PAUSES_SALT: u64 = 0x7061_7573_6573_0000;
const BLOCKS_SALT: u64 = 0x626c_6f63_6b73_0000;
const PREFIXES_SALT: u64 = 0x7072_6566_6978_0000;

/// Spreads seed, phase and index over 64 bits.
fn prompt_seed(seed: u64, phase: LoadPhase, index: u32) -> u64 {
    let phase = match phase {
        LoadPhase::Warmup => 1u64,
        LoadPhase::Profiling => 2,
    };
    mix(seed, phase << 32 | u64::from(index))
}

/// Spreads two numbers over 64 bits (the finalizer of SplitMix64).
fn mix(seed: u64, value: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ value;
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
