//! The tokenizer of a model: encoding, chat encoding, decoding and the tokens with a meaning.

use std::path::Path;
use std::sync::Arc;

use fastokens::EncodeSegment;
use serde_json::Value;

use crate::byte_level::{ByteLevelConfig, NANO};
use crate::detokenizer::Detokenizer;
use crate::error::TokenizerError;
use crate::files;
use crate::guard::Guard;
use crate::template::{ChatMessage, ChatTemplate};
use crate::vocabulary::{Added, Vocabulary};

/// A tokenizer with its chat template. Immutable; share it by `Arc`.
pub struct Tokenizer {
    /// A file, or the name of a built-in.
    origin: String,
    bpe: fastokens::Tokenizer,
    vocabulary: Arc<Vocabulary>,
    guard: Guard,
    template: Option<ChatTemplate>,
    meaning: Meaning,
}

/// Tokens with a meaning, as the files beside the tokenizer say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meaning {
    pub(crate) bos: Option<u32>,
    /// End of sequence first, then other tokens that end a generation.
    pub(crate) stop: Vec<u32>,
}

/// Names under which models without configuration files have their first and last token.
const BOS_NAMES: [&str; 4] = ["<｜begin▁of▁sentence｜>", "<s>", "<|begin_of_text|>", "<|startoftext|>"];
const EOS_NAMES: [&str; 6] = ["<｜end▁of▁sentence｜>", "</s>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<|endoftext|>"];

impl Tokenizer {
    /// Reads a Hugging Face directory (or its `tokenizer.json`): `tokenizer.json`, and if they are there
    /// `tokenizer_config.json`, `chat_template.jinja`, `config.json` and `generation_config.json`.
    ///
    /// # Errors
    /// [`TokenizerError`] naming the file that is missing or wrong.
    pub fn from_dir(path: &Path) -> Result<Self, TokenizerError> {
        files::load(path)
    }

    /// A tokenizer that is compiled in: `nano`.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownBuiltin`].
    pub fn builtin(name: &str) -> Result<Self, TokenizerError> {
        if name != "nano" {
            return Err(TokenizerError::UnknownBuiltin(name.to_owned()));
        }
        let definition = serde_json::from_str(NANO).expect("the tokenizer of nano is valid JSON, as the tests show");
        Self::build(definition, "built-in tokenizer nano")
    }

    /// 256 bytes and named tokens, with DeepSeek's template when its markers are among them.
    ///
    /// # Panics
    /// When two named tokens are equal or one is empty.
    #[must_use]
    pub fn byte_level(config: &ByteLevelConfig) -> Self {
        Self::build(config.definition(), "byte-level tokenizer").expect("a byte-level definition is complete")
    }

    /// From the content of a `tokenizer.json`; begin- and end-of-sequence tokens by their usual names, and a built-in
    /// template where the vocabulary has its markers.
    pub(crate) fn build(definition: Value, origin: &str) -> Result<Self, TokenizerError> {
        let wrong = |reason: String| TokenizerError::Definition { origin: origin.to_owned(), reason };
        let mut added = Vec::new();
        for token in definition["added_tokens"].as_array().into_iter().flatten() {
            let id = token["id"].as_u64().and_then(|id| u32::try_from(id).ok());
            let (Some(id), Some(content)) = (id, token["content"].as_str()) else {
                return Err(wrong("an added token has no id or no content".to_owned()));
            };
            added.push(Added { id, content: content.to_owned(), control: token["special"].as_bool().unwrap_or(false) });
        }
        let decoder = serde_json::json!({ "decoder": definition["decoder"] });
        // The copy is for the message: what is wrong inside the model section is lost in the crate's own error.
        let mut bpe = fastokens::Tokenizer::from_json(definition.clone()).map_err(|e| wrong(why_not(&definition, &e)))?;
        // A length limit in the file would cut prompts silently.
        bpe.set_truncation(None);
        bpe.set_padding(None);
        let n_ids = u32::try_from(bpe.model().vocab_size()).unwrap_or(u32::MAX);
        let model_tokens = (0..n_ids).filter_map(|id| Some((id, bpe.model().id_to_token(id)?.to_owned())));
        let vocabulary = Arc::new(Vocabulary::new(&decoder, model_tokens, &added).map_err(wrong)?);
        let guard = Guard::new(added.iter());
        let named = |names: &[&str]| names.iter().find_map(|name| bpe.token_to_id(name));
        let meaning = Meaning { bos: named(&BOS_NAMES), stop: named(&EOS_NAMES).into_iter().collect() };
        let has_turns = ["<｜User｜>", "<｜Assistant｜>"].iter().all(|name| bpe.token_to_id(name).is_some());
        let template = has_turns.then(ChatTemplate::deepseek);
        Ok(Self { origin: origin.to_owned(), bpe, vocabulary, guard, template, meaning })
    }

    /// The same tokenizer with another chat template.
    #[must_use]
    pub fn with_template(self, template: ChatTemplate) -> Self {
        Self { template: Some(template), ..self }
    }

    pub(crate) fn with_meaning(self, meaning: Meaning) -> Self {
        Self { meaning, ..self }
    }

    /// Tokens of a text; the text of an added token becomes that token, and nothing is added before or after.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] for vocabularies that cannot express every text; byte-level ones can.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.bpe.encode(text).map_err(|e| TokenizerError::Encode(one_line(&e)))
    }

    /// Tokens of a text in which nothing is an added token.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.bpe.encode_ordinary(text).map_err(|e| TokenizerError::Encode(one_line(&e)))
    }

    /// Tokens of a chat under the model's template, with the beginning of the answer if `add_generation_prompt`.
    ///
    /// Safe against injection: what a message contains never becomes a control token or another added token that looks
    /// like a marker, except that an assistant's message may contain `<think>` and `</think>`, which templates look for.
    /// Messages without the text of such a token give exactly the tokens of the rendered template. Roles are no free text.
    ///
    /// # Errors
    /// [`TokenizerError::NoTemplate`], or [`TokenizerError::Messages`] when the template refuses the messages.
    pub fn encode_chat(&self, messages: &[ChatMessage<'_>], add_generation_prompt: bool) -> Result<Vec<u32>, TokenizerError> {
        let template = self.template.as_ref().ok_or_else(|| TokenizerError::NoTemplate(self.origin.clone()))?;
        if let Some(message) = messages.iter().find(|m| !is_role(m.role)) {
            return Err(TokenizerError::Messages(format!("`{}` is not a role", message.role.escape_default())));
        }
        let mark = Guard::mark(messages.iter().map(|m| m.content))
            .ok_or_else(|| TokenizerError::Messages("they contain every Unicode noncharacter".to_owned()))?;
        let disarmed: Vec<_> = messages
            .iter()
            .map(|m| {
                let allowed: &[&str] = if m.role == "assistant" { &["<think>", "</think>"] } else { &[] };
                (m.role, self.guard.disarm(m.content, mark, allowed))
            })
            .collect();
        let safe: Vec<_> = disarmed.iter().map(|(role, content)| ChatMessage { role, content }).collect();
        let rendered = template.render(&safe, add_generation_prompt, self.text_of(self.bos_id()), self.text_of(self.eos_id()))?;
        let parts: Vec<_> = rendered.split(mark).map(EncodeSegment::special).collect();
        self.bpe.encode_segments(&parts).map_err(|e| TokenizerError::Encode(one_line(&e)))
    }

    /// Text of tokens, without control tokens. What is no UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.decode_all(tokens, false)
    }

    /// Text of tokens, control tokens included.
    #[must_use]
    pub fn decode_with_control(&self, tokens: &[u32]) -> String {
        self.decode_all(tokens, true)
    }

    /// One past the largest id that has a token. Models may have more logits than that.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// Begin of sequence.
    #[must_use]
    pub fn bos_id(&self) -> Option<u32> {
        self.meaning.bos
    }

    /// End of sequence.
    #[must_use]
    pub fn eos_id(&self) -> Option<u32> {
        self.meaning.stop.first().copied()
    }

    /// Every token that ends a generation: end of sequence, and what `generation_config.json` adds.
    #[must_use]
    pub fn stop_ids(&self) -> &[u32] {
        &self.meaning.stop
    }

    /// The token with this text, added ones first.
    #[must_use]
    pub fn token_id(&self, name: &str) -> Option<u32> {
        self.bpe.token_to_id(name)
    }

    /// The chat template, if there is one.
    #[must_use]
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The file or the name that it was made from.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    pub(crate) fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    fn decode_all(&self, tokens: &[u32], with_control: bool) -> String {
        let mut detokenizer = Detokenizer::over(&self.vocabulary, with_control);
        let mut text = detokenizer.push_all(tokens);
        text.extend(detokenizer.finish());
        text
    }

    fn text_of(&self, id: Option<u32>) -> &str {
        id.and_then(|id| self.bpe.id_to_token(id)).unwrap_or("")
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("origin", &self.origin).field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

fn is_role(role: &str) -> bool {
    (1..=32).contains(&role.len()) && role.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Why a definition cannot be loaded.
fn why_not(definition: &Value, error: &dyn std::error::Error) -> String {
    let model = &definition["model"];
    if model["type"] == "BPE"
        && let Err(error) = serde_json::from_value::<fastokens::models::bpe::Bpe>(model.clone())
    {
        return format!("model: {error}");
    }
    one_line(error)
}

/// An error and its sources.
pub(crate) fn one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = error.source();
    }
    line
}
