//! What a user sees while load runs: a bar on a terminal, a plain line every few seconds otherwise.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Pause between two plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// How far a load point is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Snapshot {
    /// Requests that ended, warm-up included.
    pub(crate) n_done: u64,
    /// Of these, those that failed.
    pub(crate) n_failed: u64,
    /// Requests in flight.
    pub(crate) n_in_flight: u64,
    /// Output tokens received.
    pub(crate) n_tokens: u64,
}

/// Shows snapshots of one load point.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    label: String,
    n_requests: u64,
    last_plain: Instant,
    rate: Rate,
}

/// Tokens per second over the time since the last snapshot that was shown.
#[derive(Debug)]
struct Rate {
    since: Instant,
    n_tokens: u64,
    tokens_per_s: f64,
}

impl Rate {
    fn update(&mut self, n_tokens: u64) -> f64 {
        let elapsed = self.since.elapsed().as_secs_f64();
        if elapsed >= 0.5 {
            self.tokens_per_s = n_tokens.saturating_sub(self.n_tokens) as f64 / elapsed;
            *self = Rate { since: Instant::now(), n_tokens, tokens_per_s: self.tokens_per_s };
        }
        self.tokens_per_s
    }
}

impl Progress {
    /// Starts to show a point of `n_requests` requests (warm-up included).
    pub(crate) fn start(label: String, n_requests: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len}  {msg}  eta {eta}");
            let bar = ProgressBar::new(n_requests).with_prefix(label.clone());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        let now = Instant::now();
        Progress { bar, label, n_requests, last_plain: now, rate: Rate { since: now, n_tokens: 0, tokens_per_s: 0.0 } }
    }

    /// Shows a snapshot; returns the plain line when one is due, for a log.
    pub(crate) fn show(&mut self, s: Snapshot) -> Option<String> {
        let rate = self.rate.update(s.n_tokens);
        let failed = if s.n_failed > 0 { format!(", {} FAILED", s.n_failed) } else { String::new() };
        let message = format!("{rate:.0} tokens/s, {} in flight{failed}", s.n_in_flight);
        if let Some(bar) = &self.bar {
            bar.set_position(s.n_done);
            bar.set_message(message.clone());
        }
        if self.last_plain.elapsed() < PLAIN_INTERVAL {
            return None;
        }
        self.last_plain = Instant::now();
        let line = format!("{}: {}/{} requests, {message}", self.label, s.n_done, self.n_requests);
        if self.bar.is_none() {
            say(&line);
        }
        Some(line)
    }

    /// Removes the bar.
    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// One line for the user on standard error.
pub(crate) fn say(line: &str) {
    // Nothing better can be done when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}
