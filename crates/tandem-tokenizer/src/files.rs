//! Reading a Hugging Face directory; every error names the file that is to blame.
//!
//! Only `tokenizer.json` is needed. Precedence follows the `transformers` library:
//! `chat_template.jinja` over `chat_template` in `tokenizer_config.json`; tokens that end a
//! generation are the union of what the configuration files name.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::TokenizerError;
use crate::template::ChatTemplate;
use crate::tokenizer::{Meaning, Tokenizer};

/// The tokenizer in `path`, a directory or the `tokenizer.json` in one.
pub(crate) fn load(path: &Path) -> Result<Tokenizer, TokenizerError> {
    let (directory, main) = places(path);
    let missing = || TokenizerError::Read { path: main.clone(), source: ErrorKind::NotFound.into() };
    let definition = read_json(&main)?.ok_or_else(missing)?;
    let settings_path = directory.join("tokenizer_config.json");
    let settings = read_json(&settings_path)?.unwrap_or(Value::Null);
    let mut tokenizer = Tokenizer::build(definition, &main.display().to_string())?;
    let meaning = meaning(&tokenizer, &settings, &directory, &settings_path)?;
    tokenizer = tokenizer.with_meaning(meaning);
    match template(&directory, &settings, &settings_path)? {
        Some(template) => Ok(tokenizer.with_template(template)),
        None => Ok(tokenizer),
    }
}

/// Names what a tokenizer and its prompts depend on: the files of `path` (as [`Tokenizer::from_dir`] reads them) and this crate's version.
///
/// # Errors
/// [`TokenizerError::Read`] when `tokenizer.json` or one of the others that are there cannot be read.
pub fn fingerprint(path: &Path) -> Result<String, TokenizerError> {
    let (directory, main) = places(path);
    let beside = ["tokenizer_config.json", "chat_template.jinja", "config.json", "generation_config.json"].map(|name| directory.join(name));
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    for (i, file) in std::iter::once(&main).chain(&beside).enumerate() {
        match std::fs::read(file) {
            Ok(bytes) => {
                hash.update([1]);
                hash.update((bytes.len() as u64).to_le_bytes());
                hash.update(&bytes);
            }
            Err(error) if error.kind() == ErrorKind::NotFound && i > 0 => hash.update([0]),
            Err(source) => return Err(TokenizerError::Read { path: file.clone(), source }),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The directory of a tokenizer and its main file.
fn places(path: &Path) -> (PathBuf, PathBuf) {
    if path.is_file() {
        (path.parent().unwrap_or(Path::new("")).to_owned(), path.to_owned())
    } else {
        (path.to_owned(), path.join("tokenizer.json"))
    }
}

fn template(directory: &Path, settings: &Value, settings_path: &Path) -> Result<Option<ChatTemplate>, TokenizerError> {
    let own_file = directory.join("chat_template.jinja");
    if let Some(source) = read_text(&own_file)? {
        return ChatTemplate::new(&source, own_file.display().to_string()).map(Some);
    }
    let source = match &settings["chat_template"] {
        Value::Null => return Ok(None),
        Value::String(source) => source,
        // Several by name; the others are for tools and retrieval.
        Value::Array(named) => {
            let default = named.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str());
            default.ok_or_else(|| wrong(settings_path, "`chat_template` is a list without one called `default`"))?
        }
        _ => return Err(wrong(settings_path, "`chat_template` is neither a string nor a list")),
    };
    ChatTemplate::new(source, settings_path.display().to_string()).map(Some)
}

fn meaning(tokenizer: &Tokenizer, settings: &Value, directory: &Path, settings_path: &Path) -> Result<Meaning, TokenizerError> {
    let named = |key: &str| -> Result<Option<u32>, TokenizerError> {
        let value = &settings[key];
        let Some(name) = value.as_str().or_else(|| value["content"].as_str()) else { return Ok(None) };
        let id = tokenizer.token_id(name);
        id.map(Some).ok_or_else(|| wrong(settings_path, &format!("`{key}` is `{name}`, which is not in the vocabulary")))
    };
    let mut bos = named("bos_token")?;
    let mut stop: Vec<u32> = named("eos_token")?.into_iter().collect();
    for name in ["generation_config.json", "config.json"] {
        let path = directory.join(name);
        let Some(config) = read_json(&path)? else { continue };
        bos = bos.or(ids(&config, "bos_token_id", &path)?.first().copied());
        stop.extend(ids(&config, "eos_token_id", &path)?);
    }
    let mut seen = Vec::new();
    stop.retain(|id| {
        !seen.contains(id) && {
            seen.push(*id);
            true
        }
    });
    if stop.is_empty() {
        stop.extend(tokenizer.eos_id());
    }
    Ok(Meaning { bos: bos.or(tokenizer.bos_id()), stop })
}

/// An id or a list of ids.
fn ids(config: &Value, key: &str, path: &Path) -> Result<Vec<u32>, TokenizerError> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match &config[key] {
        Value::Null => Some(Vec::new()),
        Value::Array(list) => list.iter().map(one).collect(),
        value => one(value).map(|id| vec![id]),
    };
    ids.ok_or_else(|| wrong(path, &format!("`{key}` is neither a token id nor a list of them")))
}

fn wrong(path: &Path, reason: &str) -> TokenizerError {
    TokenizerError::Definition { origin: path.display().to_string(), reason: reason.to_owned() }
}

fn read_json(path: &Path) -> Result<Option<Value>, TokenizerError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    let parsed = serde_json::from_str(&text);
    parsed.map(Some).map_err(|source| TokenizerError::Json { path: path.to_owned(), source })
}

fn read_text(path: &Path) -> Result<Option<String>, TokenizerError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read { path: PathBuf::from(path), source }),
    }
}
