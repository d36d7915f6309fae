//! One line a step, in the words that the recipe's scripts look for.
//!
//! The dictionary of states has the form of TensorRT-LLM's `print_iter_log`, so that
//! `grep "'num_generation_tokens': 0"` finds pure prefill steps and
//! `grep "'num_ctx_requests': 0, 'num_ctx_tokens': 0"` pure decode steps.

use std::io::{self, Write};
use std::time::{Duration, Instant};

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
}

impl IterationLog {
    pub(crate) fn new(writer: Option<Box<dyn Write + Send>>) -> Self {
        Self { writer, lines: Vec::new(), flushed: Instant::now(), n_steps: 0 }
    }

    /// Steps so far.
    pub(crate) fn n_steps(&self) -> u64 {
        self.n_steps
    }

    /// Counts a step and writes its line; `stats` are those while it ran.
    pub(crate) fn step(&mut self, step: &Step, stats: &SchedStats, took: Duration) {
        self.n_steps += 1;
        if self.writer.is_none() {
            return;
        }
        write_line(&mut self.lines, self.n_steps, step, stats, took).expect("a vector takes every byte");
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

fn write_line(w: &mut impl Write, n_steps: u64, step: &Step, stats: &SchedStats, took: Duration) -> io::Result<()> {
    writeln!(
        w,
        "[tandem] iter = {n_steps}, rank = 0, host_step_time = {:.3}ms, num_scheduled_requests: {}, states = \
         {{'num_ctx_requests': {}, 'num_ctx_tokens': {}, 'num_generation_tokens': {}}}, kv_blocks_used = {}, kv_blocks_free = {}",
        took.as_secs_f64() * 1e3,
        step.entries.len(),
        step.n_ctx_requests,
        step.n_ctx_tokens,
        step.n_gen_tokens,
        stats.blocks_used,
        stats.blocks_total - stats.blocks_used,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_keys_that_scripts_look_for() {
        let step = Step { entries: Vec::new(), n_ctx_requests: 1, n_ctx_tokens: 128, n_gen_tokens: 4 };
        let stats = SchedStats { blocks_used: 40, blocks_total: 100, ..SchedStats::default() };
        let mut line = Vec::new();
        write_line(&mut line, 12, &step, &stats, Duration::from_micros(3214)).unwrap();
        assert_eq!(
            String::from_utf8(line).unwrap(),
            "[tandem] iter = 12, rank = 0, host_step_time = 3.214ms, num_scheduled_requests: 0, states = {'num_ctx_requests': 1, \
             'num_ctx_tokens': 128, 'num_generation_tokens': 4}, kv_blocks_used = 40, kv_blocks_free = 60\n"
        );
    }
}
