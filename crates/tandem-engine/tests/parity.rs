//! The engine against golden outputs of an independent implementation: every way to cut a
//! prompt, both attention forms, mixed batches, block sizes, cache formats and transfer.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod common;

use common::{Golden, Sequence, cosine, decode, difference, options, prefill};
use tandem_engine::cpu::{AttentionForm, DraftEntry};
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
            sequences[i].0.tokens.extend(tokens);
        }
        step += 1;
    }
    for (i, (sequence, prompt)) in sequences.iter().enumerate() {
        assert_eq!(sequence.tokens[*prompt..], golden.prompts[i / 2].1.greedy[..n_out], "sequence {i}");
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
}

#[test]
fn kv_moves_to_an_engine_with_another_block_size_and_decoding_goes_on() {
    for i in 0..TINY.len() {
        let golden = tiny(i);
        for (name, want) in &golden.prompts {
            let mut from = golden.engine(CpuOptions { block_size: 32, ..options() });
            let mut to = golden.engine(CpuOptions { block_size: 12, n_blocks: 40, ..options() });
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
            decode(&mut to, &mut moved, want.prompt.len(), 32);
            assert_eq!(moved.tokens[want.prompt.len()..], want.greedy, "{name}");
        }
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

#[test]
fn the_mtp_layer_drafts_the_golden_tokens() {
    for (dir, key) in [(TINY[0], Some("f32")), (TINY[1], Some("f32")), ("models/nano", None)] {
        let golden = Golden::open(dir, key);
        for (name, want) in &golden.prompts {
            let mut engine = golden.engine(CpuOptions { mtp: true, ..options() });
            let text: Vec<u32> = want.prompt.iter().chain(&want.greedy).copied().collect();
            let mut sequence = Sequence::new(&text, &engine, 0, 1);
            let trace = engine.step_traced(&Batch { entries: vec![sequence.entry(text.len(), false)] }).unwrap();
            let hidden = golden.config.hidden_size as usize;
            // The prompt in two pieces, then one position at a time, as decoding would.
            let n = want.prompt.len() - 1;
            let pieces = [0..n / 2, n / 2..n].into_iter().chain((n..text.len() - 1).map(|t| t..t + 1));
            let mut drafts = Vec::new();
            for positions in pieces {
                let entry = DraftEntry {
                    hidden: &trace.final_norm[positions.start * hidden..positions.end * hidden],
                    next: &text[positions.start + 1..positions.end + 1],
                    start: u32::try_from(positions.start).unwrap(),
                    blocks: &sequence.blocks,
                };
                let tokens = engine.draft(&entry).unwrap();
                if positions.start >= n {
                    drafts.extend(tokens);
                }
            }
            assert!(want.mtp_draft.len() >= 32);
            assert_eq!(drafts[..want.mtp_draft.len()], want.mtp_draft, "{dir} {name}");
        }
    }
}
