//! From tokens to text: incremental detokenizing, reasoning apart from the answer, stop strings.
//!
//! A DeepSeek-R1-style model marks its reasoning with the tokens `<think>` and `</think>`.
//! Where the tokenizer has them, text between them goes to another channel and the marks
//! themselves to none.

use std::sync::Arc;

use tandem_tokenizer::{Detokenizer, Tokenizer};
use tandem_wire::worker::FinishReason;

/// Which part of the answer a piece of text belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    /// The answer.
    Content,
    /// The reasoning before it.
    Reasoning,
}

/// The ids of `<think>` and `</think>`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    open: u32,
    close: u32,
}

impl Marks {
    /// Those of `tokenizer`, if it has both.
    pub(crate) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        Some(Marks { open: tokenizer.token_id("<think>")?, close: tokenizer.token_id("</think>")? })
    }

    /// Whether a prompt leaves the model in the middle of its reasoning: the last mark in it opens.
    fn open_at_end(self, prompt: &[u32]) -> bool {
        // Templates open it with the mark and at most a few blanks; further back it would be a message that quotes one.
        prompt.iter().rev().take(4).find(|&&t| t == self.open || t == self.close) == Some(&self.open)
    }
}

/// How the text of one request is made.
#[derive(Debug, Clone)]
pub(crate) struct TextRules {
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Marks of reasoning, if that is told apart.
    pub(crate) marks: Option<Marks>,
    pub(crate) stops: Vec<String>,
    /// Stop strings count only in text after this many tokens.
    pub(crate) min_tokens: u32,
    /// End-of-sequence and stop tokens, which are not part of the text.
    pub(crate) end_tokens: Vec<u32>,
}

/// Text of one request, as it comes.
#[derive(Debug)]
pub(crate) struct TextStream {
    rules: TextRules,
    detokenizer: Detokenizer,
    /// Where the request began.
    start: Channel,
    channel: Channel,
    /// Text that may be the beginning of a stop string.
    held: String,
    /// Text of the tokens at hand; kept for its memory.
    fresh: String,
    n_tokens: u32,
    n_reasoning: u32,
}

impl TextStream {
    pub(crate) fn new(rules: TextRules, prompt: &[u32]) -> Self {
        let reasoning = rules.marks.is_some_and(|m| m.open_at_end(prompt));
        let start = if reasoning { Channel::Reasoning } else { Channel::Content };
        let detokenizer = Detokenizer::new(&rules.tokenizer);
        TextStream { rules, detokenizer, start, channel: start, held: String::new(), fresh: String::new(), n_tokens: 0, n_reasoning: 0 }
    }

    /// Forgets all tokens.
    pub(crate) fn restart(&mut self) {
        self.detokenizer = Detokenizer::new(&self.rules.tokenizer);
        self.channel = self.start;
        self.held.clear();
        (self.n_tokens, self.n_reasoning) = (0, 0);
    }

    /// Tokens that were reasoning; `None` when the model does not mark it.
    pub(crate) fn n_reasoning(&self) -> Option<u32> {
        self.rules.marks.map(|_| self.n_reasoning)
    }

    /// Adds tokens and hands finished text to `sink`. Returns whether a stop string has ended the text; nothing may be added then.
    pub(crate) fn push(&mut self, tokens: &[u32], finish: Option<FinishReason>, sink: &mut dyn FnMut(Channel, &str)) -> bool {
        let mut text = tokens;
        if finish == Some(FinishReason::Stop)
            && let Some((last, before)) = tokens.split_last()
            && self.rules.end_tokens.contains(last)
        {
            text = before;
        }
        while !text.is_empty() {
            let is_mark = |t: &u32| self.rules.marks.is_some_and(|m| *t == m.open || *t == m.close);
            let n_plain = text.iter().position(is_mark).unwrap_or(text.len());
            let (plain, rest) = text.split_at(n_plain);
            if self.push_plain(plain, sink) {
                return true;
            }
            text = rest;
            if let (Some((mark, after)), Some(marks)) = (rest.split_first(), self.rules.marks) {
                self.flush(sink);
                self.n_tokens += 1;
                self.n_reasoning += 1;
                self.channel = if *mark == marks.open { Channel::Reasoning } else { Channel::Content };
                text = after;
            }
        }
        finish.is_some() && self.flush(sink)
    }

    fn push_plain(&mut self, tokens: &[u32], sink: &mut dyn FnMut(Channel, &str)) -> bool {
        if tokens.is_empty() {
            return false;
        }
        let n = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        if self.channel == Channel::Reasoning {
            self.n_reasoning += n;
        }
        // With a minimum length, the tokens up to it are looked at apart from those after it.
        let n_unchecked = self.rules.min_tokens.saturating_sub(self.n_tokens).min(n) as usize;
        self.n_tokens += n;
        let (unchecked, checked) = if self.rules.stops.is_empty() { (tokens, &[][..]) } else { tokens.split_at(n_unchecked) };
        if !unchecked.is_empty() {
            self.fresh.clear();
            unchecked.iter().for_each(|t| self.detokenizer.push_into(*t, &mut self.fresh));
            if !self.fresh.is_empty() {
                sink(self.channel, &self.fresh);
            }
        }
        if checked.is_empty() {
            return false;
        }
        checked.iter().for_each(|t| self.detokenizer.push_into(*t, &mut self.held));
        self.release(sink)
    }

    /// Lets go of what cannot be part of a stop string any more; true when one is complete.
    fn release(&mut self, sink: &mut dyn FnMut(Channel, &str)) -> bool {
        let held = self.held.as_str();
        // The one that is complete first ends the text, so that the size of pieces makes no difference.
        let complete = |s: &String| held.find(s.as_str()).map(|at| (at + s.len(), at));
        let (n_free, stopped) = match self.rules.stops.iter().filter_map(complete).min() {
            Some((_, at)) => (at, true),
            None => (held.len() - n_beginning(held, &self.rules.stops), false),
        };
        if n_free > 0 {
            sink(self.channel, &held[..n_free]);
        }
        if stopped {
            self.held.clear();
        } else {
            self.held.drain(..n_free);
        }
        stopped
    }

    /// The text ends here or changes its channel: lets go of everything; true when a stop string came out of it.
    fn flush(&mut self, sink: &mut dyn FnMut(Channel, &str)) -> bool {
        self.held.extend(self.detokenizer.finish());
        let may_stop = !self.rules.stops.is_empty() && self.n_tokens > self.rules.min_tokens;
        if may_stop && self.release(sink) {
            return true;
        }
        if !self.held.is_empty() {
            sink(self.channel, &self.held);
            self.held.clear();
        }
        false
    }
}

/// Bytes at the end of `text` that may be the beginning of one of `stops`.
fn n_beginning(text: &str, stops: &[String]) -> usize {
    let longest = stops.iter().map(String::len).max().unwrap_or(0).saturating_sub(1).min(text.len());
    let possible = |&n: &usize| text.is_char_boundary(text.len() - n) && stops.iter().any(|s| s.starts_with(&text[text.len() - n..]));
    (1..=longest).rev().find(possible).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tandem_tokenizer::ByteLevelConfig;

    use super::*;

    const THINK: u32 = 258;
    const ANSWER: u32 = 259;
    const EOS: u32 = 257;

    fn stream(stops: &[&str], min_tokens: u32, prompt: &[u32]) -> TextStream {
        let tokenizer = Arc::new(Tokenizer::byte_level(&ByteLevelConfig::deepseek()));
        let stops = stops.iter().map(|s| (*s).to_owned()).collect();
        let rules = TextRules { marks: Marks::of(&tokenizer), tokenizer, stops, min_tokens, end_tokens: vec![EOS] };
        TextStream::new(rules, prompt)
    }

    fn bytes(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    /// Content, reasoning and whether a stop string came, of tokens in pieces of the given sizes.
    fn run(mut stream: TextStream, tokens: &[u32], cuts: &[usize], finish: FinishReason) -> (String, String, bool) {
        let (mut content, mut reasoning, mut rest) = (String::new(), String::new(), tokens);
        let mut sink = |channel, text: &str| match channel {
            Channel::Content => content.push_str(text),
            Channel::Reasoning => reasoning.push_str(text),
        };
        let mut stopped = false;
        for &n in cuts {
            let (piece, after) = rest.split_at(n.min(rest.len()));
            rest = after;
            stopped = stopped || stream.push(piece, None, &mut sink);
        }
        stopped = stopped || stream.push(rest, Some(finish), &mut sink);
        (content, reasoning, stopped)
    }

    fn content_of(stops: &[&str], text: &str, cuts: &[usize]) -> (String, bool) {
        let (content, _, stopped) = run(stream(stops, 0, &[]), &bytes(text), cuts, FinishReason::Length);
        (content, stopped)
    }

    #[test]
    fn text_that_only_looked_like_a_stop_string_comes_out() {
        assert_eq!(content_of(&["abcd"], "xxabcabc", &[1; 8]), ("xxabcabc".into(), false));
        assert_eq!(content_of(&["aab"], "aaab", &[1; 4]), ("a".into(), true));
        assert_eq!(content_of(&["END", "ND!"], "the END!", &[1; 8]), ("the ".into(), true));
    }

    #[test]
    fn nothing_is_held_back_longer_than_needed() {
        let mut stream = stream(&["stop"], 0, &[]);
        let mut pieces = Vec::new();
        for piece in ["a", "s", "t", "x", "st", "op"] {
            let mut out = String::new();
            stream.push(&bytes(piece), None, &mut |_, text| out.push_str(text));
            pieces.push(out);
        }
        assert_eq!(pieces, ["a", "", "", "stx", "", ""]);
    }

    #[test]
    fn a_stop_string_counts_only_after_the_minimum() {
        let (content, _, stopped) = run(stream(&["."], 4, &[]), &bytes("a.b.c.d"), &[3, 3], FinishReason::Length);
        assert_eq!((content.as_str(), stopped), ("a.b.c", true));
    }

    #[test]
    fn reasoning_is_told_apart_and_counted() {
        let tokens = [&[THINK][..], &bytes("hm"), &[ANSWER], &bytes("yes"), &[EOS]].concat();
        for cuts in [vec![], vec![1; 7], vec![2, 3]] {
            let (content, reasoning, _) = run(stream(&[], 0, &[]), &tokens, &cuts, FinishReason::Stop);
            assert_eq!((content.as_str(), reasoning.as_str()), ("yes", "hm"), "{cuts:?}");
        }
        let mut counted = stream(&[], 0, &[]);
        counted.push(&tokens, Some(FinishReason::Stop), &mut |_, _| {});
        assert_eq!(counted.n_reasoning(), Some(4), "both marks and what is between");
    }

    #[test]
    fn a_prompt_that_opens_the_reasoning_starts_in_it() {
        let answer = [&bytes("hm")[..], &[ANSWER], &bytes("yes")].concat();
        for (prompt, expected) in
            [(vec![1, THINK, 10], ("yes", "hm")), (vec![THINK, ANSWER], ("hmyes", "")), (vec![THINK, 1, 1, 1, 1], ("hmyes", ""))]
        {
            let (content, reasoning, _) = run(stream(&[], 0, &prompt), &answer, &[1; 5], FinishReason::Length);
            assert_eq!((content.as_str(), reasoning.as_str()), expected, "{prompt:?}");
        }
    }

    #[test]
    fn half_a_character_at_the_end_or_at_a_mark_is_replaced() {
        let (content, reasoning, _) = run(stream(&[], 0, &[]), &[0xc3, THINK, 0xa9, 0xe2], &[1, 1, 1], FinishReason::Length);
        assert_eq!((content.as_str(), reasoning.as_str()), ("\u{fffd}", "\u{fffd}\u{fffd}"));
    }

    proptest! {
        #[test]
        fn cuts_do_not_change_the_text(
            text in "[abé]{0,24}", stops in prop::collection::vec("[abé]{1,3}", 0..3), cuts in prop::collection::vec(0usize..5, 0..30)
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let complete = |s: &&str| text.find(s).map(|at| (at + s.len(), at));
            let expected = match stops.iter().filter_map(complete).min() {
                Some((_, at)) => (text[..at].to_owned(), true),
                None => (text.clone(), false),
            };
            prop_assert_eq!(content_of(&stops, &text, &cuts), expected);
        }
    }
}
