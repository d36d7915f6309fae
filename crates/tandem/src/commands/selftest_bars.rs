//! `tandem load selftest --bars`: every figure that the load generator is held to, each beside its target.
//!
//! What concerns the whole program (memory, start-up, the way from the last response to the files) is measured on `tandem load`
//! itself, run as a user runs it; the paced server's log has the times of its requests.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tandem_load::clock::Clock;
use tandem_load::paced::EmissionLog;
use tandem_load::selftest::{Bar, Case, Figures};
use tandem_plan::Nanos;

use super::progress::say;
use super::selftest::{CEILING_CONCURRENCY, CEILING_ROUNDS, Server, bar_line, measure};
use crate::exit::{Exit, Failure, OrExit};
use crate::selftest_args::SelftestArgs;

/// The concurrency of the bars.
const CONCURRENCY: u32 = 1024;
/// Prompts of the start-up bar, and their length in tokens.
const START: (u32, u32) = (2048, 8150);
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Measures all of them and prints the table; exit code 8 when one is missed.
pub(crate) fn bars(args: &SelftestArgs) -> Result<(), Failure> {
    let ms = Nanos::from_millis;
    let base = Case {
        concurrency: CONCURRENCY,
        n_rounds: 6,
        isl: 128,
        osl: 128,
        tokens_per_chunk: 1,
        ttft: ms(50),
        itl: ms(10),
        kernel_stamps: true,
        receive_threads: args.receive_threads,
    };
    let mut rows: Vec<(&'static str, Vec<Bar>)> = Vec::new();
    say("C 1024, TTFT 50 ms, ITL 10 ms, stamps by the kernel");
    let by_kernel = measure(base, args.server_threads)?;
    rows.push(("C 1024, ISL 128, OSL 128, TTFT 50 ms, ITL 10 ms, kernel stamps", decisive(&by_kernel)));
    say("the same, stamps by the clock");
    let by_clock = measure(Case { kernel_stamps: false, ..base }, args.server_threads)?;
    let of_clock = decisive(&by_clock).into_iter().filter(|bar| bar.name.starts_with("chunk stamp error")).collect();
    rows.push(("the same, stamps by the clock", of_clock));
    say("requests/s");
    let flood = Case {
        concurrency: CEILING_CONCURRENCY,
        n_rounds: 2 * CEILING_ROUNDS,
        isl: 16,
        osl: 1,
        ttft: Nanos::ZERO,
        itl: Nanos::ZERO,
        ..base
    };
    let flood = measure(flood, args.server_threads)?;
    rows.push((
        "C 64, ISL 16, OSL 1, a server that answers at once",
        vec![bar("requests/s", "", flood.requests_per_second, 40_000.0, true)],
    ));
    say("ISL 8150");
    let long = Case { n_rounds: 2, isl: 8150, ttft: ms(1000), itl: ms(25), ..base };
    let long = measure(long, args.server_threads)?;
    let off = bar("reported ITL, off 25.00 ms by", "ms", (long.itl_ms - 25.0).abs(), 0.02, false);
    rows.push(("C 1024, ISL 8150, OSL 128, TTFT 1000 ms, ITL 25 ms", vec![off]));
    say("tandem load, 6,144 requests of 128 tokens");
    let whole = program(&base, 6 * CONCURRENCY, None)?;
    rows.push(("tandem load, C 1024, 6,144 requests of 128 tokens", vec![bar("peak memory", "MB", whole.peak_mb, 64.0, false)]));
    if let Some(tokenizer) = &args.tokenizer {
        // Once before, so that the table is in the cache as it is for every run but a user's first.
        say("tandem load, 2,048 prompts of 8,150 tokens, twice");
        let case = Case { concurrency: START.0, isl: START.1, ..base };
        let first = program(&case, START.0, Some(tokenizer))?;
        let again = program(&case, START.0, Some(tokenizer))?;
        let start = bar("start to first request", "ms", again.start_ms, 1000.0, false);
        let end = bar("last response to artifacts", "ms", again.end_ms, 500.0, false);
        let uncached = Bar { decides: false, ..bar("the same for the run before it", "ms", first.start_ms, 1000.0, false) };
        rows.push(("tandem load, C 2048, 2,048 x 8,150 tokens, OSL 128", vec![start, end, uncached]));
    }
    let mut text = String::new();
    for (title, bars) in &rows {
        text += &format!("{title}\n");
        bars.iter().for_each(|bar| text += &format!("{}\n", bar_line(bar)));
    }
    if args.tokenizer.is_none() {
        text += "start-up and the way to the artifacts: not measured, name a tokenizer with --tokenizer\n";
    }
    io::stdout().write_all(text.as_bytes()).or_exit(Exit::Bug)?;
    let missed: Vec<_> = rows.iter().flat_map(|(_, bars)| bars).filter(|bar| bar.decides && !bar.holds()).map(|bar| bar.name).collect();
    if missed.is_empty() { Ok(()) } else { Err(Failure::message(Exit::CheckFailed, format!("missed: {}", missed.join("; ")))) }
}

fn bar(name: &'static str, unit: &'static str, value: f64, limit: f64, at_least: bool) -> Bar {
    Bar { name, unit, value, limit, at_least, decides: true }
}

/// The bars of a paced load; here what it costs decides too.
fn decisive(figures: &Figures) -> Vec<Bar> {
    figures.bars().into_iter().map(|bar| Bar { decides: true, ..bar }).collect()
}

/// What one run of the program showed.
struct Program {
    /// From its start to its first request's arrival at the server.
    start_ms: f64,
    /// From the server's last write to the program's end.
    end_ms: f64,
    /// Largest resident memory.
    peak_mb: f64,
}

/// Runs `tandem load` as a process against a paced server.
fn program(case: &Case, n_requests: u32, tokenizer: Option<&Path>) -> Result<Program, Failure> {
    let server = Server::start(case, 1)?;
    let out = std::env::temp_dir().join(format!("tandem-selftest-{}-{n_requests}", std::process::id()));
    // What an earlier selftest with this number has left behind.
    let _ = std::fs::remove_dir_all(&out);
    let clock = Clock::start();
    let mut command = Command::new(std::env::current_exe().or_exit(Exit::Bug)?);
    command.args(["load", "--url", &server.url, "--model", "paced", "--warmup", "0", "--out"]).arg(&out);
    command.args(["--concurrency", &case.concurrency.to_string(), "--requests", &n_requests.to_string()]);
    command.args(["--isl", &case.isl.to_string(), "--osl", &case.osl.to_string()]);
    if let Some(dir) = tokenizer {
        command.arg("--tokenizer").arg(dir);
    }
    let started = clock.now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().or_exit(Exit::NotReady)?;
    let mut peak_mb = 0.0_f64;
    let status = loop {
        if let Some(status) = child.try_wait().or_exit(Exit::Bug)? {
            break status;
        }
        peak_mb = peak_mb.max(peak_of(child.id()).unwrap_or(0.0));
        std::thread::sleep(LOOK);
    };
    let ended = clock.now();
    let _ = std::fs::remove_dir_all(&out);
    let log = server.stop(clock)?;
    if !status.success() || log.emissions.is_empty() {
        return Err(Failure::message(Exit::Incomplete, format!("tandem load failed: {status}")));
    }
    let at = |time: Nanos, log: &EmissionLog| clock.from_other(&log.clock, time);
    let first = log.emissions.iter().map(|e| at(e.arrived, &log)).min().unwrap_or(started);
    let last = log.emissions.iter().filter_map(|e| e.writes.last()).map(|w| at(*w, &log)).max().unwrap_or(ended);
    let ms = |from: Nanos, to: Nanos| to.saturating_sub(from).as_millis_f64();
    Ok(Program { start_ms: ms(started, first), end_ms: ms(last, ended), peak_mb })
}

/// Largest resident memory of a process so far, MB.
fn peak_of(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kb| kb * 1024.0 / 1e6)
}
