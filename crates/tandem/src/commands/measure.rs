//! One load point: driven, measured, judged, written. Shared by `tandem run` and `tandem load`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tandem_load::health::ClientHealth;
use tandem_load::{ApiKey, LoadReport, LoadSpec, StopSignal, Texts};
use tandem_metrics::artifacts::{InputConfig, PointArtifacts, PointContext, Stimulus, render_point};
use tandem_metrics::{Load, Reason, Verdict};
use tandem_plan::{LoadPoint, Nanos, Plan};

use super::progress::{Progress, Snapshot, say};
use super::run_folder::append_line;
use super::tokenizer::{self, TokenTexts};
use crate::exit::{Exit, Failure, OrExit};
use crate::network_args::NetworkArgs;

/// Requests whose bodies `inputs.json` holds; GenAI-Perf's default number of different prompts.
const MAX_PAYLOADS: usize = 100;

/// Without a byte for this long a request has hung; far above any TTFT that a queue explains.
const NO_PROGRESS: Duration = Duration::from_secs(300);

/// Everything that a load point needs; owned, so that it can run on a thread of its own.
pub(crate) struct Point {
    spec: LoadSpec,
    texts: Arc<dyn Texts>,
    load: Load,
    index: usize,
    concurrency: u32,
    tokenizer_name: String,
    out: PathBuf,
    bench_log: PathBuf,
}

/// What came out of a load point.
pub(crate) struct Measured {
    pub(crate) artifacts: PointArtifacts,
    /// What the client has to say against the figures.
    pub(crate) reasons: Vec<Reason>,
    /// For `events.jsonl`.
    pub(crate) event: Value,
}

/// A load point as a user of `tandem load` or a plan asks for it.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) url: String,
    pub(crate) model: String,
    pub(crate) point: LoadPoint,
    pub(crate) isl: u32,
    pub(crate) osl: u32,
    pub(crate) streaming: bool,
    pub(crate) seed: u64,
    /// Fields of each request's body to set; null leaves one out.
    pub(crate) extra_inputs: Map<String, Value>,
    pub(crate) request_timeout: Duration,
    pub(crate) grace: Duration,
    pub(crate) network: NetworkArgs,
    pub(crate) n_gpus: u32,
    pub(crate) tokenizer_dir: Option<PathBuf>,
    pub(crate) api_key: Option<String>,
}

impl Ask {
    /// Load point `point` of a plan whose frontend is at `url`.
    pub(crate) fn of_plan(plan: &Plan, url: &str, point: LoadPoint, grace: Duration, api_key: Option<String>) -> Self {
        Ask {
            url: url.to_owned(),
            model: plan.model.served_name.clone(),
            point,
            isl: plan.load.isl,
            osl: plan.load.osl,
            streaming: plan.load.streaming,
            seed: plan.load.seed,
            extra_inputs: Map::new(),
            request_timeout: Duration::from_millis(plan.load.request_timeout_ms),
            grace,
            network: NetworkArgs::default(),
            n_gpus: plan.n_devices(),
            tokenizer_dir: plan.model.tokenizer_dir.clone().map(PathBuf::from),
            api_key,
        }
    }
}

impl Point {
    /// Prepares point number `index`; `out` is the run folder, `bench_log` where progress is noted.
    pub(crate) fn new(ask: &Ask, index: usize, out: &Path, bench_log: &Path) -> Result<Self, Failure> {
        let LoadPoint { concurrency, n_requests, n_warmup } = ask.point;
        let mut spec = LoadSpec::closed_loop(&ask.url, &ask.model, concurrency, n_requests, ask.isl, ask.osl).or_exit(Exit::Usage)?;
        spec.load.n_warmup = n_warmup;
        spec.streaming = ask.streaming;
        // Each point has prompts of its own, or a cache would know them from the point before.
        spec.seed = ask.seed.wrapping_add(index as u64);
        spec.extra_inputs = ask.extra_inputs.clone();
        spec.isl_includes_template = true;
        spec.timeouts.request = Nanos::from(ask.request_timeout);
        spec.timeouts.no_progress = spec.timeouts.request.min(Nanos::from(NO_PROGRESS));
        spec.timeouts.grace = Nanos::from(ask.grace);
        spec.api_key = ask.api_key.clone().map(ApiKey::new);
        ask.network.apply(&mut spec)?;
        spec.check().or_exit(Exit::Usage)?;
        let texts = TokenTexts::new(tokenizer::load(ask.tokenizer_dir.as_deref())?)?;
        let load = Load {
            streaming: ask.streaming,
            concurrency: Some(concurrency),
            n_requests: u64::from(n_requests),
            isl: Some(ask.isl),
            osl: Some(ask.osl),
            n_gpus: ask.n_gpus,
            slos: Vec::new(),
        };
        Ok(Point {
            spec,
            texts: Arc::new(texts),
            load,
            index,
            concurrency,
            tokenizer_name: ask.tokenizer_dir.as_ref().map_or_else(|| "byte-level".to_owned(), |dir| dir.display().to_string()),
            out: out.to_owned(),
            bench_log: bench_log.to_owned(),
        })
    }

    /// Drives the load to its end, or until `stop` says otherwise; blocks.
    pub(crate) fn run(self, stop: &Arc<StopSignal>) -> Result<Measured, Failure> {
        let label = format!("concurrency {}", self.concurrency);
        let started = format!("{label}: {} requests after {} of warm-up", self.load.n_requests, self.spec.load.n_warmup);
        say(&started);
        append_line(&self.bench_log, &started);
        let mut progress = Progress::start(label.clone(), self.spec.n_total());
        let mut show = |s: &tandem_load::Snapshot| {
            let line = progress.show(Snapshot {
                n_done: s.n_done + s.n_failed,
                n_failed: s.n_failed,
                n_in_flight: s.n_in_flight(),
                n_tokens: s.n_tokens,
            });
            if let Some(line) = line {
                append_line(&self.bench_log, &line);
            }
        };
        let report = tandem_load::run(&self.spec, self.texts.clone(), &mut show, stop);
        progress.finish();
        let mut report = report.map_err(|error| load_failure(error, &self.bench_log))?;
        let summary_line = health_line(&label, &report);
        append_line(&self.bench_log, &summary_line);
        // Records count their points within one call of the load generator.
        report.records.iter_mut().for_each(|record| record.point = u32::try_from(self.index).unwrap_or(u32::MAX));
        let artifacts = render_point(&report.records, &self.context(&report)?);
        Ok(Measured { artifacts, reasons: client_reasons(&report), event: health_json(&report.health) })
    }

    fn context(&self, report: &LoadReport) -> Result<PointContext, Failure> {
        let n_payloads = MAX_PAYLOADS.min(usize::try_from(self.load.n_requests).unwrap_or(usize::MAX));
        let payloads = tandem_load::payloads(&self.spec, self.texts.clone(), n_payloads).or_exit(Exit::Bug)?;
        let extra = Map::from_iter([
            ("max_tokens".to_owned(), json!(self.spec.osl)),
            ("min_tokens".to_owned(), json!(self.spec.osl)),
            ("ignore_eos".to_owned(), json!(true)),
        ]);
        Ok(PointContext {
            clock: report.run_clock(),
            model: self.spec.model.clone(),
            stimulus: Stimulus::Concurrency(self.concurrency),
            load: self.load.clone(),
            input_config: InputConfig {
                url: self.spec.target.authority(),
                extra,
                n_prompts: self.load.n_requests,
                n_warmup: u64::from(self.spec.load.n_warmup),
                seed: self.spec.seed,
                artifact_directory: self.out.display().to_string(),
                tokenizer: self.tokenizer_name.clone(),
                telemetry_urls: Vec::new(),
            },
            payloads,
            telemetry: None,
        })
    }
}

fn load_failure(error: tandem_load::LoadError, bench_log: &Path) -> Failure {
    let failure = Failure::new(Exit::Incomplete, error);
    append_line(bench_log, &failure.to_string());
    failure
}

/// What only the client knows against its figures.
fn client_reasons(report: &LoadReport) -> Vec<Reason> {
    let mut reasons = report.health.reasons();
    if report.n_repeated_prompts > 0 {
        let message = format!("{} prompts were sent more than once", report.n_repeated_prompts);
        reasons.push(Reason { verdict: Verdict::Suspect, code: "repeated_prompts", message });
    }
    reasons
}

fn health_line(label: &str, report: &LoadReport) -> String {
    let health = &report.health;
    format!(
        "{label}: {} chunks, stamps by {}, {:.2} % clumped, {:.1} in flight on average, receive thread busy {:.1} %, client CPU {:.2} s of {:.2} s",
        health.n_chunks,
        health.receive.stamp_source(),
        health.clumped_share() * 100.0,
        health.in_flight_mean,
        health.receive_utilisation() * 100.0,
        health.cpu_total().as_secs_f64(),
        health.wall.as_secs_f64(),
    )
}

fn health_json(health: &ClientHealth) -> Value {
    json!({
        "client": {
            "n_chunks": health.n_chunks,
            "n_clumped_chunks": health.n_clumped_chunks,
            "stamp_source": health.receive.stamp_source(),
            "in_flight_mean": health.in_flight_mean,
            "in_flight_peak": health.in_flight_peak,
            "n_receive_threads": health.n_receive_threads(),
            "receive_utilisation": health.receive_utilisation(),
            "cpu_s": health.cpu_total().as_secs_f64(),
            "wall_s": health.wall.as_secs_f64(),
        }
    })
}

/// This machine's name, as `machines.txt` holds it.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Nanoseconds since the Unix epoch.
pub(crate) fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}
