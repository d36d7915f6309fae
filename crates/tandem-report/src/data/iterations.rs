//! Reads iteration lines: what each engine step held and how long it took.
//!
//! The lines have TensorRT-LLM's form. Tandem's own workers add when a step began; steps of other engines are placed by their number. A
//! phase's file holds worker after worker, of each the ranks in turn; a step number that does not grow on its rank begins the next worker.

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

/// The steps of all workers of a phase, by worker and rank.
#[derive(Debug, Clone, Default)]
pub struct PhaseLog {
    ranks: Vec<RankSteps>,
    n_workers: usize,
    /// Where the ranks of the worker begin whose lines are being read.
    current: usize,
    /// Lines that look like iteration lines and are none.
    pub(crate) n_unreadable: usize,
}

/// The steps of one rank of a worker.
#[derive(Debug, Clone)]
pub(crate) struct RankSteps {
    /// From 1, in the order of the log.
    pub(crate) worker: usize,
    pub(crate) rank: u64,
    pub(crate) steps: Vec<EngineStep>,
    last_iter: u64,
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
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank's number; nonsense saturates")]
        let rank = number_after(line, " rank = ").unwrap_or(0.0) as u64;
        let known = self.ranks[self.current..].iter_mut().find(|r| r.rank == rank);
        if let Some(known) = known.filter(|r| iter > r.last_iter) {
            known.last_iter = iter;
            known.steps.push(step);
            return;
        }
        if self.n_workers == 0 || self.ranks[self.current..].iter().any(|r| r.rank == rank) {
            self.n_workers += 1;
            self.current = self.ranks.len();
        }
        self.ranks.push(RankSteps { worker: self.n_workers, rank, steps: vec![step], last_iter: iter });
    }

    pub(crate) fn n_steps(&self) -> usize {
        self.ranks.iter().map(|r| r.steps.len()).sum()
    }

    pub(crate) fn n_workers(&self) -> usize {
        self.n_workers
    }

    /// First begin and last end of a step, seconds; none unless every line says when its step began.
    pub(crate) fn span_s(&self) -> Option<(f64, f64)> {
        self.ranks.iter().flat_map(|r| &r.steps).try_fold((f64::INFINITY, f64::NEG_INFINITY), |(from, to), step| {
            let begin = step.begin_s?;
            Some((f64::min(from, begin), f64::max(to, begin + step.took_ms.unwrap_or(0.0) / 1e3)))
        })
    }

    /// The steps of each rank of each worker.
    pub(crate) fn ranks(&self) -> &[RankSteps] {
        &self.ranks
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
        assert_eq!(log.ranks()[0].steps, [step]);
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
        assert_eq!(log.ranks().iter().map(|r| (r.worker, r.steps.len())).collect::<Vec<_>>(), [(1, 3), (2, 2), (3, 1)]);
    }

    #[test]
    fn ranks_of_a_worker_are_told_apart() {
        let mut log = PhaseLog::new();
        for worker in [2, 3] {
            for (iter, rank) in (1..=worker).flat_map(|iter| [0, 1].map(|rank| (iter, rank))) {
                log.push_line(&line(iter).replace("rank = 0", &format!("rank = {rank}")));
            }
        }
        let found: Vec<_> = log.ranks().iter().map(|r| (r.worker, r.rank, r.steps.len())).collect();
        assert_eq!(found, [(1, 0, 2), (1, 1, 2), (2, 0, 3), (2, 1, 3)]);
        assert_eq!((log.n_workers(), log.n_steps()), (2, 10));
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
        let step = log.ranks()[0].steps[0];
        assert_eq!((step.n_gen_tokens, step.took_ms, step.kv_used), (9, None, None));
    }
}
