//! What the scheduler does with a few requests, step by step.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use tandem_sched::{Outcome, SchedConfig, SchedStats, Scheduler, SeqId, SeqState, SubmitError};

fn scheduler(max_batch_size: u32, max_num_tokens: u32, n_blocks: u32) -> Scheduler {
    let config =
        SchedConfig { max_batch_size, max_num_tokens, max_seq_len: 1000, chunked_prefill: true, block_size: 4, n_blocks, n_drafts: 0 };
    Scheduler::new(config).unwrap()
}

/// Runs one step in which every emitting entry yields one token: `(id, start, n_tokens, emits)` of its entries.
fn step(s: &mut Scheduler) -> Vec<(u64, u32, u32, bool)> {
    let Some(step) = s.next_step() else { return Vec::new() };
    let outcomes: Vec<_> = step.entries.iter().map(|e| Outcome { n_new: u32::from(e.emits), stop: false }).collect();
    s.complete_step(&step, &outcomes);
    s.check().unwrap();
    step.entries.iter().map(|e| (e.id.0, e.start, e.n_tokens, e.emits)).collect()
}

#[test]
fn a_prompt_is_cut_at_block_boundaries_and_holds_its_blocks_until_released() {
    let mut s = scheduler(1, 10, 8);
    s.submit_prefill(SeqId(1), 19).unwrap();
    s.submit_prefill(SeqId(2), 12).unwrap();
    assert_eq!(step(&mut s), [(1, 0, 8, false)]);
    assert_eq!(step(&mut s), [(1, 8, 8, false)]);
    assert_eq!(step(&mut s), [(1, 16, 3, true)]);
    assert_eq!(s.state(SeqId(1)), Some(SeqState::Transferring));
    assert_eq!(s.blocks(SeqId(1)).unwrap().len(), 5);
    assert_eq!(step(&mut s), [(2, 0, 8, false)], "a transferring sequence has no place in the batch");
    assert_eq!(s.stats(), SchedStats { n_waiting: 0, n_running: 1, n_transferring: 1, blocks_used: 8, blocks_total: 8 });
    s.submit_prefill(SeqId(3), 4).unwrap();
    assert_eq!(step(&mut s), [(2, 8, 4, true)]);
    assert_eq!(step(&mut s), [], "no blocks are left for the third");
    assert!(s.release(SeqId(1)));
    assert!(!s.release(SeqId(1)), "releasing again is harmless");
    assert_eq!(step(&mut s), [(3, 0, 4, true)]);
}

#[test]
fn several_prompts_share_a_step() {
    let mut s = scheduler(4, 16, 100);
    for (id, n) in [(1, 5), (2, 5), (3, 9), (4, 1)] {
        s.submit_prefill(SeqId(id), n).unwrap();
    }
    assert_eq!(step(&mut s), [(1, 0, 5, true), (2, 0, 5, true), (3, 0, 4, false)], "nobody overtakes the third");
    assert_eq!(step(&mut s), [(3, 4, 5, true), (4, 0, 1, true)]);
}

#[test]
fn without_chunks_a_prompt_waits_for_a_step_with_room() {
    let config = SchedConfig { chunked_prefill: false, ..*scheduler(4, 10, 100).config() };
    let mut s = Scheduler::new(config).unwrap();
    assert_eq!(s.submit_prefill(SeqId(9), 11), Err(SubmitError::PromptOverStep { n_prompt: 11, max_num_tokens: 10 }));
    s.submit_prefill(SeqId(1), 6).unwrap();
    s.submit_prefill(SeqId(2), 6).unwrap();
    assert_eq!(step(&mut s), [(1, 0, 6, true)]);
    assert_eq!(step(&mut s), [(2, 0, 6, true)]);
}

#[test]
fn a_decode_waits_for_blocks_then_for_its_kv_then_for_a_place_in_the_batch() {
    let mut s = scheduler(1, 8, 6);
    s.reserve(SeqId(1), 8, 3).unwrap();
    s.reserve(SeqId(2), 8, 3).unwrap();
    s.reserve(SeqId(3), 1, 1).unwrap();
    assert_eq!((s.take_reserved(), s.take_reserved(), s.take_reserved()), (Some(SeqId(1)), Some(SeqId(2)), None));
    assert!(!s.commit(SeqId(3)), "nothing is reserved for it yet");
    assert_eq!(step(&mut s), []);
    assert!(s.commit(SeqId(2)) && s.commit(SeqId(1)));
    assert!(!s.commit(SeqId(1)), "a commit counts once");
    assert_eq!(step(&mut s), [(2, 8, 1, true)]);
    assert_eq!(s.state(SeqId(1)), Some(SeqState::Ready));
    assert_eq!(step(&mut s), [(2, 9, 1, true)], "the third token is its last");
    assert_eq!(s.state(SeqId(2)), None);
    assert_eq!(step(&mut s), [(1, 8, 1, true)]);
    assert_eq!(s.take_reserved(), Some(SeqId(3)));
    assert!(s.commit(SeqId(3)), "one token only: committed and done");
    assert_eq!(step(&mut s), [(1, 9, 1, true)]);
    assert!(s.is_empty());
    assert_eq!(s.stats().blocks_used, 0);
}

#[test]
fn a_decode_holds_blocks_for_prompt_and_output_and_a_prefill_for_the_prompt() {
    let mut s = scheduler(4, 8, 100);
    s.reserve(SeqId(1), 7, 2).unwrap();
    assert_eq!(s.take_reserved(), Some(SeqId(1)));
    assert_eq!(s.blocks(SeqId(1)).unwrap().len(), 3);
    s.submit_prefill(SeqId(2), 8).unwrap();
    assert_eq!(s.blocks(SeqId(2)), Some(&[][..]), "nothing while it waits");
    step(&mut s);
    assert_eq!(s.blocks(SeqId(2)).unwrap().len(), 2);
    assert_eq!(s.blocks(SeqId(3)), None);
}

#[test]
fn drafts_take_their_part_of_a_steps_tokens_and_several_may_be_right() {
    let config = SchedConfig { n_drafts: 1, ..*scheduler(8, 5, 100).config() };
    let mut s = Scheduler::new(config).unwrap();
    for id in 0..3 {
        s.reserve(SeqId(id), 4, 5).unwrap();
    }
    while let Some(id) = s.take_reserved() {
        assert!(s.commit(id));
    }
    // Five tokens hold two sequences of one token and one draft each; after two steps of two tokens they are done.
    for _ in 0..2 {
        let step = s.next_step().unwrap();
        assert_eq!(step.entries.iter().map(|e| e.id.0).collect::<Vec<_>>(), [0, 1]);
        s.complete_step(&step, &[Outcome { n_new: 2, stop: false }; 2]);
    }
    assert_eq!(step(&mut s), [(2, 4, 1, true)]);
    assert!(Scheduler::new(SchedConfig { n_drafts: 5, ..config }).is_err(), "a sequence and its drafts must fit in a step");
}

#[test]
fn decodes_come_first_in_an_aggregated_batch() {
    let mut s = scheduler(3, 6, 100);
    s.submit_aggregated(SeqId(1), 4, 4).unwrap();
    assert_eq!(step(&mut s), [(1, 0, 4, true)]);
    s.submit_aggregated(SeqId(2), 9, 2).unwrap();
    assert_eq!(step(&mut s), [(1, 4, 1, true), (2, 0, 4, false)]);
    assert_eq!(step(&mut s), [(1, 5, 1, true), (2, 4, 5, true)]);
    assert_eq!(step(&mut s), [(1, 6, 1, true), (2, 9, 1, true)]);
    assert!(s.is_empty());
}

#[test]
fn what_is_released_during_a_step_keeps_its_blocks_until_the_step_ends() {
    let mut s = scheduler(2, 8, 2);
    s.submit_prefill(SeqId(1), 8).unwrap();
    let open = s.next_step().unwrap();
    assert!(s.release(SeqId(1)));
    assert_eq!(s.stats().blocks_used, 2);
    assert_eq!(s.entry_blocks(&open.entries[0]), [0, 1]);
    s.complete_step(&open, &[Outcome { n_new: 1, stop: false }]);
    assert_eq!(s.stats(), SchedStats { blocks_total: 2, ..SchedStats::default() });
    s.submit_prefill(SeqId(1), 8).unwrap();
    let open = s.next_step().unwrap();
    s.abandon_step(&open);
    assert_eq!(s.next_step().unwrap().entries[0].start, 0, "an abandoned step is computed again");
}

#[test]
fn what_can_never_run_is_refused_with_the_reason() {
    let mut s = scheduler(2, 8, 10);
    assert_eq!(s.submit_prefill(SeqId(1), 0), Err(SubmitError::Empty));
    assert_eq!(s.reserve(SeqId(1), 3, 0), Err(SubmitError::Empty));
    assert_eq!(s.reserve(SeqId(1), 900, 101), Err(SubmitError::TooLong { n_tokens: 1001, max_seq_len: 1000 }));
    assert_eq!(s.reserve(SeqId(1), u32::MAX, u32::MAX), Err(SubmitError::TooLong { n_tokens: 8_589_934_590, max_seq_len: 1000 }));
    assert_eq!(s.reserve(SeqId(1), 30, 11), Err(SubmitError::TooManyBlocks { n_needed: 11, n_blocks: 10 }));
    s.reserve(SeqId(1), 30, 10).unwrap();
    assert_eq!(s.submit_prefill(SeqId(1), 1), Err(SubmitError::Duplicate(SeqId(1))));
    let zero = SchedConfig { block_size: 0, ..*s.config() };
    assert_eq!(Scheduler::new(zero).unwrap_err().field, "block_size");
}
