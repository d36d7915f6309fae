//! A connection whose reads are stamped: by the kernel where it offers that, else by the run's clock.
//!
//! The kernel's stamp (`SO_TIMESTAMPNS`) is taken when the segment arrives, so it does not depend on
//! when this process gets to run. With several segments in one read it is the last one's. The clock's
//! stamp is taken right after the read has returned: never before the data was there.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// A non-blocking TCP connection.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    /// Whether the kernel stamps what it receives.
    kernel_stamps: bool,
}

impl Socket {
    /// Begins to connect and registers for all readiness under `token`; the first writable event tells how it went.
    pub(crate) fn connect(address: SocketAddr, registry: &Registry, token: Token, kernel_stamps: bool) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        let kernel_stamps = kernel_stamps && enable_kernel_stamps(&stream);
        Ok(Self { stream, kernel_stamps })
    }

    /// Whether the connection is up; an error when it has failed.
    pub(crate) fn finish_connect(&self) -> io::Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Ok(_) => self.stream.set_nodelay(true).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads what is there: byte count, and the kernel's stamp in nanoseconds of wall time if it gave one.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Option<u64>)> {
        if self.kernel_stamps { read_stamped(&self.stream, buffer) } else { self.stream.read(buffer).map(|n| (n, None)) }
    }

    /// Writes what the kernel takes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }
}

/// Asks the kernel to stamp what arrives; false when it does not offer that.
#[cfg(target_os = "linux")]
pub(crate) fn enable_kernel_stamps(stream: &TcpStream) -> bool {
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::ReceiveTimestampns, &true).is_ok()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn enable_kernel_stamps(_: &TcpStream) -> bool {
    false
}

/// Reads, with the kernel's stamp of the last segment in nanoseconds of wall time, if there is one.
#[cfg(target_os = "linux")]
pub(crate) fn read_stamped(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, Option<u64>)> {
    use std::cell::RefCell;
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

    thread_local! {
        // One control buffer for each reading thread: a read allocates nothing.
        static CONTROL: RefCell<Vec<u8>> = RefCell::new(nix::cmsg_space!(nix::sys::time::TimeSpec));
    }
    CONTROL.with_borrow_mut(|control| {
        let mut pieces = [io::IoSliceMut::new(buffer)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut pieces, Some(control), MsgFlags::empty())?;
        let stamp = message.cmsgs().ok().and_then(|mut all| {
            all.find_map(|c| match c {
                ControlMessageOwned::ScmTimestampns(t) => {
                    Some(u64::try_from(t.tv_sec()).ok()? * 1_000_000_000 + u64::try_from(t.tv_nsec()).ok()?)
                }
                _ => None,
            })
        });
        Ok((message.bytes, stamp))
    })
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn read_stamped(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, Option<u64>)> {
    stream.read(buffer).map(|n| (n, None))
}
