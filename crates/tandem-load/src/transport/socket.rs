//! One connection of the load, from the first SYN to the last byte: TCP or a unix socket, a proxy's tunnel, TLS.
//!
//! Reads are stamped by the kernel where it offers that, else by the caller's clock; with TLS the stamp is that of the
//! encrypted bytes. What was written whole has a send stamp, where the kernel offers that (`stamps`).

use std::io::{self, Read, Write};
use std::sync::Arc;

use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};

use super::route::{Address, Route};
use super::stamps::{Offered, enable_both, read_stamped, take_send_stamp};
use super::tls::TlsSession;

/// Encrypted bytes of one read at most: what the caller's buffer holds, less what a session may hold back (two records).
const TLS_HELD_BACK: usize = 36 << 10;
/// A proxy's answer to a tunnel request is no longer than this.
const MAX_TUNNEL_ANSWER: usize = 16 << 10;

/// A non-blocking connection.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: Stream,
    stage: Stage,
    tunnel: Option<Arc<[u8]>>,
    tls: Option<Box<TlsSession>>,
    /// Whether to ask for stamps.
    wants_stamps: bool,
    stamps: Offered,
    /// Bytes handed to the kernel, modulo 2^32.
    n_sent: u32,
}

/// What one read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Bytes in the buffer; none is no end: an encrypted record may need more.
    pub(crate) n: usize,
    /// The kernel's stamp in nanoseconds of wall time, if it gave one.
    pub(crate) wall: Option<u64>,
    /// Whether another read would block: an edge-triggered poll reports what comes after.
    pub(crate) drained: bool,
    /// The server sends nothing more.
    pub(crate) ended: bool,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

#[derive(Debug)]
enum Stage {
    Connecting,
    Tunnel { n_written: usize, answer: Vec<u8> },
    Handshake,
    Open,
}

impl Socket {
    /// Begins to connect and registers for all readiness under `token`; each event is a reason to [`Self::continue_opening`].
    pub(crate) fn connect(route: &Route, registry: &Registry, token: Token, kernel_stamps: bool) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        let stream = match &route.address {
            Address::Tcp(address) => {
                let mut stream = TcpStream::connect(*address)?;
                registry.register(&mut stream, token, interest)?;
                Stream::Tcp(stream)
            }
            Address::Unix(path) => {
                let mut stream = UnixStream::connect(path)?;
                registry.register(&mut stream, token, interest)?;
                Stream::Unix(stream)
            }
        };
        let tls = route.tls.as_ref().map(|tls| tls.session()).transpose()?;
        Ok(Self {
            stream,
            stage: Stage::Connecting,
            tunnel: route.tunnel.clone(),
            tls,
            wants_stamps: kernel_stamps,
            stamps: Offered::default(),
            n_sent: 0,
        })
    }

    /// Goes on until the connection carries requests (true) or has to wait; an error when it has failed. `buffer` is scratch.
    pub(crate) fn continue_opening(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        loop {
            let done = match self.stage {
                Stage::Connecting => self.finish_connect()?,
                Stage::Tunnel { .. } => self.open_tunnel(buffer)?,
                Stage::Handshake => self.shake_hands(buffer)?,
                Stage::Open => return Ok(true),
            };
            if !done {
                return Ok(false);
            }
            self.stage = match self.stage {
                Stage::Connecting if self.tunnel.is_some() => Stage::Tunnel { n_written: 0, answer: Vec::new() },
                Stage::Connecting | Stage::Tunnel { .. } if self.tls.is_some() => Stage::Handshake,
                _ => Stage::Open,
            };
        }
    }

    fn finish_connect(&mut self) -> io::Result<bool> {
        let (error, peer) = match &self.stream {
            Stream::Tcp(stream) => (stream.take_error()?, stream.peer_addr().map(|_| ())),
            Stream::Unix(stream) => (stream.take_error()?, stream.peer_addr().map(|_| ())),
        };
        match error.map_or(peer, Err) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
            Err(error) => return Err(error),
        }
        if let Stream::Tcp(stream) = &self.stream {
            stream.set_nodelay(true)?;
            // Now, because the kernel numbers bytes from here on.
            self.stamps = if self.wants_stamps { enable_both(stream) } else { Offered::default() };
        }
        Ok(true)
    }

    fn open_tunnel(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let (Stage::Tunnel { n_written, answer }, Some(request)) = (&mut self.stage, &self.tunnel) else { return Ok(true) };
        while *n_written < request.len() {
            match self.stream.write(&request[*n_written..]) {
                Ok(n) => {
                    *n_written += n;
                    self.n_sent = count(self.n_sent, n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        loop {
            match self.stream.read(buffer) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the proxy closed the connection instead of opening a tunnel",
                    ));
                }
                Ok(n) => answer.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut response = httparse::Response::new(&mut headers);
            match response.parse(answer).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("the proxy's answer: {e}")))? {
                httparse::Status::Partial if answer.len() > MAX_TUNNEL_ANSWER => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the proxy's answer is too long"));
                }
                httparse::Status::Partial => {}
                httparse::Status::Complete(_) => {
                    let (code, reason) = (response.code.unwrap_or(0), response.reason.unwrap_or(""));
                    return match code {
                        200..=299 => Ok(true),
                        _ => Err(io::Error::other(format!("the proxy refused the tunnel: {code} {reason}"))),
                    };
                }
            }
        }
    }

    fn shake_hands(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        loop {
            if !self.flush()? {
                return Ok(false);
            }
            let Some(tls) = &mut self.tls else { return Ok(true) };
            if !tls.is_handshaking() {
                return Ok(true);
            }
            match self.stream.read(&mut buffer[..8 << 10]) {
                Ok(0) => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection during the TLS handshake"));
                }
                Ok(n) => {
                    let result = tls.decrypt(&buffer[..n], &mut []);
                    if let Err(error) = result {
                        // The server learns why; whether it does changes nothing here.
                        let _ = self.flush();
                        return Err(error);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads what is there.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Taken> {
        let Some(tls) = &mut self.tls else {
            let (n, wall) = self.stream.read_stamped(buffer, self.stamps.receive)?;
            return Ok(Taken { n, wall, drained: n < buffer.len(), ended: n == 0 });
        };
        if tls.is_closed() {
            return Ok(Taken { n: 0, wall: None, drained: true, ended: true });
        }
        RAW.with_borrow_mut(|raw| {
            let room = buffer.len().saturating_sub(TLS_HELD_BACK).max(1);
            raw.resize(room, 0);
            let (n_raw, wall) = self.stream.read_stamped(raw, self.stamps.receive)?;
            if n_raw == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended without the end of the TLS session"));
            }
            let n = tls.decrypt(&raw[..n_raw], buffer)?;
            // After the end of the session another read says so.
            Ok(Taken { n, wall, drained: n_raw < raw.len() && !tls.is_closed(), ended: false })
        })
    }

    /// Writes what the kernel takes; with TLS everything is taken at once and [`Self::flush`] goes on.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(tls) = &mut self.tls {
            return tls.encrypt(bytes);
        }
        let n = self.stream.write(bytes)?;
        self.n_sent = count(self.n_sent, n);
        Ok(n)
    }

    /// Writes what is left of what was taken; whether all of it has gone.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(true) };
        while tls.wants_write() {
            match tls.write_to(&mut self.stream) {
                Ok(n) => self.n_sent = count(self.n_sent, n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Whether the kernel stamps what leaves.
    pub(crate) fn stamps_sends(&self) -> bool {
        self.stamps.send
    }

    /// The number of the byte written last, as send stamps count.
    pub(crate) fn last_byte(&self) -> u32 {
        self.n_sent.wrapping_sub(1)
    }

    /// When byte number `byte` left, in nanoseconds of wall time, if the kernel has said so; earlier stamps are dropped.
    pub(crate) fn sent_at(&self, byte: u32) -> Option<u64> {
        let Stream::Tcp(stream) = &self.stream else { return None };
        std::iter::from_fn(|| take_send_stamp(stream)).filter(|stamp| stamp.byte == byte).last().map(|stamp| stamp.wall)
    }
}

thread_local! {
    /// Encrypted bytes on their way to a session.
    static RAW: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// `n` bytes more, as the kernel counts.
fn count(before: u32, n: usize) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "the kernel counts modulo 2^32")]
    before.wrapping_add(n as u32)
}

impl Stream {
    fn read_stamped(&mut self, buffer: &mut [u8], stamped: bool) -> io::Result<(usize, Option<u64>)> {
        match self {
            Stream::Tcp(stream) if stamped => read_stamped(stream, buffer),
            _ => self.read(buffer).map(|n| (n, None)),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, pieces: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write_vectored(pieces),
            Stream::Unix(stream) => stream.write_vectored(pieces),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
