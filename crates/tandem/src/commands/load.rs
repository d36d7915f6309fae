//! `tandem load`: the load generator alone, against any OpenAI-compatible endpoint.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value, json};
use tandem_load::StopSignal;
use tandem_metrics::artifacts::{RunContext, RunKind};
use tandem_metrics::metrics::good_fraction;
use tandem_metrics::{Reason, Verdict};
use tandem_telemetry::{Roles, Session};

use super::clients::{Clients, agent};
use super::measure::{Ask, Count, Measured, Point, host_name, wall_ns};
use super::progress::say;
use super::results::Results;
use super::run_folder::RunFolder;
use super::search::{Search, Step};
use super::selftest::{paced_server, selftest};
use crate::cli::LoadArgs;
use crate::exit::{Exit, Failure, OrExit};
use crate::mode_args::{Level, Modes, SearchFor};
use crate::selftest_args::{LoadCommand, LoadTool};
use crate::signals::Interrupts;

pub(crate) fn load(command: LoadCommand) -> Result<(), Failure> {
    let args = command.load;
    match command.tool {
        Some(LoadTool::Selftest(tool)) => return selftest(&tool),
        Some(LoadTool::PacedServer(tool)) => return paced_server(&tool),
        Some(LoadTool::Agent(tool)) => return agent(&tool),
        None => {}
    }
    for (flag, value) in [("--url", &args.url), ("--model", &args.model)] {
        if value.is_empty() {
            return Err(Failure::message(Exit::Usage, format!("tandem load needs {flag}")).with_hint("`tandem load --help` has examples"));
        }
    }
    if let Some(zero) = args.concurrency.iter().find(|&&c| c == 0) {
        return Err(Failure::message(Exit::Usage, format!("--concurrency {zero}: must be at least 1")));
    }
    let asked = Asked::of(&args)?;
    // Whatever is wrong with what was asked is said before clients are started.
    let levels = asked.modes.levels(&args.modes, &args.concurrency);
    if let Some(level) = levels.first().filter(|_| args.clients.clients.is_some()) {
        drop(Point::new(&ask(&args, &asked, None, *level), 0, &args.out, &args.out)?);
    }
    let clients = Clients::start(&args.clients)?;
    let folder = RunFolder::create(&args.out)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Bug)?;
    runtime.block_on(async {
        let interrupts = Interrupts::install()?;
        let session = args.telemetry.start(&host_name(), folder.path("telemetry.jsonl"), Roles::default(), &[])?;
        let (interrupted, n_points, reasons) = (false, 0, Vec::new());
        let run = Run { args: &args, asked, clients, session, folder, interrupts, interrupted, n_points, reasons };
        let started = wall_ns();
        match args.modes.search {
            Some(what) => run.search(what, started).await,
            None => run.sweep(levels, started).await,
        }
    })
}

/// The flags that say what is sent, with the files that they name read.
pub(crate) struct Asked {
    modes: Modes,
    extra_inputs: Map<String, Value>,
}

impl Asked {
    pub(crate) fn of(args: &LoadArgs) -> Result<Self, Failure> {
        let modes = Modes::new(&args.modes, args.osl.is_some())?;
        let text = args.extra_inputs.as_deref().unwrap_or("{}");
        let extra_inputs = serde_json::from_str(text).context("--extra-inputs: not a JSON object").or_exit(Exit::Usage)?;
        Ok(Asked { modes, extra_inputs })
    }
}

/// One point of what was asked.
pub(crate) fn ask(args: &LoadArgs, asked: &Asked, session: Option<Arc<Session>>, level: Level) -> Ask {
    let key = |name| std::env::var(name).ok().filter(|key| !key.is_empty());
    Ask {
        url: args.url.clone(),
        model: args.model.clone(),
        level,
        count: Count { n_requests: args.requests, n_warmup: args.warmup },
        modes: Some(asked.modes.clone()),
        isl: args.isl,
        osl: args.osl.unwrap_or(DEFAULT_OSL),
        streaming: args.streaming,
        seed: args.seed,
        extra_inputs: asked.extra_inputs.clone(),
        request_timeout: Duration::from_secs(args.request_timeout),
        grace: Duration::from_secs(args.grace),
        no_progress: super::measure::NO_PROGRESS,
        network: args.network.clone(),
        telemetry: args.telemetry.clone(),
        session,
        n_gpus: args.gpus,
        tokenizer_dir: args.tokenizer.clone(),
        api_key: key("TANDEM_API_KEY").or_else(|| key("OPENAI_API_KEY")),
    }
}

struct Run<'a> {
    args: &'a LoadArgs,
    asked: Asked,
    clients: Option<Arc<Clients>>,
    session: Option<Arc<Session>>,
    folder: RunFolder,
    interrupts: Interrupts,
    interrupted: bool,
    n_points: usize,
    reasons: Vec<Reason>,
}

impl Run<'_> {
    /// Drives one point; ctrl-C once stops it, twice cuts it.
    async fn measure(&mut self, level: Level) -> Result<Measured, Failure> {
        let ask = ask(self.args, &self.asked, self.session.clone(), level);
        let point = Point::new(&ask, self.n_points, self.folder.root(), &self.folder.path("logs/bench.log"))?;
        let point = point.driven_by(self.clients.clone());
        self.n_points += 1;
        let stop = Arc::new(StopSignal::new());
        let mut load = tokio::task::spawn_blocking({
            let stop = stop.clone();
            move || point.run(&stop)
        });
        loop {
            tokio::select! {
                measured = &mut load => return measured.or_exit(Exit::Bug)?,
                () = self.interrupts.next() => {
                    stop.stop();
                    self.interrupted = true;
                    say("interrupted: finishing what is in flight; once more to end now");
                }
            }
        }
    }

    /// The points that were asked for, one after the other.
    async fn sweep(mut self, levels: Vec<Level>, started: u64) -> Result<(), Failure> {
        let mut results = Results::default();
        for level in levels {
            let measured = self.measure(level).await?;
            results.add(&self.folder, measured.artifacts);
            self.reasons.extend(measured.reasons);
            if self.interrupted {
                break;
            }
        }
        self.conclude(results, started, None)
    }

    /// The highest load that meets the goal. Each measurement is kept below `search/`; the figures of the run are those of the load found.
    async fn search(mut self, what: SearchFor, started: u64) -> Result<(), Failure> {
        let modes = &self.args.modes;
        let (from, to, wanted) = (modes.search_from, modes.search_to, modes.goodput_fraction);
        if !(from > 0.0 && from.is_finite() && to >= from && to.is_finite()) {
            return Err(Failure::message(Exit::Usage, "--search-from must be above 0 and at most --search-to"));
        }
        let mut search = Search::new(from, to, wanted, what == SearchFor::Concurrency);
        let mut measured: Vec<(f64, Measured)> = Vec::new();
        let found = loop {
            let load = match search.next() {
                Step::Found(load) => break load,
                Step::Measure(load) => load,
            };
            let point = self.measure(level(what, load)).await?;
            let share = point.artifacts.summary.avg(&good_fraction::METRIC).unwrap_or(0.0) / 100.0;
            for (name, content) in &point.artifacts.files {
                self.folder.write_content(&format!("search/{:03}-{name}", measured.len() + 1), content)?;
            }
            if self.interrupted {
                measured.push((load, point));
                break None;
            }
            search.add(load, share);
            say(&format!("{}: {:.1} % of the requests are good, {:.1} % wanted", level(what, load).label(), share * 100.0, wanted * 100.0));
            measured.push((load, point));
        };
        let goal = modes.goodput.clone().unwrap_or_default();
        let table: Vec<Value> =
            search.table().map(|(load, shares, met)| json!({"load": load, "good_shares": shares, "meets_goal": met})).collect();
        let document = json!({"search": format!("{what:?}").to_lowercase(), "goal": goal, "wanted_share": wanted, "found": found,
            "interrupted": self.interrupted, "loads": table});
        self.folder.write("search.json", (serde_json::to_string_pretty(&document).or_exit(Exit::Bug)? + "\n").as_bytes())?;
        say(&format!("{:>12}  {:>9}  good requests", "load", "goal"));
        for (load, shares, met) in search.table() {
            let shares: Vec<String> = shares.iter().map(|share| format!("{:.1} %", share * 100.0)).collect();
            say(&format!("{load:>12.3}  {:>9}  {}", if met { "met" } else { "missed" }, shares.join(", ")));
        }
        // The figures of the run: the last measurement of the load that was found, else of the lowest one.
        let shown = found.or_else(|| search.table().next().map(|(load, ..)| load));
        let failure = match found {
            Some(load) => {
                say(&format!("the highest load that meets {goal}: {}", level(what, load).label()));
                None
            }
            None if self.interrupted => None,
            None => {
                let label = level(what, shown.unwrap_or(from)).label();
                let message = format!("no load meets {goal}: even at {label} fewer than {:.1} % of the requests are good", wanted * 100.0);
                Some(Failure::message(Exit::CheckFailed, message).with_hint("search.json has every load that was tried"))
            }
        };
        let shown = measured.into_iter().rev().find(|(load, _)| shown.is_none_or(|shown| shown == *load)).map(|(_, measured)| measured);
        let mut results = Results::default();
        if let Some(measured) = shown {
            results.add(&self.folder, measured.artifacts);
            self.reasons = measured.reasons;
        }
        self.conclude(results, started, failure)
    }

    fn conclude(mut self, results: Results, started: u64, failure: Option<Failure>) -> Result<(), Failure> {
        self.reasons.extend(failure.iter().map(|f| Reason {
            verdict: Verdict::Suspect,
            code: "goal_missed",
            message: f.error.to_string(),
        }));
        let context = RunContext {
            kind: RunKind::Measured,
            recipe: "load".to_owned(),
            model: self.args.model.clone(),
            plan_hash: String::new(),
            versions: vec![("tandem".to_owned(), env!("CARGO_PKG_VERSION").to_owned())],
            machines: vec![host_name()],
            n_gpus: self.args.gpus,
            started_wall_ns: started,
            ended_wall_ns: wall_ns(),
            is_partial: self.interrupted,
            reasons: self.reasons,
        };
        let ended_early = self.interrupted.then(|| Failure::message(Exit::Interrupted, "interrupted")).or(failure);
        results.conclude(&self.folder, &context, ended_early, self.args.strict)
    }
}

/// Output tokens of a request when nothing says how many.
const DEFAULT_OSL: u32 = 64;

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float-to-integer cast saturates")]
fn level(what: SearchFor, load: f64) -> Level {
    match what {
        SearchFor::Concurrency => Level::Concurrency(load.round() as u32),
        SearchFor::Rate => Level::Rate(load),
    }
}
