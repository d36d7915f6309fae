//! Prompts for a vocabulary of words, on a small one that is made here: all pairs of letters, with and without a leading blank.

use serde_json::{Value, json};
use tandem_tokenizer::{PromptLength, PromptTable, Tokenizer};

/// A byte-level BPE whose words are pairs of letters; `sticky`: a word merges with ` ab` after it, and no pre-tokenizer prevents it.
fn vocabulary(sticky: bool) -> Value {
    let mut definition: Value = serde_json::from_str(include_str!("../../../models/nano/tokenizer.json")).expect("valid");
    let letters = || (b'a'..=b'z').map(char::from);
    let pairs: Vec<String> = letters().flat_map(|a| letters().map(move |b| format!("{a}{b}"))).collect();
    let mut merges: Vec<[String; 2]> = pairs.iter().map(|p| [p[..1].to_owned(), p[1..].to_owned()]).collect();
    merges.extend(pairs.iter().map(|p| ["Ġ".to_owned(), p.clone()]));
    if sticky {
        merges.extend(pairs.iter().map(|p| [format!("Ġ{p}"), "Ġab".to_owned()]));
    }
    let vocabulary = definition["model"]["vocab"].as_object_mut().expect("an object");
    for merge in &merges {
        let id = vocabulary.len();
        vocabulary.insert(merge.concat(), json!(id));
    }
    let n = vocabulary.len();
    for (i, token) in definition["added_tokens"].as_array_mut().expect("a list").iter_mut().enumerate() {
        token["id"] = json!(n + i);
    }
    definition["model"]["merges"] = json!(merges);
    definition["pre_tokenizer"]["use_regex"] = json!(!sticky);
    definition
}

fn load(definition: &Value) -> Tokenizer {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("tokenizer.json"), definition.to_string()).expect("writable");
    Tokenizer::from_dir(dir.path()).expect("loads")
}

#[test]
fn a_word_is_a_token() {
    let t = load(&vocabulary(false));
    let table = PromptTable::new(&t).unwrap();
    assert_eq!((table.n_words(), table.chat_overhead()), (676, 3));
    for n in [1, 2, 50, 999] {
        assert_eq!(table.self_check(&t, 5, PromptLength::Content(n), 10).unwrap(), []);
        assert_eq!(table.self_check(&t, 5, PromptLength::WithTemplate(n + 3), 10).unwrap(), []);
    }
    let text = table.synthesize(5, 0, PromptLength::Content(100)).unwrap();
    assert_eq!((text.len(), text.trim() == text), (299, true));
    let mut drawn = String::new();
    let mut n = 0u64;
    table.write(
        40,
        || {
            n = n.wrapping_add(0x0123_4567_89ab_cdef);
            n
        },
        &mut drawn,
    );
    assert_eq!(t.encode(&drawn).unwrap().len(), 40);
}

#[test]
fn words_of_one_run_differ_from_the_first_tokens_on() {
    let table = PromptTable::new(&load(&vocabulary(false))).unwrap();
    let heads: std::collections::HashSet<String> =
        (0..20_000).map(|i| table.synthesize(5, i, PromptLength::Content(64)).unwrap()[..11].to_owned()).collect();
    assert_eq!(heads.len(), 20_000, "the first four words name the prompt");
}

#[test]
fn vocabularies_whose_words_merge_are_refused() {
    let error = PromptTable::new(&load(&vocabulary(true))).unwrap_err().to_string();
    assert!(error.contains("merge with their neighbours"), "{error}");
}

#[test]
fn vocabularies_with_few_words_are_refused() {
    let mut definition = vocabulary(false);
    let merges = definition["model"]["merges"].as_array().expect("a list")[..300].to_vec();
    definition["model"]["merges"] = json!(merges);
    let error = PromptTable::new(&load(&definition)).unwrap_err().to_string();
    assert!(error.contains("usable words"), "{error}");
}
