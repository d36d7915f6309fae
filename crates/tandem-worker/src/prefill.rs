//! What a prefill worker does with requests: compute the prompt, push its KV, send the first token.
//!
//! A request leaves with an acknowledged transfer, a first token that is its last, a failure
//! or a cancel. Until then its blocks are held.

use std::collections::HashMap;

use tandem_engine::{Batch, BatchEntry, StepOutput};
use tandem_kv::{KvPush, KvSendEvent, KvSender, KvShape};
use tandem_sched::{Outcome, SeqId, Step, StepEntry, SubmitError};
use tandem_wire::worker::{FailureKind, KvTarget, RequestId, SamplingParams, ToWorker};

use crate::engine_loop::{Resources, Side};
use crate::push::{PushEntry, Pusher};
use crate::sampling::Rules;

/// The requests of a prefill worker.
#[derive(Debug)]
pub(crate) struct Prefill {
    sender: KvSender,
    shape: KvShape,
    eos: Option<u32>,
    requests: HashMap<SeqId, Request>,
    by_ticket: HashMap<u64, SeqId>,
}

#[derive(Debug)]
struct Request {
    tokens: Vec<u32>,
    rules: Rules,
    target: Option<KvTarget>,
    /// Open from the first chunk until the commit; dropping it tells the decode worker to forget the reservation.
    push: Option<KvPush>,
}

impl Prefill {
    pub(crate) fn new(sender: KvSender, shape: KvShape, eos: Option<u32>) -> Self {
        Self { sender, shape, eos, requests: HashMap::new(), by_ticket: HashMap::new() }
    }

    fn submit(&mut self, id: RequestId, tokens: Vec<u32>, sampling: SamplingParams, target: Option<KvTarget>, rs: &mut Resources) {
        let seq = SeqId(id.0);
        let impossible = self.impossible(&tokens, &sampling, target.as_ref(), rs);
        if let Some(reason) = impossible {
            return rs.out.failed(id, FailureKind::Impossible, reason);
        }
        if target.as_ref().is_some_and(|t| self.by_ticket.contains_key(&t.ticket)) {
            return rs.out.failed(id, FailureKind::Transfer, "another request pushes to this reservation");
        }
        let n_prompt = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        match rs.scheduler.submit_prefill(seq, n_prompt) {
            Ok(()) => {
                rs.totals.n_requests += 1;
                if let Some(target) = &target {
                    self.by_ticket.insert(target.ticket, seq);
                }
                self.requests.insert(seq, Request { tokens, rules: Rules::new(sampling, self.eos), target, push: None });
            }
            // Failing it would end the request that is running under this name.
            Err(SubmitError::Duplicate(_)) => tracing::warn!(request_id = id.0, "a request was sent twice"),
            Err(error) => rs.out.failed(id, FailureKind::Impossible, error.to_string()),
        }
    }

    /// Why a request cannot run here, whatever the limits.
    fn impossible(&self, tokens: &[u32], sampling: &SamplingParams, target: Option<&KvTarget>, rs: &Resources) -> Option<String> {
        let vocab_size = rs.engine.info().vocab_size;
        if let Some(token) = tokens.iter().find(|&&t| t as usize >= vocab_size) {
            return Some(format!("token {token} is outside the vocabulary of {vocab_size}"));
        }
        match sampling.max_tokens {
            0 => Some("no token is wanted".to_owned()),
            1 => None,
            _ if target.is_none() => Some("more than one token is wanted and no decode worker is named".to_owned()),
            _ => None,
        }
    }

    /// Drops a request; an open push is aborted.
    fn forget(&mut self, id: SeqId) -> Option<Request> {
        let request = self.requests.remove(&id)?;
        if let Some(target) = &request.target {
            self.by_ticket.remove(&target.ticket);
        }
        Some(request)
    }

    fn release(&mut self, id: SeqId, rs: &mut Resources) -> bool {
        rs.scheduler.release(id);
        self.forget(id).is_some()
    }

    /// The prompt is computed: sends its first token, then hands the request to the decode worker unless it has ended.
    fn complete_entry(&mut self, entry: &StepEntry, tokens: &[u32], rs: &mut Resources) -> Outcome {
        if !entry.emits {
            return Outcome { n_new: 0, stop: false };
        }
        // A prefill samples one token; drafts are the decode worker's business.
        let first = &tokens[..1];
        let request = self.requests.get_mut(&entry.id).expect("a scheduled request is known");
        let accepted = request.rules.accept(0, first);
        rs.out.tokens(RequestId(entry.id.0), first.to_vec(), accepted.finish);
        if accepted.finish.is_some() {
            self.forget(entry.id);
        } else if let Some(push) = request.push.take() {
            push.commit(first[0]);
            // It stays for the acknowledgement, without the prompt.
            request.tokens = Vec::new();
        }
        Outcome { n_new: 1, stop: accepted.finish.is_some() }
    }
}

impl Side for Prefill {
    fn message(&mut self, message: ToWorker, rs: &mut Resources) {
        match message {
            ToWorker::Prefill { id, tokens, sampling, target } => self.submit(id, tokens, sampling, target, rs),
            ToWorker::Cancel { id } => {
                self.release(SeqId(id.0), rs);
            }
            ToWorker::Reserve { id, .. } => rs.out.failed(id, FailureKind::Impossible, "this is a prefill worker"),
            ToWorker::Welcome | ToWorker::Rejected { .. } => tracing::warn!("the frontend registered this worker twice"),
        }
    }

    fn sent(&mut self, event: KvSendEvent, rs: &mut Resources) {
        match event {
            KvSendEvent::Acked { ticket } => {
                if let Some(&id) = self.by_ticket.get(&ticket) {
                    self.release(id, rs);
                }
            }
            KvSendEvent::Failed { ticket, reason } => {
                if let Some(&id) = self.by_ticket.get(&ticket) {
                    self.fail(id, FailureKind::Transfer, &reason, rs);
                }
            }
        }
    }

    fn batch(&mut self, step: &Step, rs: &Resources) -> Batch {
        let entry = |e: &StepEntry| {
            let request = self.requests.get_mut(&e.id).expect("a scheduled request is known");
            if let (0, Some(target)) = (e.start, &request.target) {
                let push = self.sender.open(target, self.shape, request.tokens.len());
                // When one token is wanted this only tells the decode worker that nothing comes.
                request.push = (request.rules.max_tokens() > 1).then_some(push);
            }
            let chunk = e.start as usize..(e.start + e.n_tokens) as usize;
            BatchEntry {
                tokens: request.tokens[chunk].to_vec(),
                start: e.start,
                blocks: rs.scheduler.entry_blocks(e).to_vec(),
                sampling: e.emits.then(|| request.rules.sampling(0)),
                decode: false,
            }
        };
        Batch { entries: step.entries.iter().map(entry).collect() }
    }

    fn pusher<'a>(&'a self, step: &'a Step, batch: &'a Batch) -> Pusher<'a> {
        let entry = |(e, b): (&'a StepEntry, &'a BatchEntry)| {
            let push = self.requests.get(&e.id)?.push.as_ref()?;
            Some(PushEntry { push, blocks: &b.blocks, tokens: e.start as usize..(e.start + e.n_tokens) as usize })
        };
        let entries = step.entries.iter().zip(&batch.entries).filter_map(entry).collect();
        Pusher { entries, bytes_per_token_layer: self.shape.bytes_per_token_layer }
    }

    fn complete(&mut self, step: &Step, _batch: Batch, output: &StepOutput, rs: &mut Resources) -> Vec<Outcome> {
        step.entries.iter().zip(&output.tokens).map(|(entry, tokens)| self.complete_entry(entry, tokens, rs)).collect()
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
