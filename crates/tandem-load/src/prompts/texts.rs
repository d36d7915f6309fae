//! Who makes texts of exactly n tokens, and counts the tokens of others.

use rand::Rng;
use rand_xoshiro::Xoshiro256PlusPlus;

use super::files::Message;

/// A source of texts whose length in tokens is known by construction.
pub trait Texts: Send + Sync {
    /// Appends a random text that the server's tokenizer turns into exactly `n_tokens` tokens when it stands in a user message, alone or
    /// after other such texts.
    fn write(&self, n_tokens: u32, rng: &mut Xoshiro256PlusPlus, out: &mut String);

    /// Tokens that the server adds around one user message: chat template and special tokens.
    fn template_tokens(&self) -> u32;

    /// Tokens of `text`, for servers that do not say how many they sent; `None` when it cannot be told.
    fn count(&self, text: &str) -> Option<u32>;

    /// Tokens that the server counts for a chat of `messages`; `None` when it cannot be told.
    fn count_messages(&self, messages: &[Message]) -> Option<u32> {
        let contents: Option<u32> = messages.iter().map(|message| self.count(&message.content)).sum();
        // What a template adds to a second message is not known here.
        contents.filter(|_| messages.len() == 1)?.checked_add(self.template_tokens())
    }
}

/// Texts for byte-level tokenizers: each byte is a token.
#[derive(Debug, Clone, Copy)]
pub struct ByteTexts {
    /// What the server's chat template adds, tokens.
    pub template_tokens: u32,
}

impl Texts for ByteTexts {
    fn write(&self, n_tokens: u32, rng: &mut Xoshiro256PlusPlus, out: &mut String) {
        let mut until_blank = word_length(rng);
        for left in (1..=n_tokens).rev() {
            // No blank at either end: templates may strip them.
            if until_blank == 0 && left > 1 {
                out.push(' ');
                until_blank = word_length(rng);
            } else {
                out.push(char::from(b'a' + rng.random_range(0..26u8)));
                until_blank = until_blank.saturating_sub(1);
            }
        }
    }

    fn template_tokens(&self) -> u32 {
        self.template_tokens
    }

    fn count(&self, text: &str) -> Option<u32> {
        u32::try_from(text.len()).ok()
    }
}

fn word_length(rng: &mut Xoshiro256PlusPlus) -> u32 {
    rng.random_range(2..=9)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn byte_texts_are_as_long_as_asked_and_have_no_blank_at_an_end() {
        let texts = ByteTexts { template_tokens: 0 };
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        for n in 0..200 {
            let mut text = String::new();
            texts.write(n, &mut rng, &mut text);
            assert_eq!(texts.count(&text), Some(n));
            assert_eq!(text.trim().len(), text.len());
        }
    }
}
