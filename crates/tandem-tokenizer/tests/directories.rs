//! Reading Hugging Face directories: what is taken from which file, and which file an error blames.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tandem_tokenizer::{ChatMessage, PromptTable, Tokenizer};

const NANO: &str = include_str!("../../../models/nano/tokenizer.json");

/// Names and contents.
type Files<'a> = &'a [(&'a str, &'a str)];

/// A directory with these files.
fn directory(files: Files<'_>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    files.iter().for_each(|(name, content)| fs::write(dir.path().join(name), content).expect("writable"));
    dir
}

fn load(files: Files<'_>) -> Tokenizer {
    Tokenizer::from_dir(directory(files).path()).expect("loads")
}

fn error(files: Files<'_>) -> String {
    let dir = directory(files);
    let error = Tokenizer::from_dir(dir.path()).expect_err("is refused");
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(e) = source {
        text = format!("{text}: {e}");
        source = e.source();
    }
    text.replace(&dir.path().display().to_string(), "DIR")
}

fn chat(tokenizer: &Tokenizer, content: &str) -> String {
    let tokens = tokenizer.encode_chat(&[ChatMessage { role: "user", content }], true).expect("a chat");
    tokenizer.decode_with_control(&tokens)
}

#[test]
fn a_template_file_wins_over_the_configuration_and_that_over_the_built_in() {
    let config = r#"{"chat_template": "config {{ messages[0].content }}", "bos_token": "<｜begin▁of▁sentence｜>"}"#;
    let list =
        r#"{"chat_template": [{"name": "tool_use", "template": "tool"}, {"name": "default", "template": "listed {{ bos_token }}"}]}"#;
    assert_eq!(chat(&load(&[("tokenizer.json", NANO)]), "x"), "<｜begin▁of▁sentence｜><｜User｜>x<｜Assistant｜>");
    assert_eq!(chat(&load(&[("tokenizer.json", NANO), ("tokenizer_config.json", config)]), "x"), "config x");
    assert_eq!(chat(&load(&[("tokenizer.json", NANO), ("tokenizer_config.json", list)]), "x"), "listed <｜begin▁of▁sentence｜>");
    let both = [("tokenizer.json", NANO), ("tokenizer_config.json", config), ("chat_template.jinja", "file {{ messages[0].content }}")];
    assert_eq!(chat(&load(&both), "x"), "file x");
}

#[test]
fn stop_tokens_are_gathered_from_all_files() {
    let t = load(&[
        ("tokenizer.json", NANO),
        ("tokenizer_config.json", r#"{"eos_token": {"content": "<｜end▁of▁sentence｜>"}, "bos_token": {"content": "<think>"}}"#),
        ("generation_config.json", r#"{"eos_token_id": [257, 259], "bos_token_id": 256}"#),
        ("config.json", r#"{"eos_token_id": 260}"#),
    ]);
    assert_eq!((t.stop_ids(), t.eos_id(), t.bos_id()), (&[257, 259, 260][..], Some(257), Some(258)));
}

#[test]
fn the_path_of_the_file_itself_works_too() {
    let dir = directory(&[("tokenizer.json", NANO), ("chat_template.jinja", "hi")]);
    assert_eq!(chat(&Tokenizer::from_dir(&dir.path().join("tokenizer.json")).unwrap(), "x"), "hi");
}

#[test]
fn a_length_limit_in_the_file_does_not_cut_prompts() {
    let mut definition: Value = serde_json::from_str(NANO).unwrap();
    definition["truncation"] = json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    let t = load(&[("tokenizer.json", &definition.to_string())]);
    assert_eq!(t.encode("abcdefgh").unwrap().len(), 8);
}

#[test]
fn errors_name_the_file() {
    assert!(error(&[]).starts_with("cannot read DIR/tokenizer.json"), "{}", error(&[]));
    let cases: [(Files<'_>, &[&str]); 10] = [
        (&[("tokenizer.json", "{]")], &["DIR/tokenizer.json", "line 1"]),
        (&[("tokenizer.json", "{}")], &["DIR/tokenizer.json", "model"]),
        (&[("tokenizer.json", r#"{"model": {"type": "WordPiece", "vocab": {}}}"#)], &["DIR/tokenizer.json"]),
        (
            &[("tokenizer.json", r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}"#)],
            &["DIR/tokenizer.json", "not in vocab"],
        ),
        (&[("tokenizer.json", NANO), ("tokenizer_config.json", "nonsense")], &["DIR/tokenizer_config.json", "line 1"]),
        (&[("tokenizer.json", NANO), ("tokenizer_config.json", r#"{"eos_token": "<gone>"}"#)], &["DIR/tokenizer_config.json", "<gone>"]),
        (
            &[("tokenizer.json", NANO), ("tokenizer_config.json", r#"{"chat_template": 7}"#)],
            &["DIR/tokenizer_config.json", "chat_template"],
        ),
        (&[("tokenizer.json", NANO), ("chat_template.jinja", "{% for %}")], &["DIR/chat_template.jinja", "line 1"]),
        (&[("tokenizer.json", NANO), ("config.json", r#"{"eos_token_id": "one"}"#)], &["DIR/config.json", "eos_token_id"]),
        (
            &[("tokenizer.json", NANO), ("generation_config.json", r#"{"bos_token_id": -1}"#)],
            &["DIR/generation_config.json", "bos_token_id"],
        ),
    ];
    for (files, parts) in cases {
        let text = error(files);
        assert!(parts.iter().all(|p| text.contains(p)), "{text:?} does not name {parts:?}");
    }
    assert!(Tokenizer::from_dir(Path::new("/nonexistent/model")).unwrap_err().to_string().contains("/nonexistent/model/tokenizer.json"));
}

#[test]
fn a_vocabulary_without_markers_has_no_template_and_says_so() {
    let mut definition: Value = serde_json::from_str(NANO).unwrap();
    definition["added_tokens"] = json!([]);
    let t = load(&[("tokenizer.json", &definition.to_string())]);
    let error = t.encode_chat(&[ChatMessage { role: "user", content: "x" }], true).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json has no chat template"), "{error}");
    // Prompts for plain completions can be made all the same.
    assert_eq!(PromptTable::new(&t).unwrap().chat_overhead(), 0);
}
