//! Tokenizers without files: 256 bytes and some named tokens.
//!
//! They are written down as a `tokenizer.json` and loaded like any other, so that there is one
//! code path. The one that ships with the `nano` model is compiled in.

use serde_json::{Value, json};

use crate::vocabulary::byte_to_char;

/// The `tokenizer.json` of the `nano` model.
pub(crate) const NANO: &str = include_str!("../../../models/nano/tokenizer.json");

/// A byte-level vocabulary: token `b` is the byte `b`, named tokens follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByteLevelConfig {
    /// Named tokens from id 256 on, in order. Begin- and end-of-sequence and turn markers are control tokens
    /// ([`NamedToken::Control`]), `<think>` is not.
    pub named: Vec<NamedToken>,
}

/// A token beyond the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedToken {
    /// Left out of decoded text.
    Control(String),
    /// Part of decoded text.
    Text(String),
}

impl ByteLevelConfig {
    /// DeepSeek's markers in the order of the `nano` model: BOS 256, EOS 257, `<think>` 258, `</think>` 259, User 260,
    /// Assistant 261.
    #[must_use]
    pub fn deepseek() -> Self {
        let control = |s: &str| NamedToken::Control(s.to_owned());
        let text = |s: &str| NamedToken::Text(s.to_owned());
        Self {
            named: vec![
                control("<｜begin▁of▁sentence｜>"),
                control("<｜end▁of▁sentence｜>"),
                text("<think>"),
                text("</think>"),
                control("<｜User｜>"),
                control("<｜Assistant｜>"),
            ],
        }
    }

    /// The `tokenizer.json` of this vocabulary.
    pub(crate) fn definition(&self) -> Value {
        let vocabulary: serde_json::Map<_, _> = (0..=255u8).map(|b| (byte_to_char(b).to_string(), json!(b))).collect();
        let added: Vec<Value> = (256u32..)
            .zip(&self.named)
            .map(|(id, named)| {
                let (content, special) = match named {
                    NamedToken::Control(content) => (content, true),
                    NamedToken::Text(content) => (content, false),
                };
                json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
            })
            .collect();
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        json!({
            "version": "1.0",
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": byte_level,
            "post_processor": null,
            "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary, "merges": [],
            },
        })
    }
}
