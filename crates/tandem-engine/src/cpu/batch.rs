//! Refuses batches that break a rule, before anything is computed.

use std::collections::{BTreeSet, HashMap};

use crate::engine::{Batch, BatchEntry, EngineError, EngineInfo, Sampling};

/// Checks every entry of `batch` and that no block is written by one entry and used by another.
pub(super) fn check(info: &EngineInfo, batch: &Batch) -> Result<(), EngineError> {
    let invalid = |i: usize, reason: String| Err(EngineError::Batch(format!("entry {i}: {reason}")));
    for (i, entry) in batch.entries.iter().enumerate() {
        if entry.tokens.is_empty() {
            return invalid(i, "has no tokens".into());
        }
        if entry.decode && entry.tokens.len() != 1 {
            return invalid(i, format!("decodes {} tokens, expected 1", entry.tokens.len()));
        }
        if let Some(token) = entry.tokens.iter().find(|t| **t as usize >= info.vocab_size) {
            return invalid(i, format!("token {token} is outside the vocabulary of {}", info.vocab_size));
        }
        if let Err(EngineError::Batch(reason)) = check_blocks(info, &entry.blocks, entry.start as usize + entry.tokens.len()) {
            return invalid(i, reason);
        }
        if let Some(reason) = entry.sampling.as_ref().and_then(|s| check_sampling(s, info.vocab_size)) {
            return invalid(i, reason);
        }
    }
    check_writers(info, batch)
}

/// Checks that `blocks` covers `n_tokens` and holds only blocks that exist.
pub(super) fn check_blocks(info: &EngineInfo, blocks: &[u32], n_tokens: usize) -> Result<(), EngineError> {
    let needed = n_tokens.div_ceil(info.block_size);
    if blocks.len() < needed {
        return Err(EngineError::Batch(format!(
            "{n_tokens} tokens need {needed} blocks of {}, the table has {}",
            info.block_size,
            blocks.len()
        )));
    }
    match blocks[..needed].iter().find(|b| **b as usize >= info.n_blocks) {
        Some(block) => Err(EngineError::Batch(format!("block {block} is out of range ({} blocks)", info.n_blocks))),
        None => Ok(()),
    }
}

fn check_sampling(s: &Sampling, vocab: usize) -> Option<String> {
    if !(s.temperature >= 0.0 && s.temperature.is_finite()) {
        return Some(format!("temperature {} is not a number of 0 or more", s.temperature));
    }
    if !(s.top_p >= 0.0 && s.top_p <= 1.0) {
        return Some(format!("top_p {} is not between 0 and 1", s.top_p));
    }
    if s.banned.len() >= vocab && s.banned.iter().filter(|t| (**t as usize) < vocab).collect::<BTreeSet<_>>().len() == vocab {
        return Some("every token is banned".into());
    }
    None
}

/// The blocks of `entry` that this step writes.
fn written<'a>(info: &EngineInfo, entry: &'a BatchEntry) -> &'a [u32] {
    let (start, end) = (entry.start as usize, entry.start as usize + entry.tokens.len());
    &entry.blocks[start / info.block_size..end.div_ceil(info.block_size)]
}

fn check_writers(info: &EngineInfo, batch: &Batch) -> Result<(), EngineError> {
    let mut writer: HashMap<u32, usize> = HashMap::new();
    for (i, entry) in batch.entries.iter().enumerate() {
        for &block in written(info, entry) {
            if let Some(other) = writer.insert(block, i) {
                return Err(EngineError::Batch(format!("entries {other} and {i} both write block {block}")));
            }
        }
    }
    for (i, entry) in batch.entries.iter().enumerate() {
        let read = &entry.blocks[..entry.start as usize / info.block_size];
        if let Some((block, other)) = read.iter().find_map(|b| writer.get(b).filter(|w| **w != i).map(|w| (b, w))) {
            return Err(EngineError::Batch(format!("entry {i} reads block {block}, which entry {other} writes")));
        }
    }
    Ok(())
}
