//! The order to stop: once = send nothing more and wait for what is in flight; twice = give that up too.

use std::sync::atomic::{AtomicU8, Ordering};

/// How far a run is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// It goes on.
    No,
    /// Nothing more is sent; requests in flight may end within the grace time.
    Graceful,
    /// Requests in flight are cut.
    Now,
}

/// Carries the order from whoever gives it (a signal handler, a supervisor) to the run. It takes effect within 50 ms.
#[derive(Debug, Default)]
pub struct StopSignal {
    level: AtomicU8,
}

impl StopSignal {
    /// A signal that lets the run go on.
    #[must_use]
    pub const fn new() -> Self {
        Self { level: AtomicU8::new(0) }
    }

    /// Stops gracefully; a second call cuts.
    pub fn stop(&self) {
        // More than two calls change nothing; the order never falls back.
        let _ = self.level.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < 2).then_some(n + 1));
    }

    /// Cuts at once.
    pub fn stop_now(&self) {
        self.level.store(2, Ordering::Relaxed);
    }

    /// The order as it stands.
    #[must_use]
    pub fn level(&self) -> Stop {
        match self.level.load(Ordering::Relaxed) {
            0 => Stop::No,
            1 => Stop::Graceful,
            _ => Stop::Now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopping_twice_cuts_and_nothing_takes_it_back() {
        let signal = StopSignal::new();
        let levels: Vec<_> = (0..4)
            .map(|_| {
                let level = signal.level();
                signal.stop();
                level
            })
            .collect();
        assert_eq!(levels, [Stop::No, Stop::Graceful, Stop::Now, Stop::Now]);
    }
}
