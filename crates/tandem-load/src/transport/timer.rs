//! Waits that are exact to microseconds, beside epoll's milliseconds.

use std::io;
use std::time::Duration;

use mio::{Registry, Token};

/// A timer that makes a poll return.
#[derive(Debug)]
pub(crate) struct Timer {
    #[cfg(target_os = "linux")]
    fd: nix::sys::timerfd::TimerFd,
}

#[cfg(target_os = "linux")]
impl Timer {
    /// A timer that reports under `token`.
    pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        use std::os::fd::{AsFd, AsRawFd};

        use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

        let fd = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        registry.register(&mut mio::unix::SourceFd(&fd.as_fd().as_raw_fd()), token, mio::Interest::READABLE)?;
        Ok(Self { fd })
    }

    /// Makes the poll return after `wait`; replaces what was set before. An edge-triggered poll needs no read of the timer.
    pub(crate) fn set(&self, wait: Duration) -> io::Result<()> {
        use nix::sys::time::TimeSpec;
        use nix::sys::timerfd::{Expiration, TimerSetTimeFlags};

        // Zero would disarm it.
        let wait = wait.max(Duration::from_nanos(1));
        Ok(self.fd.set(Expiration::OneShot(TimeSpec::from_duration(wait)), TimerSetTimeFlags::empty())?)
    }

    /// Whether waits need the poll's own timeout.
    pub(crate) const fn is_coarse() -> bool {
        false
    }
}

#[cfg(not(target_os = "linux"))]
impl Timer {
    /// There is no such timer here: the poll's own timeout has to do.
    pub(crate) fn new(_: &Registry, _: Token) -> io::Result<Self> {
        Ok(Self {})
    }

    /// Does nothing.
    pub(crate) fn set(&self, _: Duration) -> io::Result<()> {
        Ok(())
    }

    /// Whether waits need the poll's own timeout.
    pub(crate) const fn is_coarse() -> bool {
        true
    }
}
