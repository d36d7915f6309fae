//! Keeps text of users from becoming control tokens.
//!
//! A chat template mixes trusted markers with untrusted content into one string. Content in
//! which the text of an added token occurs is marked beforehand: a character that is in no
//! message (a Unicode noncharacter) is put inside each occurrence. After rendering the string
//! is cut at these marks and the parts are encoded one by one, so no part holds such a token
//! whole. Content without such text, that is practically all, passes unchanged, and the result
//! is what the reference implementation gives.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::vocabulary::Added;

/// Noncharacters, of which one is chosen as the mark.
const MARKS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// The texts of the added tokens that must not come from users.
#[derive(Debug)]
pub(crate) struct Guard {
    /// By their first two characters (the second is `None` for tokens of one), so that most text is passed quickly.
    by_start: HashMap<(char, Option<char>), Vec<String>>,
    firsts: Vec<char>,
    longest: usize,
}

impl Guard {
    /// Guards control tokens and every token that looks like a marker. Added tokens that are plain words or blanks
    /// (some vocabularies have them) are text like any other.
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = &'a Added>) -> Self {
        let is_text = |c: char| c.is_alphanumeric() || c.is_whitespace();
        let mut by_start: HashMap<_, Vec<String>> = HashMap::new();
        let mut longest = 0;
        for token in tokens.filter(|t| t.control || !t.content.chars().all(is_text)) {
            let Some(start) = start(&token.content) else { continue };
            by_start.entry(start).or_default().push(token.content.clone());
            longest = longest.max(token.content.len());
        }
        let mut firsts: Vec<char> = by_start.keys().map(|(first, _)| *first).collect();
        firsts.sort_unstable();
        firsts.dedup();
        Self { by_start, firsts, longest }
    }

    /// A mark that occurs in none of the texts; `None` when they contain all noncharacters, which no honest text does.
    pub(crate) fn mark<'a>(texts: impl Iterator<Item = &'a str> + Clone) -> Option<char> {
        MARKS.into_iter().find(|mark| !texts.clone().any(|t| t.contains(*mark)))
    }

    /// `text` with `mark` inside every occurrence of an added token (except `allowed` ones) and after an unfinished one
    /// at the end, which what follows could complete.
    pub(crate) fn disarm<'t>(&self, text: &'t str, mark: char, allowed: &[&str]) -> Cow<'t, str> {
        let mut places: Vec<usize> = Vec::new();
        for (at, first) in text.char_indices().filter(|(_, c)| self.firsts.binary_search(c).is_ok()) {
            let rest = &text[at..];
            if self.begin_like(rest).any(|t| rest.starts_with(t) && !allowed.contains(&t)) {
                places.push(at + first.len_utf8());
            } else if rest.len() < self.longest && self.tokens().any(|t| t.len() > rest.len() && t.starts_with(rest)) {
                places.push(text.len());
            }
        }
        if places.is_empty() {
            return Cow::Borrowed(text);
        }
        places.sort_unstable();
        places.dedup();
        let mut out = String::with_capacity(text.len() + places.len() * mark.len_utf8());
        let mut done = 0;
        for place in places {
            out.push_str(&text[done..place]);
            out.push(mark);
            done = place;
        }
        out.push_str(&text[done..]);
        Cow::Owned(out)
    }

    fn tokens(&self) -> impl Iterator<Item = &str> {
        self.by_start.values().flatten().map(String::as_str)
    }

    /// Tokens that can stand at the start of `text`.
    fn begin_like(&self, text: &str) -> impl Iterator<Item = &str> {
        let start = start(text);
        let one = start.and_then(|(first, _)| self.by_start.get(&(first, None)));
        let two = start.filter(|(_, second)| second.is_some()).and_then(|s| self.by_start.get(&s));
        one.into_iter().chain(two).flatten().map(String::as_str)
    }
}

fn start(text: &str) -> Option<(char, Option<char>)> {
    let mut characters = text.chars();
    Some((characters.next()?, characters.next()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(tokens: &[&str]) -> Guard {
        let added: Vec<Added> = tokens.iter().map(|t| Added { id: 0, content: (*t).to_owned(), control: false }).collect();
        Guard::new(added.iter())
    }

    fn guard() -> Guard {
        of(&["<think>", "</think>", "<｜User｜>", "<|EOT|>"])
    }

    #[test]
    fn harmless_text_is_not_copied() {
        for text in ["", "plain", "a < b, 2 > 1 <thin ice", "日本語 <b>bold</b>"] {
            assert!(matches!(guard().disarm(text, '#', &[]), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn tokens_are_broken_up_wherever_they_stand() {
        let g = guard();
        assert_eq!(g.disarm("a<think>b<｜User｜>", '#', &[]), "a<#think>b<#｜User｜>");
        assert_eq!(g.disarm("<<think>", '#', &[]), "<<#think>");
        assert_eq!(g.disarm("say <thi", '#', &[]), "say <thi#");
        assert_eq!(g.disarm("<", '#', &[]), "<#");
        assert_eq!(g.disarm("<think>x</think>", '#', &["<think>", "</think>"]), "<think>x</think>");
    }

    #[test]
    fn added_words_and_blanks_are_text_unless_they_are_control_tokens() {
        let g = of(&["  ", "hello", "§", "[X]"]);
        assert_eq!(g.disarm("a  hello § [X]", '#', &[]), "a  hello §# [#X]");
        let control = Guard::new(std::iter::once(&Added { id: 0, content: "hello".to_owned(), control: true }));
        assert_eq!(control.disarm("hello", '#', &[]), "h#ello");
    }

    #[test]
    fn the_mark_occurs_in_no_text() {
        assert_eq!(Guard::mark(["a", "\u{fdd0}b\u{fdd1}"].into_iter()), Some('\u{fdd2}'));
        let all: String = MARKS.collect();
        assert_eq!(Guard::mark(std::iter::once(all.as_str())), None);
    }

    proptest! {
        #[test]
        fn no_part_and_no_seam_holds_a_token(pieces in prop::collection::vec(prop::sample::select(vec!["<", ">", "think", "/", "<think>", "｜", "User", "<｜User｜>", "<|EOT|>", "é", " "]), 0..12), then in "[<>a-z|/｜]{0,8}") {
            let text = pieces.concat();
            let disarmed = guard().disarm(&text, '\u{fdd0}', &[]);
            prop_assert_eq!(&disarmed.replace('\u{fdd0}', ""), &text);
            let g = guard();
            for part in disarmed.split('\u{fdd0}') {
                prop_assert!(!g.tokens().any(|t| part.contains(t)), "{}", part);
            }
            // Tokens in what follows are the template's own; none may begin inside the content.
            let last = disarmed.rsplit('\u{fdd0}').next().unwrap();
            let joined = format!("{last}{then}");
            for token in g.tokens() {
                prop_assert!(!joined.match_indices(token).any(|(at, _)| at < last.len()), "{}", joined);
            }
        }
    }
}
