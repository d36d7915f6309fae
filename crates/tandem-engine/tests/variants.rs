//! The engine against checkpoints of other shapes than it was developed on, made and computed
//! by `tests/data/variants/generate.py`: other head, group and expert counts, V2 routing, no
//! low-rank query, plain and scaled rotary embedding, tied embeddings, ties in routing, FP8
//! blocks that divide nothing, F16 and F32 files, shards.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod common;

use common::{Golden, Sequence, decode, difference, options, prefill};
use tandem_engine::cpu::AttentionForm;
use tandem_engine::{Batch, CpuOptions, Engine, NoObserver};

const VARIANTS: [&str; 6] = ["v2-lite", "v2-groups", "tied-plain", "router-ties", "fp8-partial", "fp8-blocks"];
const N_OUT: usize = 24;
const TOLERANCE: f32 = 1e-4;

fn variant(name: &str) -> Golden {
    Golden::open(&format!("tests/data/variants/{name}"), None)
}

#[test]
fn every_variant_gives_its_golden_logits_and_text_in_both_forms_and_any_chunks() {
    for name in VARIANTS {
        let golden = variant(name);
        assert_eq!(golden.prompts.len(), 2);
        for (prompt, want) in &golden.prompts {
            let n = want.prompt.len();
            for form in [AttentionForm::Auto, AttentionForm::Expanded, AttentionForm::Absorbed] {
                for chunk in [1, 4, n - 1, n] {
                    let mut engine = golden.engine(CpuOptions { form, block_size: 9, ..options() });
                    let mut sequence = Sequence::new(&want.prompt, &engine, 0, 1);
                    let first = prefill(&mut engine, &mut sequence, chunk);
                    let off = difference(&first, &golden.tensors[&format!("{prompt}.logits_first")]);
                    assert!(off < TOLERANCE, "{name} {prompt} {form:?} chunk {chunk}: {off}");
                    let last = decode(&mut engine, &mut sequence, n, N_OUT);
                    assert_eq!(sequence.tokens[n..], want.greedy, "{name} {prompt} {form:?} chunk {chunk}");
                    let off = difference(&last, &golden.tensors[&format!("{prompt}.logits_last")]);
                    assert!(off < TOLERANCE, "{name} {prompt} {form:?} chunk {chunk}: {off}");
                }
            }
        }
    }
}

#[test]
fn a_decode_beside_a_prefill_on_three_threads_changes_neither() {
    for name in VARIANTS {
        let golden = variant(name);
        let (short, long) = (golden.prompt("short"), golden.prompt("long"));
        let mut engine = golden.engine(CpuOptions { threads: 3, block_size: 16, ..options() });
        let mut a = Sequence::new(&short.prompt, &engine, 0, 2);
        let mut b = Sequence::new(&long.prompt, &engine, 1, 2);
        prefill(&mut engine, &mut a, usize::MAX / 2);
        while a.tokens.len() < short.prompt.len() + N_OUT || b.tokens.len() < long.prompt.len() + N_OUT {
            let b_decodes = b.cached >= long.prompt.len();
            let entries = vec![a.entry(1, true), b.entry(if b_decodes { 1 } else { 13 }, b_decodes)];
            let output = engine.step(&Batch { entries }, &mut NoObserver).unwrap();
            a.tokens.extend(&output.tokens[0]);
            b.tokens.extend(&output.tokens[1]);
        }
        assert_eq!(a.tokens[short.prompt.len()..][..N_OUT], short.greedy, "{name}");
        assert_eq!(b.tokens[long.prompt.len()..][..N_OUT], long.greedy, "{name}");
    }
}
