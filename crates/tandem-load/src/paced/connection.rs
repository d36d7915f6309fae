//! One client of the paced server: its unread bytes, its unwritten bytes, the answer under way.

use std::io::{self, Write};

use mio::net::TcpStream;
use tandem_plan::Nanos;

use super::answer::{Answers, Asked, parse_request};
use crate::transport::stamps::{enable_receive, read_stamped};

/// When the server did what for one request, on the server's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emission {
    /// The request's `x-request-id`.
    pub id: String,
    /// When its last byte reached the socket, by the kernel's stamp; where there is none, `received`.
    pub arrived: Nanos,
    /// When the whole request had been read.
    pub received: Nanos,
    /// Just before each chunk was written.
    pub writes: Vec<Nanos>,
    /// Whether the whole answer was handed to the kernel.
    pub complete: bool,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
    unwritten: Vec<u8>,
    answer: Option<Answer>,
    /// Wall time at which the last byte arrived, by the kernel.
    stamp: Option<u64>,
}

#[derive(Debug)]
struct Answer {
    asked: Asked,
    emission: Emission,
}

/// What became of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum After {
    /// Nothing to note.
    Going,
    /// A request is whole: answer it.
    Asked,
    /// It is gone.
    Gone,
}

impl Connection {
    /// A connection that has said nothing.
    pub(super) fn new(stream: TcpStream) -> Self {
        // Where the kernel does not offer it, reads come without a stamp.
        enable_receive(&stream);
        Self { stream, unread: Vec::new(), unwritten: Vec::new(), answer: None, stamp: None }
    }

    /// The socket, for registering.
    pub(super) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Reads what is there; at a whole request the answer begins.
    pub(super) fn read(&mut self, buffer: &mut [u8], answers: &Answers, now: impl Fn() -> Nanos, to_clock: impl Fn(u64) -> Nanos) -> After {
        loop {
            match read_stamped(&self.stream, buffer) {
                Ok((0, _)) => return After::Gone,
                Ok((n, stamp)) => {
                    self.unread.extend_from_slice(&buffer[..n]);
                    self.stamp = stamp;
                    // An edge-triggered poll reports what comes after a short read.
                    if n < buffer.len() {
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return After::Gone,
            }
        }
        if self.answer.is_some() || self.unread.is_empty() {
            return After::Going;
        }
        match parse_request(&self.unread) {
            Ok(None) => After::Going,
            Err(_) => After::Gone,
            Ok(Some((asked, n))) => {
                self.unread.drain(..n);
                let now = now();
                let arrived = self.stamp.map_or(now, |wall| to_clock(wall).min(now));
                let writes = Vec::with_capacity(answers.n_chunks(&asked) as usize);
                let emission = Emission { id: asked.id.clone(), arrived, received: now, writes, complete: false };
                self.answer = Some(Answer { asked, emission });
                After::Asked
            }
        }
    }

    /// When the answer that has just begun is due first.
    pub(super) fn first_due(&self, ttft: Nanos, itl: Nanos) -> Option<Nanos> {
        let Answer { asked, emission } = self.answer.as_ref()?;
        let whole = if asked.streaming { 0 } else { u64::from(asked.n_tokens - 1) * itl.0 };
        Some(Nanos(emission.arrived.0 + ttft.0 + whole))
    }

    /// Sends the next piece of the answer; true when it was the last.
    pub(super) fn emit(&mut self, answers: &Answers, now: Nanos) -> io::Result<bool> {
        let Some(Answer { asked, emission }) = &mut self.answer else { return Ok(false) };
        let n = u32::try_from(emission.writes.len()).unwrap_or(u32::MAX);
        emission.writes.push(now);
        let last = if asked.streaming {
            answers.write_chunk(asked, n, &mut self.unwritten);
            n + 1 == answers.n_chunks(asked)
        } else {
            answers.write_whole(asked, &mut self.unwritten);
            true
        };
        self.flush()?;
        Ok(last)
    }

    /// Writes what is unwritten, as far as the kernel takes it.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let mut n = 0;
        while n < self.unwritten.len() {
            match self.stream.write(&self.unwritten[n..]) {
                Ok(more) => n += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        self.unwritten.drain(..n);
        Ok(())
    }

    /// Takes the log of the answer, which is over.
    pub(super) fn take_emission(&mut self, complete: bool) -> Option<Emission> {
        self.answer.take().map(|a| Emission { complete, ..a.emission })
    }
}
