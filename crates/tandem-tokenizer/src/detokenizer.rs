//! Incremental decoding: text as soon as it is certain, never half a character.
//!
//! Equal to decoding everything at once, wherever the tokens are cut: bytes are collected, all
//! that is UTF-8 is given out, at most three bytes of an unfinished character are held back,
//! and what can never become a character is U+FFFD by the rule of [`String::from_utf8_lossy`].

use std::sync::Arc;

use crate::tokenizer::Tokenizer;
use crate::vocabulary::Vocabulary;

/// Decodes one sequence of tokens. Control tokens and ids without a token give no text.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    vocabulary: Arc<Vocabulary>,
    /// The beginning of a character whose other bytes have not come.
    pending: Vec<u8>,
    /// Blanks that may still be dropped at the start.
    strip: Option<(u8, usize)>,
    with_control: bool,
}

impl Detokenizer {
    /// At the start of a text.
    #[must_use]
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self::over(tokenizer.vocabulary(), false)
    }

    pub(crate) fn over(vocabulary: &Arc<Vocabulary>, with_control: bool) -> Self {
        Self { vocabulary: Arc::clone(vocabulary), pending: Vec::new(), strip: vocabulary.strip_start, with_control }
    }

    /// Adds a token; the text that is certain now, `None` when there is none.
    pub fn push(&mut self, token: u32) -> Option<String> {
        let mut text = String::new();
        self.push_into(token, &mut text);
        (!text.is_empty()).then_some(text)
    }

    /// Adds tokens; the text that is certain now, possibly empty.
    pub fn push_all(&mut self, tokens: &[u32]) -> String {
        let mut text = String::new();
        tokens.iter().for_each(|t| self.push_into(*t, &mut text));
        text
    }

    /// Adds a token and appends the text that is certain now.
    pub fn push_into(&mut self, token: u32, out: &mut String) {
        let mut bytes = self.vocabulary.bytes(token, self.with_control);
        if bytes.is_empty() {
            return;
        }
        if let Some((blank, n)) = &mut self.strip {
            while *n > 0 && bytes.first() == Some(blank) {
                *n -= 1;
                bytes = &bytes[1..];
            }
            if *n == 0 || !bytes.is_empty() {
                self.strip = None;
            }
        }
        if self.pending.is_empty() {
            // Nearly always: the token is whole characters.
            let held = decode(bytes, out);
            self.pending.extend_from_slice(held);
        } else {
            self.pending.extend_from_slice(bytes);
            let all = std::mem::take(&mut self.pending);
            let held = decode(&all, out);
            self.pending.extend_from_slice(held);
        }
    }

    /// Ends the text: an unfinished character becomes U+FFFD. The detokenizer is at the start of a text again.
    pub fn finish(&mut self) -> Option<String> {
        self.strip = self.vocabulary.strip_start;
        if self.pending.is_empty() {
            return None;
        }
        self.pending.clear();
        Some(char::REPLACEMENT_CHARACTER.to_string())
    }
}

/// Appends what is certain of `bytes` and returns the unfinished character at the end, if any.
fn decode<'a>(mut bytes: &'a [u8], out: &mut String) -> &'a [u8] {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                out.push_str(text);
                return &[];
            }
            Err(error) => {
                let (good, rest) = bytes.split_at(error.valid_up_to());
                out.push_str(std::str::from_utf8(good).expect("valid up to here"));
                let Some(n_bad) = error.error_len() else { return rest };
                out.push(char::REPLACEMENT_CHARACTER);
                bytes = &rest[n_bad..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ByteLevelConfig;
    use proptest::prelude::*;

    fn bytes() -> Tokenizer {
        Tokenizer::byte_level(&ByteLevelConfig::deepseek())
    }

    fn stream(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<String> {
        let mut d = Detokenizer::new(tokenizer);
        let mut pieces: Vec<String> = tokens.iter().filter_map(|t| d.push(*t)).collect();
        pieces.extend(d.finish());
        pieces
    }

    #[test]
    fn a_character_is_given_out_with_its_last_byte() {
        let t = bytes();
        let mut d = Detokenizer::new(&t);
        let crab: Vec<u32> = "🦀".bytes().map(u32::from).collect();
        assert_eq!(crab.iter().map(|b| d.push(*b)).collect::<Vec<_>>(), [None, None, None, Some("🦀".to_owned())]);
        assert_eq!(d.finish(), None);
    }

    #[test]
    fn impossible_bytes_are_replaced_at_once_and_never_block() {
        let t = bytes();
        let mut d = Detokenizer::new(&t);
        assert_eq!(d.push(0xff).as_deref(), Some("\u{fffd}"));
        assert_eq!(d.push(0xf0), None);
        assert_eq!(d.push(u32::from(b'a')).as_deref(), Some("\u{fffd}a"));
        assert_eq!(d.push(0xe2), None);
        assert_eq!(d.finish().as_deref(), Some("\u{fffd}"));
        assert_eq!(d.finish(), None);
    }

    #[test]
    fn control_tokens_and_unknown_ids_give_nothing_even_inside_a_character() {
        let t = bytes();
        assert_eq!(stream(&t, &[256, 0xc3, 257, 383, 999_999, 0xa9, 261]), ["é"]);
        assert_eq!(stream(&t, &[258, 97, 259]).concat(), "<think>a</think>");
    }

    proptest! {
        #[test]
        fn every_stream_equals_the_whole(tokens in prop::collection::vec(prop_oneof![0u32..256, 0xc0u32..0xff, 0x80u32..0xc0, 250u32..300], 0..80), cuts in prop::collection::vec(0usize..80, 0..8)) {
            let t = bytes();
            let whole = t.decode(&tokens);
            let raw: Vec<u8> = tokens.iter().filter_map(|t| u8::try_from(*t).ok()).collect();
            if tokens.iter().all(|t| *t < 258 || *t > 259) {
                prop_assert_eq!(&whole, &String::from_utf8_lossy(&raw));
            }
            prop_assert_eq!(stream(&t, &tokens).concat(), whole.clone());
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(tokens.len())).collect();
            cuts.extend([0, tokens.len()]);
            cuts.sort_unstable();
            let mut d = Detokenizer::new(&t);
            let mut text: String = cuts.windows(2).map(|w| d.push_all(&tokens[w[0]..w[1]])).collect();
            text.extend(d.finish());
            prop_assert_eq!(text, whole);
        }

        #[test]
        fn valid_text_never_shows_a_replacement_character(text in any::<String>()) {
            let t = bytes();
            let tokens = t.encode_ordinary(&text).unwrap();
            let pieces = stream(&t, &tokens);
            prop_assert_eq!(pieces.concat(), text.clone());
            let replaced = pieces.iter().any(|p| p.contains(char::REPLACEMENT_CHARACTER));
            prop_assert!(!replaced || text.contains(char::REPLACEMENT_CHARACTER));
        }
    }
}
