//! One line a step ([`IterationLine`]) into the log of this process, a few at a time.

use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tandem_sched::iteration::IterationLine;
use tandem_sched::{SchedStats, Step};

/// Lines reach the file at the latest this long after their step, or when the worker falls idle.
const FLUSH_AFTER: Duration = Duration::from_millis(100);

/// Bytes of lines after which they are written anyway.
const FLUSH_BYTES: usize = 16 << 10;

/// Where the lines go. Whole lines are written at once, so that other writers of the same file do not tear them.
pub(crate) struct IterationLog {
    writer: Option<Box<dyn Write + Send>>,
    lines: Vec<u8>,
    flushed: Instant,
    n_steps: u64,
    /// One moment on both clocks: steps are timed by the monotonic one and told in wall time.
    origin: (Instant, Duration),
}

impl IterationLog {
    pub(crate) fn new(writer: Option<Box<dyn Write + Send>>) -> Self {
        let now = Instant::now();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { writer, lines: Vec::new(), flushed: now, n_steps: 0, origin: (now, wall) }
    }

    /// Steps so far.
    pub(crate) fn n_steps(&self) -> u64 {
        self.n_steps
    }

    /// Counts a step that ran from `begin` until now and writes its line; `stats` are those while it ran.
    pub(crate) fn step(&mut self, step: &Step, stats: &SchedStats, begin: Instant) {
        self.n_steps += 1;
        if self.writer.is_none() {
            return;
        }
        let wall = self.origin.1 + begin.saturating_duration_since(self.origin.0);
        let line = IterationLine::new(self.n_steps, 0, step, stats, wall, begin.elapsed());
        writeln!(self.lines, "{line}").expect("a vector takes every byte");
        if self.lines.len() >= FLUSH_BYTES || self.flushed.elapsed() >= FLUSH_AFTER {
            self.flush();
        }
    }

    /// A log that cannot be written is given up, the worker goes on.
    pub(crate) fn flush(&mut self) {
        self.flushed = Instant::now();
        if let Some(writer) = &mut self.writer
            && !self.lines.is_empty()
            && let Err(error) = writer.write_all(&self.lines).and_then(|()| writer.flush())
        {
            tracing::warn!(%error, "cannot write the iteration log");
            self.writer = None;
        }
        self.lines.clear();
    }
}

impl Drop for IterationLog {
    fn drop(&mut self) {
        self.flush();
    }
}
