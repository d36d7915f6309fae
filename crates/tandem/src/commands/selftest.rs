//! `tandem load selftest` and `tandem load paced-server`: what this host can measure, before a server's time is spent.
//!
//! The selftest starts this same binary as the paced server, drives it once for each case, and reads its log from a
//! pipe. The figures and their bars are `tandem_load::selftest`'s.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tandem_load::StopSignal;
use tandem_load::clock::Clock;
use tandem_load::paced::{EmissionLog, PacedConfig, PacedServer, Spread};
use tandem_load::selftest::{Bar, Case, Figures};
use tandem_plan::Nanos;

use super::measure::host_name;
use super::progress::say;
use super::selftest_bars::bars;
use crate::exit::{Exit, Failure, OrExit};
use crate::selftest_args::{PacedServerArgs, SelftestArgs};

/// Requests of one slot when the server answers at once.
pub(super) const CEILING_ROUNDS: u32 = 1500;
/// Slots of the ceilings.
pub(super) const CEILING_CONCURRENCY: u32 = 64;

pub(crate) fn paced_server(args: &PacedServerArgs) -> Result<(), Failure> {
    let itl = Nanos(millis("--itl-ms", args.itl_ms)?.0 * u64::from(args.tokens_per_chunk));
    let config = PacedConfig {
        ttft: millis("--ttft-ms", args.ttft_ms)?,
        itl,
        tokens_per_chunk: args.tokens_per_chunk,
        n_prompt: args.prompt_tokens,
    };
    // Made first: a log that cannot be written is told before hours of serving.
    let file = args.log_file.as_ref().map(|path| File::create(path).with_context(|| path.display().to_string()));
    let file = file.transpose().or_exit(Exit::Artifact)?;
    let server = PacedServer::start_at(config, args.listen, args.threads as usize);
    let server = server.with_context(|| format!("cannot serve on {}", args.listen)).or_exit(Exit::NotReady)?;
    let mut out = io::stdout();
    writeln!(out, "{}", server.url()).and_then(|()| out.flush()).or_exit(Exit::Bug)?;
    // Whoever started this ends it by closing the pipe, and also by dying.
    io::copy(&mut io::stdin(), &mut io::sink()).or_exit(Exit::Bug)?;
    let log = server.stop().or_exit(Exit::Bug)?;
    let written = match file {
        Some(file) => log.write_lines(BufWriter::new(file)),
        None => log.write_lines(BufWriter::new(out.lock())),
    };
    written.or_exit(Exit::Artifact)
}

fn millis(flag: &'static str, ms: f64) -> Result<Nanos, Failure> {
    let time = Duration::try_from_secs_f64(ms / 1e3).ok().filter(|t| *t <= Duration::from_secs(3600));
    time.map(Nanos::from).ok_or_else(|| Failure::message(Exit::Usage, format!("{flag} {ms}: must be between 0 and an hour")))
}

/// The paced server as a process, which ends with its standard input.
pub(super) struct Server {
    child: Child,
    pub(super) url: String,
    output: BufReader<std::process::ChildStdout>,
}

impl Server {
    pub(super) fn start(case: &Case, n_threads: u32) -> Result<Self, Failure> {
        let config = case.server();
        let ms = |t: Nanos| (t.as_secs_f64() * 1e3).to_string();
        let program = std::env::current_exe().or_exit(Exit::Bug)?;
        let mut child = Command::new(program)
            .args(["load", "paced-server", "--ttft-ms", &ms(case.ttft), "--itl-ms", &ms(case.itl)])
            .args(["--tokens-per-chunk", &config.tokens_per_chunk.to_string(), "--prompt-tokens", &config.n_prompt.to_string()])
            .args(["--threads", &n_threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the paced server")
            .or_exit(Exit::NotReady)?;
        let mut output = BufReader::new(child.stdout.take().expect("the output is piped"));
        let mut url = String::new();
        output.read_line(&mut url).or_exit(Exit::NotReady)?;
        if url.is_empty() {
            let status = child.wait().or_exit(Exit::NotReady)?;
            return Err(Failure::message(Exit::NotReady, format!("the paced server ended before it served: {status}")));
        }
        Ok(Self { child, url: url.trim().to_owned(), output })
    }

    /// Ends it and reads its log.
    pub(super) fn stop(mut self, clock: Clock) -> Result<EmissionLog, Failure> {
        drop(self.child.stdin.take());
        let mut text = Vec::new();
        self.output.read_to_end(&mut text).or_exit(Exit::Bug)?;
        let status = self.child.wait().or_exit(Exit::Bug)?;
        if !status.success() {
            return Err(Failure::message(Exit::Bug, format!("the paced server failed: {status}")));
        }
        EmissionLog::read_lines(text.as_slice(), clock).context("the paced server's log").or_exit(Exit::Bug)
    }
}

pub(crate) fn selftest(args: &SelftestArgs) -> Result<(), Failure> {
    if args.bars {
        return bars(args);
    }
    let (ttft, itl) = (millis("--ttft-ms", args.ttft_ms)?, millis("--itl-ms", args.itl_ms)?);
    let base = Case {
        concurrency: 1,
        n_rounds: args.rounds,
        isl: args.isl,
        osl: args.osl,
        tokens_per_chunk: args.tokens_per_chunk,
        ttft,
        itl,
        kernel_stamps: true,
        receive_threads: args.receive_threads,
    };
    let mut points = Vec::new();
    for &concurrency in &args.concurrency {
        for kernel_stamps in [true, false] {
            let case = Case { concurrency, kernel_stamps, ..base };
            let seconds = case.answer_time().as_secs_f64() * f64::from(case.n_rounds);
            say(&format!("concurrency {concurrency}, stamps by {}: {seconds:.0} s", if kernel_stamps { "kernel" } else { "clock" }));
            points.push(measure(case, args.server_threads)?);
        }
    }
    let mut ceilings = Vec::new();
    if !args.no_ceiling {
        let flood = Case {
            concurrency: CEILING_CONCURRENCY,
            n_rounds: CEILING_ROUNDS,
            ttft: Nanos::ZERO,
            itl: Nanos::ZERO,
            isl: 16,
            osl: 1,
            tokens_per_chunk: 1,
            ..base
        };
        say("ceilings");
        ceilings.push(("requests/s at OSL 1", measure(flood, args.server_threads)?));
        ceilings.push(("chunks/s", measure(Case { osl: 128, n_rounds: 100, ..flood }, args.server_threads)?));
    }
    let failed = verdict(&points);
    print(&points, &ceilings, &failed)?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&document(&points, &ceilings, &failed)).or_exit(Exit::Bug)?;
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string()).or_exit(Exit::Artifact)?;
    }
    if failed.is_empty() {
        return Ok(());
    }
    // Told apart, as the remedy is another.
    let late = points.iter().find(|f| f.server_late.p99 > f.case.server().itl.0 as f64);
    let failed = match late {
        Some(f) => [failed.as_slice(), &[format!("the paced server itself wrote late at concurrency {}", f.case.concurrency)]].concat(),
        None => failed,
    };
    let failure = Failure::message(Exit::CheckFailed, format!("this host cannot measure what was asked: {}", failed.join("; ")));
    Err(failure.with_hint(
        "lower the concurrency, free the machine, raise --receive-threads or --server-threads, or split the load over several hosts",
    ))
}

pub(super) fn measure(case: Case, server_threads: u32) -> Result<Figures, Failure> {
    let server = Server::start(&case, server_threads)?;
    let driven = case.drive(&server.url, &Arc::new(StopSignal::new())).or_exit(Exit::Incomplete)?;
    let log = server.stop(driven.report.clock)?;
    Ok(Figures::of(case, &driven, &log))
}

/// What keeps this host from measuring what was asked. Where the kernel stamps, nobody needs the clock's bars.
fn verdict(points: &[Figures]) -> Vec<String> {
    let mut failed = Vec::new();
    for pair in points.chunks(2) {
        let judged = pair.iter().find(|f| f.stamp_source == "kernel").unwrap_or(&pair[0]);
        failed.extend(judged.failed().iter().map(|name| format!("{name} at concurrency {}", judged.case.concurrency)));
    }
    failed
}

fn print(points: &[Figures], ceilings: &[(&str, Figures)], failed: &[String]) -> Result<(), Failure> {
    let mut text = String::new();
    for f in points {
        let _ = writeln!(
            text,
            "concurrency {}, TTFT {} ms, ITL {} ms, ISL {}, OSL {}, stamps by {}, {} receive thread(s)",
            f.case.concurrency,
            f.case.ttft.as_secs_f64() * 1e3,
            f.case.itl.as_secs_f64() * 1e3,
            f.case.isl,
            f.case.osl,
            f.stamp_source,
            f.n_receive_threads
        );
        for bar in f.bars() {
            let _ = writeln!(text, "{}", bar_line(&bar));
        }
        let (a, us) = (&f.accuracy, |ns: f64| ns * 1e-3);
        let _ = writeln!(
            text,
            "  {:.0} chunks/s, reported ITL {:.3} ms; stamp error p50 {:.1} p99.9 {:.1} us; send {:.0} us, server's reading {:.0} us (means)",
            f.chunks_per_second,
            f.itl_ms,
            us(a.stamp.p50),
            us(a.stamp.p999),
            us(a.send.mean),
            us(a.pickup.mean)
        );
        let _ = writeln!(
            text,
            "  receive thread busy {:.0} %, waiting for a CPU {:.1} %; server: {:.1} us CPU per chunk, writes late by {:.2} ms at p99\n",
            f.receive_utilisation * 100.0,
            f.cpu_wait_share * 100.0,
            f.server_cpu_us_per_chunk,
            f.server_late.p99 * 1e-6
        );
    }
    for (name, f) in ceilings {
        let rate = if f.case.osl == 1 { f.requests_per_second } else { f.chunks_per_second };
        let _ = writeln!(
            text,
            "ceiling, client and server together: {rate:.0} {name} at concurrency {} ({:.1} us of client CPU each, {:.0} % clumped)",
            f.case.concurrency,
            f.cpu_us_per_chunk,
            f.clumped_share * 100.0
        );
    }
    let _ = writeln!(text, "verdict: {}", if failed.is_empty() { "this host can measure what was asked" } else { "it cannot" });
    io::stdout().write_all(text.as_bytes()).or_exit(Exit::Bug)
}

pub(super) fn bar_line(bar: &Bar) -> String {
    let sign = if bar.at_least { ">=" } else { "<=" };
    let mark = match (bar.holds(), bar.decides) {
        (true, _) => "ok",
        (false, true) => "MISSED",
        (false, false) => "over (decides nothing)",
    };
    format!("  {:<32} {:>10.4} {:<2} {sign} {:<6} {mark}", bar.name, bar.value, bar.unit, bar.limit)
}

fn document(points: &[Figures], ceilings: &[(&str, Figures)], failed: &[String]) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "host": host_name(),
        "n_cpus": std::thread::available_parallelism().map_or(1, usize::from),
        "kernel": rustix::system::uname().release().to_string_lossy(),
        "points": points.iter().map(figures_json).collect::<Vec<_>>(),
        "ceilings": ceilings.iter().map(|(name, f)| json!({"name": name, "figures": figures_json(f)})).collect::<Vec<_>>(),
        "verdict": if failed.is_empty() { "valid" } else { "failed" },
        "missed": failed,
    })
}

fn figures_json(f: &Figures) -> Value {
    let bar = |b: &Bar| json!({"name": b.name, "unit": b.unit, "value": b.value, "limit": b.limit, "at_least": b.at_least, "decides": b.decides, "holds": b.holds()});
    json!({
        "concurrency": f.case.concurrency,
        "n_rounds": f.case.n_rounds,
        "isl": f.case.isl,
        "osl": f.case.osl,
        "tokens_per_chunk": f.case.tokens_per_chunk,
        "ttft_ms": f.case.ttft.as_secs_f64() * 1e3,
        "itl_ms": f.case.itl.as_secs_f64() * 1e3,
        "stamp_source": f.stamp_source,
        "n_receive_threads": f.n_receive_threads,
        "n_failed": f.n_failed,
        "n_miscounted": f.accuracy.n_miscounted,
        "seconds": f.seconds,
        "requests_per_second": f.requests_per_second,
        "chunks_per_second": f.chunks_per_second,
        "offered_share": f.offered_share,
        "in_flight_share": f.in_flight_share,
        "reported_itl_ms": f.itl_ms,
        "cpu_us_per_chunk": f.cpu_us_per_chunk,
        "server_cpu_us_per_chunk": f.server_cpu_us_per_chunk,
        "clumped_share": f.clumped_share,
        "receive_utilisation": f.receive_utilisation,
        "cpu_wait_share": f.cpu_wait_share,
        "stamp_error_us": spread_json(&f.accuracy.stamp),
        "send_us": spread_json(&f.accuracy.send),
        "server_pickup_us": spread_json(&f.accuracy.pickup),
        "ttft_excess_us": spread_json(&f.accuracy.ttft),
        "itl_error_us": spread_json(&f.accuracy.itl),
        "server_late_us": spread_json(&f.server_late),
        "bars": f.bars().iter().map(bar).collect::<Vec<_>>(),
    })
}

fn spread_json(s: &Spread) -> Value {
    let us = |ns: f64| ns * 1e-3;
    json!({"mean": us(s.mean), "min": us(s.min), "p50": us(s.p50), "p99": us(s.p99), "p99_9": us(s.p999), "max": us(s.max)})
}
