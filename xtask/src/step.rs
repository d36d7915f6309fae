//! Runs one tool as one step: its output passes through, the lines that matter are kept.

use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing found.
    Ok,
    /// Something found; the text says what, in a few words.
    Failed(String),
    /// A tool is missing; the text says which and how to get it.
    NotRun(String),
}

/// One finished step.
#[derive(Debug)]
pub(crate) struct Step {
    /// Name in the summary.
    pub(crate) name: &'static str,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// Wall time.
    pub(crate) duration: Duration,
    /// One line about what it covered, e.g. the counts of a test run.
    pub(crate) note: String,
}

/// Runs `body` as the step `name`, between a headline and a result line.
pub(crate) fn step(name: &'static str, what: &str, body: impl FnOnce() -> Result<(Outcome, String)>) -> Step {
    println!("\n=== {name}: {what}");
    let start = Instant::now();
    let (outcome, note) = body().unwrap_or_else(|error| (Outcome::Failed(format!("{error:#}")), String::new()));
    let step = Step { name, outcome, duration: start.elapsed(), note };
    println!("=== {}", line(&step));
    step
}

/// `name  result  seconds  note`, padded so that the lines of all steps align.
pub(crate) fn line(step: &Step) -> String {
    let (result, why) = match &step.outcome {
        Outcome::Ok => ("ok", step.note.clone()),
        Outcome::Failed(why) if step.note.is_empty() => ("FAILED", why.clone()),
        Outcome::Failed(why) => ("FAILED", format!("{}; {why}", step.note)),
        Outcome::NotRun(why) => ("not run", why.clone()),
    };
    format!("{:<8} {result:<8} {:>6.1} s  {why}", step.name, step.duration.as_secs_f64()).trim_end().to_owned()
}

/// A finished tool.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Whether it exited with 0.
    pub(crate) success: bool,
    /// Lines of both streams that `keep` asked for.
    pub(crate) kept: Vec<String>,
}

/// Runs `program` in `root`; its output appears as it comes, and lines for which `keep` is true are returned as well.
pub(crate) fn tool(root: &Path, program: &str, args: &[&str], env: &[(&str, &str)], keep: fn(&str) -> bool) -> Result<Finished> {
    let name = Path::new(program).file_name().map_or_else(|| program.into(), |n| n.to_string_lossy());
    println!("$ {name} {}", args.join(" "));
    std::io::stdout().flush().context("cannot write to the terminal")?;
    let colour = if std::io::stdout().is_terminal() { "always" } else { "never" };
    let mut child = Command::new(program)
        .args(args)
        .current_dir(root)
        .env("CARGO_TERM_COLOR", colour)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let kept = Arc::new(Mutex::new(Vec::new()));
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|s| Box::new(s) as Box<dyn Read + Send>),
        child.stderr.take().map(|s| Box::new(s) as Box<dyn Read + Send>),
    ];
    let readers: Vec<_> = streams
        .into_iter()
        .flatten()
        .map(|stream| {
            let kept = Arc::clone(&kept);
            std::thread::spawn(move || forward(stream, keep, &kept))
        })
        .collect();
    let status = child.wait().with_context(|| format!("cannot wait for {program}"))?;
    for reader in readers {
        reader.join().expect("a forwarding thread does not panic");
    }
    let kept = std::mem::take(&mut *kept.lock().expect("a forwarding thread does not panic"));
    Ok(Finished { success: status.success(), kept })
}

fn forward(stream: Box<dyn Read + Send>, keep: fn(&str) -> bool, kept: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream);
    let mut bytes = Vec::new();
    // A stream that cannot be read any more ends the copy; the tool's exit status still decides.
    while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&bytes);
        print!("{text}");
        let plain = plain(text.trim_end());
        if keep(&plain) {
            kept.lock().expect("a forwarding thread does not panic").push(plain);
        }
        bytes.clear();
    }
}

/// `text` without terminal colours.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            chars.by_ref().find(char::is_ascii_alphabetic);
        } else {
            out.push(c);
        }
    }
    out
}

/// Whether `program args` exits with 0, silently.
pub(crate) fn available(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_removed() {
        assert_eq!(plain("\u{1b}[1;32mSummary\u{1b}[0m [ 1.0s] 3 passed"), "Summary [ 1.0s] 3 passed");
    }

    #[test]
    fn a_failing_tool_is_not_a_success_and_its_lines_are_kept() {
        let root = std::env::temp_dir();
        let finished =
            tool(&root, "sh", &["-c", "echo keep one; echo drop; echo keep two >&2; exit 3"], &[], |l| l.starts_with("keep")).unwrap();
        assert!(!finished.success);
        let mut kept = finished.kept;
        kept.sort();
        assert_eq!(kept, ["keep one", "keep two"]);
    }

    #[test]
    fn a_step_that_errs_has_failed_with_its_chain() {
        let step = step("x", "y", || Err(anyhow::anyhow!("inner").context("outer")));
        assert_eq!(step.outcome, Outcome::Failed("outer: inner".into()));
        assert!(line(&step).starts_with("x        FAILED"));
    }
}
