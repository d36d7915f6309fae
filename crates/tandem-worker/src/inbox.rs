//! What reaches the engine thread: one closed set of events from three bounded sources.

use tandem_kv::{KvEvent, KvSendEvent};
use tandem_wire::worker::ToWorker;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// Messages of the frontend that wait for the engine thread, at most; then its connection is not read.
pub(crate) const N_COMMANDS: usize = 1024;

/// KV events that wait for the engine thread, at most; a piece has up to a megabyte.
pub(crate) const N_KV_EVENTS: usize = 64;

/// From the frontend connection.
#[derive(Debug)]
pub(crate) enum Command {
    /// The frontend said something.
    Message(ToWorker),
    /// The connection is gone: release everything, drop what is not sent, then answer.
    Disconnected(oneshot::Sender<()>),
}

/// Whatever the engine thread has to handle.
#[derive(Debug)]
pub(crate) enum Event {
    /// From the frontend connection.
    Command(Command),
    /// KV that arrives (decode).
    Arrived(KvEvent),
    /// What became of a push (prefill).
    Sent(KvSendEvent),
    /// The worker is to end.
    Shutdown,
}

/// The receiving ends.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) arrived: mpsc::Receiver<KvEvent>,
    /// Unbounded, but with at most one event for each push that the scheduler admitted.
    pub(crate) sent: mpsc::UnboundedReceiver<KvSendEvent>,
    pub(crate) runtime: Handle,
}

impl Inbox {
    /// Parks the thread until there is an event.
    pub(crate) fn wait(&mut self) -> Event {
        let Self { commands, arrived, sent, runtime } = self;
        runtime.block_on(async {
            tokio::select! {
                biased;
                command = commands.recv() => command.map_or(Event::Shutdown, Event::Command),
                Some(event) = arrived.recv() => Event::Arrived(event),
                Some(event) = sent.recv() => Event::Sent(event),
            }
        })
    }

    /// An event that is there already.
    pub(crate) fn poll(&mut self) -> Option<Event> {
        match self.commands.try_recv() {
            Ok(command) => return Some(Event::Command(command)),
            Err(mpsc::error::TryRecvError::Disconnected) => return Some(Event::Shutdown),
            Err(mpsc::error::TryRecvError::Empty) => {}
        }
        if let Ok(event) = self.sent.try_recv() {
            return Some(Event::Sent(event));
        }
        self.arrived.try_recv().ok().map(Event::Arrived)
    }
}
