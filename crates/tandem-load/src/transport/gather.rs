//! When the receive loop lets bytes gather before it looks again.
//!
//! Waking up costs more than reading: at 100,000 chunks a second a loop that looks at once sleeps and wakes for every few of them.
//! The kernel stamps a segment when it arrives, so reading it a little later changes no stamp; the loop pauses for [`GATHER`] and
//! then takes all that has come, as network cards coalesce interrupts. A pause is taken only where nobody waits for this thread:
//! not without kernel stamps, not when a request has just been sent or has ended, not past the time when one is due, and not
//! when reads are few and far between. What it costs: two segments of one stream that arrive within a pause are one read with the
//! stamp of the later one. That happens without a pause too, whenever the thread is busy, and is counted (clumped chunks).

use std::time::Duration;

use tandem_plan::Nanos;

/// How long a pause lasts; the system may add its timer slack, 50 us. Chunks of one stream are milliseconds apart: this is far less, and
/// enough for wake-ups to be few.
pub(crate) const GATHER: Nanos = Nanos(150_000);
/// A shorter pause saves nothing.
const SHORTEST: Nanos = Nanos(20_000);

/// What one round of the loop did.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Round {
    /// Reads with a kernel stamp.
    pub(crate) n_stamped_reads: u32,
    /// Somebody waits for what comes next: a request was sent or has ended, or a read had no stamp but the clock's.
    pub(crate) is_urgent: bool,
}

/// Decides about pauses.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    polled_before: Nanos,
}

impl Gather {
    /// How long to pause at `now`, after a round that began at `polled`; the next request is due at `due`.
    pub(crate) fn pause(&mut self, polled: Nanos, now: Nanos, round: Round, due: Option<Nanos>) -> Option<Duration> {
        let since = polled.saturating_sub(std::mem::replace(&mut self.polled_before, polled));
        // After a pause a round that found one read has found nothing to gather.
        let is_busy = round.n_stamped_reads > 1 || (round.n_stamped_reads == 1 && since < GATHER);
        if !is_busy || round.is_urgent {
            return None;
        }
        let pause = due.map_or(GATHER, |due| due.saturating_sub(now).min(GATHER));
        (pause >= SHORTEST).then(|| pause.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(n: u32) -> Round {
        Round { n_stamped_reads: n, is_urgent: false }
    }

    fn us(n: u64) -> Nanos {
        Nanos(n * 1000)
    }

    #[test]
    fn pauses_begin_with_reads_that_follow_closely_and_end_when_they_do_not() {
        let (mut gather, whole) = (Gather::default(), Some(Duration::from(GATHER)));
        let mut pause = |at, n| gather.pause(us(at), us(at + 5), reads(n), None);
        assert_eq!(pause(1000, 1), None, "one read, long after the last");
        assert_eq!(pause(1120, 1), whole, "and the next at once");
        assert_eq!(pause(1280, 8), whole, "a pause that gathered something is followed by another");
        assert_eq!(pause(1440, 1), None, "one that did not is not");
        assert_eq!(pause(1600, 0), None);
        assert_eq!(pause(1610, 0), None, "no reads, no pause");
        assert_eq!(pause(9000, 2), whole, "a burst");
    }

    #[test]
    fn nobody_is_kept_waiting() {
        let mut gather = Gather::default();
        assert_eq!(gather.pause(us(1000), us(1010), Round { is_urgent: true, ..reads(9) }, None), None);
        assert_eq!(gather.pause(us(2000), us(2010), reads(9), Some(us(2050))), Some(Duration::from_micros(40)));
        assert_eq!(gather.pause(us(3000), us(3010), reads(9), Some(us(3020))), None);
        assert_eq!(gather.pause(us(4000), us(4010), reads(9), Some(us(4000))), None, "due already");
        assert_eq!(gather.pause(us(5000), us(5010), reads(9), Some(us(9000))), Some(GATHER.into()));
    }
}
