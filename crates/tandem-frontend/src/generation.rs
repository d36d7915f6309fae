//! Drives one request through the workers: does what its [`Lifecycle`] asks.
//!
//! Runs wherever it is polled, which is the task of the client's connection: a client that
//! leaves drops it, and dropping it cancels the request at both workers.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tandem_plan::Phase;
use tandem_wire::worker::{FinishReason, RequestId, SamplingParams, ToWorker};
use tokio::time::{Instant, Sleep};
use tracing::debug;

use crate::inflight::Mailbox;
use crate::lifecycle::{Failure, Input, Lifecycle, Step};
use crate::shared::Shared;
use crate::workers::{Lease, Refused, Wish, Worker};

/// What is to be generated, and by whom.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) prompt: Vec<u32>,
    pub(crate) sampling: SamplingParams,
    pub(crate) streaming: bool,
    /// Workers that must serve it, by name.
    pub(crate) prefill: Option<String>,
    pub(crate) decode: Option<String>,
    pub(crate) deadline: Instant,
}

/// What comes out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// New tokens; with a finish nothing follows.
    Tokens { tokens: Vec<u32>, finish: Option<FinishReason> },
    /// All that came out so far is void: the request starts again.
    Restart,
}

/// One request under way.
#[derive(Debug)]
pub(crate) struct Generation {
    shared: Arc<Shared>,
    job: Job,
    life: Lifecycle,
    mailbox: Arc<Mailbox>,
    unread: VecDeque<(RequestId, Input)>,
    current: Option<Try>,
    prefill: Wish,
    decode: Wish,
    deadline: Pin<Box<Sleep>>,
    served: Served,
}

/// Who works, or has worked, on the last try.
#[derive(Debug, Clone, Default)]
pub(crate) struct Served {
    pub(crate) prefill: Option<Arc<Worker>>,
    pub(crate) decode: Option<Arc<Worker>>,
}

/// The current try and who works on it.
#[derive(Debug)]
struct Try {
    id: RequestId,
    /// The sequence at the decode worker.
    sequence: Option<Lease>,
    /// Outstanding prompt tokens at the prefill worker, until the first token is there.
    prompt: Option<Lease>,
}

impl Generation {
    /// A request that starts when it is first polled.
    pub(crate) fn new(shared: Arc<Shared>, job: Job) -> Self {
        Generation {
            life: Lifecycle::new(job.sampling.max_tokens, job.streaming),
            mailbox: Arc::new(Mailbox::new(job.sampling.max_tokens)),
            unread: VecDeque::new(),
            current: None,
            prefill: Wish { name: job.prefill.clone(), avoid: None },
            decode: Wish { name: job.decode.clone(), avoid: None },
            deadline: Box::pin(tokio::time::sleep_until(job.deadline)),
            served: Served::default(),
            shared,
            job,
        }
    }

    /// The workers of the current or last try.
    pub(crate) fn served(&self) -> &Served {
        &self.served
    }

    /// The next output. Not to be called again after a finish or a failure.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Output, Failure>> {
        loop {
            let step = if let Some(step) = self.life.next_held() {
                step
            } else if let Some((id, input)) = self.unread.pop_front() {
                if self.current.as_ref().is_none_or(|t| t.id != id) {
                    continue;
                }
                self.life.on(input)
            } else if self.current.is_none() {
                self.open_try();
                self.life.begin()
            } else if self.mailbox.poll_take(cx, &mut self.unread).is_ready() {
                continue;
            } else if self.deadline.as_mut().poll(cx).is_ready() {
                self.life.end();
                Step::Fail(Failure::Timeout)
            } else {
                return Poll::Pending;
            };
            if let Some(output) = self.act(step) {
                return Poll::Ready(output);
            }
        }
    }

    /// Ends the request from this side and tells the workers to forget it.
    pub(crate) fn cancel(&mut self) {
        self.life.end();
        self.close_try(true);
    }

    fn open_try(&mut self) {
        let id = self.shared.inflight.open(&self.mailbox);
        self.current = Some(Try { id, sequence: None, prompt: None });
        self.served = Served::default();
    }

    fn act(&mut self, mut step: Step) -> Option<Result<Output, Failure>> {
        loop {
            step = match step {
                Step::Wait => return None,
                Step::Reserve => match self.reserve() {
                    Ok(()) => return None,
                    Err(next) => next,
                },
                Step::Prefill(target) => match self.send_prefill(target) {
                    Ok(()) => return None,
                    Err(next) => next,
                },
                Step::Deliver { tokens, finish, cancel } => {
                    if let Some(current) = &mut self.current {
                        current.prompt = None;
                    }
                    if finish.is_some() && cancel {
                        self.send_cancel();
                    }
                    return Some(Ok(Output::Tokens { tokens, finish }));
                }
                Step::Retry => {
                    debug!(id = ?self.current.as_ref().map(|t| t.id), n_tries = self.life.n_tries(), "request starts again");
                    self.avoid_current();
                    self.close_try(true);
                    return Some(Ok(Output::Restart));
                }
                Step::Fail(failure) => {
                    self.close_try(true);
                    return Some(Err(failure));
                }
            };
        }
    }

    /// Asks a decode worker for blocks; the step to take instead when that fails at once.
    fn reserve(&mut self) -> Result<(), Step> {
        let current = self.current.as_mut().expect("a step belongs to a try");
        let no_worker = || Step::Fail(Failure::NoWorker(Phase::Decode));
        let lease = self.shared.workers.pick(Phase::Decode, &self.decode, 1).ok_or_else(no_worker)?;
        self.shared.inflight.assign(current.id, Phase::Decode, lease.worker.key);
        let n_prompt = u32::try_from(self.job.prompt.len()).expect("a prompt fits the context length");
        let message = ToWorker::Reserve { id: current.id, n_prompt, sampling: self.job.sampling.clone() };
        let sent = lease.worker.outbox.send(&message);
        self.served.decode = Some(Arc::clone(&lease.worker));
        current.sequence = Some(lease);
        self.after_sending(sent, Phase::Decode)
    }

    /// Gives the prompt to a prefill worker; the step to take instead when that fails at once.
    fn send_prefill(&mut self, target: Option<tandem_wire::worker::KvTarget>) -> Result<(), Step> {
        let current = self.current.as_mut().expect("a step belongs to a try");
        let no_worker = || Step::Fail(Failure::NoWorker(Phase::Prefill));
        let lease = self.shared.workers.pick(Phase::Prefill, &self.prefill, self.job.prompt.len() as u64).ok_or_else(no_worker)?;
        self.shared.inflight.assign(current.id, Phase::Prefill, lease.worker.key);
        // The prompt is lent to the message and taken back: a retry needs it again.
        let tokens = std::mem::take(&mut self.job.prompt);
        let message = ToWorker::Prefill { id: current.id, tokens, sampling: self.job.sampling.clone(), target };
        let sent = lease.worker.outbox.send(&message);
        if let ToWorker::Prefill { tokens, .. } = message {
            self.job.prompt = tokens;
        }
        self.served.prefill = Some(Arc::clone(&lease.worker));
        current.prompt = Some(lease);
        self.after_sending(sent, Phase::Prefill)
    }

    fn after_sending(&mut self, sent: Result<(), Refused>, phase: Phase) -> Result<(), Step> {
        match sent {
            Ok(()) => Ok(()),
            Err(Refused::Closed) => Err(self.life.on(Input::Lost(phase))),
            Err(Refused::Full) => {
                self.life.end();
                Err(Step::Fail(Failure::Overloaded(phase)))
            }
        }
    }

    fn avoid_current(&mut self) {
        let key = |worker: &Option<Arc<Worker>>| worker.as_ref().map(|w| w.key);
        self.prefill.avoid = key(&self.served.prefill).or(self.prefill.avoid);
        self.decode.avoid = key(&self.served.decode).or(self.decode.avoid);
    }

    fn send_cancel(&self) {
        let Some(current) = &self.current else { return };
        let message = ToWorker::Cancel { id: current.id };
        for worker in self.served.decode.iter().chain(&self.served.prefill) {
            // A worker that is gone has forgotten the request already.
            let _ = worker.outbox.send(&message);
        }
    }

    fn close_try(&mut self, cancel: bool) {
        if cancel {
            self.send_cancel();
        }
        if let Some(current) = self.current.take() {
            self.shared.inflight.close(current.id);
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let cancel = !self.life.is_done();
        self.close_try(cancel);
    }
}
