//! Flags of `tandem load` that say what is sent and when, and what that makes of a load.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use tandem_load::pacing::Arrivals;
use tandem_load::prompts::files::parse_prompts;
use tandem_load::prompts::trace::{TraceRequest, parse_trace};
use tandem_load::{Lengths, LoadSpec, Prefix, Prompts, Turns};
use tandem_metrics::Slo;
use tandem_plan::Nanos;

use crate::exit::{Exit, Failure, OrExit};

/// How gaps between requests are distributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Arrival {
    /// Equal gaps
    Constant,
    /// Exponential gaps: independent users
    #[default]
    Poisson,
    /// Gamma-distributed gaps with the shape --burstiness
    Gamma,
}

/// What the search varies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SearchFor {
    /// Requests in flight
    Concurrency,
    /// Requests a second
    Rate,
}

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ModeArgs {
    /// Requests a second instead of a concurrency (open loop); several values run one after another. Latencies are reported from the
    /// scheduled time too
    #[arg(long, value_name = "R", value_delimiter = ',', conflicts_with = "concurrency", help_heading = "When requests are sent")]
    pub(crate) request_rate: Vec<f64>,
    /// How gaps between requests are distributed
    #[arg(long, value_name = "KIND", default_value = "poisson", help_heading = "When requests are sent")]
    pub(crate) arrival: Arrival,
    /// Shape of gamma arrivals: 1 is Poisson, smaller is burstier, larger more regular
    #[arg(long, value_name = "SHAPE", default_value_t = 1.0, help_heading = "When requests are sent")]
    pub(crate) burstiness: f64,
    /// Requests in flight at most, with a rate or a trace; those that wait keep their scheduled time
    #[arg(long, value_name = "N", conflicts_with = "concurrency", help_heading = "When requests are sent")]
    pub(crate) max_concurrency: Option<u32>,
    /// Replay a trace (Mooncake JSONL: timestamp in ms, input_length, output_length, hash_ids of shared blocks of 512 tokens)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["concurrency", "request_rate", "prompts", "turns"], help_heading = "When requests are sent")]
    pub(crate) trace: Option<PathBuf>,
    /// Multiply the times of the trace: 2 is half as fast
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, requires = "trace", help_heading = "When requests are sent")]
    pub(crate) time_scale: f64,
    /// Stop sending this many seconds after the first measured request; what is in flight then still counts
    #[arg(long, value_name = "SECONDS", help_heading = "When requests are sent")]
    pub(crate) duration: Option<f64>,
    /// Let the load rise linearly for so many seconds; give a warm-up that outlasts it
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, conflicts_with = "trace", help_heading = "When requests are sent")]
    pub(crate) ramp: f64,

    /// Input lengths that vary: normal:MEAN,STD, uniform:FROM,TO, lognormal:MEAN,STD (of the lengths), or file:PATH with one a line
    #[arg(long, value_name = "DIST", conflicts_with = "isl", help_heading = "What requests say")]
    pub(crate) isl_dist: Option<String>,
    /// Output lengths that vary, as --isl-dist
    #[arg(long, value_name = "DIST", conflicts_with = "osl", help_heading = "What requests say")]
    pub(crate) osl_dist: Option<String>,
    /// Tokens at the beginning of each prompt that it shares with others (part of its input length)
    #[arg(long, value_name = "TOKENS", conflicts_with_all = ["prompts", "trace"], help_heading = "What requests say")]
    pub(crate) prefix_len: Option<u32>,
    /// Different shared beginnings; each prompt takes one at random
    #[arg(long, value_name = "N", default_value_t = 1, requires = "prefix_len", help_heading = "What requests say")]
    pub(crate) prefix_pool: u32,
    /// Prompts of your own: OpenAI JSONL (`messages` or `prompt`), ShareGPT JSON, or plain text with one a line. Output lengths are the
    /// file's (`max_tokens`, or the length of ShareGPT's answer) unless --osl or --osl-dist is given
    #[arg(long, value_name = "FILE", conflicts_with_all = ["isl", "isl_dist"], help_heading = "What requests say")]
    pub(crate) prompts: Option<PathBuf>,
    /// Conversations of N turns, or FROM-TO; each sends its history with the actual answers. Concurrency, rate, --requests and --warmup
    /// count conversations then
    #[arg(long, value_name = "N", help_heading = "What requests say")]
    pub(crate) turns: Option<String>,
    /// Milliseconds between an answer and the next turn, a number or a distribution as --isl-dist
    #[arg(long, value_name = "MS", default_value = "0", requires = "turns", help_heading = "What requests say")]
    pub(crate) think_time: String,

    /// Limits that a good request meets, in milliseconds, e.g. `ttft:2000,itl:30`: goodput is reported. `itl` is a request's mean
    /// (TPOT), as in GenAI-Perf
    #[arg(long, value_name = "METRIC:LIMIT,…", help_heading = "Goal")]
    pub(crate) goodput: Option<String>,
    /// Find the highest load that meets --goodput, by doubling and bisection; points near the border are measured three times
    #[arg(long, value_name = "WHAT", requires = "goodput", conflicts_with_all = ["concurrency", "request_rate", "trace"], help_heading = "Goal")]
    pub(crate) search: Option<SearchFor>,
    /// Share of the measured requests that must be good
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, requires = "goodput", help_heading = "Goal")]
    pub(crate) goodput_fraction: f64,
    /// Where the search begins, and the lowest load that it tries
    #[arg(long, value_name = "LOAD", default_value_t = 1.0, requires = "search", help_heading = "Goal")]
    pub(crate) search_from: f64,
    /// The highest load that the search tries
    #[arg(long, value_name = "LOAD", default_value_t = 4096.0, requires = "search", help_heading = "Goal")]
    pub(crate) search_to: f64,
}

/// How hard one point drives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Level {
    /// Requests in flight.
    Concurrency(u32),
    /// Requests a second.
    Rate(f64),
    /// The times of the trace.
    Trace,
}

impl Level {
    /// For people.
    pub(crate) fn label(self) -> String {
        match self {
            Level::Concurrency(n) => format!("concurrency {n}"),
            Level::Rate(rate) => format!("rate {rate}/s"),
            Level::Trace => "trace".to_owned(),
        }
    }
}

/// The flags, with the files that they name read.
#[derive(Debug, Clone)]
pub(crate) struct Modes {
    pub(crate) slos: Vec<Slo>,
    arrival: Arrival,
    burstiness: f64,
    max_concurrency: Option<u32>,
    duration: Option<Nanos>,
    ramp: Nanos,
    isl: Option<Lengths>,
    osl: Option<Lengths>,
    prompts: Option<Prompts>,
    turns: Option<Turns>,
}

/// Measured and warm-up requests of a point in rounds of its concurrency, or in seconds of its rate, when the user does not say.
const ROUNDS: (u32, u32) = (8, 2);
const RATE_SECONDS: (f64, f64) = (60.0, 10.0);

impl Modes {
    /// Reads the flags; `osl_is_given` when the user has named an output length.
    pub(crate) fn new(args: &ModeArgs, osl_is_given: bool) -> Result<Self, Failure> {
        let usage = |flag: &str, message: String| Failure::message(Exit::Usage, format!("{flag}: {message}"));
        let lengths = |flag: &str, text: &Option<String>| text.as_deref().map(|text| lengths(flag, text)).transpose();
        let use_their_osl = !osl_is_given && args.osl_dist.is_none();
        let prompts = if let Some(path) = &args.trace {
            if !(args.time_scale.is_finite() && args.time_scale > 0.0) {
                return Err(usage("--time-scale", "must be positive".to_owned()));
            }
            let trace =
                parse_trace(&read("--trace", path)?, args.time_scale).map_err(|e| usage("--trace", format!("{}: {e}", path.display())))?;
            Some(Prompts::Trace(trace.into()))
        } else if let Some(path) = &args.prompts {
            let prompts = parse_prompts(&read("--prompts", path)?).map_err(|e| usage("--prompts", format!("{}: {e}", path.display())))?;
            Some(Prompts::Given { prompts: prompts.into(), use_their_osl })
        } else {
            args.prefix_len.map(|n_tokens| Prompts::Synthetic { prefix: Some(Prefix { n_tokens, n_pool: args.prefix_pool }) })
        };
        if !(args.goodput_fraction > 0.0 && args.goodput_fraction <= 1.0) {
            return Err(usage("--goodput-fraction", "must be above 0 and at most 1".to_owned()));
        }
        Ok(Modes {
            slos: args.goodput.as_deref().map_or(Ok(Vec::new()), slos)?,
            arrival: args.arrival,
            burstiness: args.burstiness,
            max_concurrency: args.max_concurrency,
            duration: args.duration.map(|s| seconds("--duration", s)).transpose()?.filter(|d| *d > Nanos::ZERO),
            ramp: seconds("--ramp", args.ramp)?,
            isl: lengths("--isl-dist", &args.isl_dist)?,
            osl: lengths("--osl-dist", &args.osl_dist)?,
            prompts,
            turns: args.turns.as_deref().map(|text| turns(text, &args.think_time)).transpose()?,
        })
    }

    /// The trace, if that is what drives.
    fn trace(&self) -> Option<&Arc<[TraceRequest]>> {
        match &self.prompts {
            Some(Prompts::Trace(trace)) => Some(trace),
            _ => None,
        }
    }

    /// The points that `args` asks for, in order.
    pub(crate) fn levels(&self, args: &ModeArgs, concurrency: &[u32]) -> Vec<Level> {
        if self.trace().is_some() {
            vec![Level::Trace]
        } else if args.request_rate.is_empty() {
            concurrency.iter().map(|&n| Level::Concurrency(n)).collect()
        } else {
            args.request_rate.iter().map(|&rate| Level::Rate(rate)).collect()
        }
    }

    /// Writes them into `spec`, for a point at `level`.
    pub(crate) fn apply(&self, spec: &mut LoadSpec, level: Level, n_requests: Option<u32>, n_warmup: Option<u32>) {
        let load = &mut spec.load;
        (load.ramp, load.duration) = (self.ramp, self.duration);
        load.max_in_flight = self.max_concurrency.map(|n| n as usize);
        let (default_requests, default_warmup) = match level {
            Level::Concurrency(n) => {
                (load.arrivals, load.max_in_flight) = (Arrivals::ClosedLoop, Some(n as usize));
                (n.saturating_mul(ROUNDS.0), n.saturating_mul(ROUNDS.1))
            }
            Level::Rate(rate) => {
                load.arrivals = match self.arrival {
                    Arrival::Constant => Arrivals::Constant { rate },
                    Arrival::Poisson => Arrivals::Gamma { rate, shape: 1.0 },
                    Arrival::Gamma => Arrivals::Gamma { rate, shape: self.burstiness },
                };
                // While the rate rises, half as many come as afterwards.
                let n_ramp = ceil(rate * self.ramp.as_secs_f64() / 2.0);
                (ceil(rate * RATE_SECONDS.0).max(10), ceil(rate * RATE_SECONDS.1).saturating_add(n_ramp))
            }
            Level::Trace => {
                let trace = self.trace().map_or(&[][..], |trace| trace);
                load.arrivals = Arrivals::Trace(trace.iter().map(|r| r.due).collect());
                let n = u32::try_from(trace.len()).unwrap_or(u32::MAX);
                (n.saturating_sub(n_warmup.unwrap_or(0)), 0)
            }
        };
        load.n_warmup = n_warmup.unwrap_or(default_warmup);
        let until_time =
            self.duration.filter(|_| level != Level::Trace).map(|_| (u32::MAX / self.n_turns_max()).saturating_sub(load.n_warmup));
        load.n_requests = n_requests.or(until_time).unwrap_or(default_requests);
        load.n_turns_max = self.n_turns_max();
        spec.turns = self.turns.clone();
        spec.isl = self.isl.clone().unwrap_or_else(|| spec.isl.clone());
        spec.osl = self.osl.clone().unwrap_or_else(|| spec.osl.clone());
        if let Some(prompts) = &self.prompts {
            spec.prompts = prompts.clone();
        }
    }

    fn n_turns_max(&self) -> u32 {
        self.turns.as_ref().map_or(1, |turns| turns.max)
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float-to-integer cast saturates")]
fn ceil(x: f64) -> u32 {
    x.ceil() as u32
}

fn read(flag: &str, path: &Path) -> Result<String, Failure> {
    use anyhow::Context;

    std::fs::read_to_string(path).with_context(|| format!("{flag}: cannot read {}", path.display())).or_exit(Exit::Usage)
}

fn lengths(flag: &str, text: &str) -> Result<Lengths, Failure> {
    let parsed = match text.strip_prefix("file:") {
        Some(path) => Lengths::from_list(&read(flag, Path::new(path))?),
        None => Lengths::parse(text),
    };
    parsed.map_err(|message| Failure::message(Exit::Usage, format!("{flag}: {message}")))
}

fn seconds(flag: &str, seconds: f64) -> Result<Nanos, Failure> {
    let duration = std::time::Duration::try_from_secs_f64(seconds).ok().filter(|d| d.as_secs() < 366 * 24 * 3600);
    duration.map(Nanos::from).ok_or_else(|| Failure::message(Exit::Usage, format!("{flag} {seconds}: must be at least 0 and below a year")))
}

fn turns(text: &str, think_time: &str) -> Result<Turns, Failure> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let number = |s: &str| s.trim().parse::<u32>().ok().filter(|n| *n > 0);
    let (Some(min), Some(max)) = (number(from), number(to)) else {
        return Err(Failure::message(Exit::Usage, format!("--turns `{text}`: expected a number or FROM-TO")));
    };
    Ok(Turns { min, max, think_ms: lengths("--think-time", think_time)? })
}

/// `ttft:2000,itl:30`.
fn slos(text: &str) -> Result<Vec<Slo>, Failure> {
    let slo = |part: &str| {
        let (name, limit) = part.split_once(':').ok_or_else(|| format!("`{part}` is not METRIC:LIMIT"))?;
        let limit: f64 = limit.trim().parse().map_err(|_| format!("`{limit}` is not a number"))?;
        let name = match name.trim() {
            "itl" | "inter_token_latency" => "tpot",
            "latency" => "request_latency",
            "time_to_first_token" => "ttft",
            name => name,
        };
        Slo::new(name, limit).map_err(|error| error.to_string())
    };
    text.split(',').map(slo).collect::<Result<_, _>>().map_err(|message| Failure::message(Exit::Usage, format!("--goodput: {message}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(args: ModeArgs) -> Result<Modes, Failure> {
        Modes::new(
            &ModeArgs { time_scale: 1.0, goodput_fraction: 0.9, think_time: "0".to_owned(), prefix_pool: 1, burstiness: 1.0, ..args },
            false,
        )
    }

    fn spec(modes: &Modes, level: Level, n_requests: Option<u32>) -> LoadSpec {
        let mut spec = LoadSpec::closed_loop("h", "m", 1, 1, 8, 4).unwrap();
        modes.apply(&mut spec, level, n_requests, None);
        spec.check().unwrap();
        spec
    }

    #[test]
    fn a_rate_lasts_a_minute_after_a_warm_up_that_covers_the_ramp() {
        let modes = modes(ModeArgs { ramp: 20.0, max_concurrency: Some(7), arrival: Arrival::Constant, ..ModeArgs::default() }).unwrap();
        let load = spec(&modes, Level::Rate(5.0), None).load;
        assert_eq!((load.n_requests, load.n_warmup, load.max_in_flight), (300, 50 + 50, Some(7)));
        assert_eq!((load.arrivals, load.ramp), (Arrivals::Constant { rate: 5.0 }, Nanos::from_millis(20_000)));
    }

    #[test]
    fn a_duration_replaces_the_number_of_requests_unless_both_are_given() {
        let modes = modes(ModeArgs { duration: Some(2.5), turns: Some("2-3".into()), ..ModeArgs::default() }).unwrap();
        let open = spec(&modes, Level::Concurrency(4), None);
        assert_eq!((open.load.duration, open.load.n_warmup), (Some(Nanos::from_millis(2500)), 8));
        assert!(open.load.n_requests > 1_000_000);
        assert_eq!(spec(&modes, Level::Concurrency(4), Some(9)).load.n_requests, 9);
        assert_eq!((open.turns.unwrap().max, open.load.n_turns_max), (3, 3));
    }

    #[test]
    fn a_trace_gives_the_times_and_the_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.jsonl");
        std::fs::write(
            &path,
            "{\"timestamp\":0,\"input_length\":9,\"output_length\":2}\n{\"timestamp\":10,\"input_length\":9,\"output_length\":2}\n",
        )
        .unwrap();
        let args = ModeArgs { trace: Some(path), ..ModeArgs::default() };
        let modes = modes(args.clone()).unwrap();
        assert_eq!(modes.levels(&args, &[1]), [Level::Trace]);
        let load = spec(&modes, Level::Trace, None).load;
        assert_eq!((load.n_requests, load.arrivals), (2, Arrivals::Trace(vec![Nanos::ZERO, Nanos::from_millis(10)])));
    }

    #[test]
    fn flags_that_mean_nothing_are_refused_by_name() {
        let cases: [(&str, ModeArgs); 6] = [
            ("--goodput", ModeArgs { goodput: Some("ttft".into()), ..ModeArgs::default() }),
            ("--goodput", ModeArgs { goodput: Some("tfft:3".into()), ..ModeArgs::default() }),
            ("--isl-dist", ModeArgs { isl_dist: Some("zipf:1".into()), ..ModeArgs::default() }),
            ("--turns", ModeArgs { turns: Some("0".into()), ..ModeArgs::default() }),
            ("--duration", ModeArgs { duration: Some(-1.0), ..ModeArgs::default() }),
            ("--trace", ModeArgs { trace: Some("/nonexistent".into()), ..ModeArgs::default() }),
        ];
        for (flag, args) in cases {
            let failure = modes(args).unwrap_err();
            assert!(failure.to_string().contains(flag) && failure.exit == Exit::Usage, "{flag}: {failure}");
        }
        let slos = modes(ModeArgs { goodput: Some("ttft:2000,itl:30".into()), ..ModeArgs::default() }).unwrap().slos;
        assert_eq!(slos.iter().map(|s| (s.metric().name, s.limit())).collect::<Vec<_>>(), [("ttft", 2000.0), ("tpot", 30.0)]);
    }
}
