//! The kernel's stamps of what a TCP socket receives and sends (`SO_TIMESTAMPING`, software stamps); none elsewhere than on Linux.
//!
//! A receive stamp is taken when a segment arrives, so it does not depend on when this process gets to run. With several segments
//! in one read it is the last one's. A send stamp is taken when the segment that holds the last byte of a write is handed
//! to the device (loopback included); it comes back on the socket's error queue with the number of that byte.

use std::io;

use mio::net::TcpStream;

/// What the kernel stamps on a socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Offered {
    /// What arrives.
    pub(crate) receive: bool,
    /// What leaves.
    pub(crate) send: bool,
}

/// A byte that has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SendStamp {
    /// Its number among all bytes written since stamps were asked for, modulo 2^32.
    pub(crate) byte: u32,
    /// When, nanoseconds of wall time.
    pub(crate) wall: u64,
}

/// Asks the kernel to stamp what a connected socket receives and sends, before anything has been written.
#[cfg(target_os = "linux")]
pub(crate) fn enable_both(stream: &TcpStream) -> Offered {
    use nix::sys::socket::{TimestampingFlag as Flag, setsockopt, sockopt};

    let receive = Flag::SOF_TIMESTAMPING_RX_SOFTWARE | Flag::SOF_TIMESTAMPING_SOFTWARE;
    let send = Flag::SOF_TIMESTAMPING_TX_SOFTWARE | Flag::SOF_TIMESTAMPING_OPT_ID | Flag::SOF_TIMESTAMPING_OPT_TSONLY;
    if setsockopt(stream, sockopt::Timestamping, &(receive | send)).is_ok() {
        return Offered { receive: true, send: true };
    }
    Offered { receive: enable_receive(stream), send: false }
}

/// Asks the kernel to stamp what arrives; false when it does not offer that.
#[cfg(target_os = "linux")]
pub(crate) fn enable_receive(stream: &TcpStream) -> bool {
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::ReceiveTimestampns, &true).is_ok()
}

/// Waits until the kernel really stamps what arrives; it does as long as the socket that is returned lives.
///
/// The first socket that asks for stamps only schedules them to be switched on: what arrives within the next milliseconds has none.
#[cfg(target_os = "linux")]
pub(crate) fn switch_on() -> Option<std::net::UdpSocket> {
    use nix::sys::socket::{MsgFlags, TimestampingFlag as Flag, setsockopt, sockopt};

    const TRIES: u32 = 100;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").ok()?;
    setsockopt(&socket, sockopt::Timestamping, &(Flag::SOF_TIMESTAMPING_RX_SOFTWARE | Flag::SOF_TIMESTAMPING_SOFTWARE)).ok()?;
    socket.connect(socket.local_addr().ok()?).ok()?;
    let wait = std::time::Duration::from_millis(1);
    socket.set_read_timeout(Some(wait)).ok()?;
    for _ in 0..TRIES {
        socket.send(&[0]).ok()?;
        if with_control(&socket, &mut [0], MsgFlags::empty(), stamp_of).is_ok_and(|(_, stamp)| stamp.is_some()) {
            break;
        }
        std::thread::sleep(wait);
    }
    Some(socket)
}

/// Reads, with the kernel's stamp of the last segment in nanoseconds of wall time, if there is one.
#[cfg(target_os = "linux")]
pub(crate) fn read_stamped(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, Option<u64>)> {
    with_control(stream, buffer, nix::sys::socket::MsgFlags::empty(), stamp_of)
}

/// Takes the next send stamp from the error queue, if there is one.
#[cfg(target_os = "linux")]
pub(crate) fn take_send_stamp(stream: &TcpStream) -> Option<SendStamp> {
    use nix::sys::socket::ControlMessageOwned as Control;

    let (_, (wall, byte)) = with_control(stream, &mut [], nix::sys::socket::MsgFlags::MSG_ERRQUEUE, |c, (wall, byte)| match c {
        Control::Ipv4RecvErr(error, _) => *byte = Some(error.ee_data),
        Control::Ipv6RecvErr(error, _) => *byte = Some(error.ee_data),
        other => stamp_of(other, wall),
    })
    .ok()?;
    Some(SendStamp { byte: byte?, wall: wall? })
}

#[cfg(target_os = "linux")]
fn stamp_of(control: nix::sys::socket::ControlMessageOwned, stamp: &mut Option<u64>) {
    use nix::sys::socket::ControlMessageOwned as Control;

    let (Control::ScmTimestampns(time) | Control::ScmTimestampsns(nix::sys::socket::Timestamps { system: time, .. })) = control else {
        return;
    };
    let nanos = u64::try_from(time.tv_sec()).ok().zip(u64::try_from(time.tv_nsec()).ok()).map(|(s, ns)| s * 1_000_000_000 + ns);
    // A packet that the kernel has not stamped has zero.
    *stamp = nanos.filter(|ns| *ns > 0);
}

/// One `recvmsg`; `take` sees each control message.
#[cfg(target_os = "linux")]
fn with_control<T: Default>(
    socket: &impl std::os::fd::AsRawFd,
    buffer: &mut [u8],
    flags: nix::sys::socket::MsgFlags,
    mut take: impl FnMut(nix::sys::socket::ControlMessageOwned, &mut T),
) -> io::Result<(usize, T)> {
    use std::cell::RefCell;

    use nix::sys::socket::{Timestamps, recvmsg};

    thread_local! {
        // One control buffer for each reading thread: a read allocates nothing. The second part has room for an error and its address.
        static CONTROL: RefCell<Vec<u8>> = RefCell::new(nix::cmsg_space!(Timestamps, [u64; 8]));
    }
    CONTROL.with_borrow_mut(|control| {
        let mut pieces = [io::IoSliceMut::new(buffer)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut pieces, Some(control), flags)?;
        let mut seen = T::default();
        message.cmsgs().into_iter().flatten().for_each(|control| take(control, &mut seen));
        Ok((message.bytes, seen))
    })
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn switch_on() -> Option<std::net::UdpSocket> {
    None
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn enable_both(_: &TcpStream) -> Offered {
    Offered::default()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn enable_receive(_: &TcpStream) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn read_stamped(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, Option<u64>)> {
    io::Read::read(&mut stream, buffer).map(|n| (n, None))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn take_send_stamp(_: &TcpStream) -> Option<SendStamp> {
    None
}
