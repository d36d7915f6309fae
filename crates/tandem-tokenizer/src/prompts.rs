//! Prompts of exactly n tokens, by construction.
//!
//! A table holds words whose form with a leading blank is one token that the pre-tokenizer
//! never joins with its neighbours: n words are n tokens, and no prompt is ever encoded to
//! find its length. For byte-level vocabularies each letter is a token. What holds for the
//! table is checked once when it is built; [`PromptTable::self_check`] checks samples.

use crate::error::TokenizerError;
use crate::template::ChatMessage;
use crate::tokenizer::Tokenizer;

/// How long a prompt shall be, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptLength {
    /// The user's text alone; the server counts this and the chat template's tokens.
    Content(usize),
    /// The whole prompt as the server counts it, chat template included.
    WithTemplate(usize),
}

/// A prompt that has not the length that it was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Which sample.
    pub index: u32,
    /// Tokens that it was made for, as text alone and in a chat.
    pub expected: (usize, usize),
    /// Tokens that it has.
    pub found: (usize, usize),
}

/// Makes prompts of exact lengths for one tokenizer.
#[derive(Debug, Clone)]
pub struct PromptTable {
    pub(crate) units: Units,
    pub(crate) chat_overhead: usize,
}

/// What prompts are made of.
#[derive(Debug, Clone)]
pub(crate) enum Units {
    /// Each letter and blank is a token.
    Letters,
    /// Each word with its leading blank is a token.
    Words {
        /// With the leading blank.
        words: Vec<Box<str>>,
        /// Words that are one token without a leading blank too; prompts begin with one, so that a server which strips
        /// blanks counts the same.
        first: Vec<Box<str>>,
    },
}

/// Fewer words would make prompts too much alike.
pub(crate) const MIN_WORDS: usize = 256;

/// A run never has more prompts than this; so many are guaranteed to differ if they are long enough.
const MAX_INDEX: u64 = u32::MAX as u64;

impl PromptTable {
    /// Finds the words of a vocabulary; takes about as long as encoding them once.
    ///
    /// # Errors
    /// [`TokenizerError::Prompts`] when the vocabulary has too few words whose tokens stay apart, or the chat template's
    /// length depends on the message; template errors.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        let units = if letters_are_tokens(tokenizer)? { Units::Letters } else { words(tokenizer)? };
        let mut table = Self { units, chat_overhead: 0 };
        if tokenizer.template().is_some() {
            table.chat_overhead = table.measure_overhead(tokenizer)?;
        }
        Ok(table)
    }

    /// Tokens that the chat template adds around one user message, the beginning of the answer included.
    #[must_use]
    pub fn chat_overhead(&self) -> usize {
        self.chat_overhead
    }

    /// Words to choose from (letters for byte-level vocabularies).
    #[must_use]
    pub fn n_words(&self) -> usize {
        match &self.units {
            Units::Letters => 26,
            Units::Words { words, .. } => words.len(),
        }
    }

    /// The user text number `index` of a run with this seed: equal arguments give equal texts. Texts of one run differ
    /// from each other in their first few tokens (two or three, seven for byte-level vocabularies), if they have that many.
    ///
    /// # Errors
    /// [`TokenizerError::Prompts`] when nothing is left for the user's text.
    pub fn synthesize(&self, seed: u64, index: u32, length: PromptLength) -> Result<String, TokenizerError> {
        let n_tokens = match length {
            PromptLength::Content(n) => n,
            PromptLength::WithTemplate(n) => n.saturating_sub(self.chat_overhead),
        };
        if n_tokens == 0 {
            let overhead = self.chat_overhead;
            return Err(TokenizerError::Prompts(format!("{length:?} leaves no token for the text; the chat template takes {overhead}")));
        }
        let mut out = String::with_capacity(n_tokens * 7);
        let mut random = SplitMix(seed ^ u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut names = Names { seed: SplitMix(seed), rest: u64::from(index), capacity: MAX_INDEX };
        self.fill(n_tokens, |n| names.next(n).unwrap_or_else(|| random.below(n)), &mut out);
        Ok(out)
    }

    /// Appends a text of exactly `n_tokens` tokens whose words are chosen by `next` (any source of random 64-bit numbers). Behind a text
    /// that was made here it adds exactly as many.
    /// Nothing guarantees that two such texts differ.
    pub fn write(&self, n_tokens: usize, mut next: impl FnMut() -> u64, out: &mut String) {
        self.fill(n_tokens, |n| below(next(), n), out);
    }

    /// Makes `n_samples` prompts and encodes them, as texts and (if there is a template) as chats: those whose length is wrong.
    ///
    /// # Errors
    /// Encoding errors, and those of [`Self::synthesize`].
    pub fn self_check(
        &self,
        tokenizer: &Tokenizer,
        seed: u64,
        length: PromptLength,
        n_samples: u32,
    ) -> Result<Vec<Mismatch>, TokenizerError> {
        let n_content = match length {
            PromptLength::Content(n) => n,
            PromptLength::WithTemplate(n) => n.saturating_sub(self.chat_overhead),
        };
        let mut wrong = Vec::new();
        for index in 0..n_samples {
            let text = self.synthesize(seed, index, length)?;
            let expected = (n_content, n_content + self.chat_overhead);
            let n_chat = if tokenizer.template().is_some() { chat_length(tokenizer, &text)? } else { expected.1 };
            let found = (tokenizer.encode_ordinary(&text)?.len(), n_chat);
            if found != expected {
                wrong.push(Mismatch { index, expected, found });
            }
        }
        Ok(wrong)
    }

    /// `choose(n)` gives a number below `n`.
    fn fill(&self, n_tokens: usize, mut choose: impl FnMut(usize) -> usize, out: &mut String) {
        match &self.units {
            Units::Words { words, first } => {
                let begun = usize::from(!out.is_empty());
                for i in begun..n_tokens + begun {
                    let from = if i == 0 { first } else { words };
                    out.push_str(&from[choose(from.len())]);
                }
            }
            Units::Letters => {
                let mut until_blank = 0;
                for left in (1..=n_tokens).rev() {
                    // The first token and the last are letters: templates may strip blanks.
                    if until_blank == 1 && left > 1 {
                        out.push(' ');
                        until_blank = 0;
                        continue;
                    }
                    if until_blank == 0 {
                        // A word of 8 letters at first, whose letters name the prompt.
                        until_blank = if left == n_tokens { 8 } else { 3 + choose(8) };
                    } else {
                        until_blank -= 1;
                    }
                    out.push(letter(choose(26)));
                }
            }
        }
    }

    fn measure_overhead(&self, tokenizer: &Tokenizer) -> Result<usize, TokenizerError> {
        let overhead = |n: usize| -> Result<Option<usize>, TokenizerError> {
            let text = self.synthesize(7, 1, PromptLength::Content(n))?;
            Ok(chat_length(tokenizer, &text)?.checked_sub(n))
        };
        match (overhead(9)?, overhead(57)?) {
            (Some(a), Some(b)) if a == b => Ok(a),
            (a, b) => {
                Err(TokenizerError::Prompts(format!("the chat template adds {a:?} tokens to a short text and {b:?} to a longer one")))
            }
        }
    }
}

fn chat_length(tokenizer: &Tokenizer, text: &str) -> Result<usize, TokenizerError> {
    Ok(tokenizer.encode_chat(&[ChatMessage { role: "user", content: text }], true)?.len())
}

fn letter(i: usize) -> char {
    char::from(b"abcdefghijklmnopqrstuvwxyz"[i])
}

/// Whether every letter and blank is a token of its own, whatever its neighbours.
fn letters_are_tokens(tokenizer: &Tokenizer) -> Result<bool, TokenizerError> {
    let mut pairs = String::new();
    let letters = || (0..26).map(letter).chain([' ']);
    letters().for_each(|a| letters().for_each(|b| pairs.extend([a, b])));
    Ok(tokenizer.encode_ordinary(&pairs)?.len() == pairs.len())
}

/// Words of lowercase letters that are one token each, alone and between others.
fn words(tokenizer: &Tokenizer) -> Result<Units, TokenizerError> {
    let vocabulary = tokenizer.vocabulary();
    let n_ids = u32::try_from(vocabulary.len()).unwrap_or(u32::MAX);
    let mut words: Vec<(u32, Box<str>)> = Vec::new();
    let mut first = Vec::new();
    for id in 0..n_ids {
        let Some(word) = vocabulary.bytes(id, false).strip_prefix(b" ") else { continue };
        if !is_word(word) {
            continue;
        }
        let word: String = std::iter::once(' ').chain(word.iter().map(|b| char::from(*b))).collect();
        // A token that no text reaches, or one of two with the same text, is of no use.
        if tokenizer.encode_ordinary(&word)? == [id] {
            if tokenizer.encode_ordinary(&word[1..])?.len() == 1 {
                first.push(word[1..].into());
            }
            words.push((id, word.into()));
        }
    }
    if words.len() < MIN_WORDS || first.len() < 16 {
        let reason =
            format!("{} has only {} usable words ({} of them at the start of a text)", tokenizer.origin(), words.len(), first.len());
        return Err(TokenizerError::Prompts(reason));
    }
    check_isolation(tokenizer, &words)?;
    Ok(Units::Words { words: words.into_iter().map(|(_, word)| word).collect(), first })
}

/// Words are of lowercase letters, and neither a letter nor a sentence.
pub(crate) fn is_word(word: &[u8]) -> bool {
    (2..=12).contains(&word.len()) && word.iter().all(u8::is_ascii_lowercase)
}

/// All words in two orders must be the tokens that they are alone.
fn check_isolation(tokenizer: &Tokenizer, words: &[(u32, Box<str>)]) -> Result<(), TokenizerError> {
    let mut random = SplitMix(1);
    for _ in 0..2 {
        let mut order: Vec<&(u32, Box<str>)> = words.iter().collect();
        for i in (1..order.len()).rev() {
            order.swap(i, random.below(i + 1));
        }
        let text: String = order.iter().map(|(_, word)| &**word).collect();
        if !tokenizer.encode_ordinary(&text)?.iter().eq(order.iter().map(|(id, _)| id)) {
            return Err(TokenizerError::Prompts(format!("the words of {} merge with their neighbours", tokenizer.origin())));
        }
    }
    Ok(())
}

/// Digits of a prompt's index, as choices of its first words: what makes prompts of one run differ.
struct Names {
    /// Shifts each digit, so that prompts of different runs differ too.
    seed: SplitMix,
    rest: u64,
    /// How many different rests there can be from here on.
    capacity: u64,
}

impl Names {
    /// The next digit in base `n`; `None` when all are written.
    fn next(&mut self, n: usize) -> Option<usize> {
        if self.capacity == 0 {
            return None;
        }
        let base = n as u64;
        let digit = (self.rest % base + self.seed.next() % base) % base;
        self.rest /= base;
        self.capacity /= base;
        usize::try_from(digit).ok()
    }
}

/// A small generator of random numbers (SplitMix64): prompts must not depend on the version of a library.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        below(self.next(), n)
    }
}

/// A random 64-bit number scaled to below `n`.
fn below(random: u64, n: usize) -> usize {
    let scaled = (u128::from(random) * n as u128) >> 64;
    usize::try_from(scaled).expect("below n")
}
