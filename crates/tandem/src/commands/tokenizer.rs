//! The tokenizer of a plan or a directory, and texts of exact length made with it.

use std::path::Path;
use std::sync::Arc;

use rand::RngCore;
use rand_xoshiro::Xoshiro256PlusPlus;
use tandem_load::Texts;
use tandem_load::prompts::files::Message;
use tandem_plan::Plan;
use tandem_tokenizer::{ChatMessage, PromptTable, Tokenizer};

use crate::exit::{Exit, Failure, OrExit};

/// The tokenizer in `dir`; without one, the byte-level tokenizer of the built-in models.
pub(crate) fn load(dir: Option<&Path>) -> Result<Arc<Tokenizer>, Failure> {
    let tokenizer = match dir {
        Some(dir) => Tokenizer::from_dir(dir),
        None => Tokenizer::builtin("nano"),
    };
    tokenizer.map(Arc::new).or_exit(Exit::Artifact)
}

/// The tokenizer that a plan's frontend uses.
pub(crate) fn of_plan(plan: &Plan) -> Result<Arc<Tokenizer>, Failure> {
    load(plan.model.tokenizer_dir.as_deref().map(Path::new))
}

/// Prompts for the load generator.
#[derive(Debug)]
pub(crate) struct TokenTexts {
    tokenizer: Arc<Tokenizer>,
    table: PromptTable,
}

impl TokenTexts {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>) -> Result<Self, Failure> {
        let table = PromptTable::new(&tokenizer).or_exit(Exit::Artifact)?;
        Ok(TokenTexts { tokenizer, table })
    }
}

impl Texts for TokenTexts {
    fn write(&self, n_tokens: u32, rng: &mut Xoshiro256PlusPlus, out: &mut String) {
        self.table.write(n_tokens as usize, || rng.next_u64(), out);
    }

    fn template_tokens(&self) -> u32 {
        u32::try_from(self.table.chat_overhead()).unwrap_or(u32::MAX)
    }

    fn count(&self, text: &str) -> Option<u32> {
        self.tokenizer.encode(text).ok().and_then(|tokens| u32::try_from(tokens.len()).ok())
    }

    fn count_messages(&self, messages: &[Message]) -> Option<u32> {
        if self.tokenizer.template().is_none() {
            let contents: Option<u32> = messages.iter().map(|message| self.count(&message.content)).sum();
            return contents.filter(|_| messages.len() == 1);
        }
        let messages: Vec<_> = messages.iter().map(|m| ChatMessage { role: &m.role, content: &m.content }).collect();
        self.tokenizer.encode_chat(&messages, true).ok().and_then(|tokens| u32::try_from(tokens.len()).ok())
    }
}
