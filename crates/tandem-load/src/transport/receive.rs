//! The loop that owns the sockets: wait, handle what is ready, send what is due, look at deadlines.
//!
//! Each receive thread runs one, with connections of its own; they share the desk that gives out requests.
//!
//! Invariants: requests in flight are exactly the slots with work; each ticket that the desk gave out
//! leaves through the outbox as one start and one end; a slot in `free` has no work.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mio::{Events, Poll, Token};
use tandem_metrics::FailureKind;
use tandem_plan::Nanos;

use super::desk::{Desk, Next};
use super::gather::{Gather, Round};
use super::http::{Limits, Piece};
use super::outbox::{Failure, Outbox, What};
use super::route::Route;
use super::slot::{Departure, Link, Slot, Work};
use super::socket::Socket;
use super::timer::Timer;
use super::turns::TurnQueue;
use crate::clock::{Clock, WallOffset};
use crate::gate::Gate;
use crate::health::ReceiveHealth;
use crate::pacing::Ticket;
use crate::progress::Live;
use crate::spec::Timeouts;
use crate::stop::{Stop, StopSignal};

/// Connections that are being opened at a time: a server's accept queue may be short, and a SYN dropped costs a second.
const MAX_CONNECTING: usize = 64;
/// A read takes at most this many bytes.
const READ_BYTES: usize = 64 << 10;
/// How often the wall clock is compared with the monotonic one.
const RECALIBRATE: Nanos = Nanos::from_millis(250);
const TIMER: Token = Token(usize::MAX);
const TURNS: Token = Token(usize::MAX - 1);

/// What a loop needs.
#[derive(Debug, Clone)]
pub(crate) struct ReceiveConfig {
    /// How the server is reached.
    pub(crate) route: Arc<Route>,
    /// Requests that this thread may have in flight: its share.
    pub(crate) max_in_flight: usize,
    /// Connections that this thread opens before the first request.
    pub(crate) n_open_first: usize,
    /// Requests that are ready before the first is sent.
    pub(crate) n_ready: usize,
    /// Deadlines.
    pub(crate) timeouts: Timeouts,
    /// Sizes.
    pub(crate) limits: Limits,
    /// Whether to ask the kernel for stamps.
    pub(crate) kernel_stamps: bool,
}

/// Sends what the desk gives out and receives the responses; returns when nothing is in flight and nothing is left to send, or stopped.
///
/// # Errors
/// When the system refuses a poll.
pub(crate) fn receive(mut receiver: Receiver, gate: &dyn Gate) -> io::Result<ReceiveHealth> {
    let opened = receiver.open_first();
    if opened.is_err() {
        // The other threads wait for this one, and cannot carry the load without it.
        receiver.stop.stop_now();
    }
    receiver.desk.start(&receiver.clock, receiver.config.n_ready, gate);
    opened?;
    receiver.run()?;
    Ok(receiver.finish())
}

/// One thread's loop.
pub(crate) struct Receiver {
    config: ReceiveConfig,
    clock: Clock,
    poll: Poll,
    timer: Timer,
    slots: Vec<Slot>,
    /// Slots without work; the one freed last is used first, as its connection is the warmest.
    free: Vec<usize>,
    desk: Arc<Desk>,
    n_in_flight: usize,
    turns: Option<TurnQueue>,
    outbox: Outbox,
    live: Arc<Live>,
    stop: Arc<StopSignal>,
    /// When in-flight requests are cut, once sending has stopped.
    cut_at: Option<Nanos>,
    /// When the last poll returned: what it reported had arrived by then.
    polled: Nanos,
    wall: WallOffset,
    calibrated: Nanos,
    scanned: Nanos,
    round: Round,
    gather: Gather,
    wake_at: Option<Nanos>,
    buffer: Vec<u8>,
    health: ReceiveHealth,
}

impl Receiver {
    /// A loop that has not begun. With `turns`, where later turns of conversations come from, the load counts conversations.
    ///
    /// # Errors
    /// When the system refuses a poll or a timer.
    pub(crate) fn new(
        config: ReceiveConfig,
        clock: Clock,
        desk: Arc<Desk>,
        outbox: Outbox,
        live: Arc<Live>,
        stop: Arc<StopSignal>,
        turns: Option<TurnQueue>,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let timer = Timer::new(poll.registry(), TIMER)?;
        turns.as_ref().map_or(Ok(()), |turns| turns.wake_with(poll.registry(), TURNS))?;
        let now = clock.now();
        Ok(Self {
            wall: WallOffset::measure(&clock),
            polled: now,
            calibrated: now,
            scanned: now,
            round: Round::default(),
            gather: Gather::default(),
            wake_at: None,
            cut_at: None,
            slots: Vec::new(),
            free: Vec::new(),
            n_in_flight: 0,
            buffer: vec![0; READ_BYTES],
            health: ReceiveHealth::default(),
            config,
            clock,
            poll,
            timer,
            desk,
            turns,
            outbox,
            live,
            stop,
        })
    }

    /// Opens connections before the first request, a few at a time. One that fails here is tried again by its first request.
    fn open_first(&mut self) -> io::Result<()> {
        let n = self.config.n_open_first;
        let deadline = self.clock.now() + self.config.timeouts.connect;
        let mut events = Events::with_capacity(256);
        while self.clock.now() < deadline && self.stop.level() == Stop::No {
            let n_connecting = self.slots.iter().filter(|s| matches!(s.link, Link::Connecting { .. })).count();
            if self.slots.len() == n && n_connecting == 0 {
                break;
            }
            for _ in n_connecting..MAX_CONNECTING.min(n_connecting + n - self.slots.len()) {
                let i = self.add_slot();
                self.free.push(i);
                self.connect(i);
            }
            self.poll(&mut events, Duration::from_millis(50))?;
            for event in &events {
                self.handle(event);
            }
        }
        // Slot 0 first, so that the first requests take the connections in order.
        self.free.sort_unstable_by(|a, b| b.cmp(a));
        Ok(())
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        self.live.start(self.clock.now());
        self.dispatch();
        while self.n_in_flight > 0 || (self.cut_at.is_none() && (self.desk.n_left() > 0 || self.n_open_conversations() > 0)) {
            let wait = self.next_wait()?;
            self.poll(&mut events, wait)?;
            self.round = Round::default();
            for event in &events {
                self.handle(event);
            }
            self.dispatch();
            self.look_after_time();
            if let Some(pause) = self.gather.pause(self.polled, self.clock.now(), self.round, self.wake_at) {
                self.health.n_pauses += 1;
                thread::sleep(pause);
            }
        }
        self.outbox.flush();
        Ok(())
    }

    fn finish(mut self) -> ReceiveHealth {
        self.health.n_decoder_waits = self.outbox.n_waits;
        self.health.stopped = self.cut_at.is_some();
        self.health
    }

    fn poll(&mut self, events: &mut Events, wait: Duration) -> io::Result<()> {
        let result = self.poll.poll(events, Some(wait));
        self.polled = self.clock.now();
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            result => result,
        }
    }

    /// How long the poll may sleep. Waits for a scheduled request go through the precise timer.
    fn next_wait(&mut self) -> io::Result<Duration> {
        let now = self.clock.now();
        let mut until = self.scanned + self.scan_interval();
        if let Some(due) = self.outbox.due() {
            until = until.min(due);
        }
        if let Some(due) = self.wake_at {
            self.timer.set(due.saturating_sub(now).into())?;
            if Timer::is_coarse() {
                until = until.min(due);
            }
        }
        Ok(until.saturating_sub(now).into())
    }

    fn scan_interval(&self) -> Nanos {
        let t = &self.config.timeouts;
        let shortest = t.request.min(t.no_progress).min(t.connect).min(t.grace);
        Nanos((shortest.0 / 8).clamp(1_000_000, 50_000_000))
    }

    fn handle(&mut self, event: &mio::event::Event) {
        let i = event.token().0;
        if i >= self.slots.len() {
            return;
        }
        if matches!(self.slots[i].link, Link::Connecting { .. }) {
            self.continue_connect(i);
        }
        if event.is_writable() {
            self.continue_write(i);
        }
        // The kernel reports a send stamp as it does an error; an error proper comes with the end of reading.
        let is_error = event.is_error() && !self.slots[i].open_socket().is_some_and(|socket| socket.stamps_sends());
        if event.is_error() {
            self.note_departure(i, false);
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(i, event.is_read_closed() || is_error);
        }
    }

    // ---- connections ----

    fn add_slot(&mut self) -> usize {
        self.slots.push(Slot::new(self.config.limits));
        self.slots.len() - 1
    }

    fn connect(&mut self, i: usize) {
        match Socket::connect(&self.config.route, self.poll.registry(), Token(i), self.config.kernel_stamps) {
            Ok(socket) => {
                self.health.n_connects += 1;
                self.slots[i].link = Link::Connecting { socket, since: self.clock.now() };
            }
            Err(error) => self.connect_failed(i, &error.to_string()),
        }
    }

    fn continue_connect(&mut self, i: usize) {
        let slot = &mut self.slots[i];
        match std::mem::replace(&mut slot.link, Link::Closed) {
            Link::Connecting { mut socket, since } => match socket.continue_opening(&mut self.buffer) {
                Ok(true) => {
                    slot.reader.reset();
                    slot.link = Link::Open { socket, n_served: 0 };
                    self.begin_write(i);
                }
                Ok(false) => slot.link = Link::Connecting { socket, since },
                Err(error) => self.connect_failed(i, &error.to_string()),
            },
            link => slot.link = link,
        }
    }

    fn connect_failed(&mut self, i: usize, error: &str) {
        self.slots[i].link = Link::Closed;
        if self.slots[i].work.is_some() {
            self.end(i, self.clock.now(), Some(Failure::new(FailureKind::ConnectError, error)));
        }
    }

    // ---- sending ----

    /// Sends everything that may be sent now.
    fn dispatch(&mut self) {
        self.wake_at = None;
        // Not only when deadlines are looked at: what ends in between would be replaced.
        self.look_at_stop(self.clock.now());
        while self.cut_at.is_none() {
            let now = self.clock.now();
            match self.next_turn(now) {
                Ok((ticket, request)) => {
                    self.issue(ticket, request, now);
                    continue;
                }
                Err(due) => self.wake_at = due,
            }
            if self.turns.as_ref().map_or(self.n_in_flight, TurnQueue::n_open) >= self.config.max_in_flight {
                return;
            }
            match self.desk.next(now) {
                Next::Send(ticket, request) => {
                    self.turns.iter_mut().for_each(TurnQueue::opened);
                    self.issue(ticket, request, now);
                }
                Next::WaitUntil(due) => {
                    self.wake_at = Some(self.wake_at.map_or(due, |turn| turn.min(due)));
                    return;
                }
                Next::WaitForEnd | Next::Done => return,
            }
        }
    }

    fn issue(&mut self, ticket: Ticket, request: Vec<u8>, now: Nanos) {
        let i = self.free.pop().unwrap_or_else(|| self.add_slot());
        self.n_in_flight += 1;
        self.round.is_urgent = true;
        self.live.sent();
        self.slots[i].work = Some(Work::new(ticket, request, now));
        match self.slots[i].link {
            Link::Open { .. } => self.begin_write(i),
            Link::Connecting { .. } => {}
            Link::Closed => self.connect(i),
        }
    }

    /// The next turn of a conversation that is due, or when one will be.
    fn next_turn(&mut self, now: Nanos) -> Result<(Ticket, Vec<u8>), Option<Nanos>> {
        let Some(turns) = &mut self.turns else { return Err(None) };
        if self.desk.is_over(now) {
            turns.close();
        }
        let next = turns.next(now);
        (0..turns.take_over()).for_each(|_| self.desk.ended());
        next
    }

    fn n_open_conversations(&self) -> usize {
        self.turns.as_ref().map_or(0, TurnQueue::n_open)
    }

    /// Stamps the start of a request whose connection is open, and writes it.
    fn begin_write(&mut self, i: usize) {
        let Some(work) = &mut self.slots[i].work else { return };
        if work.sent.is_none() {
            let now = self.clock.now();
            work.sent = Some(now);
            work.moved = now;
            self.outbox.push(slot_id(i), now, What::Start { ticket: work.ticket, due: work.due });
        }
        self.continue_write(i);
    }

    fn continue_write(&mut self, i: usize) {
        let Slot { link: Link::Open { socket, .. }, work: Some(work), .. } = &mut self.slots[i] else { return };
        while !work.is_written() {
            match socket.write(&work.request[work.n_written..]) {
                Ok(0) => return,
                Ok(n) => work.n_written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.health.n_partial_writes += 1;
                    self.round.is_urgent = true;
                    return;
                }
                // The server may have answered before it closed: what it said comes first.
                Err(_) => return self.read(i, true),
            }
            if !work.is_written() {
                work.moved = self.clock.now();
            }
        }
        match socket.flush() {
            Ok(true) => {}
            Ok(false) => {
                self.health.n_partial_writes += 1;
                self.round.is_urgent = true;
                return;
            }
            Err(_) => return self.read(i, true),
        }
        if work.departure == Departure::Ahead {
            work.departure = Departure::Awaited { byte: socket.last_byte(), written: self.clock.now() };
            // A device that takes bytes at once has stamped them by now; another says so later.
            self.note_departure(i, false);
        }
    }

    /// Notes when a request's last byte left: by the kernel's stamp if it has come, else (with `at_last`) by when the last write returned.
    fn note_departure(&mut self, i: usize, at_last: bool) {
        let Slot { link: Link::Open { socket, .. }, work: Some(work), .. } = &mut self.slots[i] else { return };
        let Departure::Awaited { byte, written } = work.departure else { return };
        let stamped = if socket.stamps_sends() { socket.sent_at(byte) } else { None };
        if stamped.is_none() && socket.stamps_sends() && !at_last {
            return;
        }
        let sent = work.sent.unwrap_or(written);
        // The two clocks are tied to within a fraction of a microsecond.
        let at = stamped.map_or(written, |wall| self.wall.to_clock(wall)).max(sent);
        self.health.n_sends += 1;
        self.health.n_unstamped_sends += u64::from(stamped.is_none());
        self.health.send_time.add(at.saturating_sub(sent));
        work.departure = Departure::Noted;
        self.outbox.push(slot_id(i), at, What::Sent);
    }

    // ---- receiving ----

    /// Reads until the socket is empty, or closed when `to_end`.
    fn read(&mut self, i: usize, to_end: bool) {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.is_empty() {
            // A read within a read: a write that failed while the response before it was being handled.
            buffer = vec![0; READ_BYTES];
        }
        while let Some(socket) = self.slots[i].open_socket() {
            match socket.read(&mut buffer) {
                Ok(taken) => {
                    if taken.n > 0 {
                        let at = self.stamp(i, taken.wall);
                        self.received(i, at, &buffer[..taken.n]);
                    }
                    if taken.ended {
                        self.closed(i, None);
                        break;
                    }
                    // An edge-triggered poll reports what comes after a short read.
                    if taken.drained && !to_end {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.closed(i, Some(&error));
                    break;
                }
            }
        }
        self.buffer = buffer;
        self.outbox.flush_if_due(Nanos::ZERO);
    }

    /// The time of a read: the kernel's if it gave one that can be, never before the request was sent and never after now. Without
    /// one it is when the poll returned that reported it: the bytes were there by then, and other sockets' reads have not delayed it.
    fn stamp(&mut self, i: usize, wall: Option<u64>) -> Nanos {
        self.health.n_reads += 1;
        let earliest = self.slots[i].work.as_ref().map_or(Nanos::ZERO, |w| w.moved);
        let Some(wall) = wall else {
            self.health.n_unstamped_reads += 1;
            self.round.is_urgent = true;
            return self.polled.max(earliest);
        };
        self.round.n_stamped_reads += 1;
        let now = self.clock.now();
        let at = self.wall.to_clock(wall);
        self.health.read_lag.add(now.saturating_sub(at));
        at.max(earliest).min(now)
    }

    fn received(&mut self, i: usize, at: Nanos, mut input: &[u8]) {
        self.health.n_bytes += input.len() as u64;
        self.note_departure(i, true);
        let slot = &mut self.slots[i];
        let Some(work) = &mut slot.work else {
            // Bytes that answer nothing: the connection cannot be trusted.
            self.health.n_unasked += 1;
            slot.link = Link::Closed;
            return;
        };
        work.moved = at;
        if !work.answered {
            work.answered = true;
            if work.is_written() {
                work.request = Vec::new();
            }
        }
        loop {
            match slot.reader.next(&mut input) {
                Ok(Piece::Head(head)) => self.outbox.push(slot_id(i), at, What::Head(head)),
                Ok(Piece::Body(bytes)) => self.outbox.body(slot_id(i), at, bytes),
                Ok(Piece::NeedMore) => return,
                Ok(Piece::End) => return self.complete(i, at, input.is_empty()),
                Err(error) => {
                    self.slots[i].link = Link::Closed;
                    return self.end(i, at, Some(Failure::new(FailureKind::BadResponse, error.to_string())));
                }
            }
        }
    }

    /// A whole response has arrived.
    fn complete(&mut self, i: usize, at: Nanos, clean: bool) {
        let slot = &mut self.slots[i];
        let written = slot.work.as_ref().is_some_and(|work| work.departure != Departure::Ahead);
        let keep = clean && written && slot.reader.keep_alive();
        self.health.n_unasked += u64::from(!clean);
        match &mut slot.link {
            Link::Open { n_served, .. } if keep => {
                *n_served += 1;
                slot.reader.reset();
            }
            link => *link = Link::Closed,
        }
        self.end(i, at, None);
        self.dispatch();
    }

    /// The server has closed the connection, or it broke.
    fn closed(&mut self, i: usize, error: Option<&io::Error>) {
        let now = self.clock.now();
        let slot = &mut self.slots[i];
        let reused = matches!(slot.link, Link::Open { n_served: 1.., .. });
        slot.link = Link::Closed;
        let Some(work) = &mut slot.work else {
            // A server that closes unused connections at once would be asked again and again.
            if reused {
                self.reconnect_for_next(i);
            }
            return;
        };
        if error.is_none() && slot.reader.ends_with_connection() {
            self.end(i, now, None);
            return self.dispatch();
        }
        if reused && !work.answered && !work.resent {
            // The server gave up an idle connection just as it was used again: no fault of the request.
            work.resent = true;
            (work.n_written, work.departure) = (0, Departure::Ahead);
            self.health.n_resent += 1;
            return self.connect(i);
        }
        let kind = if work.answered || work.is_written() { FailureKind::Truncated } else { FailureKind::SendError };
        let how = error.map_or_else(|| "connection closed by the server".to_owned(), ToString::to_string);
        let when = if work.answered { "before the end of the response" } else { "before any response" };
        self.end(i, now, Some(Failure::new(kind, format!("{how} {when}"))));
    }

    /// Ends a slot's request, however it went; the slot is free then.
    fn end(&mut self, i: usize, at: Nanos, failure: Option<Failure>) {
        let Some(work) = self.slots[i].work.take() else { return };
        self.round.is_urgent = true;
        if work.sent.is_none() {
            self.outbox.push(slot_id(i), at, What::Start { ticket: work.ticket, due: work.due });
        }
        self.live.ended(failure.is_none());
        self.outbox.push(slot_id(i), at, What::End(failure));
        if self.turns.is_some() {
            // The next turn waits for what is decoded.
            self.outbox.flush();
        }
        self.n_in_flight -= 1;
        if self.turns.is_none() {
            self.desk.ended();
        }
        self.free.push(i);
        if matches!(self.slots[i].link, Link::Closed) {
            self.slots[i].reader.reset();
            self.reconnect_for_next(i);
        }
    }

    /// Opens a free slot's next connection ahead of its next request.
    fn reconnect_for_next(&mut self, i: usize) {
        if self.desk.n_left() > 0 && self.cut_at.is_none() {
            self.connect(i);
        }
    }

    // ---- time ----

    fn look_after_time(&mut self) {
        let now = self.clock.now();
        self.outbox.flush_if_due(now);
        if now.saturating_sub(self.calibrated) >= RECALIBRATE {
            let wall = WallOffset::measure(&self.clock);
            self.health.wall_drift_max = self.health.wall_drift_max.max(wall.distance(self.wall));
            (self.wall, self.calibrated) = (wall, now);
        }
        if now.saturating_sub(self.scanned) >= self.scan_interval() {
            self.scanned = now;
            self.look_at_stop(now);
            for i in 0..self.slots.len() {
                if let Some(failure) = self.overdue(i, now) {
                    self.slots[i].link = Link::Closed;
                    self.end(i, now, Some(failure));
                }
            }
            self.dispatch();
        }
    }

    fn look_at_stop(&mut self, now: Nanos) {
        match self.stop.level() {
            Stop::No => {}
            Stop::Graceful => self.stop_sending(now),
            Stop::Now => self.cut_at = Some(self.cut_at.map_or(now, |cut| cut.min(now))),
        }
    }

    fn stop_sending(&mut self, now: Nanos) {
        self.cut_at.get_or_insert(now + self.config.timeouts.grace);
    }

    fn overdue(&self, i: usize, now: Nanos) -> Option<Failure> {
        let slot = &self.slots[i];
        let work = slot.work.as_ref()?;
        let t = &self.config.timeouts;
        let fail = |kind, message: String| Some(Failure::new(kind, message));
        if self.cut_at.is_some_and(|cut| cut <= now) {
            return fail(FailureKind::Cancelled, "the run was stopped".into());
        }
        if matches!(slot.link, Link::Connecting { since, .. } if now.saturating_sub(since) >= t.connect) {
            return fail(FailureKind::ConnectError, format!("no connection within {:.1} s", t.connect.as_secs_f64()));
        }
        if now.saturating_sub(work.sent.unwrap_or(work.due)) >= t.request {
            return fail(FailureKind::Timeout, format!("not complete within {:.1} s", t.request.as_secs_f64()));
        }
        if now.saturating_sub(work.moved) >= t.no_progress {
            return fail(FailureKind::NoProgress, format!("nothing arrived for {:.1} s", t.no_progress.as_secs_f64()));
        }
        None
    }
}

fn slot_id(i: usize) -> u32 {
    u32::try_from(i).expect("there are fewer than 2^32 connections")
}
