//! The engine against golden outputs of an independent implementation: every way to cut a
//! prompt, both attention forms, mixed batches, block sizes, cache formats and transfer.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod common;

use common::{Golden, Sequence, cosine, decode, difference, options, prefill};
use tandem_engine::cpu::AttentionForm;
use tandem_engine::{Batch, CpuOptions, Engine, KvRead, NoObserver, StepObserver};
use tandem_plan::KvDtype;

const TOLERANCE: f32 = 1e-4;
const TINY: [&str; 2] = ["tests/data/tiny-deepseek/bf16", "tests/data/tiny-deepseek/fp8"];

fn tiny(i: usize) -> Golden {
    Golden::open(TINY[i], Some("f32"))
}

#[test]
fn every_layer_of_the_short_prompt_agrees() {
    for i in 0..TINY.len() {
        let golden = tiny(i);
        let mut engine = golden.engine(options());
        let prompt = &golden.prompt("short").prompt;
        let mut sequence = Sequence::new(prompt, &engine, 0, 1);
        let trace = engine.step_traced(&Batch { entries: vec![sequence.entry(usize::MAX - prompt.len(), false)] }).unwrap();
        let want = |name: &str| golden.tensors.get(&format!("f32.short.{name}"));
        assert!(difference(&trace.logits.concat(), want("logits_all").unwrap()) < TOLERANCE);
        assert!(difference(&trace.final_norm, want("final_norm").unwrap()) < TOLERANCE);
        let latent = golden.config.kv_lora_rank as usize;
        for (layer, output) in trace.layer_outputs.iter().enumerate() {
            assert!(difference(output, want(&format!("layer.{layer}.out")).unwrap()) < TOLERANCE, "layer {layer}");
            if let Some(ids) = want(&format!("layer.{layer}.topk_ids")) {
                assert_eq!(&trace.expert_ids[layer].iter().map(|id| *id as f32).collect::<Vec<_>>(), ids);
                assert!(difference(&trace.expert_weights[layer], want(&format!("layer.{layer}.topk_weights")).unwrap()) < TOLERANCE);
            }
            let mut bytes = Vec::new();
            engine.kv_read(layer, &sequence.blocks, 0..prompt.len(), &mut bytes);
            let values: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let rows = values.chunks(golden.config.kv_values_per_token_layer() as usize);
            let (latents, keys): (Vec<&[f32]>, Vec<&[f32]>) = rows.map(|row| row.split_at(latent)).unzip();
            assert!(difference(&latents.concat(), want(&format!("cache.{layer}.ckv")).unwrap()) < TOLERANCE);
            assert!(difference(&keys.concat(), want(&format!("cache.{layer}.kpe")).unwrap()) < TOLERANCE);
        }
    }
}

#[test]
fn prompts_in_one_piece_and_absorbed_decoding_give_the_golden_text() {
    for i in 0..TINY.len() {
        let golden = tiny(i);
        for (name, want) in &golden.prompts {
            for form in [AttentionForm::Auto, AttentionForm::Expanded, AttentionForm::Absorbed] {
                let mut engine = golden.engine(CpuOptions { form, ..options() });
                let mut sequence = Sequence::new(&want.prompt, &engine, 0, 1);
                let first = prefill(&mut engine, &mut sequence, want.prompt.len());
                assert!(difference(&first, &golden.tensors[&format!("f32.{name}.logits_last")]) < TOLERANCE, "{name} {form:?}");
                let last = decode(&mut engine, &mut sequence, want.prompt.len(), 32);
                assert_eq!(sequence.tokens[want.prompt.len()..], want.greedy, "{name} {form:?}");
                assert!(difference(&last, &golden.tensors[&format!("f32.{name}.logits_step31")]) < TOLERANCE, "{name} {form:?}");
            }
        }
    }
}

#[test]
fn every_chunk_size_gives_the_same_logits() {
    for i in 0..TINY.len() {
        let golden = tiny(i);
        for (name, want) in &golden.prompts {
            let n = want.prompt.len();
            let sizes: Vec<usize> = if n < 64 { (1..=n).collect() } else { vec![7, 32, 100, 128, 255, n - 1] };
            for form in [AttentionForm::Auto, AttentionForm::Expanded] {
                let mut engine = golden.engine(CpuOptions { form, ..options() });
                for &size in &sizes {
                    let mut sequence = Sequence::new(&want.prompt, &engine, 0, 1);
                    let logits = prefill(&mut engine, &mut sequence, size);
                    assert!(
                        difference(&logits, &golden.tensors[&format!("f32.{name}.logits_last")]) < TOLERANCE,
                        "{name} chunk {size} {form:?}"
                    );
                }
            }
        }
    }
}

/// Prompts of different lengths in chunks beside sequences that already decode, in the same steps.
fn mixed_batches(golden: &Golden, options: CpuOptions, chunk: usize, n_out: usize) {
    let mut engine = golden.engine(options);
    let n = golden.prompts.len() * 2;
    let mut sequences: Vec<(Sequence, usize)> =
        (0..n).map(|i| (Sequence::new(&golden.prompts[i / 2].1.prompt, &engine, i, n), golden.prompts[i / 2].1.prompt.len())).collect();
    // The second copy of each prompt starts some steps late, so that chunks and decodes meet in one batch.
    let mut step = 0;
    while sequences.iter().any(|(s, prompt)| s.tokens.len() < prompt + n_out) {
        let running: Vec<usize> =
            (0..n).filter(|&i| (i % 2 == 0 || step >= 3) && sequences[i].0.tokens.len() < sequences[i].1 + n_out).collect();
        let entries = running.iter().map(|&i| {
            let (sequence, prompt) = &mut sequences[i];
            let decode = sequence.cached >= *prompt;
            sequence.entry(if decode { 1 } else { chunk + i }, decode)
        });
        let batch = Batch { entries: entries.collect() };
        let output = engine.step(&batch, &mut NoObserver).unwrap();
        for (&i, tokens) in running.iter().zip(&output.tokens) {
            let sequence = &mut sequences[i].0;
            sequence.tokens.extend(tokens);
            sequence.cached += tokens.len().saturating_sub(1);
        }
        step += 1;
    }
    for (i, (sequence, prompt)) in sequences.iter().enumerate() {
        assert_eq!(sequence.tokens[*prompt..][..n_out], golden.prompts[i / 2].1.greedy[..n_out], "sequence {i}");
    }
}

#[test]
fn mixed_batches_give_every_sequence_its_own_text() {
    for i in 0..TINY.len() {
        for (block_size, threads, chunk) in [(32, 1, 40), (1, 1, 1000), (5, 2, 16), (64, 3, 9)] {
            let n_blocks = 6 * 400usize.div_ceil(block_size);
            mixed_batches(&tiny(i), CpuOptions { block_size, n_blocks, threads, ..options() }, chunk, 32);
        }
    }
}

#[test]
fn nano_gives_its_golden_text() {
    let golden = Golden::open("models/nano", None);
    assert_eq!(golden.prompts.len(), 3);
    for (_, want) in &golden.prompts {
        let mut engine = golden.engine(options());
        let mut sequence = Sequence::new(&want.prompt, &engine, 0, 1);
        prefill(&mut engine, &mut sequence, 17);
        decode(&mut engine, &mut sequence, want.prompt.len(), 64);
        assert_eq!(sequence.tokens[want.prompt.len()..], want.greedy);
    }
    mixed_batches(&golden, CpuOptions { threads: 2, ..options() }, 16, 64);
    mixed_batches(&golden, CpuOptions { drafts: 2, ..options() }, 16, 64);
}

#[test]
fn kv_moves_to_an_engine_with_another_block_size_and_decoding_goes_on() {
    for (i, drafts) in [(0, 0), (1, 0), (1, 2)] {
        let golden = tiny(i);
        for (name, want) in &golden.prompts {
            let mut from = golden.engine(CpuOptions { drafts, ..options() });
            let mut to = golden.engine(CpuOptions { block_size: 12, n_blocks: 40, drafts, ..options() });
            let mut sequence = Sequence::new(&want.prompt, &from, 0, 2);
            prefill(&mut from, &mut sequence, 25);
            let mut moved = Sequence::new(&sequence.tokens, &to, 0, 1);
            moved.cached = want.prompt.len();
            for layer in 0..from.info().n_kv_layers {
                // Two pieces, cut inside blocks of both sides.
                for tokens in [0..7, 7..want.prompt.len()] {
                    let mut bytes = Vec::new();
                    from.kv_read(layer, &sequence.blocks, tokens.clone(), &mut bytes);
                    to.kv_write(layer, &moved.blocks, tokens, &bytes).unwrap();
                }
            }
            while moved.tokens.len() < want.prompt.len() + 32 {
                let output = to.step(&Batch { entries: vec![moved.entry(1, true)] }, &mut NoObserver).unwrap();
                moved.tokens.extend(&output.tokens[0]);
                moved.cached = moved.tokens.len() - 1;
            }
            assert_eq!(moved.tokens[want.prompt.len()..][..32], want.greedy, "{name}");
        }
    }
}

#[test]
fn after_a_move_drafts_are_right_as_often_as_without() {
    let golden = Golden::open("models/nano", None);
    for (name, want) in &golden.prompts {
        let options = CpuOptions { drafts: 1, ..options() };
        let (mut from, mut to) = (golden.engine(options), golden.engine(CpuOptions { block_size: 20, ..options }));
        let mut sequence = Sequence::new(&want.prompt, &from, 0, 1);
        let mut observer = Collect { blocks: sequence.blocks.clone(), n_tokens: want.prompt.len(), ..Collect::default() };
        let output = from.step(&Batch { entries: vec![sequence.entry(usize::MAX / 2, false)] }, &mut observer).unwrap();
        sequence.tokens.extend(&output.tokens[0]);
        let mut moved = Sequence::new(&sequence.tokens, &to, 0, 1);
        moved.cached = want.prompt.len();
        assert_eq!(observer.layers.len(), to.info().n_kv_layers);
        for (layer, bytes) in &observer.layers {
            to.kv_write(*layer, &moved.blocks, 0..want.prompt.len(), bytes).unwrap();
        }
        let mut steps = 0;
        while moved.tokens.len() < want.prompt.len() + want.greedy.len() {
            let output = to.step(&Batch { entries: vec![moved.entry(1, true)] }, &mut NoObserver).unwrap();
            moved.tokens.extend(&output.tokens[0]);
            moved.cached = moved.tokens.len() - 1;
            steps += 1;
        }
        assert_eq!(moved.tokens[want.prompt.len()..][..want.greedy.len()], want.greedy, "{name}");
        let unmoved = run_drafting(&golden, want, 1, 1000).1;
        assert!(steps <= unmoved + 1, "{name}: {steps} steps, {unmoved} without the move");
    }
}

/// Collects what a transfer would send.
#[derive(Default)]
struct Collect {
    blocks: Vec<u32>,
    n_tokens: usize,
    layers: Vec<(usize, Vec<u8>)>,
}

impl StepObserver for Collect {
    fn layer_done(&mut self, layer: usize, cache: &dyn KvRead) {
        let mut bytes = Vec::new();
        cache.kv_read(layer, &self.blocks, 0..self.n_tokens, &mut bytes);
        self.layers.push((layer, bytes));
    }
}

#[test]
fn the_observer_sees_each_layer_complete_and_in_order() {
    let golden = tiny(0);
    let want = golden.prompt("chat");
    let mut engine = golden.engine(options());
    let mut sequence = Sequence::new(&want.prompt, &engine, 0, 1);
    let mut observer = Collect { blocks: sequence.blocks.clone(), n_tokens: want.prompt.len(), ..Collect::default() };
    // A chunk that does not sample must leave all its keys too.
    for n in [20, want.prompt.len()] {
        observer.layers.clear();
        engine.step(&Batch { entries: vec![sequence.entry(n, false)] }, &mut observer).unwrap();
    }
    assert_eq!(observer.layers.iter().map(|(l, _)| *l).collect::<Vec<_>>(), [0, 1, 2, 3]);
    for (layer, seen) in &observer.layers {
        let mut now = Vec::new();
        engine.kv_read(*layer, &sequence.blocks, 0..want.prompt.len(), &mut now);
        assert!(*seen == now, "layer {layer} changed after it was announced");
    }
}

#[test]
fn bf16_goldens_agree_by_angle() {
    for dir in TINY {
        let golden = Golden::open(dir, Some("bf16"));
        for (name, want) in &golden.prompts {
            let mut engine = golden.engine(options());
            let mut sequence = Sequence::new(&want.prompt, &engine, 0, 1);
            let logits = prefill(&mut engine, &mut sequence, want.prompt.len());
            let similarity = cosine(&logits, &golden.tensors[&format!("bf16.{name}.logits_last")]);
            assert!(similarity > 0.998, "{name}: {similarity}");
        }
    }
}

#[test]
fn small_cache_formats_cost_little_accuracy() {
    let golden = Golden::open("models/nano", None);
    for (dtype, limit) in [(KvDtype::Bf16, 0.999), (KvDtype::Fp8, 0.99)] {
        for (name, want) in &golden.prompts {
            // Teacher-forced: the prompt and the golden text in one piece, last logits compared.
            let text: Vec<u32> = want.prompt.iter().chain(&want.greedy).copied().collect();
            let mut exact = golden.engine(options());
            let mut small = golden.engine(CpuOptions { kv_dtype: dtype, ..options() });
            let mut a = Sequence::new(&text, &exact, 0, 1);
            let mut b = Sequence::new(&text, &small, 0, 1);
            let (a, b) = (prefill(&mut exact, &mut a, 30), prefill(&mut small, &mut b, 50));
            let similarity = cosine(&a, &b);
            assert!(similarity > limit, "{name} {dtype:?}: {similarity}");
        }
    }
}

/// Text and steps of a greedy run that drafts `drafts` tokens a step, with the prompt in chunks.
fn run_drafting(golden: &Golden, want: &common::GoldenPrompt, drafts: usize, chunk: usize) -> (Vec<u32>, usize) {
    let mut engine = golden.engine(CpuOptions { drafts, block_size: 16, n_blocks: 128, ..options() });
    assert_eq!(engine.info().n_kv_layers, golden.config.num_hidden_layers as usize + 1);
    let mut sequence = Sequence::new(&want.prompt, &engine, 0, 1);
    let (n, mut steps) = (want.prompt.len(), 0);
    while sequence.tokens.len() < n + want.greedy.len() {
        let decode = sequence.cached >= n;
        let entry = sequence.entry(if decode { 1 } else { chunk }, decode);
        let output = engine.step(&Batch { entries: vec![entry] }, &mut NoObserver).unwrap();
        let tokens = &output.tokens[0];
        assert!(tokens.len() <= 1 + drafts);
        sequence.tokens.extend(tokens);
        if decode {
            steps += 1;
            sequence.cached += tokens.len() - 1;
        }
    }
    sequence.tokens.truncate(n + want.greedy.len());
    (sequence.tokens.split_off(n), steps)
}

#[test]
fn drafting_changes_no_token_and_saves_exactly_the_steps_that_the_golden_drafts_save() {
    for (dir, key) in [(TINY[0], Some("f32")), (TINY[1], Some("f32")), ("models/nano", None)] {
        let golden = Golden::open(dir, key);
        for (name, want) in &golden.prompts {
            // Golden draft i is for greedy token i + 1: replay which drafts are right.
            let (mut at, mut expected) = (1, 0);
            while at < want.greedy.len() {
                expected += 1;
                at += if want.greedy[at] == want.mtp_draft[at - 1] { 2 } else { 1 };
            }
            for chunk in [9, 1000] {
                let (text, steps) = run_drafting(&golden, want, 1, chunk);
                assert_eq!(text, want.greedy, "{dir} {name} chunk {chunk}");
                assert_eq!(steps, expected, "{dir} {name} chunk {chunk}");
            }
            let (text, steps) = run_drafting(&golden, want, 3, 1000);
            assert_eq!(text, want.greedy, "{dir} {name}, three drafts");
            assert!(steps <= expected, "{dir} {name}: three drafts take {steps} steps, one takes {expected}");
        }
    }
}
