//! Sends the KV of a step's prompts while its later layers are still computed.

use std::ops::Range;

use bytes::Bytes;
use tandem_engine::{KvRead, StepObserver};
use tandem_kv::{KvPush, MAX_PIECE_BYTES};

/// One prompt's share of the step.
#[derive(Debug)]
pub(crate) struct PushEntry<'a> {
    pub(crate) push: &'a KvPush,
    pub(crate) blocks: &'a [u32],
    /// Tokens that the step computes.
    pub(crate) tokens: Range<usize>,
}

/// Reads each layer from the cache as it is done and queues it; never blocks the step.
#[derive(Debug, Default)]
pub(crate) struct Pusher<'a> {
    pub(crate) entries: Vec<PushEntry<'a>>,
    pub(crate) bytes_per_token_layer: usize,
}

impl StepObserver for Pusher<'_> {
    fn layer_done(&mut self, layer: usize, cache: &dyn KvRead) {
        for entry in self.entries.iter().filter(|e| !e.push.is_dead()) {
            let n_piece = (MAX_PIECE_BYTES / self.bytes_per_token_layer).max(1);
            for start in entry.tokens.clone().step_by(n_piece) {
                let tokens = start..entry.tokens.end.min(start + n_piece);
                let mut bytes = Vec::with_capacity(tokens.len() * self.bytes_per_token_layer);
                cache.kv_read(layer, entry.blocks, tokens.clone(), &mut bytes);
                entry.push.piece(layer, tokens, Bytes::from(bytes));
            }
        }
    }
}
