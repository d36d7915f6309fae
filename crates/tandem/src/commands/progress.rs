//! What a user sees while load runs: a bar on a terminal, a plain line every few seconds otherwise.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tandem_load::Snapshot;

/// Pause between two plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

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
            let style = ProgressStyle::with_template("{prefix} {bar:30} {percent}%  {elapsed}, eta {eta}\n  {msg}");
            let bar = ProgressBar::new(n_requests).with_prefix(label.clone());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        let now = Instant::now();
        Progress { bar, label, n_requests, last_plain: now, rate: Rate { since: now, n_tokens: 0, tokens_per_s: 0.0 } }
    }

    /// Shows a snapshot and the power of the GPUs; returns the plain line when one is due, for a log.
    pub(crate) fn show(&mut self, s: &Snapshot, gpu_power_w: Option<f64>) -> Option<String> {
        let rate = self.rate.update(s.n_tokens);
        let message = figures(s, rate, gpu_power_w);
        if let Some(bar) = &self.bar {
            match s.of_duration {
                Some((passed, duration)) => {
                    bar.set_length(duration.0 / 1_000_000);
                    bar.set_position(passed.0 / 1_000_000);
                }
                None => bar.set_position(s.n_done + s.n_failed),
            }
            bar.set_message(message.clone());
        }
        if self.last_plain.elapsed() < PLAIN_INTERVAL {
            return None;
        }
        self.last_plain = Instant::now();
        let n_done = s.n_done + s.n_failed;
        let line = match s.of_duration {
            Some((passed, duration)) => {
                let (passed, duration) = (passed.as_secs_f64(), duration.as_secs_f64());
                format!("{}: {n_done} requests, {passed:.0} of {duration:.0} s, {message}", self.label)
            }
            None => format!("{}: {n_done}/{} requests, {message}", self.label, self.n_requests),
        };
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

/// What is known so far: throughput, latencies (p50 and p99 of measured requests), GPU power, failures.
fn figures(s: &Snapshot, tokens_per_s: f64, gpu_power_w: Option<f64>) -> String {
    let mut text = format!("{tokens_per_s:.0} tokens/s, {} in flight", s.n_in_flight());
    for (name, latency) in [("TTFT", s.ttft), ("TPOT", s.tpot)] {
        if let Some((p50, p99)) = latency {
            text.push_str(&format!(", {name} p50 {:.1} p99 {:.1} ms", p50.as_secs_f64() * 1e3, p99.as_secs_f64() * 1e3));
        }
    }
    if let Some(watts) = gpu_power_w {
        text.push_str(&format!(", GPUs {watts:.0} W"));
    }
    if s.n_failed > 0 {
        text.push_str(&format!(", {} FAILED", s.n_failed));
    }
    text
}

/// One line for the user on standard error.
pub(crate) fn say(line: &str) {
    // Nothing better can be done when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use tandem_plan::Nanos;

    use super::*;

    #[test]
    fn a_line_says_what_is_known_and_no_more() {
        let ms = Nanos::from_millis;
        let mut s = Snapshot {
            elapsed: ms(1),
            n_total: 9,
            n_sent: 5,
            n_done: 2,
            n_failed: 0,
            n_chunks: 8,
            n_tokens: 8,
            ttft: None,
            tpot: None,
            of_duration: None,
        };
        assert_eq!(figures(&s, 80.0, None), "80 tokens/s, 3 in flight");
        (s.ttft, s.n_failed) = (Some((ms(50), ms(80))), 1);
        let expected = "80 tokens/s, 2 in flight, TTFT p50 50.0 p99 80.0 ms, GPUs 1234 W, 1 FAILED";
        assert_eq!(figures(&s, 80.0, Some(1234.4)), expected);
    }
}
