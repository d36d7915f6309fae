//! The run's clock: monotonic nanoseconds since the start of the run, and how wall time maps to them.
//!
//! Every stamp in the crate is a [`Nanos`] of one [`Clock`]. The kernel stamps received data with
//! wall time; `WallOffset` turns that into monotonic time and is measured again and again, so
//! that a clock being slewed does not bend latencies.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tandem_plan::Nanos;

/// Monotonic time since an origin. Copies share the origin.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
    origin_unix_nanos: u64,
    origin_monotonic_nanos: u64,
}

impl Clock {
    /// A clock whose zero is now.
    #[must_use]
    pub fn start() -> Self {
        let origin = Instant::now();
        Self { origin, origin_unix_nanos: unix_nanos(), origin_monotonic_nanos: monotonic_origin(origin) }
    }

    /// Time since the origin.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.at(Instant::now())
    }

    /// Where `instant` lies on this clock; zero for anything before the origin.
    #[must_use]
    pub fn at(&self, instant: Instant) -> Nanos {
        Nanos::from(instant.saturating_duration_since(self.origin))
    }

    /// A time of `other` on this clock; both are exact, whatever the wall clock did.
    #[must_use]
    pub fn from_other(&self, other: &Clock, time: Nanos) -> Nanos {
        self.at(other.origin + time.into())
    }

    /// The origin on the machine's monotonic clock, which all its processes share; nanoseconds.
    #[must_use]
    pub fn origin_monotonic_nanos(&self) -> u64 {
        self.origin_monotonic_nanos
    }

    /// Wall time of the origin, nanoseconds since the Unix epoch.
    #[must_use]
    pub fn origin_unix_nanos(&self) -> u64 {
        self.origin_unix_nanos
    }
}

/// Wall time (nanoseconds since the Unix epoch) of the clock's origin, as measured last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WallOffset {
    wall_at_origin: u64,
}

impl WallOffset {
    /// Measures it: the tightest of a few readings of wall time between two of monotonic time.
    pub(crate) fn measure(clock: &Clock) -> Self {
        let mut best = (u64::MAX, 0);
        for _ in 0..5 {
            let before = clock.now();
            let wall = unix_nanos();
            let after = clock.now();
            let gap = after.saturating_sub(before).0;
            if gap < best.0 {
                best = (gap, wall.saturating_sub(before.0 + gap / 2));
            }
        }
        Self { wall_at_origin: best.1 }
    }

    /// Monotonic time of a wall time.
    pub(crate) fn to_clock(self, wall_nanos: u64) -> Nanos {
        Nanos(wall_nanos.saturating_sub(self.wall_at_origin))
    }

    /// How far apart two measurements are.
    pub(crate) fn distance(self, other: Self) -> Nanos {
        Nanos(self.wall_at_origin.abs_diff(other.wall_at_origin))
    }
}

/// `origin` on `CLOCK_MONOTONIC`: the tightest of a few readings between two of `Instant`.
fn monotonic_origin(origin: Instant) -> u64 {
    let mut best = (u64::MAX, 0);
    for _ in 0..5 {
        let before = Nanos::from(origin.elapsed()).0;
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let after = Nanos::from(origin.elapsed()).0;
        let monotonic = u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0);
        if after - before < best.0 {
            best = (after - before, monotonic.saturating_sub(before + (after - before) / 2));
        }
    }
    best.1
}

fn unix_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_maps_between_the_readings_around_it() {
        let clock = Clock::start();
        let offset = WallOffset::measure(&clock);
        let before = clock.now();
        let mapped = offset.to_clock(unix_nanos());
        let after = clock.now();
        // The bracket is a few hundred nanoseconds wide; a step of the wall clock in between would be far larger.
        let slack = 1_000_000;
        assert!(mapped.0 + slack >= before.0 && mapped.0 <= after.0 + slack, "{before:?} {mapped:?} {after:?}");
    }
}
