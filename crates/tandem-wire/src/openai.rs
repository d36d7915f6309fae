//! OpenAI request and response messages: what clients of the frontend send and get.
//!
//! Requests are read by hand from a JSON tree rather than derived, because every refusal
//! must name the field and the reason, and because several names mean one thing
//! (`max_tokens`, `max_completion_tokens`, `nvext`). Chunks are written by hand as well:
//! all that changes between two chunks of a response is a little text.
//!
//! Reading order: `request` (bytes to a checked request), `error` (refusals), `chunk`
//! (server-sent chunks and whole responses), `escape` (text as JSON).

mod chunk;
mod error;
mod escape;
mod request;

pub use chunk::{ChunkWriter, FinalText, UsageMode};
pub use error::ApiError;
pub use escape::escape_into;
pub use request::{ChatMessage, GenerateRequest, Prompt, Role};

use serde::{Deserialize, Serialize};

/// Which of the two endpoints a request came through; they differ in names and shapes only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
}

/// Token counts of one response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, chat template included.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// Generated tokens that were reasoning; `None` when the model does not mark its reasoning.
    #[serde(skip)]
    pub reasoning_tokens: Option<u32>,
}

/// Why a response ended, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishWord {
    /// End of sequence, stop token or stop string.
    Stop,
    /// `max_tokens` reached.
    Length,
}

impl FinishWord {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            FinishWord::Stop => "stop",
            FinishWord::Length => "length",
        }
    }
}
