//! The tokenizer of a plan or a directory, and texts of exact length made with it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rand::RngCore;
use rand_xoshiro::Xoshiro256PlusPlus;
use tandem_load::Texts;
use tandem_load::prompts::files::Message;
use tandem_plan::Plan;
use tandem_tokenizer::{ChatMessage, PromptTable, Tokenizer, fingerprint};

use super::run_folder::write_whole;
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
///
/// A tokenizer is read when it is needed: with a table from the cache that is when a server does not count its tokens.
#[derive(Debug)]
pub(crate) struct TokenTexts {
    dir: Option<PathBuf>,
    tokenizer: OnceLock<Option<Arc<Tokenizer>>>,
    table: PromptTable,
}

impl TokenTexts {
    /// Texts for the tokenizer in `dir`, or the byte-level one. The table of a directory is kept in `cache`, if there is one.
    pub(crate) fn new(dir: Option<&Path>, cache: Option<&Path>) -> Result<Self, Failure> {
        let kept = match (dir, cache) {
            (Some(dir), Some(cache)) => Some(cache.join(format!("prompts-{}.txt", fingerprint(dir).or_exit(Exit::Artifact)?))),
            _ => None,
        };
        let known = kept.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).and_then(|text| PromptTable::from_text(&text));
        let dir = dir.map(Path::to_owned);
        if let Some(table) = known {
            return Ok(TokenTexts { dir, tokenizer: OnceLock::new(), table });
        }
        let tokenizer = load(dir.as_deref())?;
        let table = PromptTable::new(&tokenizer).or_exit(Exit::Artifact)?;
        if let Some((path, text)) = kept.zip(table.to_text()) {
            // Without it the next run makes the table again; that is all.
            let _ = write_whole(&path, text.as_bytes());
        }
        Ok(TokenTexts { dir, tokenizer: OnceLock::from(Some(tokenizer)), table })
    }

    /// `None` when the files have become unreadable since the table was made.
    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.get_or_init(|| load(self.dir.as_deref()).ok()).as_deref()
    }
}

/// Where this user's programs keep what they can make again (XDG base directory specification).
pub(crate) fn cache_dir() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    of("XDG_CACHE_HOME").or_else(|| of("HOME").map(|home| home.join(".cache"))).map(|dir| dir.join("tandem"))
}

impl Texts for TokenTexts {
    fn write(&self, n_tokens: u32, rng: &mut Xoshiro256PlusPlus, out: &mut String) {
        self.table.write(n_tokens as usize, || rng.next_u64(), out);
    }

    fn template_tokens(&self) -> u32 {
        u32::try_from(self.table.chat_overhead()).unwrap_or(u32::MAX)
    }

    fn count(&self, text: &str) -> Option<u32> {
        self.tokenizer()?.encode(text).ok().and_then(|tokens| u32::try_from(tokens.len()).ok())
    }

    fn count_messages(&self, messages: &[Message]) -> Option<u32> {
        let tokenizer = self.tokenizer()?;
        if tokenizer.template().is_none() {
            let contents: Option<u32> = messages.iter().map(|message| self.count(&message.content)).sum();
            return contents.filter(|_| messages.len() == 1);
        }
        let messages: Vec<_> = messages.iter().map(|m| ChatMessage { role: &m.role, content: &m.content }).collect();
        tokenizer.encode_chat(&messages, true).ok().and_then(|tokens| u32::try_from(tokens.len()).ok())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    /// A byte-level vocabulary whose words are pairs of letters, each with and without a blank before it.
    fn write_words(dir: &Path, last: u8) {
        let mut definition: serde_json::Value = serde_json::from_str(include_str!("../../../../models/nano/tokenizer.json")).unwrap();
        let letters = || (b'a'..=last).map(char::from);
        let pairs: Vec<String> = letters().flat_map(|a| letters().map(move |b| format!("{a}{b}"))).collect();
        let mut merges: Vec<[String; 2]> = pairs.iter().map(|p| [p[..1].to_owned(), p[1..].to_owned()]).collect();
        merges.extend(pairs.iter().map(|p| ["Ġ".to_owned(), p.clone()]));
        let vocabulary = definition["model"]["vocab"].as_object_mut().unwrap();
        for merge in &merges {
            let id = vocabulary.len();
            vocabulary.insert(merge.concat(), id.into());
        }
        let n = vocabulary.len();
        for (i, token) in definition["added_tokens"].as_array_mut().unwrap().iter_mut().enumerate() {
            token["id"] = (n + i).into();
        }
        definition["model"]["merges"] = serde_json::json!(merges);
        definition["pre_tokenizer"]["use_regex"] = true.into();
        std::fs::write(dir.join("tokenizer.json"), definition.to_string()).unwrap();
    }

    fn prompt(texts: &TokenTexts) -> String {
        let mut out = String::new();
        texts.write(50, &mut Xoshiro256PlusPlus::seed_from_u64(1), &mut out);
        out
    }

    #[test]
    fn a_table_is_kept_until_the_files_change_and_made_again_when_it_is_spoilt() {
        let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write_words(dir.path(), b'y');
        let texts = || TokenTexts::new(Some(dir.path()), Some(cache.path())).unwrap();
        let kept = || std::fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        let first = texts();
        assert_eq!((first.tokenizer.get().is_some(), kept().len()), (true, 1));
        let second = texts();
        assert!(second.tokenizer.get().is_none(), "the tokenizer has not been read");
        assert_eq!(prompt(&second), prompt(&first));
        assert_eq!(second.count(&prompt(&second)), Some(50), "it is read for counting");
        let path = kept().remove(0);
        std::fs::write(&path, &std::fs::read(&path).unwrap()[..1000]).unwrap();
        assert_eq!(prompt(&texts()), prompt(&first));
        assert!(PromptTable::from_text(&std::fs::read_to_string(&path).unwrap()).is_some(), "it was made again");
        write_words(dir.path(), b'z');
        assert!(texts().tokenizer.get().is_some() && kept().len() == 2);
        assert!(TokenTexts::new(Some(Path::new("/nonexistent")), Some(cache.path())).is_err());
    }
}
