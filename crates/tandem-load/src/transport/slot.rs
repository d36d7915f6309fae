//! One slot of the load: a connection, and the request on it.

use tandem_plan::Nanos;

use super::http::{Limits, ResponseReader};
use super::socket::Socket;
use crate::pacing::Ticket;

/// A slot's connection.
#[derive(Debug)]
pub(crate) enum Link {
    /// None.
    Closed,
    /// On its way since then.
    Connecting {
        /// The socket.
        socket: Socket,
        /// When it was begun.
        since: Nanos,
    },
    /// Usable.
    Open {
        /// The socket.
        socket: Socket,
        /// Responses that it has carried whole.
        n_served: u32,
    },
}

/// When a request's last byte leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Departure {
    /// It has not been written.
    Ahead,
    /// Written, and the kernel has not said when that byte left.
    Awaited {
        /// The byte's number, as the kernel counts.
        byte: u32,
        /// When the last write had returned.
        written: Nanos,
    },
    /// Noted.
    Noted,
}

/// The request that a slot is working on.
#[derive(Debug)]
pub(crate) struct Work {
    /// Which one.
    pub(crate) ticket: Ticket,
    /// When it was due.
    pub(crate) due: Nanos,
    /// When its first byte was about to be written.
    pub(crate) sent: Option<Nanos>,
    /// Head and body; dropped when the response begins.
    pub(crate) request: Vec<u8>,
    /// Bytes of it that the kernel has taken.
    pub(crate) n_written: usize,
    /// Whether any byte of the response has arrived.
    pub(crate) answered: bool,
    /// What is known of when its last byte left.
    pub(crate) departure: Departure,
    /// Whether it has been sent again on a new connection.
    pub(crate) resent: bool,
    /// When bytes moved last, either way.
    pub(crate) moved: Nanos,
}

impl Work {
    /// A request that is about to be sent.
    pub(crate) fn new(ticket: Ticket, request: Vec<u8>, now: Nanos) -> Self {
        Self {
            ticket,
            due: ticket.scheduled.unwrap_or(now),
            sent: None,
            request,
            n_written: 0,
            answered: false,
            departure: Departure::Ahead,
            resent: false,
            moved: now,
        }
    }

    /// Whether the whole request has been written.
    pub(crate) fn is_written(&self) -> bool {
        self.n_written >= self.request.len()
    }
}

/// A slot.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Its connection.
    pub(crate) link: Link,
    /// Reads its connection's responses.
    pub(crate) reader: ResponseReader,
    /// Its request.
    pub(crate) work: Option<Work>,
}

impl Slot {
    /// An empty slot.
    pub(crate) fn new(limits: Limits) -> Self {
        Self { link: Link::Closed, reader: ResponseReader::new(limits), work: None }
    }

    /// The open connection, if there is one.
    pub(crate) fn open_socket(&mut self) -> Option<&mut Socket> {
        match &mut self.link {
            Link::Open { socket, .. } => Some(socket),
            _ => None,
        }
    }
}
