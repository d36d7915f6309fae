//! The modeled engine: one text whatever way it is computed, KV that tells when it is wrong, modeled time.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::{Duration, Instant};

use tandem_engine::{Batch, BatchEntry, Engine, EngineError, KvRead, ModeledEngine, NoObserver, Sampling, StepObserver};
use tandem_plan::{KvDtype, KvPlan, ModeledCosts};

const FREE: ModeledCosts = ModeledCosts { step_us: 0.0, prefill_token_us: 0.0, decode_seq_us: 0.0 };

fn engine(costs: ModeledCosts, block_size: u32) -> ModeledEngine {
    ModeledEngine::new(costs, &KvPlan { block_size, n_blocks: 64, dtype: KvDtype::Fp8, memory_fraction: 0.5 }, 256)
}

fn prompt(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * 37 + 11) % 256).collect()
}

fn entry(tokens: &[u32], start: u32, blocks: &[u32], output_index: Option<u32>, decode: bool) -> BatchEntry {
    let sampling = output_index.map(|output_index| Sampling { output_index, ..Sampling::GREEDY });
    BatchEntry { tokens: tokens.to_vec(), start, blocks: blocks.to_vec(), sampling, decode }
}

fn step(engine: &mut ModeledEngine, entry: BatchEntry) -> Result<Option<u32>, EngineError> {
    let out = engine.step(&Batch { entries: vec![entry] }, &mut NoObserver)?;
    Ok(out.tokens[0].first().copied())
}

/// The first token of a prompt computed in chunks.
fn prefill(engine: &mut ModeledEngine, tokens: &[u32], chunk: usize, blocks: &[u32]) -> u32 {
    let mut last = None;
    for (i, part) in tokens.chunks(chunk).enumerate() {
        let start = i * chunk;
        let emits = start + part.len() == tokens.len();
        last = step(engine, entry(part, u32::try_from(start).unwrap(), blocks, emits.then_some(0), false)).unwrap();
    }
    last.unwrap()
}

fn decode(engine: &mut ModeledEngine, n_prompt: u32, first: u32, n: u32, blocks: &[u32]) -> Vec<u32> {
    let mut text = vec![first];
    for i in 1..n {
        text.push(step(engine, entry(&text[text.len() - 1..], n_prompt + i - 1, blocks, Some(i), true)).unwrap().unwrap());
    }
    text
}

#[test]
fn chunks_blocks_and_transfers_do_not_change_the_text() {
    let tokens = prompt(50);
    let blocks: Vec<u32> = (0..20).rev().collect();
    let mut one = engine(FREE, 4);
    let first = prefill(&mut one, &tokens, 50, &blocks);
    let text = decode(&mut one, 50, first, 20, &blocks);
    assert!(text.iter().all(|t| (32..127).contains(t)), "printable");
    assert!(text.iter().any(|t| *t != text[0]), "not one letter");
    for chunk in 1..50 {
        let mut source = engine(FREE, 4);
        assert_eq!(prefill(&mut source, &tokens, chunk, &blocks), first);
        let mut target = engine(FREE, 8);
        let target_blocks: Vec<u32> = (30..40).collect();
        for layer in 0..2 {
            let mut bytes = Vec::new();
            source.kv_read(layer, &blocks, 0..50, &mut bytes);
            assert_eq!(bytes.len(), 50 * source.info().kv_bytes_per_token_layer());
            target.kv_write(layer, &target_blocks, 0..50, &bytes).unwrap();
        }
        target.verify(&target_blocks, 50).unwrap();
        assert_eq!(decode(&mut target, 50, first, 20, &target_blocks), text);
    }
}

#[test]
fn every_token_of_the_prompt_matters() {
    let blocks: Vec<u32> = (0..5).collect();
    let text = |tokens: &[u32]| {
        let mut e = engine(FREE, 8);
        let first = prefill(&mut e, tokens, 7, &blocks);
        decode(&mut e, 20, first, 12, &blocks)
    };
    let tokens = prompt(20);
    for i in 0..20 {
        let mut other = tokens.clone();
        other[i] ^= 1;
        assert_ne!(text(&other), text(&tokens), "token {i}");
    }
}

#[test]
fn wrong_kv_is_noticed() {
    let tokens = prompt(16);
    let (mut source, blocks) = (engine(FREE, 8), [3, 1, 2]);
    prefill(&mut source, &tokens, 16, &blocks);
    let mut bytes = Vec::new();
    source.kv_read(1, &blocks, 0..16, &mut bytes);
    let mut target = engine(FREE, 8);
    assert!(target.kv_write(0, &blocks, 0..16, &bytes).is_err(), "another layer");
    assert!(target.kv_write(1, &blocks, 0..15, &bytes).is_err(), "another length");
    assert!(target.kv_write(1, &[64, 1], 0..16, &bytes).is_err(), "a block that is not there");
    assert!(target.kv_write(1, &blocks[..1], 0..16, &bytes).is_err(), "too few blocks");
    target.kv_write(1, &blocks, 0..16, &bytes).unwrap();
    assert!(target.verify(&blocks, 16).is_err(), "a missing layer");
    bytes[77] ^= 1;
    assert!(target.kv_write(1, &blocks, 0..16, &bytes).is_err(), "a damaged byte");
}

#[test]
fn batches_that_break_a_rule_are_refused_and_banned_tokens_are_not_chosen() {
    let mut e = engine(FREE, 8);
    assert!(step(&mut e, entry(&[256], 0, &[0], Some(0), false)).is_err(), "token outside the vocabulary");
    assert!(step(&mut e, entry(&[1; 9], 0, &[0], Some(0), false)).is_err(), "too few blocks");
    assert!(step(&mut e, entry(&[1], 0, &[64], Some(0), false)).is_err(), "block outside the cache");
    let mut with_ban = entry(&[1, 2, 3], 0, &[0], Some(0), false);
    let free = step(&mut e, with_ban.clone()).unwrap().unwrap();
    with_ban.sampling.as_mut().unwrap().banned = vec![free];
    let other = step(&mut e, with_ban).unwrap().unwrap();
    assert_ne!(free, other);
}

#[test]
fn layers_are_announced_in_order_with_their_cache_written() {
    struct Seen(Vec<(usize, Vec<u8>)>);
    impl StepObserver for Seen {
        fn layer_done(&mut self, layer: usize, cache: &dyn KvRead) {
            let mut bytes = Vec::new();
            cache.kv_read(layer, &[5], 0..3, &mut bytes);
            self.0.push((layer, bytes));
        }
    }
    let mut e = engine(FREE, 8);
    let mut seen = Seen(Vec::new());
    e.step(&Batch { entries: vec![entry(&[1, 2, 3], 0, &[5], Some(0), false)] }, &mut seen).unwrap();
    for (layer, bytes) in &seen.0 {
        let mut after = Vec::new();
        e.kv_read(*layer, &[5], 0..3, &mut after);
        assert_eq!(&after, bytes);
    }
    assert_eq!(seen.0.iter().map(|s| s.0).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn steps_never_end_before_their_modeled_time() {
    let costs = ModeledCosts { step_us: 300.0, prefill_token_us: 10.0, decode_seq_us: 50.0 };
    let mut e = engine(costs, 8);
    let begin = Instant::now();
    prefill(&mut e, &prompt(20), 10, &[0, 1, 2]);
    decode(&mut e, 20, 65, 4, &[0, 1, 2]);
    let modeled = Duration::from_micros(2 * (300 + 100) + 3 * (300 + 50));
    assert!(begin.elapsed() >= modeled, "{:?} < {modeled:?}", begin.elapsed());
}
