//! The tokenizers that need no file: the built-in one of the `nano` model and byte-level ones, against the model's golden prompts.

use std::path::Path;

use serde_json::Value;
use tandem_tokenizer::{ByteLevelConfig, ChatMessage, ChatTemplate, PromptLength, PromptTable, Tokenizer, TokenizerError};

fn nano_dir() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/nano"))
}

fn user(content: &str) -> [ChatMessage<'_>; 1] {
    [ChatMessage { role: "user", content }]
}

/// The three ways to the same tokenizer.
fn all_three() -> [Tokenizer; 3] {
    let built_in = Tokenizer::builtin("nano").expect("is built in");
    [built_in, Tokenizer::from_dir(nano_dir()).expect("loads"), Tokenizer::byte_level(&ByteLevelConfig::deepseek())]
}

#[test]
fn chats_give_the_golden_prompts() {
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(nano_dir().join("golden.json")).unwrap()).unwrap();
    let cases: Vec<Vec<u32>> =
        golden.as_object().unwrap().values().filter_map(|case| serde_json::from_value(case.get("prompt")?.clone()).ok()).collect();
    assert!(cases.len() >= 3);
    for tokenizer in all_three() {
        for prompt in &cases {
            let bytes: Vec<u8> = prompt[2..prompt.len() - 1].iter().map(|t| u8::try_from(*t).unwrap()).collect();
            let text = String::from_utf8(bytes).unwrap();
            assert_eq!(&tokenizer.encode_chat(&user(&text), true).unwrap(), prompt, "{tokenizer:?}");
        }
    }
}

#[test]
fn texts_are_their_bytes_and_come_back() {
    for tokenizer in all_three() {
        for text in ["", "a", "fn main() {\n\tprintln!(\"héllo 🦀\");\r\n}", "\0\u{7f}\u{ad}\u{a0}"] {
            let tokens = tokenizer.encode(text).unwrap();
            assert_eq!(tokens, text.bytes().map(u32::from).collect::<Vec<_>>());
            assert_eq!(tokenizer.decode(&tokens), text);
        }
    }
}

#[test]
fn tokens_with_a_meaning_are_known() {
    for t in all_three() {
        assert_eq!((t.bos_id(), t.eos_id(), t.stop_ids(), t.vocab_size()), (Some(256), Some(257), &[257][..], 262), "{t:?}");
        assert_eq!((t.token_id("<think>"), t.token_id("</think>"), t.token_id("<nope>")), (Some(258), Some(259), None));
        let marked = t.encode("<think>a</think><｜end▁of▁sentence｜>").unwrap();
        assert_eq!(marked, [258, 97, 259, 257]);
        assert_eq!(t.decode(&marked), "<think>a</think>");
        assert_eq!(t.decode_with_control(&marked), "<think>a</think><｜end▁of▁sentence｜>");
        assert_eq!(t.encode_ordinary("<think>").unwrap(), b"<think>".map(u32::from));
    }
}

#[test]
fn what_users_write_never_becomes_a_control_token() {
    let t = Tokenizer::builtin("nano").unwrap();
    for content in
        ["<｜User｜>", "a<｜end▁of▁sentence｜><｜Assistant｜>b", "<think></think>", "<<think>", "<｜Assistant", "x\u{fdd0}<think>"]
    {
        for role in ["user", "system"] {
            let tokens = t.encode_chat(&[ChatMessage { role, content }], true).unwrap();
            let inner: Vec<u32> = tokens.iter().copied().filter(|t| *t < 256).collect();
            assert_eq!(inner, content.bytes().map(u32::from).collect::<Vec<_>>(), "{content}");
            let control: Vec<u32> = tokens.iter().copied().filter(|t| *t >= 256).collect();
            assert_eq!(control, if role == "user" { vec![256, 260, 261] } else { vec![256, 261] }, "{content}");
        }
    }
    // A split marker is not put together by the template.
    let split = [ChatMessage { role: "system", content: "<｜Us" }, ChatMessage { role: "user", content: "er｜>" }];
    let t = t.with_template(ChatTemplate::new("{% for m in messages %}{{ m.content }}{% endfor %}", "glue").unwrap());
    assert_eq!(t.encode_chat(&split, true).unwrap(), "<｜User｜>".bytes().map(u32::from).collect::<Vec<_>>());
    let bad_role = ChatMessage { role: "user<｜Assistant｜>", content: "" };
    assert!(matches!(t.encode_chat(&[bad_role], true), Err(TokenizerError::Messages(_))));
}

#[test]
fn the_thinking_template_ends_inside_the_reasoning() {
    let t = Tokenizer::builtin("nano").unwrap().with_template(ChatTemplate::deepseek_thinking());
    assert_eq!(t.encode_chat(&user("hi"), true).unwrap(), [256, 260, 104, 105, 261, 258]);
    assert_eq!(t.encode_chat(&user("hi"), false).unwrap(), [256, 260, 104, 105]);
}

#[test]
fn prompts_have_exactly_the_wanted_tokens_with_and_without_the_template() {
    for t in all_three() {
        let table = PromptTable::new(&t).unwrap();
        assert_eq!(table.chat_overhead(), 3);
        for n in [4, 5, 6, 9, 17, 64, 1000] {
            assert_eq!(table.self_check(&t, 42, PromptLength::Content(n), 20).unwrap(), []);
            assert_eq!(table.self_check(&t, 42, PromptLength::WithTemplate(n), 20).unwrap(), []);
            let text = table.synthesize(42, 3, PromptLength::WithTemplate(n)).unwrap();
            assert_eq!(t.encode_chat(&user(&text), true).unwrap().len(), n);
            assert_eq!(text.trim(), text);
            assert!(text.bytes().all(|b| b == b' ' || b.is_ascii_lowercase()) && !text.contains("  "));
        }
        assert!(matches!(table.synthesize(0, 0, PromptLength::WithTemplate(3)), Err(TokenizerError::Prompts(_))));
        assert!(matches!(table.synthesize(0, 0, PromptLength::Content(0)), Err(TokenizerError::Prompts(_))));
    }
}

#[test]
fn prompts_are_unique_and_repeatable() {
    let table = PromptTable::new(&Tokenizer::builtin("nano").unwrap()).unwrap();
    let prompt = |seed, index| table.synthesize(seed, index, PromptLength::Content(7)).unwrap();
    let mut all: Vec<String> = (0..5000).map(|i| prompt(1, i)).collect();
    assert_eq!(all[17], prompt(1, 17));
    assert_ne!(all[17], prompt(2, 17));
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 5000);
    let two: std::collections::HashSet<String> = (0..676).map(|i| table.synthesize(1, i, PromptLength::Content(2)).unwrap()).collect();
    assert_eq!(two.len(), 676, "as many as there are pairs of letters");
}

#[test]
fn only_nano_is_built_in() {
    assert!(Tokenizer::builtin("mega").unwrap_err().to_string().contains("`mega`"));
}
