//! What can go wrong, with the file that is to blame.

use std::path::PathBuf;

use thiserror::Error;

/// Why a tokenizer cannot be built or used.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not JSON, or not of the expected form.
    #[error("{}: not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A tokenizer definition that cannot be loaded.
    #[error("{origin}: cannot load the tokenizer: {reason}")]
    Definition {
        /// The file, or the name of a built-in tokenizer.
        origin: String,
        /// What is wrong or not supported.
        reason: String,
    },
    /// A chat template that does not compile.
    #[error("{origin}: the chat template does not compile: {reason}")]
    TemplateSyntax {
        /// The file, or the name of a built-in template.
        origin: String,
        /// Where and why.
        reason: String,
    },
    /// A chat template refused the messages (`raise_exception`) or failed on them.
    #[error("the chat template does not take these messages: {0}")]
    Messages(String),
    /// There is no chat template and no built-in one fits the vocabulary.
    #[error("{0} has no chat template")]
    NoTemplate(String),
    /// There is no built-in tokenizer of this name.
    #[error("no built-in tokenizer is called `{0}`; there is `nano`")]
    UnknownBuiltin(String),
    /// A text cannot be encoded.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
    /// Prompts of a known length cannot be made.
    #[error("cannot make prompts of an exact length: {0}")]
    Prompts(String),
}
