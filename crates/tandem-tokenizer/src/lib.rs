//! From text to tokens and back, as the models' own tokenizers do it.
//!
//! The frontend encodes prompts (with the model's chat template) and decodes what the workers
//! generate, piece by piece; the load generator makes prompts of an exact number of tokens.
//! Both read the same Hugging Face directory, or the byte-level tokenizer that is compiled in.
//!
//! Reading order: `tokenizer` (the facade), `files` (a directory and what may be wrong in it),
//! `byte_level` (tokenizers without files), `template` (chat templates), `guard` (text of users
//! never becomes a control token), `vocabulary` (the bytes of each token), `detokenizer`
//! (incremental decoding), `prompts` (texts of exactly n tokens), `table` (what they are made of, kept in a file).
//! Not here: BPE itself (the `fastokens` crate), stop strings and reasoning marks (`tandem-frontend`).

mod tokenizer;

mod byte_level;
mod error;
mod files;

mod guard;
mod template;

mod detokenizer;
mod vocabulary;

mod prompts;
mod table;

pub use byte_level::{ByteLevelConfig, NamedToken};
pub use detokenizer::Detokenizer;
pub use error::TokenizerError;
pub use files::fingerprint;
pub use prompts::{Mismatch, PromptLength, PromptTable};
pub use template::{ChatMessage, ChatTemplate};
pub use tokenizer::Tokenizer;
