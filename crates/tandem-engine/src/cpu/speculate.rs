//! Steps that draft and verify: several tokens for one decode, the same tokens as without.
//!
//! A decode carries the drafts of the sequence's last step as further rows; each row's token is
//! chosen as ever, and as long as it equals the draft that the next row was computed from, the
//! next row counts too. Then the MTP layer runs over the rows that count and drafts anew.
//!
//! What is remembered between steps (drafts, the last state of a prompt chunk) is found by the
//! sequence's first block and used only if position and token fit. If it is missing, as after a
//! transfer from another engine, a step yields one token; nothing here can change a token.

use std::borrow::Cow;
use std::collections::HashMap;

use super::CpuEngine;
use super::forward::Want;
use super::mtp::DraftSpan;
use super::packed::padded;
use crate::engine::{Batch, BatchEntry, NoObserver, StepObserver, StepOutput};

/// What engines remember of sequences between steps, by first block.
#[derive(Debug, Default)]
pub(super) struct Speculation {
    memory: HashMap<u32, Memory>,
}

#[derive(Debug)]
enum Memory {
    /// The sequence goes on with `last` at `position`, then presumably `drafts`.
    Drafts { position: usize, last: u32, drafts: Vec<u32> },
    /// A prompt chunk ended before `position`, in this state.
    Chunk { position: usize, state: Vec<f32> },
}

/// Rows for the MTP layer, gathered over the entries of a step.
#[derive(Debug, Default)]
struct Gathered<'a> {
    hidden: Vec<f32>,
    next: Vec<u32>,
    spans: Vec<DraftSpan<'a>>,
    /// For each sampling entry its index in the batch and its last row.
    sampling: Vec<(usize, usize)>,
}

impl CpuEngine {
    /// A step whose decodes yield up to `1 + drafts` tokens; the batch was checked.
    pub(super) fn step_with_drafts(&mut self, batch: &Batch, observer: &mut dyn StepObserver) -> StepOutput {
        let batch = &Batch { entries: batch.entries.iter().map(|entry| self.with_drafts(entry)).collect() };
        let rows = self.forward(batch, observer, Want::Sampled);
        let output = self.sample(batch, &rows);
        let gathered = self.gather(batch, &output);
        if !gathered.next.is_empty() {
            self.run_mtp(&gathered.hidden, &gathered.next, &gathered.spans, observer);
            self.remember_drafts(batch, &output, &gathered);
        }
        output
    }

    /// `entry` with the drafts of its sequence, as far as its blocks reach.
    fn with_drafts(&self, entry: &BatchEntry) -> BatchEntry {
        let mut entry = entry.clone();
        // A ban may end between two tokens of one step, so a step under a ban yields one token.
        let plain = entry.sampling.as_ref().is_none_or(|s| !s.banned.is_empty());
        if entry.decode
            && !plain
            && let Some(Memory::Drafts { position, last, drafts }) = entry.blocks.first().and_then(|b| self.speculation.memory.get(b))
            && (*position, *last) == (entry.start as usize, entry.tokens[0])
        {
            let room = entry.blocks.len() * self.info.block_size - entry.start as usize - 1;
            entry.tokens.extend(drafts.iter().take(room));
        }
        entry
    }

    /// The rows that the MTP layer can see now: those whose next token is known.
    fn gather<'a>(&mut self, batch: &'a Batch, output: &StepOutput) -> Gathered<'a> {
        let ld = padded(self.shape.hidden);
        let mut gathered = Gathered::default();
        let mut row = 0;
        for (index, (entry, chosen)) in batch.entries.iter().zip(&output.tokens).enumerate() {
            let state = |i: usize| &self.scratch.normed[(row + i) * ld..(row + i + 1) * ld];
            let (start, first) = (entry.start as usize, gathered.next.len());
            let key = entry.blocks[0];
            let mut position = start;
            let next: Cow<'_, [u32]> = if entry.decode { Cow::Borrowed(chosen) } else { Cow::Owned([&entry.tokens[1..], chosen].concat()) };
            if let Some(Memory::Chunk { position: end, state }) = self.speculation.memory.remove(&key)
                && end == start
                && !entry.decode
            {
                gathered.hidden.extend(state);
                gathered.next.push(entry.tokens[0]);
                position -= 1;
            }
            for i in 0..next.len() {
                gathered.hidden.extend_from_slice(state(i));
            }
            gathered.next.extend_from_slice(&next);
            if chosen.is_empty() {
                let (position, state) = (start + entry.tokens.len(), state(entry.tokens.len() - 1).to_vec());
                self.speculation.memory.insert(key, Memory::Chunk { position, state });
            } else {
                gathered.sampling.push((index, gathered.next.len() - 1));
            }
            if gathered.next.len() > first {
                gathered.spans.push(DraftSpan { rows: first..gathered.next.len(), first: position, blocks: &entry.blocks });
            }
            row += entry.tokens.len();
        }
        gathered
    }

    /// Drafts for every sequence that goes on: the first token from the run over the step's rows, each further one
    /// by running the layer on its own last state.
    fn remember_drafts(&mut self, batch: &Batch, output: &StepOutput, gathered: &Gathered<'_>) {
        let ld = padded(self.shape.hidden);
        let n = gathered.sampling.len();
        if n == 0 {
            return;
        }
        let mut rows: Vec<usize> = gathered.sampling.iter().map(|(_, row)| *row).collect();
        let mut drafts = vec![Vec::new(); n];
        loop {
            let latest = self.drafted(&rows);
            drafts.iter_mut().zip(&latest).for_each(|(all, token)| all.push(*token));
            let depth = drafts[0].len();
            if depth == self.drafts {
                break;
            }
            let hidden: Vec<f32> = rows.iter().flat_map(|r| self.scratch.normed[r * ld..(r + 1) * ld].to_vec()).collect();
            let spans = gathered.sampling.iter().enumerate().map(|(i, (index, _))| {
                let entry = &batch.entries[*index];
                let position = next_position(entry, &output.tokens[*index]) - 1 + depth;
                (i, position, entry)
            });
            // Where one sequence's blocks end, drafting ends for this step.
            let room = |position: usize, entry: &BatchEntry| position < entry.blocks.len() * self.info.block_size;
            if !spans.clone().all(|(_, position, entry)| room(position, entry)) {
                break;
            }
            let spans: Vec<DraftSpan<'_>> =
                spans.map(|(i, first, entry)| DraftSpan { rows: i..i + 1, first, blocks: &entry.blocks }).collect();
            self.run_mtp(&hidden, &latest, &spans, &mut NoObserver);
            rows = (0..n).collect();
        }
        for ((index, _), drafts) in gathered.sampling.iter().zip(drafts) {
            let (entry, chosen) = (&batch.entries[*index], &output.tokens[*index]);
            if let Some(&last) = chosen.last() {
                let position = next_position(entry, chosen);
                self.speculation.memory.insert(entry.blocks[0], Memory::Drafts { position, last, drafts });
            }
        }
    }
}

/// Where the last chosen token will be computed.
fn next_position(entry: &BatchEntry, chosen: &[u32]) -> usize {
    let start = entry.start as usize;
    if entry.decode { start + chosen.len() } else { start + entry.tokens.len() }
}
