//! The decisions: who is admitted, what the next step computes, who gives blocks back.
//!
//! Cost of a step: proportional to the running batch and to what is admitted in it, never to
//! what waits. Order is by arrival; nobody overtakes a sequence that waits for blocks.

use std::collections::HashMap;

use tandem_plan::Phase;

use crate::blocks::BlockManager;
use crate::config::{ConfigError, SchedConfig, SubmitError};
use crate::queue::Queue;
use crate::sequence::{Kind, SeqId, SeqState, Sequence};
use crate::slab::{Key, Slab};
use crate::step::{Outcome, SchedStats, Step, StepEntry};

/// Scheduler of one rank. See the crate's documentation for the loop that drives it.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedConfig,
    blocks: BlockManager,
    sequences: Slab,
    by_id: HashMap<SeqId, Key>,
    /// Prompts to be computed here.
    waiting: Queue,
    /// Reservations without blocks.
    reserving: Queue,
    /// Decodes with their KV, without a place in the batch.
    ready: Queue,
    /// The running batch in order of admission.
    running: Vec<Key>,
    n_transferring: u32,
    step_open: bool,
}

impl Scheduler {
    /// An empty scheduler.
    ///
    /// # Errors
    /// [`ConfigError`] when a limit is 0.
    pub fn new(config: SchedConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            config,
            blocks: BlockManager::new(config.n_blocks, config.block_size),
            sequences: Slab::default(),
            by_id: HashMap::new(),
            waiting: Queue::default(),
            reserving: Queue::default(),
            ready: Queue::default(),
            running: Vec::with_capacity(config.batch_limit()),
            n_transferring: 0,
            step_open: false,
        })
    }

    /// Its limits.
    #[must_use]
    pub const fn config(&self) -> &SchedConfig {
        &self.config
    }

    /// Takes on the prefill of a prompt. After its first token the sequence holds its blocks until it is released.
    ///
    /// # Errors
    /// [`SubmitError`] when it can never run here.
    pub fn submit_prefill(&mut self, id: SeqId, n_prompt: u32) -> Result<(), SubmitError> {
        self.config.fits_prefill(n_prompt, 0)?;
        let key = self.insert(Sequence::new(id, Kind::Prefill, n_prompt, 1))?;
        self.waiting.push(key);
        Ok(())
    }

    /// Takes on prefill and decode of a request.
    ///
    /// # Errors
    /// [`SubmitError`] when it can never run here.
    pub fn submit_aggregated(&mut self, id: SeqId, n_prompt: u32, max_new: u32) -> Result<(), SubmitError> {
        if max_new == 0 {
            return Err(SubmitError::Empty);
        }
        self.config.fits_prefill(n_prompt, max_new)?;
        let key = self.insert(Sequence::new(id, Kind::Aggregated, n_prompt, max_new))?;
        self.waiting.push(key);
        Ok(())
    }

    /// Asks for the blocks of a decode: `n_prompt` tokens that arrive by transfer and `max_new` tokens of output,
    /// the first included. [`Self::take_reserved`] says when they are granted.
    ///
    /// # Errors
    /// [`SubmitError`] when it can never run here.
    pub fn reserve(&mut self, id: SeqId, n_prompt: u32, max_new: u32) -> Result<(), SubmitError> {
        if max_new == 0 {
            return Err(SubmitError::Empty);
        }
        self.config.fits(n_prompt, max_new)?;
        let key = self.insert(Sequence::new(id, Kind::Decode, n_prompt, max_new))?;
        self.reserving.push(key);
        Ok(())
    }

    /// Grants blocks to the longest waiting reservation if there are enough: call until it returns none, after
    /// reservations and after anything was released.
    pub fn take_reserved(&mut self) -> Option<SeqId> {
        let key = self.reserving.front(&self.sequences)?;
        let sequence = self.sequences.get_mut(key).expect("front returns living sequences");
        sequence.table = self.blocks.allocate(sequence.n_tokens_max())?;
        sequence.state = SeqState::Reserved;
        let id = sequence.id;
        self.reserving.pop();
        self.n_transferring += 1;
        Some(id)
    }

    /// The KV of a reserved sequence has arrived and its first token is known: it decodes from the next step on
    /// in which the batch has a place. False when there is no such reservation (any more); when only one token was
    /// wanted, nothing is left to do and the sequence is released.
    pub fn commit(&mut self, id: SeqId) -> bool {
        let Some(&key) = self.by_id.get(&id) else { return false };
        let sequence = self.sequences.get_mut(key).expect("by_id names living sequences");
        if sequence.state != SeqState::Reserved {
            return false;
        }
        sequence.n_cached = sequence.n_prompt;
        sequence.n_output = 1;
        if sequence.max_new == 1 {
            return self.release(id);
        }
        sequence.state = SeqState::Ready;
        self.n_transferring -= 1;
        self.ready.push(key);
        true
    }

    /// Forgets a sequence in whatever state and frees its blocks: at once, or at the end of the step that computes
    /// it. False when it is not here, so it may be repeated.
    pub fn release(&mut self, id: SeqId) -> bool {
        let Some(key) = self.by_id.remove(&id) else { return false };
        let sequence = self.sequences.get_mut(key).expect("by_id names living sequences");
        if sequence.in_step {
            sequence.released = true;
        } else {
            self.remove(key);
        }
        true
    }

    /// What to compute next, or none when nothing can run now.
    ///
    /// # Panics
    /// When the step before has been neither completed nor abandoned.
    pub fn next_step(&mut self) -> Option<Step> {
        assert!(!self.step_open, "the last step is still open");
        self.admit_ready();
        let mut step = Step { entries: Vec::with_capacity(self.running.len() + 1), n_ctx_requests: 0, n_ctx_tokens: 0, n_gen_tokens: 0 };
        let mut budget = self.config.max_num_tokens;
        self.schedule_decodes(&mut step, &mut budget);
        if self.schedule_prefills(&mut step, &mut budget) {
            self.admit_waiting(&mut step, &mut budget);
        }
        if step.entries.is_empty() {
            return None;
        }
        self.step_open = true;
        Some(step)
    }

    /// Records what a step yielded, one outcome an entry: moves sequences on, releases those that have ended.
    /// A prefill whose text has not ended with its first token is transferring afterwards.
    ///
    /// # Panics
    /// When `outcomes` has another length than the step.
    pub fn complete_step(&mut self, step: &Step, outcomes: &[Outcome]) {
        assert_eq!(step.entries.len(), outcomes.len(), "one outcome an entry");
        self.step_open = false;
        let mut left_batch = false;
        for (entry, outcome) in step.entries.iter().zip(outcomes) {
            left_batch |= self.complete_entry(entry, *outcome);
        }
        if left_batch {
            self.sweep_batch();
        }
        debug_assert_eq!(self.counters(), Ok(()));
    }

    /// The step was not computed: its sequences stay where they were, but for those released meanwhile.
    pub fn abandon_step(&mut self, step: &Step) {
        self.step_open = false;
        for entry in &step.entries {
            let sequence = self.sequences.get_mut(entry.key).expect("a sequence in a step is not removed");
            sequence.in_step = false;
            if sequence.released {
                self.remove(entry.key);
            }
        }
        self.sweep_batch();
    }

    /// The block table of a sequence; empty while it waits for admission, none when it is not here.
    #[must_use]
    pub fn blocks(&self, id: SeqId) -> Option<&[u32]> {
        Some(self.sequences.get(*self.by_id.get(&id)?)?.table.as_slice())
    }

    /// The block table of an entry of the open step, without a search by name.
    ///
    /// # Panics
    /// When the entry's step has been completed and its sequence is gone.
    #[must_use]
    pub fn entry_blocks(&self, entry: &StepEntry) -> &[u32] {
        self.sequences.get(entry.key).expect("a sequence in a step is not removed").table.as_slice()
    }

    /// What a sequence is doing; none when it is not here.
    #[must_use]
    pub fn state(&self, id: SeqId) -> Option<SeqState> {
        Some(self.sequences.get(*self.by_id.get(&id)?)?.state)
    }

    /// Sequences that are here, in any state.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether no sequence is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Occupancy, in constant time.
    #[must_use]
    pub fn stats(&self) -> SchedStats {
        let n = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        SchedStats {
            n_waiting: n(self.waiting.len() + self.reserving.len() + self.ready.len()),
            n_running: n(self.running.len()),
            n_transferring: self.n_transferring,
            blocks_used: self.blocks.n_used(),
            blocks_total: self.blocks.n_blocks(),
        }
    }

    /// Whether every block is free or held by exactly one sequence and all counts agree. Looks at everything: for tests.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check(&self) -> Result<(), String> {
        self.blocks.check(self.sequences.iter().map(|s| &s.table))?;
        self.counters()?;
        for sequence in self.sequences.iter() {
            let needed = if sequence.state == SeqState::Waiting { 0 } else { self.blocks.blocks_for(sequence.n_tokens_max()) as usize };
            if sequence.table.as_slice().len() != needed {
                return Err(format!("sequence {} in {:?} does not hold {needed} blocks", sequence.id, sequence.state));
            }
            if sequence.n_cached > sequence.n_tokens_max() {
                return Err(format!("sequence {} has more tokens than blocks for them", sequence.id));
            }
        }
        Ok(())
    }

    fn counters(&self) -> Result<(), String> {
        let n_live = self.sequences.iter().count();
        let n_counted = self.waiting.len() + self.reserving.len() + self.ready.len() + self.running.len() + self.n_transferring as usize;
        let n_batch = self.sequences.iter().filter(|s| s.in_batch()).count();
        if n_live != n_counted || n_batch != self.running.len() || n_batch > self.config.batch_limit() {
            return Err(format!("{n_live} sequences live, {n_counted} counted, {n_batch} in the batch of {}", self.running.len()));
        }
        Ok(())
    }

    fn insert(&mut self, sequence: Sequence) -> Result<Key, SubmitError> {
        let id = sequence.id;
        if self.by_id.contains_key(&id) {
            return Err(SubmitError::Duplicate(id));
        }
        let key = self.sequences.insert(sequence);
        self.by_id.insert(id, key);
        Ok(key)
    }

    /// Takes a sequence that is in no step out of everything but the batch list of an open step.
    fn remove(&mut self, key: Key) {
        let Some(sequence) = self.sequences.remove(key) else { return };
        self.blocks.free(sequence.table);
        match sequence.state {
            SeqState::Waiting if sequence.kind == Kind::Decode => self.reserving.forget_one(&self.sequences),
            SeqState::Waiting => self.waiting.forget_one(&self.sequences),
            SeqState::Ready => self.ready.forget_one(&self.sequences),
            SeqState::Reserved | SeqState::Transferring => self.n_transferring -= 1,
            // During a step the list is swept once at its end.
            SeqState::Prefilling | SeqState::Decoding if !sequence.in_step => self.running.retain(|&k| k != key),
            SeqState::Prefilling | SeqState::Decoding => {}
        }
    }

    fn sweep_batch(&mut self) {
        let sequences = &self.sequences;
        self.running.retain(|&key| sequences.get(key).is_some_and(Sequence::in_batch));
    }

    fn admit_ready(&mut self) {
        while self.running.len() < self.config.batch_limit() {
            let Some(key) = self.ready.front(&self.sequences) else { break };
            self.ready.pop();
            self.sequences.get_mut(key).expect("front returns living sequences").state = SeqState::Decoding;
            self.running.push(key);
        }
    }

    fn schedule_decodes(&mut self, step: &mut Step, budget: &mut u32) {
        let n_tokens = self.config.decode_tokens();
        for &key in &self.running {
            let sequence = self.sequences.get_mut(key).expect("the batch holds living sequences");
            if sequence.state != SeqState::Decoding {
                continue;
            }
            sequence.in_step = true;
            *budget -= n_tokens;
            step.n_gen_tokens += 1;
            let (id, start) = (sequence.id, sequence.n_cached);
            step.entries.push(StepEntry { id, phase: Phase::Decode, rank: 0, start, n_tokens: 1, emits: true, key });
        }
    }

    /// Chunks of prompts that have been begun; whether all of them end in this step.
    fn schedule_prefills(&mut self, step: &mut Step, budget: &mut u32) -> bool {
        for &key in &self.running {
            let sequence = self.sequences.get_mut(key).expect("the batch holds living sequences");
            if sequence.state == SeqState::Prefilling && !push_chunk(&self.config, sequence, key, step, budget) {
                return false;
            }
        }
        true
    }

    fn admit_waiting(&mut self, step: &mut Step, budget: &mut u32) {
        while self.running.len() < self.config.batch_limit() {
            let Some(key) = self.waiting.front(&self.sequences) else { break };
            let sequence = self.sequences.get_mut(key).expect("front returns living sequences");
            if chunk_len(&self.config, sequence, step, *budget) == 0 {
                break;
            }
            let Some(table) = self.blocks.allocate(sequence.n_tokens_max()) else { break };
            sequence.table = table;
            sequence.state = SeqState::Prefilling;
            self.waiting.pop();
            self.running.push(key);
            if !push_chunk(&self.config, sequence, key, step, budget) {
                break;
            }
        }
    }

    /// Moves one sequence on; whether it left the batch.
    fn complete_entry(&mut self, entry: &StepEntry, outcome: Outcome) -> bool {
        let sequence = self.sequences.get_mut(entry.key).expect("a sequence in a step is not removed");
        if sequence.released {
            self.remove(entry.key);
            return true;
        }
        sequence.in_step = false;
        sequence.n_cached += if entry.phase == Phase::Prefill { entry.n_tokens } else { outcome.n_new };
        if !entry.emits {
            return false;
        }
        sequence.n_output += outcome.n_new;
        debug_assert!(outcome.n_new > 0 && sequence.n_output <= sequence.max_new, "sequence {} yielded too few or many", sequence.id);
        let ended = outcome.stop || sequence.n_output >= sequence.max_new;
        match sequence.kind {
            Kind::Prefill if !outcome.stop => {
                sequence.state = SeqState::Transferring;
                self.n_transferring += 1;
                true
            }
            _ if ended => {
                // Still marked as in a step, so that the batch is swept once for all.
                sequence.in_step = true;
                self.by_id.remove(&entry.id);
                self.remove(entry.key);
                true
            }
            _ => {
                sequence.state = SeqState::Decoding;
                false
            }
        }
    }
}

/// Tokens of a prompt's next chunk: what is left of it, or what the step has room for. A chunk that is not the
/// prompt's last ends at a block boundary; where that leaves nothing, the step waits for a better one unless it has
/// no other chunk.
fn chunk_len(config: &SchedConfig, sequence: &Sequence, step: &Step, budget: u32) -> u32 {
    let rest = sequence.n_prompt - sequence.n_cached;
    if rest <= budget {
        return rest;
    }
    if !config.chunked_prefill {
        return 0;
    }
    let beyond_block = (sequence.n_cached + budget) % config.block_size;
    match budget.saturating_sub(beyond_block) {
        0 if step.n_ctx_requests == 0 => budget,
        n_tokens => n_tokens,
    }
}

/// Adds the next chunk of a prompt; whether it is the prompt's last, so that later prompts may have what is left.
fn push_chunk(config: &SchedConfig, sequence: &mut Sequence, key: Key, step: &mut Step, budget: &mut u32) -> bool {
    let n_tokens = chunk_len(config, sequence, step, *budget);
    if n_tokens == 0 {
        return false;
    }
    sequence.in_step = true;
    *budget -= n_tokens;
    step.n_ctx_requests += 1;
    step.n_ctx_tokens += n_tokens;
    let (id, start) = (sequence.id, sequence.n_cached);
    let emits = start + n_tokens == sequence.n_prompt;
    step.entries.push(StepEntry { id, phase: Phase::Prefill, rank: 0, start, n_tokens, emits, key });
    emits
}
