//! Keeps text of users from becoming control tokens.
//!
//! A chat template mixes trusted markers with untrusted content into one string. Content in
//! which the text of an added token occurs is marked beforehand: a character that is in no
//! message (a Unicode noncharacter) is put inside each occurrence. After rendering the string
//! is cut at these marks and the parts are encoded one by one, so no part holds such a token
//! whole. Content without such text, that is practically all, passes unchanged, and the result
//! is what the reference implementation gives.

use std::borrow::Cow;

/// Noncharacters, of which one is chosen as the mark.
const MARKS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// The texts of the added tokens.
#[derive(Debug)]
pub(crate) struct Guard {
    tokens: Vec<String>,
    /// First characters of the tokens, to pass harmless text quickly.
    firsts: Vec<char>,
    longest: usize,
}

impl Guard {
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = &'a str>) -> Self {
        let tokens: Vec<String> = tokens.filter(|t| !t.is_empty()).map(str::to_owned).collect();
        let mut firsts: Vec<char> = tokens.iter().filter_map(|t| t.chars().next()).collect();
        firsts.sort_unstable();
        firsts.dedup();
        let longest = tokens.iter().map(String::len).max().unwrap_or(0);
        Self { tokens, firsts, longest }
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
            let whole = self.tokens.iter().any(|t| rest.starts_with(t.as_str()) && !allowed.contains(&t.as_str()));
            if whole {
                places.push(at + first.len_utf8());
            } else if rest.len() < self.longest && self.tokens.iter().any(|t| t.len() > rest.len() && t.starts_with(rest)) {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guard() -> Guard {
        Guard::new(["<think>", "</think>", "<｜User｜>", "<|EOT|>"].into_iter())
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
                prop_assert!(!g.tokens.iter().any(|t| part.contains(t.as_str())), "{}", part);
            }
            // Tokens in what follows are the template's own; none may begin inside the content.
            let last = disarmed.rsplit('\u{fdd0}').next().unwrap();
            let joined = format!("{last}{then}");
            for token in &g.tokens {
                prop_assert!(!joined.match_indices(token.as_str()).any(|(at, _)| at < last.len()), "{}", joined);
            }
        }
    }
}
