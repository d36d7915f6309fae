//! The life of one request between the two phases, as a state machine without IO.
//!
//! Whoever drives it feeds what the workers say as [`Input`] and does what the returned
//! [`Step`] asks. Tokens of the decode worker can arrive before the first token, because
//! the two workers use different connections; they are held back here.
//!
//! Not here: which worker is picked (`tandem_sched::router`), message identities and stale answers
//! (`generation` starts every try under a new identity).

use std::collections::VecDeque;

use tandem_plan::Phase;
use tandem_wire::worker::{FailureKind, FinishReason, KvTarget};

/// Tries of one request, the first included.
pub(crate) const MAX_TRIES: u32 = 3;

/// What a worker said about the current try, or what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// The decode worker holds blocks.
    Reserved(KvTarget),
    /// New tokens.
    Tokens {
        /// Phase of the worker that computed them.
        from: Phase,
        /// The tokens.
        tokens: Vec<u32>,
        /// Set with the last ones.
        finish: Option<FinishReason>,
    },
    /// The worker gave up.
    Failed {
        /// Its phase.
        from: Phase,
        /// What kind of failure.
        kind: FailureKind,
        /// Its words.
        message: String,
    },
    /// The connection to the worker is gone.
    Lost(Phase),
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing until the next input.
    Wait,
    /// Pick a decode worker and send it `Reserve`.
    Reserve,
    /// Pick a prefill worker and send it `Prefill` with this target.
    Prefill(Option<KvTarget>),
    /// Hand the tokens to the client; with a finish the request is done.
    Deliver {
        /// In order, at least one unless `finish` is set.
        tokens: Vec<u32>,
        /// Why it is done.
        finish: Option<FinishReason>,
        /// Whether a worker may still hold the finished request and must be told to forget it.
        cancel: bool,
    },
    /// Forget this try and everything it delivered, then [`Lifecycle::begin`] another.
    Retry,
    /// The request has failed for good.
    Fail(Failure),
}

/// Why a request failed after it was found valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No worker of the phase is there (or the one asked for by name is not).
    NoWorker(Phase),
    /// A worker died and another try was not possible.
    WorkerLost(Phase),
    /// A worker says that the request can never run.
    Impossible(String),
    /// A worker failed.
    Worker {
        /// Its phase.
        phase: Phase,
        /// Its words.
        message: String,
    },
    /// The deadline passed.
    Timeout,
    /// Too much waits for the worker already.
    Overloaded(Phase),
}

/// Where a request is.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    state: State,
    max_tokens: u32,
    /// Whether delivered tokens reach the client at once, so that they cannot be taken back.
    streaming: bool,
    n_tokens: u32,
    n_tries: u32,
    /// What the decode worker sent before the first token was here.
    early: VecDeque<(Vec<u32>, Option<FinishReason>)>,
}

#[derive(Debug)]
enum State {
    Idle,
    Reserving,
    Prefilling,
    Decoding,
    Done,
}

impl Lifecycle {
    /// A request for at most `max_tokens` tokens (at least 1).
    pub(crate) fn new(max_tokens: u32, streaming: bool) -> Self {
        Lifecycle { state: State::Idle, max_tokens, streaming, n_tokens: 0, n_tries: 0, early: VecDeque::new() }
    }

    /// Starts the first or the next try.
    pub(crate) fn begin(&mut self) -> Step {
        debug_assert!(matches!(self.state, State::Idle), "begin is called once a try");
        self.n_tries += 1;
        self.n_tokens = 0;
        self.early.clear();
        if self.max_tokens > 1 {
            self.state = State::Reserving;
            Step::Reserve
        } else {
            self.state = State::Prefilling;
            Step::Prefill(None)
        }
    }

    /// Tries so far.
    pub(crate) fn n_tries(&self) -> u32 {
        self.n_tries
    }

    /// Whether the request is over.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Ends the request from this side (a stop string, a client that left).
    pub(crate) fn end(&mut self) {
        self.state = State::Done;
    }

    /// Takes what a worker said about the current try.
    pub(crate) fn on(&mut self, input: Input) -> Step {
        match input {
            Input::Reserved(target) => match self.state {
                State::Reserving => {
                    self.state = State::Prefilling;
                    Step::Prefill(Some(target))
                }
                State::Done => Step::Wait,
                _ => self.broken_promise(Phase::Decode, "a second reservation"),
            },
            Input::Tokens { from, tokens, finish } => self.on_tokens(from, tokens, finish),
            Input::Failed { from, kind, message } => self.on_failed(from, kind, message),
            Input::Lost(phase) => self.on_lost(phase),
        }
    }

    /// What was held back and can go out now; to be asked until there is no more, before the next input.
    pub(crate) fn next_held(&mut self) -> Option<Step> {
        if !matches!(self.state, State::Decoding) {
            return None;
        }
        let (tokens, finish) = self.early.pop_front()?;
        Some(self.deliver(tokens, finish, false))
    }

    fn on_tokens(&mut self, from: Phase, tokens: Vec<u32>, finish: Option<FinishReason>) -> Step {
        match (&self.state, from) {
            (State::Done, _) => Step::Wait,
            (State::Prefilling, Phase::Decode) => {
                self.early.push_back((tokens, finish));
                Step::Wait
            }
            (State::Prefilling, Phase::Prefill) => {
                // With the first token being the last, the decode worker has blocks reserved for nothing.
                let idle_reservation = finish.is_some() && self.max_tokens > 1;
                self.state = State::Decoding;
                self.deliver(tokens, finish, idle_reservation)
            }
            (State::Decoding, Phase::Decode) => self.deliver(tokens, finish, false),
            (State::Decoding, Phase::Prefill) => self.broken_promise(from, "tokens after its first"),
            (State::Idle | State::Reserving, _) => self.broken_promise(from, "tokens before it was asked"),
        }
    }

    fn deliver(&mut self, mut tokens: Vec<u32>, mut finish: Option<FinishReason>, mut cancel: bool) -> Step {
        let room = self.max_tokens - self.n_tokens;
        let n_new = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        if n_new >= room {
            // A worker that overshoots or forgets to say that it is done must not make a response longer than asked for.
            tokens.truncate(room as usize);
            cancel |= finish.is_none();
            finish = Some(if n_new > room { FinishReason::Length } else { finish.unwrap_or(FinishReason::Length) });
        }
        self.n_tokens += n_new.min(room);
        if finish.is_some() {
            self.state = State::Done;
        }
        if tokens.is_empty() && finish.is_none() { Step::Wait } else { Step::Deliver { tokens, finish, cancel } }
    }

    fn on_failed(&mut self, from: Phase, kind: FailureKind, message: String) -> Step {
        match kind {
            _ if self.is_done() => Step::Wait,
            // The decode worker computes, so the KV cache did arrive: only its acknowledgement was lost.
            FailureKind::Transfer if from == Phase::Prefill && self.n_tokens > 1 => Step::Wait,
            FailureKind::Impossible => self.fail(Failure::Impossible(message)),
            FailureKind::Engine => self.fail(Failure::Worker { phase: from, message }),
            FailureKind::Transfer | FailureKind::Expired => self.retry_or(Failure::Worker { phase: from, message }),
        }
    }

    fn on_lost(&mut self, phase: Phase) -> Step {
        match (&self.state, phase) {
            (State::Done, _) => Step::Wait,
            // Whether its last push arrived is for the decode worker to say: it goes on, or it reports the broken transfer.
            (State::Decoding, Phase::Prefill) => Step::Wait,
            _ => self.retry_or(Failure::WorkerLost(phase)),
        }
    }

    fn retry_or(&mut self, failure: Failure) -> Step {
        let told_client = self.streaming && self.n_tokens > 0;
        if told_client || self.n_tries >= MAX_TRIES {
            return self.fail(failure);
        }
        self.state = State::Idle;
        Step::Retry
    }

    fn broken_promise(&mut self, phase: Phase, what: &str) -> Step {
        self.fail(Failure::Worker { phase, message: format!("the {phase} worker sent {what}") })
    }

    fn fail(&mut self, failure: Failure) -> Step {
        self.state = State::Done;
        Step::Fail(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> KvTarget {
        KvTarget { address: "a".into(), ticket: 1, deadline_ms: 5 }
    }
    fn tokens(from: Phase, tokens: &[u32], finish: Option<FinishReason>) -> Input {
        Input::Tokens { from, tokens: tokens.to_vec(), finish }
    }
    fn deliver(tokens: &[u32], finish: Option<FinishReason>) -> Step {
        Step::Deliver { tokens: tokens.to_vec(), finish, cancel: false }
    }
    /// The same, when a worker must be told.
    fn deliver_and_cancel(tokens: &[u32], finish: FinishReason) -> Step {
        Step::Deliver { tokens: tokens.to_vec(), finish: Some(finish), cancel: true }
    }
    fn failed(from: Phase, kind: FailureKind) -> Input {
        Input::Failed { from, kind, message: "m".into() }
    }
    /// A request whose prompt is being computed.
    fn prefilling(max_tokens: u32, streaming: bool) -> Lifecycle {
        let mut life = Lifecycle::new(max_tokens, streaming);
        assert_eq!(life.begin(), Step::Reserve);
        assert_eq!(life.on(Input::Reserved(target())), Step::Prefill(Some(target())));
        life
    }
    /// A request whose first token was delivered.
    fn decoding(max_tokens: u32, streaming: bool) -> Lifecycle {
        let mut life = prefilling(max_tokens, streaming);
        assert_eq!(life.on(tokens(Phase::Prefill, &[1], None)), deliver(&[1], None));
        life
    }

    #[test]
    fn the_usual_way() {
        let mut life = decoding(3, true);
        assert_eq!(life.on(tokens(Phase::Decode, &[2], None)), deliver(&[2], None));
        assert_eq!(life.on(tokens(Phase::Decode, &[3], Some(FinishReason::Length))), deliver(&[3], Some(FinishReason::Length)));
        assert!(life.is_done());
        assert_eq!(life.on(Input::Lost(Phase::Decode)), Step::Wait);
    }

    #[test]
    fn one_token_needs_no_decode_worker() {
        let mut life = Lifecycle::new(1, true);
        assert_eq!(life.begin(), Step::Prefill(None));
        assert_eq!(life.on(tokens(Phase::Prefill, &[1], Some(FinishReason::Stop))), deliver(&[1], Some(FinishReason::Stop)));
        assert!(life.is_done());
    }

    #[test]
    fn a_first_token_that_ends_the_request_ends_it() {
        let mut life = prefilling(5, true);
        assert_eq!(life.on(tokens(Phase::Prefill, &[1], Some(FinishReason::Stop))), deliver_and_cancel(&[1], FinishReason::Stop));
        assert!(life.is_done());
    }

    #[test]
    fn decode_tokens_that_overtake_the_first_one_wait_for_it() {
        let mut life = prefilling(4, true);
        assert_eq!(life.on(tokens(Phase::Decode, &[2], None)), Step::Wait);
        assert_eq!(life.on(tokens(Phase::Decode, &[3, 4], Some(FinishReason::Length))), Step::Wait);
        assert_eq!(life.next_held(), None);
        assert_eq!(life.on(tokens(Phase::Prefill, &[1], None)), deliver(&[1], None));
        assert_eq!(life.next_held(), Some(deliver(&[2], None)));
        assert_eq!(life.next_held(), Some(deliver(&[3, 4], Some(FinishReason::Length))));
        assert_eq!(life.next_held(), None);
    }

    #[test]
    fn before_the_first_token_every_death_is_another_try() {
        for phase in [Phase::Prefill, Phase::Decode] {
            let mut life = prefilling(4, true);
            assert_eq!(life.on(Input::Lost(phase)), Step::Retry);
            assert_eq!(life.begin(), Step::Reserve);
            assert_eq!(life.on(Input::Lost(Phase::Decode)), Step::Retry);
            assert_eq!(life.begin(), Step::Reserve);
            assert_eq!(life.on(Input::Lost(Phase::Decode)), Step::Fail(Failure::WorkerLost(Phase::Decode)), "tries are bounded");
        }
    }

    #[test]
    fn a_lost_acknowledgement_does_not_end_a_request_that_decodes() {
        let mut life = decoding(3, true);
        assert_eq!(life.on(tokens(Phase::Decode, &[2], None)), deliver(&[2], None));
        assert_eq!(life.on(failed(Phase::Prefill, FailureKind::Transfer)), Step::Wait);
        assert_eq!(life.on(tokens(Phase::Decode, &[3], Some(FinishReason::Length))), deliver(&[3], Some(FinishReason::Length)));
    }

    #[test]
    fn what_a_client_has_seen_cannot_be_taken_back() {
        assert_eq!(decoding(9, true).on(Input::Lost(Phase::Decode)), Step::Fail(Failure::WorkerLost(Phase::Decode)));
        let broken = decoding(9, true).on(failed(Phase::Decode, FailureKind::Transfer));
        assert!(matches!(broken, Step::Fail(Failure::Worker { phase: Phase::Decode, .. })));
        assert_eq!(decoding(9, false).on(Input::Lost(Phase::Decode)), Step::Retry, "nothing was sent yet");
    }

    #[test]
    fn a_retry_counts_its_tokens_anew() {
        let mut life = decoding(2, false);
        assert_eq!(life.on(failed(Phase::Decode, FailureKind::Expired)), Step::Retry);
        life.begin();
        life.on(Input::Reserved(target()));
        assert_eq!(life.on(tokens(Phase::Prefill, &[1], None)), deliver(&[1], None));
        assert_eq!(life.on(tokens(Phase::Decode, &[2], None)), deliver_and_cancel(&[2], FinishReason::Length));
    }

    #[test]
    fn a_prefill_worker_may_leave_after_its_token() {
        let mut life = decoding(9, true);
        assert_eq!(life.on(Input::Lost(Phase::Prefill)), Step::Wait);
        assert_eq!(life.on(tokens(Phase::Decode, &[2], None)), deliver(&[2], None));
    }

    #[test]
    fn an_impossible_request_and_an_engine_failure_are_final() {
        assert_eq!(prefilling(9, true).on(failed(Phase::Decode, FailureKind::Impossible)), Step::Fail(Failure::Impossible("m".into())));
        let engine = prefilling(9, true).on(failed(Phase::Prefill, FailureKind::Engine));
        assert_eq!(engine, Step::Fail(Failure::Worker { phase: Phase::Prefill, message: "m".into() }));
    }

    #[test]
    fn a_worker_cannot_make_a_response_longer_than_asked() {
        let mut life = decoding(3, true);
        assert_eq!(life.on(tokens(Phase::Decode, &[2, 3, 4, 5], None)), deliver_and_cancel(&[2, 3], FinishReason::Length));
        assert!(life.is_done());
    }

    #[test]
    fn a_worker_that_breaks_the_order_fails_the_request() {
        assert!(matches!(decoding(9, true).on(tokens(Phase::Prefill, &[2], None)), Step::Fail(Failure::Worker { .. })));
        assert!(matches!(decoding(9, true).on(Input::Reserved(target())), Step::Fail(Failure::Worker { .. })));
        let mut life = Lifecycle::new(4, true);
        life.begin();
        assert!(matches!(life.on(tokens(Phase::Decode, &[2], None)), Step::Fail(Failure::Worker { .. })));
    }
}
