//! What a decode worker does with requests: hold blocks, take their KV in, generate all tokens but the first.
//!
//! A request waits for blocks, is reserved under a ticket until its KV is whole, then runs. It
//! leaves with its last token, a failure, an expired reservation or a cancel.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tandem_engine::{Batch, BatchEntry, StepOutput};
use tandem_kv::{CommitAck, KvEvent, KvReceiver, KvShape};
use tandem_sched::{Outcome, SeqId, Step, StepEntry, SubmitError};
use tandem_wire::worker::{FailureKind, FromWorker, KvTarget, RequestId, SamplingParams, ToWorker};

use crate::engine_loop::{Resources, Side};
use crate::push::Pusher;
use crate::sampling::Rules;

/// What a decode worker is told by its plan and options.
#[derive(Debug)]
pub(crate) struct DecodeConfig {
    pub(crate) shape: KvShape,
    pub(crate) eos: Option<u32>,
    /// Tokens between two events of a request, at least 1.
    pub(crate) stream_interval: usize,
    /// Where prefill workers push to.
    pub(crate) kv_address: String,
    pub(crate) reservation_deadline: Duration,
}

/// The requests of a decode worker.
#[derive(Debug)]
pub(crate) struct Decode {
    config: DecodeConfig,
    receiver: KvReceiver,
    requests: HashMap<SeqId, Request>,
    by_ticket: HashMap<u64, SeqId>,
    tickets: Tickets,
}

#[derive(Debug)]
struct Request {
    rules: Rules,
    n_prompt: u32,
    /// While it is reserved.
    ticket: Option<u64>,
    /// Tokens generated, the first (of the prefill worker) included.
    n_output: u32,
    /// Tokens that have not been sent.
    pending: Vec<u32>,
    /// Travels into the batch of each step and back, so that tables are not copied.
    entry: BatchEntry,
}

/// Unguessable names of reservations: a keyed hash, with a key of the operating system, of a counter.
#[derive(Debug, Default)]
struct Tickets {
    key: RandomState,
    n: u64,
}

impl Tickets {
    fn next(&mut self) -> u64 {
        self.n += 1;
        self.key.hash_one(self.n)
    }
}

impl Decode {
    pub(crate) fn new(config: DecodeConfig, receiver: KvReceiver) -> Self {
        Self { config, receiver, requests: HashMap::new(), by_ticket: HashMap::new(), tickets: Tickets::default() }
    }

    fn reserve(&mut self, id: RequestId, n_prompt: u32, sampling: SamplingParams, rs: &mut Resources) {
        let seq = SeqId(id.0);
        match rs.scheduler.reserve(seq, n_prompt, sampling.max_tokens) {
            Ok(()) => {
                rs.totals.n_requests += 1;
                let rules = Rules::new(sampling, self.config.eos);
                let entry = BatchEntry { tokens: Vec::new(), start: 0, blocks: Vec::new(), sampling: None, decode: true };
                self.requests.insert(seq, Request { rules, n_prompt, ticket: None, n_output: 0, pending: Vec::new(), entry });
            }
            // Failing it would end the request that is running under this name.
            Err(SubmitError::Duplicate(_)) => tracing::warn!(request_id = id.0, "a request was sent twice"),
            Err(error) => rs.out.failed(id, FailureKind::Impossible, error.to_string()),
        }
    }

    /// Blocks are there: names the reservation and tells the frontend where to push.
    fn grant(&mut self, id: SeqId, rs: &mut Resources) {
        let ticket = self.tickets.next();
        let request = self.requests.get_mut(&id).expect("a scheduled request is known");
        let deadline = self.config.reservation_deadline;
        if let Err(error) = self.receiver.register(ticket, self.config.shape, request.n_prompt as usize, deadline) {
            return self.fail(id, FailureKind::Impossible, &error.to_string(), rs);
        }
        request.ticket = Some(ticket);
        request.entry.blocks = rs.scheduler.blocks(id).unwrap_or_default().to_vec();
        self.by_ticket.insert(ticket, id);
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let target = KvTarget { address: self.config.kv_address.clone(), ticket, deadline_ms };
        rs.out.message(&FromWorker::Reserved { id: RequestId(id.0), target });
    }

    fn piece(&mut self, ticket: u64, layer: usize, tokens: std::ops::Range<usize>, bytes: &[u8], rs: &mut Resources) {
        let Some(&id) = self.by_ticket.get(&ticket) else { return };
        let blocks = &self.requests[&id].entry.blocks;
        if let Err(error) = rs.engine.kv_write(layer, blocks, tokens, bytes) {
            self.fail(id, FailureKind::Transfer, &error.to_string(), rs);
        }
    }

    fn commit(&mut self, ticket: u64, first_token: u32, ack: CommitAck, rs: &mut Resources) {
        let Some(id) = self.by_ticket.remove(&ticket) else {
            return ack.refuse("the request is gone");
        };
        let request = self.requests.get_mut(&id).expect("a ticket names a known request");
        request.ticket = None;
        if first_token as usize >= rs.engine.info().vocab_size {
            ack.refuse("the first token is outside the vocabulary");
            return self.fail(id, FailureKind::Transfer, "the first token is outside the vocabulary", rs);
        }
        ack.accept();
        request.n_output = 1;
        request.entry.tokens.push(first_token);
        let ended = request.rules.accept(0, &[first_token]).finish.is_some();
        if ended || !rs.scheduler.commit(id) {
            // The prefill worker has told the frontend.
            self.release(id, rs);
        }
    }

    /// Forgets a request in whatever state; a push for it is refused from now on.
    fn release(&mut self, id: SeqId, rs: &mut Resources) -> bool {
        rs.scheduler.release(id);
        let Some(request) = self.requests.remove(&id) else { return false };
        if let Some(ticket) = request.ticket {
            self.by_ticket.remove(&ticket);
            self.receiver.release(ticket);
        }
        true
    }

    fn complete_entry(&mut self, e: &StepEntry, entry: BatchEntry, tokens: &[u32], rs: &mut Resources) -> Outcome {
        let request = self.requests.get_mut(&e.id).expect("a scheduled request is known");
        let accepted = request.rules.accept(request.n_output, tokens);
        request.n_output += accepted.n_taken;
        let tokens = &tokens[..accepted.n_taken as usize];
        request.pending.extend_from_slice(tokens);
        request.entry = entry;
        request.entry.tokens.clear();
        request.entry.tokens.extend(tokens.last());
        let stop = accepted.finish.is_some();
        if stop || request.pending.len() >= self.config.stream_interval {
            rs.out.tokens(RequestId(e.id.0), std::mem::take(&mut request.pending), accepted.finish);
        }
        if stop {
            self.requests.remove(&e.id);
        }
        Outcome { n_new: accepted.n_taken, stop }
    }
}

impl Side for Decode {
    fn message(&mut self, message: ToWorker, rs: &mut Resources) {
        match message {
            ToWorker::Reserve { id, n_prompt, sampling } => self.reserve(id, n_prompt, sampling, rs),
            ToWorker::Cancel { id } => {
                self.release(SeqId(id.0), rs);
            }
            ToWorker::Prefill { id, .. } => rs.out.failed(id, FailureKind::Impossible, "this is a decode worker"),
            ToWorker::Welcome | ToWorker::Rejected { .. } => tracing::warn!("the frontend registered this worker twice"),
        }
    }

    fn arrived(&mut self, event: KvEvent, rs: &mut Resources) {
        match event {
            KvEvent::Piece { ticket, layer, tokens, bytes } => self.piece(ticket, layer, tokens, &bytes, rs),
            KvEvent::Commit { ticket, first_token, ack } => self.commit(ticket, first_token, ack, rs),
            KvEvent::Failed { ticket, reason } => {
                if let Some(&id) = self.by_ticket.get(&ticket) {
                    self.fail(id, FailureKind::Transfer, &reason, rs);
                }
            }
            KvEvent::Aborted { ticket } => {
                if let Some(&id) = self.by_ticket.get(&ticket) {
                    self.release(id, rs);
                }
            }
            KvEvent::Expired { ticket } => {
                if let Some(&id) = self.by_ticket.get(&ticket) {
                    self.fail(id, FailureKind::Expired, "no KV arrived before the reservation's deadline", rs);
                }
            }
        }
    }

    fn settle(&mut self, rs: &mut Resources) {
        while let Some(id) = rs.scheduler.take_reserved() {
            self.grant(id, rs);
        }
    }

    fn batch(&mut self, step: &Step, _rs: &Resources) -> Batch {
        let entry = |e: &StepEntry| {
            let request = self.requests.get_mut(&e.id).expect("a scheduled request is known");
            request.entry.start = e.start;
            request.entry.sampling = Some(request.rules.sampling(request.n_output));
            let empty = BatchEntry { tokens: Vec::new(), start: 0, blocks: Vec::new(), sampling: None, decode: true };
            std::mem::replace(&mut request.entry, empty)
        };
        Batch { entries: step.entries.iter().map(entry).collect() }
    }

    fn pusher<'a>(&'a self, _step: &'a Step, _batch: &'a Batch) -> Pusher<'a> {
        Pusher::default()
    }

    fn complete(&mut self, step: &Step, batch: Batch, output: &StepOutput, rs: &mut Resources) -> Vec<Outcome> {
        let entries = step.entries.iter().zip(batch.entries).zip(&output.tokens);
        entries.map(|((e, entry), tokens)| self.complete_entry(e, entry, tokens, rs)).collect()
    }

    fn fail(&mut self, id: SeqId, kind: FailureKind, message: &str, rs: &mut Resources) {
        if self.release(id, rs) {
            rs.out.failed(RequestId(id.0), kind, message);
        }
    }

    fn release_all(&mut self, rs: &mut Resources) {
        for id in self.requests.keys().copied().collect::<Vec<_>>() {
            self.release(id, rs);
        }
    }
}
