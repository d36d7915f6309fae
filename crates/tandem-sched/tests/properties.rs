//! Random operations against the promises of the scheduler: blocks have one owner, limits hold, order is kept,
//! everything that is not cancelled ends, and nothing is left behind.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use tandem_plan::Phase;
use tandem_sched::{Outcome, SchedConfig, Scheduler, SeqId, SeqState, Step};

#[derive(Debug, Clone)]
enum Op {
    Prefill {
        n_prompt: u32,
    },
    Aggregated {
        n_prompt: u32,
        max_new: u32,
    },
    Reserve {
        n_prompt: u32,
        max_new: u32,
    },
    /// Commits the n-th sequence that is reserved.
    Commit(usize),
    /// Acknowledges the n-th sequence that is transferring.
    Acknowledge(usize),
    /// Cancels the n-th sequence that is here, whatever it does.
    Cancel(usize),
    /// A step; entry `stop_at` ends its text, and the n-th sequence is cancelled while the step is open.
    Step {
        stop_at: usize,
        cancel: Option<usize>,
    },
    Abandon,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (1u32..60).prop_map(|n_prompt| Op::Prefill { n_prompt }),
        2 => (1u32..60, 1u32..20).prop_map(|(n_prompt, max_new)| Op::Aggregated { n_prompt, max_new }),
        2 => (1u32..60, 1u32..20).prop_map(|(n_prompt, max_new)| Op::Reserve { n_prompt, max_new }),
        3 => any::<usize>().prop_map(Op::Commit),
        3 => any::<usize>().prop_map(Op::Acknowledge),
        1 => any::<usize>().prop_map(Op::Cancel),
        8 => (0usize..12, proptest::option::weighted(0.15, any::<usize>())).prop_map(|(stop_at, cancel)| Op::Step { stop_at, cancel }),
        1 => Just(Op::Abandon),
    ]
}

fn config() -> impl Strategy<Value = SchedConfig> {
    (1u32..8, 1u32..40, any::<bool>(), prop_oneof![Just(1u32), Just(4), Just(32)], 1u32..60).prop_map(
        |(max_batch_size, max_num_tokens, chunked_prefill, block_size, n_blocks)| SchedConfig {
            max_batch_size,
            max_num_tokens,
            max_seq_len: 70,
            chunked_prefill,
            block_size,
            n_blocks,
            n_drafts: 0,
        },
    )
}

/// What the test knows of a sequence that the scheduler accepted.
#[derive(Debug)]
struct Known {
    is_decode: bool,
    n_prompt: u32,
    max_new: u32,
    n_computed: u32,
    n_output: u32,
}

struct Driver {
    scheduler: Scheduler,
    next_id: u64,
    known: BTreeMap<SeqId, Known>,
    last_granted: Option<SeqId>,
}

impl Driver {
    fn new(config: SchedConfig) -> Self {
        Self { scheduler: Scheduler::new(config).unwrap(), next_id: 0, known: BTreeMap::new(), last_granted: None }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Prefill { n_prompt } => self.submit(false, n_prompt, 1, |s, id| s.submit_prefill(id, n_prompt).is_ok()),
            Op::Aggregated { n_prompt, max_new } => {
                self.submit(false, n_prompt, max_new, |s, id| s.submit_aggregated(id, n_prompt, max_new).is_ok());
            }
            Op::Reserve { n_prompt, max_new } => self.submit(true, n_prompt, max_new, |s, id| s.reserve(id, n_prompt, max_new).is_ok()),
            Op::Commit(n) => {
                if let Some(id) = self.nth(n, |s| s == SeqState::Reserved) {
                    self.commit(id);
                }
            }
            Op::Acknowledge(n) => {
                if let Some(id) = self.nth(n, |s| s == SeqState::Transferring) {
                    self.release(id);
                }
            }
            Op::Cancel(n) => {
                if let Some(id) = self.nth(n, |_| true) {
                    self.release(id);
                }
            }
            Op::Step { stop_at, cancel } => self.step(stop_at, cancel),
            Op::Abandon => {
                if let Some(step) = self.scheduler.next_step() {
                    self.verify(&step);
                    self.scheduler.abandon_step(&step);
                }
            }
        }
        while let Some(id) = self.scheduler.take_reserved() {
            assert!(self.last_granted < Some(id), "{id} was granted after a later one");
            self.last_granted = Some(id);
        }
        self.scheduler.check().unwrap();
    }

    /// The n-th sequence in a wanted state.
    fn nth(&self, n: usize, wanted: impl Fn(SeqState) -> bool) -> Option<SeqId> {
        let ids: Vec<_> = self.known.keys().copied().filter(|&id| wanted(self.scheduler.state(id).unwrap())).collect();
        (!ids.is_empty()).then(|| ids[n % ids.len()])
    }

    fn submit(&mut self, is_decode: bool, n_prompt: u32, max_new: u32, submit: impl FnOnce(&mut Scheduler, SeqId) -> bool) {
        let id = SeqId(self.next_id);
        self.next_id += 1;
        if submit(&mut self.scheduler, id) {
            self.known.insert(id, Known { is_decode, n_prompt, max_new, n_computed: 0, n_output: 0 });
        }
    }

    fn commit(&mut self, id: SeqId) {
        assert!(self.scheduler.commit(id));
        assert!(!self.scheduler.commit(id));
        let known = self.known.get_mut(&id).unwrap();
        (known.n_computed, known.n_output) = (known.n_prompt, 1);
        self.forget_if_ended(id, known_ended(&self.known[&id], false));
    }

    fn release(&mut self, id: SeqId) {
        assert!(self.scheduler.release(id));
        assert!(!self.scheduler.release(id));
        self.known.remove(&id);
    }

    fn forget_if_ended(&mut self, id: SeqId, ended: bool) {
        assert_eq!(self.scheduler.state(id).is_none(), ended, "{:?}", self.known[&id]);
        if ended {
            self.known.remove(&id);
        }
    }

    fn step(&mut self, stop_at: usize, cancel: Option<usize>) {
        let before = self.waiting_prompts();
        let Some(step) = self.scheduler.next_step() else { return };
        let after = self.waiting_prompts();
        assert!(before.ends_with(&after), "not first in, first out: {before:?} became {after:?}");
        self.verify(&step);
        if let Some(id) = cancel.and_then(|n| self.nth(n, |_| true)) {
            self.release(id);
            self.scheduler.check().unwrap();
        }
        let outcomes: Vec<_> =
            step.entries.iter().enumerate().map(|(i, e)| Outcome { n_new: u32::from(e.emits), stop: e.emits && i == stop_at }).collect();
        self.scheduler.complete_step(&step, &outcomes);
        for (entry, outcome) in step.entries.iter().zip(&outcomes) {
            let Some(known) = self.known.get_mut(&entry.id) else { continue };
            known.n_computed += entry.n_tokens;
            known.n_output += outcome.n_new;
            let is_prefill = self.scheduler.state(entry.id) == Some(SeqState::Transferring);
            let ended = known_ended(&self.known[&entry.id], outcome.stop) && !is_prefill;
            self.forget_if_ended(entry.id, ended);
        }
    }

    /// The promises of one step.
    fn verify(&self, step: &Step) {
        let config = *self.scheduler.config();
        let n_tokens: u32 = step.entries.iter().map(|e| e.n_tokens).sum();
        assert!(!step.entries.is_empty() && step.entries.len() <= config.max_batch_size as usize);
        assert!(n_tokens <= config.max_num_tokens && n_tokens == step.n_ctx_tokens + step.n_gen_tokens);
        let mut written = HashSet::new();
        for entry in &step.entries {
            let known = &self.known[&entry.id];
            let blocks = self.scheduler.entry_blocks(entry);
            assert_eq!(Some(blocks), self.scheduler.blocks(entry.id));
            assert!(blocks.iter().all(|b| written.insert(*b)), "two entries share a block");
            assert_eq!(entry.start, known.n_computed);
            assert!(entry.n_tokens > 0 && (entry.start + entry.n_tokens).div_ceil(config.block_size) as usize <= blocks.len());
            let ends_prompt = entry.start + entry.n_tokens == known.n_prompt;
            assert_eq!(entry.emits, entry.phase == Phase::Decode || ends_prompt);
            assert!(config.chunked_prefill || entry.phase == Phase::Decode || entry.n_tokens == known.n_prompt);
        }
    }

    fn waiting_prompts(&self) -> Vec<SeqId> {
        let waits = |(id, k): (&SeqId, &Known)| (!k.is_decode && self.scheduler.state(*id) == Some(SeqState::Waiting)).then_some(*id);
        self.known.iter().filter_map(waits).collect()
    }

    /// Lets everything that is here run to its end, without cancelling.
    fn finish(&mut self) {
        for _ in 0..100_000 {
            if self.known.is_empty() {
                break;
            }
            for op in [Op::Commit(0), Op::Acknowledge(0), Op::Step { stop_at: usize::MAX, cancel: None }] {
                self.apply(&op);
            }
        }
        assert!(self.known.is_empty(), "left over: {:?}", self.known);
    }
}

fn known_ended(known: &Known, stop: bool) -> bool {
    stop || known.n_output == known.max_new
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_keep_every_promise_and_everything_ends(config in config(), ops in prop::collection::vec(op(), 1..150)) {
        let mut driver = Driver::new(config);
        for op in &ops {
            driver.apply(op);
        }
        driver.finish();
        let stats = driver.scheduler.stats();
        prop_assert!(driver.scheduler.is_empty());
        prop_assert_eq!((stats.n_waiting, stats.n_running, stats.n_transferring, stats.blocks_used), (0, 0, 0, 0));
    }

    #[test]
    fn releasing_everything_in_whatever_state_frees_all_blocks(config in config(), ops in prop::collection::vec(op(), 1..80)) {
        let mut driver = Driver::new(config);
        for op in &ops {
            driver.apply(op);
        }
        for id in driver.known.keys().copied().collect::<Vec<_>>() {
            driver.release(id);
            driver.scheduler.check().unwrap();
        }
        prop_assert_eq!(driver.scheduler.stats().blocks_used, 0);
        prop_assert!(driver.scheduler.next_step().is_none());
    }

    #[test]
    fn a_sequence_always_fits_what_it_was_admitted_with(config in config(), n_prompt in 1u32..60, max_new in 1u32..20) {
        let mut scheduler = Scheduler::new(config).unwrap();
        let accepted = scheduler.submit_aggregated(SeqId(0), n_prompt, max_new).is_ok();
        let needed = (n_prompt + max_new).div_ceil(config.block_size);
        let fits_step = config.chunked_prefill || n_prompt <= config.max_num_tokens;
        prop_assert_eq!(accepted, n_prompt + max_new <= config.max_seq_len && needed <= config.n_blocks && fits_step);
        let mut n_steps = 0;
        while let Some(step) = scheduler.next_step() {
            let outcomes: Vec<_> = step.entries.iter().map(|e| Outcome { n_new: u32::from(e.emits), stop: false }).collect();
            scheduler.complete_step(&step, &outcomes);
            n_steps += 1;
        }
        prop_assert!(scheduler.is_empty());
        prop_assert!(!accepted || n_steps >= max_new);
    }
}
