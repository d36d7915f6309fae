//! Reads iteration lines: what each engine step held and how long it took.
//!
//! The lines have TensorRT-LLM's form. Tandem's own workers add when a step began; steps of other engines are placed by their number. A
//! phase's file holds worker after worker; a step number that does not grow begins the next one.

use std::ops::Range;

/// One engine step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct EngineStep {
    pub(crate) n_requests: u32,
    pub(crate) n_ctx_tokens: u32,
    pub(crate) n_gen_tokens: u32,
    /// None where the engine does not say how long it took.
    pub(crate) took_ms: Option<f64>,
    /// Share of KV blocks in use, 0 to 1.
    pub(crate) kv_used: Option<f64>,
    /// When it began, seconds on a clock that all workers of a machine share.
    pub(crate) begin_s: Option<f64>,
}

/// The steps of all workers of a phase.
#[derive(Debug, Clone, Default)]
pub struct PhaseLog {
    steps: Vec<EngineStep>,
    /// Index of each worker's first step.
    starts: Vec<usize>,
    last_iter: Option<u64>,
    /// Lines that look like iteration lines and are none.
    pub(crate) n_unreadable: usize,
}

impl PhaseLog {
    /// No steps.
    #[must_use]
    pub fn new() -> Self {
        PhaseLog::default()
    }

    /// Takes a line of the log; what is no iteration line is skipped.
    pub fn push_line(&mut self, line: &str) {
        if !line.contains("num_ctx_tokens") {
            return;
        }
        let Some((iter, step)) = parse_line(line) else {
            self.n_unreadable += 1;
            return;
        };
        if self.last_iter.is_none_or(|last| iter <= last) {
            self.starts.push(self.steps.len());
        }
        self.last_iter = Some(iter);
        self.steps.push(step);
    }

    pub(crate) fn n_steps(&self) -> usize {
        self.steps.len()
    }

    /// First begin and last end of a step, seconds; none unless every line says when its step began.
    pub(crate) fn span_s(&self) -> Option<(f64, f64)> {
        self.steps.iter().try_fold((f64::INFINITY, f64::NEG_INFINITY), |(from, to), step| {
            let begin = step.begin_s?;
            Some((f64::min(from, begin), f64::max(to, begin + step.took_ms.unwrap_or(0.0) / 1e3)))
        })
    }

    /// The steps of each worker.
    pub(crate) fn workers(&self) -> impl ExactSizeIterator<Item = &[EngineStep]> {
        (0..self.starts.len()).map(|i| &self.steps[self.range(i)])
    }

    fn range(&self, worker: usize) -> Range<usize> {
        self.starts[worker]..self.starts.get(worker + 1).copied().unwrap_or(self.steps.len())
    }
}

fn parse_line(line: &str) -> Option<(u64, EngineStep)> {
    let iter = number_after(line, "iter = ").or_else(|| number_after(line, "iter: "))?;
    let count = |key: &str| number_after(line, key).map(to_count);
    let used = number_after(line, "kv_blocks_used = ");
    let free = number_after(line, "kv_blocks_free = ");
    let kv_used = used.zip(free).filter(|(used, free)| used + free > 0.0).map(|(used, free)| used / (used + free));
    let n_ctx_tokens = count("'num_ctx_tokens': ")?;
    let n_gen_tokens = count("'num_generation_tokens': ")?;
    let step = EngineStep {
        n_requests: count("num_scheduled_requests: ").unwrap_or(0),
        n_ctx_tokens,
        n_gen_tokens,
        took_ms: number_after(line, "host_step_time = "),
        kv_used,
        begin_s: number_after(line, "begin = "),
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a step number; nonsense saturates")]
    let iter = iter as u64;
    Some((iter, step))
}

fn to_count(value: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "nonsense saturates")]
    let count = value as u32;
    count
}

/// The number right after `key`, whatever follows it.
fn number_after(line: &str, key: &str) -> Option<f64> {
    let rest = &line[line.find(key)? + key.len()..];
    let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
    rest[..end].parse().ok().filter(|value: &f64| value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(iter: u64) -> String {
        format!(
            "[tandem] iter = {iter}, rank = 0, host_step_time = 3.214ms, num_scheduled_requests: 2, states = {{'num_ctx_requests': 1, \
             'num_ctx_tokens': 128, 'num_generation_tokens': 4}}, kv_blocks_used = 40, kv_blocks_free = 60"
        )
    }

    #[test]
    fn a_step_is_read_from_its_line() {
        let mut log = PhaseLog::new();
        log.push_line(&line(1));
        let step =
            EngineStep { n_requests: 2, n_ctx_tokens: 128, n_gen_tokens: 4, took_ms: Some(3.214), kv_used: Some(0.4), begin_s: None };
        assert_eq!(log.workers().next().unwrap(), [step]);
        assert_eq!(log.span_s(), None);
        let mut timed = PhaseLog::new();
        timed.push_line(&(line(1) + ", begin = 1764000000.25, num_attended = 3"));
        timed.push_line(&(line(2) + ", begin = 1764000001.5, num_attended = 3"));
        let (from, to) = timed.span_s().unwrap();
        assert!((from, (to - from - 1.253_214).abs() < 1e-6) == (1_764_000_000.25, true), "{from} {to}");
    }

    #[test]
    fn a_smaller_step_number_begins_the_next_worker() {
        let mut log = PhaseLog::new();
        [1, 2, 3, 1, 2, 2].iter().for_each(|&iter| log.push_line(&line(iter)));
        assert_eq!(log.workers().map(<[EngineStep]>::len).collect::<Vec<_>>(), [3, 2, 1]);
    }

    #[test]
    fn other_lines_are_skipped_and_broken_ones_counted() {
        let mut log = PhaseLog::new();
        log.push_line("starting");
        log.push_line("iter = x, 'num_ctx_tokens': 3");
        log.push_line("iter = 1, 'num_ctx_tokens': 3");
        assert_eq!((log.n_steps(), log.n_unreadable), (0, 2));
    }

    #[test]
    fn an_engine_that_says_less_is_read_as_far_as_it_goes() {
        let mut log = PhaseLog::new();
        log.push_line("iter = 7, states = {'num_ctx_requests': 0, 'num_ctx_tokens': 0, 'num_generation_tokens': 9}");
        let step = log.workers().next().unwrap()[0];
        assert_eq!((step.n_gen_tokens, step.took_ms, step.kv_used), (9, None, None));
    }
}
