//! The line that a worker writes for each step, and reading it back.
//!
//! The dictionary of states has the form of TensorRT-LLM's `print_iter_log`, so that
//! `grep "'num_generation_tokens': 0"` finds pure prefill steps and
//! `grep "'num_ctx_requests': 0, 'num_ctx_tokens': 0"` pure decode steps. What follows it is ours. The worker and the
//! simulator write the same lines; step costs are fitted to them.

use std::fmt;
use std::time::Duration;

use crate::step::{SchedStats, Step};

/// What one line says about one step of one rank.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct IterationLine {
    /// Number of the step, from 1.
    pub iter: u64,
    /// Attention-DP rank.
    pub rank: u32,
    /// How long the step took.
    pub took: Duration,
    /// Sequences in it.
    pub n_requests: u64,
    /// Chunks of prompts in it.
    pub n_ctx_requests: u64,
    /// Their tokens.
    pub n_ctx_tokens: u64,
    /// Decoding sequences.
    pub n_gen_tokens: u64,
    /// KV blocks held.
    pub blocks_used: u64,
    /// KV blocks free.
    pub blocks_free: u64,
    /// When it began, since the Unix epoch (in a simulation: since the run's begin).
    pub begin: Duration,
    /// Pairs of a query token and a token at or before it, see [`Step::n_attended`].
    pub n_attended: u64,
}

impl IterationLine {
    /// The line of `step` with the occupancy `stats` while it ran.
    #[must_use]
    pub fn new(iter: u64, rank: u32, step: &Step, stats: &SchedStats, begin: Duration, took: Duration) -> Self {
        IterationLine {
            iter,
            rank,
            took,
            n_requests: step.entries.len() as u64,
            n_ctx_requests: u64::from(step.n_ctx_requests),
            n_ctx_tokens: u64::from(step.n_ctx_tokens),
            n_gen_tokens: u64::from(step.n_gen_tokens),
            blocks_used: u64::from(stats.blocks_used),
            blocks_free: u64::from(stats.blocks_total - stats.blocks_used),
            begin,
            n_attended: step.n_attended(),
        }
    }

    /// When the step ended.
    #[must_use]
    pub fn end(&self) -> Duration {
        self.begin + self.took
    }

    /// Reads a line; none when it is not one of ours, or lacks the time of the step's begin.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let number = |key: &str| -> Option<f64> {
            let rest = line.split_once(key)?.1;
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            rest[..end].parse().ok()
        };
        let count = |key: &str| -> Option<u64> {
            let rest = line.split_once(key)?.1;
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            rest[..end].parse().ok()
        };
        Some(IterationLine {
            iter: count("iter = ")?,
            rank: u32::try_from(count("rank = ")?).ok()?,
            took: Duration::try_from_secs_f64(number("host_step_time = ")? / 1e3).ok()?,
            n_requests: count("num_scheduled_requests: ")?,
            n_ctx_requests: count("'num_ctx_requests': ")?,
            n_ctx_tokens: count("'num_ctx_tokens': ")?,
            n_gen_tokens: count("'num_generation_tokens': ")?,
            blocks_used: count("kv_blocks_used = ")?,
            blocks_free: count("kv_blocks_free = ")?,
            begin: Duration::try_from_secs_f64(number("begin = ")?).ok()?,
            n_attended: count("num_attended = ")?,
        })
    }
}

impl fmt::Display for IterationLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "[tandem] iter = {}, rank = {}, host_step_time = {:.3}ms, num_scheduled_requests: {}, states = \
             {{'num_ctx_requests': {}, 'num_ctx_tokens': {}, 'num_generation_tokens': {}}}, kv_blocks_used = {}, kv_blocks_free = {}, \
             begin = {}.{:06}, num_attended = {}",
            self.iter,
            self.rank,
            self.took.as_secs_f64() * 1e3,
            self.n_requests,
            self.n_ctx_requests,
            self.n_ctx_tokens,
            self.n_gen_tokens,
            self.blocks_used,
            self.blocks_free,
            self.begin.as_secs(),
            self.begin.subsec_micros(),
            self.n_attended,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> IterationLine {
        let step = Step { entries: Vec::new(), n_ctx_requests: 1, n_ctx_tokens: 128, n_gen_tokens: 4 };
        let stats = SchedStats { blocks_used: 40, blocks_total: 100, ..SchedStats::default() };
        let begin = Duration::from_micros(1_764_000_000_123_456);
        IterationLine { n_attended: 9000, ..IterationLine::new(12, 0, &step, &stats, begin, Duration::from_micros(3214)) }
    }

    #[test]
    fn a_line_has_the_keys_that_scripts_look_for() {
        assert_eq!(
            line().to_string(),
            "[tandem] iter = 12, rank = 0, host_step_time = 3.214ms, num_scheduled_requests: 0, states = {'num_ctx_requests': 1, \
             'num_ctx_tokens': 128, 'num_generation_tokens': 4}, kv_blocks_used = 40, kv_blocks_free = 60, begin = 1764000000.123456, \
             num_attended = 9000"
        );
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let read = IterationLine::parse(&line().to_string()).unwrap();
        assert!(read.begin.abs_diff(line().begin) < Duration::from_micros(2), "{read:?}");
        assert_eq!(IterationLine { begin: line().begin, took: line().took, ..read }, line());
        assert_eq!(IterationLine::parse("ready"), None);
        assert_eq!(IterationLine::parse("iter = 1, states = {'num_ctx_tokens': 3}"), None);
    }
}
