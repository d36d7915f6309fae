//! The emission log as lines of JSON, for a paced server that runs in a process of its own.
//!
//! The first line holds the server's counts, each further line one request. Times are nanoseconds of the
//! machine's monotonic clock (`CLOCK_MONOTONIC`; Python's `time.perf_counter_ns`), which all processes of
//! a machine share, so that any client that keeps such times can be compared with the log.

use std::io::{self, BufRead, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tandem_plan::Nanos;

use super::{Emission, EmissionLog};
use crate::clock::Clock;

#[derive(Serialize, Deserialize)]
struct Counts {
    n_busy_peak: usize,
    n_connections: usize,
    cpu_ns: u64,
}

#[derive(Serialize, Deserialize)]
struct Line {
    id: String,
    arrived_ns: u64,
    received_ns: u64,
    complete: bool,
    writes_ns: Vec<u64>,
}

impl EmissionLog {
    /// Writes it as lines.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_lines(&self, mut out: impl Write) -> io::Result<()> {
        let origin = self.clock.origin_monotonic_nanos();
        let ns = |t: Nanos| origin + t.0;
        let cpu_ns = u64::try_from(self.cpu.as_nanos()).unwrap_or(u64::MAX);
        line(&mut out, &Counts { n_busy_peak: self.n_busy_peak, n_connections: self.n_connections, cpu_ns })?;
        for e in &self.emissions {
            let writes_ns = e.writes.iter().map(|w| ns(*w)).collect();
            let (arrived_ns, received_ns) = (ns(e.arrived), ns(e.received));
            line(&mut out, &Line { id: e.id.clone(), arrived_ns, received_ns, complete: e.complete, writes_ns })?;
        }
        out.flush()
    }

    /// Reads what [`EmissionLog::write_lines`] wrote; times are on `clock` from then on.
    ///
    /// # Errors
    /// Those of `input`, and `InvalidData` for anything that is no such log.
    pub fn read_lines(input: impl BufRead, clock: Clock) -> io::Result<Self> {
        let mut lines = input.lines();
        let first = lines.next().ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the emission log is empty"))??;
        let Counts { n_busy_peak, n_connections, cpu_ns } = serde_json::from_str(&first)?;
        let origin = clock.origin_monotonic_nanos();
        let at = |ns: u64| Nanos(ns.saturating_sub(origin));
        let mut emissions = Vec::new();
        for text in lines {
            let line: Line = serde_json::from_str(&text?)?;
            emissions.push(Emission {
                id: line.id,
                arrived: at(line.arrived_ns),
                received: at(line.received_ns),
                writes: line.writes_ns.into_iter().map(at).collect(),
                complete: line.complete,
            });
        }
        Ok(Self { clock, emissions, n_busy_peak, n_connections, cpu: Duration::from_nanos(cpu_ns) })
    }
}

fn line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_back_on_another_clock_at_the_same_times() {
        let before = Clock::start();
        let clock = Clock::start();
        let emission =
            Emission { id: "a-1".into(), arrived: Nanos(5), received: Nanos(9), writes: vec![Nanos(20), Nanos(31)], complete: true };
        let log = EmissionLog { clock, emissions: vec![emission.clone()], n_busy_peak: 2, n_connections: 3, cpu: Duration::from_nanos(77) };
        let mut bytes = Vec::new();
        log.write_lines(&mut bytes).unwrap();
        let back = EmissionLog::read_lines(bytes.as_slice(), before).unwrap();
        assert_eq!((back.n_busy_peak, back.n_connections, back.cpu), (2, 3, Duration::from_nanos(77)));
        let read = &back.emissions[0];
        assert_eq!((read.id.as_str(), read.complete, read.writes.len()), ("a-1", true, 2));
        // The monotonic origin of a clock is measured, to well under this.
        let exact = before.from_other(&clock, emission.writes[1]);
        assert!(read.writes[1].0.abs_diff(exact.0) < 1_000_000, "{:?} {exact:?}", read.writes[1]);
        assert_eq!(read.writes[1].0 - read.arrived.0, 26);
        assert!(EmissionLog::read_lines(b"{}".as_slice(), before).is_err());
        assert!(EmissionLog::read_lines(b"".as_slice(), before).is_err());
    }
}
