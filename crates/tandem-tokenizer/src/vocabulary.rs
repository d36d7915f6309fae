//! The bytes of each token, so that decoding is a table look-up and a UTF-8 check.
//!
//! Computed once from the decoder section of `tokenizer.json`: `ByteLevel`, or a sequence of
//! `Replace`, `ByteFallback`, `Fuse` and `Strip` as SentencePiece models have it.

use serde_json::Value;

/// Decoded form of every token.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    /// By id; `None` for ids without a token.
    tokens: Vec<Option<TokenText>>,
    /// Blanks dropped at the start of a whole text.
    pub(crate) strip_start: Option<(u8, usize)>,
}

#[derive(Debug)]
struct TokenText {
    bytes: Box<[u8]>,
    /// An added token that is a control token, left out of text.
    control: bool,
}

/// How the string of a token becomes bytes.
#[derive(Debug, Default)]
struct Rules {
    byte_level: bool,
    byte_fallback: bool,
    replacements: Vec<(String, String)>,
    strip_start: Option<(u8, usize)>,
}

impl Vocabulary {
    /// From the JSON of a `tokenizer.json` and the strings of all model tokens (`text_of(id)` for ids below `n_ids`).
    ///
    /// # Errors
    /// The reason, when the decoder is of a kind that is not known here.
    pub(crate) fn new(definition: &Value, model_tokens: impl Iterator<Item = (u32, String)>, added: &[Added]) -> Result<Self, String> {
        let mut rules = Rules::default();
        rules.read(&definition["decoder"])?;
        let mut tokens: Vec<Option<TokenText>> = Vec::new();
        let mut put = |id: u32, text: TokenText| {
            let id = id as usize;
            if tokens.len() <= id {
                tokens.resize_with(id + 1, || None);
            }
            tokens[id] = Some(text);
        };
        for (id, token) in model_tokens {
            put(id, TokenText { bytes: rules.bytes(&token).into(), control: false });
        }
        for token in added {
            put(token.id, TokenText { bytes: token.content.as_bytes().into(), control: token.control });
        }
        Ok(Self { tokens, strip_start: rules.strip_start })
    }

    /// Bytes of a token; empty for ids that have none, and for control tokens unless they are wanted.
    pub(crate) fn bytes(&self, id: u32, with_control: bool) -> &[u8] {
        match self.tokens.get(id as usize) {
            Some(Some(token)) if with_control || !token.control => &token.bytes,
            _ => &[],
        }
    }

    /// One past the largest id that has a token.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }
}

/// An added token.
#[derive(Debug, Clone)]
pub(crate) struct Added {
    pub(crate) id: u32,
    pub(crate) content: String,
    pub(crate) control: bool,
}

impl Rules {
    fn read(&mut self, decoder: &Value) -> Result<(), String> {
        match decoder["type"].as_str() {
            None if decoder.is_null() => {}
            Some("ByteLevel") => self.byte_level = true,
            Some("ByteFallback") => self.byte_fallback = true,
            Some("Fuse") => {}
            Some("Sequence") => decoder["decoders"].as_array().into_iter().flatten().try_for_each(|d| self.read(d))?,
            Some("Replace") => match (decoder["pattern"]["String"].as_str(), decoder["content"].as_str()) {
                (Some(from), Some(to)) => self.replacements.push((from.to_owned(), to.to_owned())),
                _ => return Err("decoder `Replace` with a pattern that is no plain string is not supported".to_owned()),
            },
            Some("Strip") => {
                let content = decoder["content"].as_str().map(str::as_bytes);
                let n = |name: &str| decoder[name].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
                match content {
                    Some(&[blank]) if n("stop") == 0 => self.strip_start = Some((blank, n("start"))),
                    _ => return Err("decoder `Strip` of several characters or at the end is not supported".to_owned()),
                }
            }
            other => return Err(format!("decoder `{}` is not supported", other.unwrap_or("without a type"))),
        }
        Ok(())
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        if self.byte_level {
            // A token with characters outside the alphabet stands for itself, as in the reference implementation.
            let bytes: Option<Vec<u8>> = token.chars().map(char_to_byte).collect();
            return bytes.unwrap_or_else(|| token.as_bytes().to_vec());
        }
        if self.byte_fallback
            && let Some(hex) = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'))
            && hex.len() == 2
            && let Ok(byte) = u8::from_str_radix(hex, 16)
        {
            return vec![byte];
        }
        self.replacements.iter().fold(token.to_owned(), |t, (from, to)| t.replace(from, to)).into_bytes()
    }
}

/// The printable character that stands for a byte in byte-level vocabularies: itself where it is printable, otherwise
/// the next free one from U+0100 on.
pub(crate) fn byte_to_char(byte: u8) -> char {
    let offset = match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => return char::from(byte),
        0..=0x20 => u32::from(byte),
        0x7f..=0xa0 => u32::from(byte) - 0x7f + 0x21,
        0xad => 0x43,
    };
    char::from_u32(0x100 + offset).expect("U+0100..U+0143 are characters")
}

/// The byte that a character stands for.
fn char_to_byte(c: char) -> Option<u8> {
    let byte = match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => code,
        code @ 0x100..=0x120 => code - 0x100,
        code @ 0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        for byte in 0..=255 {
            assert_eq!(char_to_byte(byte_to_char(byte)), Some(byte));
        }
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
        assert_eq!(char_to_byte('\u{144}'), None);
    }

    #[test]
    fn sentencepiece_decoders_give_bytes_blanks_and_a_stripped_start() {
        let definition = json!({"decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}});
        let tokens = ["▁Hello", "<0xE2>", "<0xZZ>"];
        let v = Vocabulary::new(&definition, (0..).zip(tokens.map(str::to_owned)), &[]).unwrap();
        assert_eq!(v.bytes(0, false), b" Hello");
        assert_eq!(v.bytes(1, false), [0xe2]);
        assert_eq!(v.bytes(2, false), b"<0xZZ>");
        assert_eq!(v.strip_start, Some((b' ', 1)));
    }

    #[test]
    fn unknown_decoders_are_named() {
        let error = |decoder| Vocabulary::new(&json!({"decoder": decoder}), std::iter::empty(), &[]).unwrap_err();
        assert!(error(json!({"type": "WordPiece"})).contains("`WordPiece`"));
        assert!(error(json!({"type": "Replace", "pattern": {"Regex": "a"}, "content": ""})).contains("Replace"));
    }

    #[test]
    fn control_tokens_have_bytes_only_on_demand_and_unknown_ids_none() {
        let added = [Added { id: 5, content: "<eos>".to_owned(), control: true }];
        let v = Vocabulary::new(&json!({"decoder": {"type": "ByteLevel"}}), [(0, "Ġa".to_owned())].into_iter(), &added).unwrap();
        assert_eq!((v.bytes(0, false), v.bytes(5, false), v.bytes(5, true)), (&b" a"[..], &b""[..], &b"<eos>"[..]));
        assert_eq!((v.bytes(3, true), v.bytes(999, true), v.len()), (&b""[..], &b""[..], 6));
    }
}
