//! Speed of the CPU engine as one line a shape, for scripts that run other engines beside it (`benches/peers/llama.py`).
//!
//! `cargo bench -p tandem-engine --bench rows -- MODEL THREADS [f32|bf16|fp8]`, where MODEL is `nano` or a config.json whose
//! weights are random. Rates are means in wall time, as other engines' benchmarks report them; so they want an idle
//! machine. For rates that other processes hardly disturb, and for what bounds them, see the bench `cpu`.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a benchmark prints and may panic; its numbers are small"
)]

use std::time::Instant;

use tandem_engine::checkpoint::{self, builtin_model};
use tandem_engine::cpu::AttentionForm;
use tandem_engine::{Batch, BatchEntry, CpuEngine, CpuOptions, Engine, NoObserver, Sampling};
use tandem_plan::{KvDtype, ModelConfig, ModelSource};

/// Tokens of one KV block.
const BLOCK: usize = 32;
/// Prompt of the prefill rows.
const ISL: usize = 512;
/// Timed repetitions of a prefill, after one that is not.
const REPEATS: usize = 5;
/// Context at the first and after the last timed step of the decode rows.
const CONTEXT: [usize; 2] = [128, 192];

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| !a.starts_with('-'));
    let (Some(model), Some(threads)) = (arguments.next(), arguments.next()) else {
        println!("nothing measured: say MODEL THREADS [KV dtype]");
        return;
    };
    let threads = threads.parse().unwrap();
    let kv_dtype = match arguments.next().as_deref() {
        Some("bf16") => KvDtype::Bf16,
        Some("fp8") => KvDtype::Fp8,
        _ => KvDtype::F32,
    };
    let (json, source) = if model == "nano" {
        (builtin_model("nano").unwrap().config_json.to_owned(), ModelSource::Builtin { name: "nano".into() })
    } else {
        (std::fs::read_to_string(&model).unwrap(), ModelSource::Dummy { seed: 1 })
    };
    let config = ModelConfig::from_json(&json).unwrap();
    let build = |n_tokens: usize| {
        let options =
            CpuOptions { block_size: BLOCK, n_blocks: n_tokens.div_ceil(BLOCK), kv_dtype, threads, form: AttentionForm::Auto, drafts: 0 };
        CpuEngine::new(&config, checkpoint::open(&source, &config).unwrap().as_ref(), options).unwrap()
    };

    let mut engine = build(ISL);
    println!("weight_bytes\t{}\nkernels\t{}\nkv\t{kv_dtype:?}", engine.weight_bytes(), engine.instruction_set());
    println!("prefill\t{ISL}\t1\t{:.1}", prefill_rate(&mut engine, config.vocab_size));
    for n in [1, 4, 8, 16, 32] {
        let mut engine = build(n * CONTEXT[1]);
        println!("decode\t{}-{}\t{n}\t{:.1}", CONTEXT[0], CONTEXT[1], decode_rate(&mut engine, n, config.vocab_size));
    }
}

/// Tokens of a prompt.
fn prompt(n: usize, vocab: u32, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729 + i * i * 31) % vocab as usize) as u32).collect()
}

fn entry(index: usize, n_blocks: usize, tokens: Vec<u32>, start: usize, decode: bool) -> BatchEntry {
    let blocks = (index * n_blocks..(index + 1) * n_blocks).map(|b| u32::try_from(b).unwrap()).collect();
    BatchEntry { tokens, start: u32::try_from(start).unwrap(), blocks, sampling: Some(Sampling::GREEDY), decode }
}

/// Prompt tokens per second of one sequence in one step.
fn prefill_rate(engine: &mut CpuEngine, vocab: u32) -> f64 {
    let mut since = Instant::now();
    for repeat in 0..=REPEATS {
        if repeat == 1 {
            since = Instant::now();
        }
        let entries = vec![entry(0, ISL / BLOCK, prompt(ISL, vocab, repeat), 0, false)];
        engine.step(&Batch { entries }, &mut NoObserver).unwrap();
    }
    (REPEATS * ISL) as f64 / since.elapsed().as_secs_f64()
}

/// Tokens per second of `n` sequences that decode together.
fn decode_rate(engine: &mut CpuEngine, n: usize, vocab: u32) -> f64 {
    let [first, end] = CONTEXT;
    let n_blocks = end / BLOCK;
    let entries = (0..n).map(|i| entry(i, n_blocks, prompt(first, vocab, i), 0, false)).collect();
    let mut tokens = engine.step(&Batch { entries }, &mut NoObserver).unwrap().tokens;
    let since = Instant::now();
    for start in first..end {
        let entries = (0..n).map(|i| entry(i, n_blocks, tokens[i].clone(), start, true)).collect();
        tokens = engine.step(&Batch { entries }, &mut NoObserver).unwrap().tokens;
    }
    (n * (end - first)) as f64 / since.elapsed().as_secs_f64()
}
