//! `tandem load`: the load generator alone, against any OpenAI-compatible endpoint.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value};
use tandem_load::StopSignal;
use tandem_metrics::artifacts::{RunContext, RunKind};
use tandem_plan::LoadPoint;

use super::measure::{Ask, Point, host_name, wall_ns};
use super::progress::say;
use super::results::conclude;
use super::run_folder::RunFolder;
use crate::cli::LoadArgs;
use crate::exit::{Exit, Failure, OrExit};
use crate::signals::Interrupts;

/// Measured requests of a concurrency, and those before them, when the user does not say, as multiples of it.
const ROUNDS: u32 = 8;
const WARMUP_ROUNDS: u32 = 2;

pub(crate) fn load(args: LoadArgs) -> Result<(), Failure> {
    if let Some(zero) = args.concurrency.iter().find(|&&c| c == 0) {
        return Err(Failure::message(Exit::Usage, format!("--concurrency {zero}: must be at least 1")));
    }
    let folder = RunFolder::create(&args.out)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Bug)?;
    runtime.block_on(drive(&args, &folder))
}

fn extra_inputs(args: &LoadArgs) -> Result<Map<String, Value>, Failure> {
    let text = args.extra_inputs.as_deref().unwrap_or("{}");
    serde_json::from_str(text).context("--extra-inputs: not a JSON object").or_exit(Exit::Usage)
}

fn ask(args: &LoadArgs, concurrency: u32, extra_inputs: Map<String, Value>) -> Ask {
    let key = |name| std::env::var(name).ok().filter(|key| !key.is_empty());
    Ask {
        url: args.url.clone(),
        model: args.model.clone(),
        point: LoadPoint {
            concurrency,
            n_requests: args.requests.unwrap_or(concurrency.saturating_mul(ROUNDS)),
            n_warmup: args.warmup.unwrap_or(concurrency.saturating_mul(WARMUP_ROUNDS)),
        },
        isl: args.isl,
        osl: args.osl,
        streaming: args.streaming,
        seed: args.seed,
        extra_inputs,
        request_timeout: Duration::from_secs(args.request_timeout),
        grace: Duration::from_secs(args.grace),
        network: args.network.clone(),
        n_gpus: args.gpus,
        tokenizer_dir: args.tokenizer.clone(),
        api_key: key("TANDEM_API_KEY").or_else(|| key("OPENAI_API_KEY")),
    }
}

async fn drive(args: &LoadArgs, folder: &RunFolder) -> Result<(), Failure> {
    let mut interrupts = Interrupts::install()?;
    let started_wall_ns = wall_ns();
    let (mut points, mut reasons, mut interrupted) = (Vec::new(), Vec::new(), false);
    for (index, &concurrency) in args.concurrency.iter().enumerate() {
        let point = Point::new(&ask(args, concurrency, extra_inputs(args)?), index, folder.root(), &folder.path("logs/bench.log"))?;
        let stop = Arc::new(StopSignal::new());
        let mut load = tokio::task::spawn_blocking({
            let stop = stop.clone();
            move || point.run(&stop)
        });
        let measured = loop {
            tokio::select! {
                measured = &mut load => break measured.or_exit(Exit::Bug)??,
                () = interrupts.next() => {
                    say("interrupted: finishing what is in flight; once more to end now");
                    interrupted = true;
                    stop.stop();
                }
            }
        };
        points.push(measured.artifacts);
        reasons.extend(measured.reasons);
        if interrupted {
            break;
        }
    }
    let context = RunContext {
        kind: RunKind::Measured,
        recipe: "load".to_owned(),
        model: args.model.clone(),
        plan_hash: String::new(),
        versions: vec![("tandem".to_owned(), env!("CARGO_PKG_VERSION").to_owned())],
        machines: vec![host_name()],
        n_gpus: args.gpus,
        started_wall_ns,
        ended_wall_ns: wall_ns(),
        is_partial: interrupted,
        reasons,
    };
    let ended_early = interrupted.then(|| Failure::message(Exit::Interrupted, "interrupted"));
    conclude(folder, points, &context, ended_early, args.strict)
}
