//! Rates of encoding, decoding and making prompts, on one core.
//!
//! `cargo bench -p tandem-tokenizer --bench tokenizer -- [DIRECTORY]`: the built-in `nano` tokenizer, and that of a
//! Hugging Face directory if one is given. One line a figure, the median of seven rounds.
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use tandem_tokenizer::{ChatMessage, Detokenizer, PromptLength, PromptTable, Tokenizer};

const N_ROUNDS: usize = 7;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let smoke = arguments.iter().any(|a| a == "--test");
    measure("nano", &Tokenizer::builtin("nano").expect("is built in"), smoke);
    if let Some(directory) = arguments.iter().find(|a| !a.starts_with("--")) {
        let start = Instant::now();
        let tokenizer = Tokenizer::from_dir(Path::new(directory)).expect("a tokenizer");
        println!("{directory}: loaded in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
        measure(directory, &tokenizer, smoke);
    }
}

fn measure(name: &str, tokenizer: &Tokenizer, smoke: bool) {
    let n_rounds = if smoke { 1 } else { N_ROUNDS };
    let (table, seconds) = timed(1, || PromptTable::new(tokenizer).expect("a table"));
    println!("{name}: prompt table of {} words in {:.0} ms", table.n_words(), seconds * 1e3);

    let (n_prompts, n_tokens) = if smoke { (2, 100) } else { (256, 8150) };
    let make = || -> Vec<String> {
        let prompt = |i| table.synthesize(1, i, PromptLength::Content(n_tokens)).expect("long enough");
        (0..n_prompts).map(prompt).collect()
    };
    let (prompts, seconds) = timed(n_rounds, make);
    let total = f64::from(n_prompts) * n_tokens as f64;
    println!("{name}: make prompts of {n_tokens} tokens: {:.1} M tokens/s", total / seconds / 1e6);

    let (tokens, seconds) = timed(n_rounds, || -> Vec<Vec<u32>> {
        let chat = |p: &String| tokenizer.encode_chat(&[ChatMessage { role: "user", content: p }], true).expect("encodes");
        prompts.iter().map(chat).collect()
    });
    println!("{name}: encode chats of {n_tokens} tokens: {:.1} M tokens/s", total / seconds / 1e6);

    let ((), seconds) = timed(n_rounds, || {
        let short = tokenizer.encode_chat(&[ChatMessage { role: "user", content: "What is a key-value cache?" }], true);
        black_box(short.expect("encodes"));
    });
    println!("{name}: encode a short chat: {:.1} us", seconds * 1e6);

    let ((), seconds) = timed(n_rounds, || {
        for sequence in &tokens {
            let mut detokenizer = Detokenizer::new(tokenizer);
            for token in sequence {
                black_box(detokenizer.push(*token));
            }
        }
    });
    println!("{name}: decode token by token: {:.1} M tokens/s", total / seconds / 1e6);
}

/// The result of the last round and the median time of one, seconds.
fn timed<T>(n_rounds: usize, mut work: impl FnMut() -> T) -> (T, f64) {
    let mut seconds = Vec::new();
    loop {
        let start = Instant::now();
        let result = black_box(work());
        seconds.push(start.elapsed().as_secs_f64());
        if seconds.len() >= n_rounds {
            seconds.sort_by(f64::total_cmp);
            return (result, seconds[seconds.len() / 2]);
        }
    }
}
