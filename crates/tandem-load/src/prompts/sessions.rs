//! Conversations under way: what is said after each answer, with the history that really was.
//!
//! The prompt thread writes down what a user will say (a `Script`); when a turn has ended the decode thread
//! puts the answer behind the history, the next question behind that, and hands the request to the receive thread.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tandem_metrics::{LoadPhase, RequestRecord};
use tandem_plan::Nanos;

use super::body::BodyTemplate;
use super::files::Message;
use crate::pacing::Ticket;
use crate::transport::request::RequestHead;
use crate::transport::turns::{FollowUp, TurnSender};

/// A later question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Turn {
    /// What it says.
    pub(crate) text: String,
    /// Output length asked for.
    pub(crate) osl: u32,
    /// From the end of the answer before it until it is due.
    pub(crate) think: Nanos,
}

/// One conversation: what has been said, and what the user will say.
#[derive(Debug)]
pub(crate) struct Script {
    messages: Vec<Message>,
    later: VecDeque<Turn>,
}

impl Script {
    /// A conversation that begins with `messages`.
    pub(crate) fn new(messages: Vec<Message>, later: Vec<Turn>) -> Self {
        Self { messages, later: later.into() }
    }
}

/// The conversations under way, by the phase and index of their first request.
#[derive(Debug, Default)]
pub(crate) struct Scripts {
    open: Mutex<HashMap<(LoadPhase, u32), Script>>,
}

impl Scripts {
    /// Adds one.
    pub(crate) fn put(&self, key: (LoadPhase, u32), script: Script) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(key, script);
    }

    fn take(&self, key: (LoadPhase, u32)) -> Option<Script> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&key)
    }
}

/// Carries conversations on; the decode thread's.
pub(crate) struct Conversations {
    pub(crate) scripts: Arc<Scripts>,
    pub(crate) head: RequestHead,
    pub(crate) body: BodyTemplate,
    pub(crate) n_turns_max: u32,
    pub(crate) to_receiver: TurnSender,
}

impl fmt::Debug for Conversations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conversations").field("n_turns_max", &self.n_turns_max).finish_non_exhaustive()
    }
}

impl Conversations {
    /// The request of `record` has ended with `answer`: sends the next turn, or says that the conversation is over. A failed turn ends it.
    pub(crate) fn ended(&self, record: &RequestRecord, index: u32, answer: String) {
        let turn = index % self.n_turns_max;
        let key = (record.phase, index - turn);
        let next = self.scripts.take(key).filter(|_| record.outcome.is_ok()).and_then(|mut script| {
            let next = script.later.pop_front()?;
            script.messages.push(Message { role: "assistant".to_owned(), content: answer });
            script.messages.push(Message::user(next.text));
            let mut body = Vec::new();
            self.body.write(&script.messages, next.osl, &mut body);
            self.scripts.put(key, script);
            let due = Nanos(record.end_ns) + next.think;
            let ticket = Ticket { phase: record.phase, index: index + 1, scheduled: Some(due) };
            Some(FollowUp::Turn { ticket, due, request: self.head.request(record.phase, index + 1, &body) })
        });
        self.to_receiver.send(next.unwrap_or(FollowUp::Over));
    }
}
