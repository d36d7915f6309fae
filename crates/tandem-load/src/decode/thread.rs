//! The decode thread: takes batches until the receive thread is gone, and returns the finished requests.

use std::sync::Arc;

use super::assemble::{Assembly, Common, Finished, Seen};
use crate::progress::Live;
use crate::prompts::sessions::Conversations;
use crate::transport::outbox::{Batch, Inbox, What};

/// What a run received.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// In the order in which they ended.
    pub(crate) finished: Vec<Finished>,
    /// Output chunks of all requests.
    pub(crate) n_chunks: u64,
    /// Of these, chunks that shared a read with an earlier one.
    pub(crate) n_clumped: u64,
}

impl Received {
    /// Adds what another decode thread received.
    pub(crate) fn merge(&mut self, other: Self) {
        self.finished.extend(other.finished);
        self.n_chunks += other.n_chunks;
        self.n_clumped += other.n_clumped;
    }
}

/// Decodes until the last batch; `conversations` are told of each end.
pub(crate) fn decode(inbox: &Inbox, common: Common, n_total: usize, live: &Arc<Live>, conversations: Option<&Conversations>) -> Received {
    let mut slots: Vec<Assembly> = Vec::new();
    let mut received = Received { finished: Vec::with_capacity(n_total.min(1 << 20)), ..Received::default() };
    while let Ok(mut batch) = inbox.batches.recv() {
        take(&mut batch, &mut slots, common, &mut received, live, conversations);
        batch.bytes.clear();
        // The receive thread may be gone already; then nobody needs the memory.
        let _ = inbox.emptied.send(batch);
    }
    received
}

fn take(
    batch: &mut Batch,
    slots: &mut Vec<Assembly>,
    common: Common,
    received: &mut Received,
    live: &Live,
    conversations: Option<&Conversations>,
) {
    let (mut bytes, mut total) = (batch.bytes.as_slice(), Seen::default());
    for event in batch.events.drain(..) {
        let slot = event.slot as usize;
        while slots.len() <= slot {
            slots.push(Assembly::new(common));
        }
        let assembly = &mut slots[slot];
        let mut seen = Seen::default();
        match event.what {
            What::Start { ticket, due } => assembly.start(event.slot, ticket, due, event.at),
            What::Sent => assembly.sent(event.at),
            What::Head(head) => assembly.head(event.at, head),
            What::Body { n_bytes } => {
                let (body, rest) = bytes.split_at(n_bytes as usize);
                bytes = rest;
                seen = assembly.body(event.at, body);
            }
            What::End(failure) => {
                let well = failure.is_none();
                if let Some((finished, last)) = assembly.end(event.at, failure) {
                    if well && !finished.record.outcome.is_ok() {
                        live.failed_after_all();
                    }
                    live.measured(&finished.record);
                    if let Some(conversations) = conversations {
                        // A record's index is its ticket's until the run is over.
                        let index = u32::try_from(finished.record.index).expect("a ticket's index");
                        conversations.ended(&finished.record, index, finished.answer.clone());
                    }
                    received.finished.push(finished);
                    seen = last;
                }
            }
        }
        total.n_chunks += seen.n_chunks;
        total.n_tokens += seen.n_tokens;
        total.n_clumped += seen.n_clumped;
    }
    received.n_chunks += u64::from(total.n_chunks);
    received.n_clumped += u64::from(total.n_clumped);
    live.output(u64::from(total.n_chunks), u64::from(total.n_tokens));
}
