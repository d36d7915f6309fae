//! A prompt table as text, so that a program which has made one for a tokenizer need not read that tokenizer again.
//!
//! Line by line: a title with the version, tokens of the chat template, how many words of each kind, the words, and a
//! checksum of all that. Reading checks everything: whatever is not exactly what was written is no table.

use std::fmt::Write;

use crate::prompts::{MIN_WORDS, PromptTable, Units, is_word};

const TITLE: &str = "tandem prompt table 1";

impl PromptTable {
    /// The table as text; `None` for byte-level vocabularies, whose tables are made faster than read.
    #[must_use]
    pub fn to_text(&self) -> Option<String> {
        let Units::Words { words, first } = &self.units else { return None };
        let mut text = format!("{TITLE}\n{}\n{} {}\n", self.chat_overhead, words.len(), first.len());
        for word in words.iter().map(|word| word.trim_start()).chain(first.iter().map(|word| &**word)) {
            text.push_str(word);
            text.push('\n');
        }
        let sum = checksum(&text);
        let _ = writeln!(text, "{sum:016x}");
        Some(text)
    }

    /// Reads what [`Self::to_text`] wrote; `None` for anything else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let (body, sum) = text.strip_suffix('\n')?.rsplit_once('\n')?;
        let body = &text[..=body.len()];
        if u64::from_str_radix(sum, 16).ok()? != checksum(body) {
            return None;
        }
        let mut lines = body.lines();
        if lines.next()? != TITLE {
            return None;
        }
        let chat_overhead = lines.next()?.parse().ok()?;
        let (n_words, n_first) = lines.next()?.split_once(' ')?;
        let (n_words, n_first): (usize, usize) = (n_words.parse().ok()?, n_first.parse().ok()?);
        let all: Vec<&str> = lines.collect();
        if all.len() != n_words.checked_add(n_first)?
            || n_words < MIN_WORDS
            || n_first == 0
            || !all.iter().all(|word| is_word(word.as_bytes()))
        {
            return None;
        }
        let (words, first) = all.split_at(n_words);
        let words = words.iter().map(|word| format!(" {word}").into()).collect();
        let first = first.iter().map(|word| (*word).into()).collect();
        Some(Self { units: Units::Words { words, first }, chat_overhead })
    }
}

/// FNV-1a with 64 bits: against accidents, not against people.
fn checksum(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> PromptTable {
        let word = |i: usize| -> String { (0..4).map(|k| char::from(b'a' + u8::try_from(i / 26usize.pow(k) % 26).unwrap())).collect() };
        let words = (0..300).map(|i| format!(" {}", word(i)).into()).collect();
        PromptTable { units: Units::Words { words, first: (0..20).map(|i| word(i).into()).collect() }, chat_overhead: 5 }
    }

    #[test]
    fn a_table_comes_back_and_makes_the_same_prompts() {
        let (table, text) = (table(), table().to_text().unwrap());
        let read = PromptTable::from_text(&text).unwrap();
        assert_eq!((read.n_words(), read.chat_overhead()), (300, 5));
        let prompt = |t: &PromptTable| t.synthesize(3, 4, crate::PromptLength::Content(100)).unwrap();
        assert_eq!(prompt(&read), prompt(&table));
        assert_eq!(read.to_text().unwrap(), text);
    }

    #[test]
    fn whatever_is_not_exactly_that_is_no_table() {
        let text = table().to_text().unwrap();
        assert!(PromptTable::from_text("").is_none() && PromptTable::from_text(&text[..text.len() / 2]).is_none());
        for i in (0..text.len()).step_by(7) {
            let mut bytes = text.clone().into_bytes();
            bytes[i] ^= 1;
            assert!(PromptTable::from_text(&String::from_utf8(bytes).unwrap()).is_none(), "byte {i}");
        }
        assert!(PromptTable::from_text(&(text.clone() + "x\n")).is_none());
        assert!(PromptTable::from_text(&text.replace("table 1", "table 2")).is_none());
    }
}
