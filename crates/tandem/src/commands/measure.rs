//! One load point: driven, measured, judged, written. Shared by `tandem run` and `tandem load`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tandem_load::clients::FleetReport;
use tandem_load::health::ClientHealth;
use tandem_load::pacing::Arrivals;
use tandem_load::{ApiKey, Keep, LoadReport, LoadSpec, Prompts, StopSignal, Texts};
use tandem_metrics::artifacts::{InputConfig, PointArtifacts, PointContext, Stimulus, render_point};
use tandem_metrics::{FailureKind, Load, Outcome, PointTelemetry, Reason, Verdict};
use tandem_plan::{LoadPoint, Nanos, Plan};
use tandem_telemetry::Session;

use super::clients::Clients;
use super::progress::{Progress, say};
use super::run_folder::append_line;
use super::tokenizer::{self, TokenTexts};
use crate::exit::{Exit, Failure, OrExit};
use crate::mode_args::{Level, Modes};
use crate::network_args::NetworkArgs;
use crate::telemetry_args::TelemetryArgs;

/// Requests whose bodies `inputs.json` holds; GenAI-Perf's default number of different prompts.
const MAX_PAYLOADS: usize = 100;

/// Requests of an open loop that are sent later than this on average are another load than was asked for.
const MAX_SCHEDULE_LAG: Nanos = Nanos::from_millis(5);

/// Without a byte for this long a request has hung; far above any TTFT that a queue explains.
pub(crate) const NO_PROGRESS: Duration = Duration::from_secs(300);

/// How long to wait for the sample after the last response; several of NVML's or an exporter's periods.
const TELEMETRY_PATIENCE: Duration = Duration::from_secs(1);

/// Everything that a load point needs; owned, so that it can run on a thread of its own.
pub(crate) struct Point {
    spec: LoadSpec,
    texts: Arc<dyn Texts>,
    load: Load,
    level: Level,
    index: usize,
    tokenizer_name: String,
    out: PathBuf,
    bench_log: PathBuf,
    telemetry: TelemetryArgs,
    session: Option<Arc<Session>>,
    clients: Option<Arc<Clients>>,
}

/// What came out of a load point.
pub(crate) struct Measured {
    pub(crate) artifacts: PointArtifacts,
    /// What the client has to say against the figures.
    pub(crate) reasons: Vec<Reason>,
    /// For `events.jsonl`.
    pub(crate) event: Value,
    /// Whether it was stopped because nothing at all arrived any more.
    pub(crate) has_hung: bool,
}

/// A load point as a user of `tandem load` or a plan asks for it.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) url: String,
    pub(crate) model: String,
    pub(crate) level: Level,
    pub(crate) count: Count,
    /// What is sent and when, beyond a closed loop of equal requests.
    pub(crate) modes: Option<Modes>,
    pub(crate) isl: u32,
    pub(crate) osl: u32,
    pub(crate) streaming: bool,
    pub(crate) seed: u64,
    /// Fields of each request's body to set; null leaves one out.
    pub(crate) extra_inputs: Map<String, Value>,
    pub(crate) request_timeout: Duration,
    pub(crate) grace: Duration,
    /// Without a byte for this long a request, and the whole point, has hung.
    pub(crate) no_progress: Duration,
    pub(crate) network: NetworkArgs,
    pub(crate) telemetry: TelemetryArgs,
    /// What is sampled meanwhile.
    pub(crate) session: Option<Arc<Session>>,
    pub(crate) n_gpus: u32,
    pub(crate) tokenizer_dir: Option<PathBuf>,
    pub(crate) api_key: Option<String>,
}

/// Requests of a point; none = the default of its load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) n_requests: Option<u32>,
    pub(crate) n_warmup: Option<u32>,
}

impl Ask {
    /// Load point `point` of a plan whose frontend is at `url`.
    pub(crate) fn of_plan(plan: &Plan, url: &str, point: LoadPoint, grace: Duration, api_key: Option<String>) -> Self {
        Ask {
            url: url.to_owned(),
            model: plan.model.served_name.clone(),
            level: Level::Concurrency(point.concurrency),
            count: Count { n_requests: Some(point.n_requests), n_warmup: Some(point.n_warmup) },
            modes: None,
            isl: plan.load.isl,
            osl: plan.load.osl,
            streaming: plan.load.streaming,
            seed: plan.load.seed,
            extra_inputs: Map::new(),
            request_timeout: Duration::from_millis(plan.load.request_timeout_ms),
            grace,
            no_progress: NO_PROGRESS,
            network: NetworkArgs::default(),
            telemetry: TelemetryArgs::default(),
            session: None,
            n_gpus: plan.n_devices(),
            tokenizer_dir: plan.model.tokenizer_dir.clone().map(PathBuf::from),
            api_key,
        }
    }
}

impl Point {
    /// Prepares point number `index`; `out` is the run folder, `bench_log` where progress is noted.
    pub(crate) fn new(ask: &Ask, index: usize, out: &Path, bench_log: &Path) -> Result<Self, Failure> {
        let concurrency = if let Level::Concurrency(n) = ask.level { n } else { 1 };
        let Count { n_requests, n_warmup } = ask.count;
        let mut spec =
            LoadSpec::closed_loop(&ask.url, &ask.model, concurrency, n_requests.unwrap_or(1), ask.isl, ask.osl).or_exit(Exit::Usage)?;
        spec.load.n_warmup = n_warmup.unwrap_or(spec.load.n_warmup);
        if let Some(modes) = &ask.modes {
            modes.apply(&mut spec, ask.level, n_requests, n_warmup);
        }
        spec.streaming = ask.streaming;
        // Each point has prompts of its own, or a cache would know them from the point before.
        spec.seed = ask.seed.wrapping_add(index as u64);
        spec.extra_inputs = ask.extra_inputs.clone();
        spec.isl_includes_template = true;
        spec.timeouts.request = Nanos::from(ask.request_timeout);
        spec.timeouts.no_progress = spec.timeouts.request.min(Nanos::from(ask.no_progress));
        spec.timeouts.grace = Nanos::from(ask.grace);
        spec.api_key = ask.api_key.clone().map(ApiKey::new);
        ask.network.apply(&mut spec)?;
        spec.keep = Keep { exchanges: ask.telemetry.raw_export, text_tokens: ask.telemetry.genai_perf_compat };
        spec.check().or_exit(Exit::Usage)?;
        let texts = TokenTexts::new(ask.tokenizer_dir.as_deref(), tokenizer::cache_dir().as_deref())?;
        let load = Load {
            streaming: ask.streaming,
            concurrency: match ask.level {
                Level::Concurrency(n) => Some(n),
                _ => None,
            },
            request_rate: match ask.level {
                Level::Rate(rate) => Some(rate),
                _ => None,
            },
            n_requests: u64::from(spec.load.n_requests),
            isl: spec.isl.fixed().filter(|_| matches!(spec.prompts, Prompts::Synthetic { .. }) && spec.turns.is_none()),
            osl: spec.osl.fixed().filter(|_| match &spec.prompts {
                Prompts::Synthetic { .. } => true,
                Prompts::Given { use_their_osl, .. } => !use_their_osl,
                Prompts::Trace(_) => false,
            }),
            n_gpus: ask.n_gpus,
            slos: ask.modes.as_ref().map(|modes| modes.slos.clone()).unwrap_or_default(),
        };
        Ok(Point {
            spec,
            texts: Arc::new(texts),
            load,
            level: ask.level,
            index,
            tokenizer_name: ask.tokenizer_dir.as_ref().map_or_else(|| "byte-level".to_owned(), |dir| dir.display().to_string()),
            out: out.to_owned(),
            bench_log: bench_log.to_owned(),
            telemetry: ask.telemetry.clone(),
            session: ask.session.clone(),
            clients: None,
        })
    }

    /// The load and its texts, for one who drives a part of it.
    pub(crate) fn into_load(self) -> (LoadSpec, Arc<dyn Texts>) {
        (self.spec, self.texts)
    }

    /// Has `clients`, if there are any, drive the load instead of this process.
    pub(crate) fn driven_by(self, clients: Option<Arc<Clients>>) -> Self {
        Point { clients, ..self }
    }

    /// Drives the load to its end, or until `stop` says otherwise; blocks.
    pub(crate) fn run(mut self, stop: &Arc<StopSignal>) -> Result<Measured, Failure> {
        let label = self.level.label();
        let what = if self.spec.turns.is_some() { "conversations" } else { "requests" };
        let started = match self.spec.load.duration {
            Some(duration) => format!("{label}: {} s after {} {what} of warm-up", duration.as_secs_f64(), self.spec.load.n_warmup),
            None => format!("{label}: {} {what} after {} of warm-up", self.load.n_requests, self.spec.load.n_warmup),
        };
        say(&started);
        append_line(&self.bench_log, &started);
        let mut progress = Progress::start(label.clone(), self.spec.n_total());
        let mut watchdog = Watchdog::new(Duration::from_nanos(self.spec.timeouts.no_progress.0));
        let session = self.session.clone();
        let mut show = |s: &tandem_load::Snapshot| {
            if watchdog.has_hung(s, Instant::now()) {
                stop.stop_now();
            }
            let power = session.as_ref().and_then(|session| session.gpu_power_w());
            if let Some(line) = progress.show(s, power) {
                append_line(&self.bench_log, &line);
            }
        };
        let driven = match &self.clients {
            Some(clients) => clients.run((self.index, self.level), &self.spec, &self.texts, &mut show, stop),
            None => tandem_load::run(&self.spec, self.texts.clone(), &mut show, stop).map(|report| FleetReport {
                report,
                lost: Vec::new(),
                clients: Vec::new(),
            }),
        };
        progress.finish();
        let has_hung = watchdog.hung;
        let FleetReport { mut report, lost, clients } = driven.map_err(|error| load_failure(error, &self.bench_log))?;
        let summary_line = health_line(&label, &report);
        append_line(&self.bench_log, &summary_line);
        // Records count their points within one call of the load generator.
        report.records.iter_mut().for_each(|record| record.point = u32::try_from(self.index).unwrap_or(u32::MAX));
        self.note_what_was_sent(&report);
        let mut reasons = client_reasons(&report, &self.spec);
        let exchanges = report.exchanges.take();
        let context = PointContext { exchanges, ..self.context(&report)? };
        let mut artifacts = render_point(&Arc::new(report.records), &context);
        let mut client = health_json(&report.health, self.spec.target.tls_name().is_some());
        if !clients.is_empty() {
            let one = |(name, n_records, uncertain): &(String, usize, Nanos)| json!({"name": name, "n_records": n_records, "clock_uncertainty_us": uncertain.as_secs_f64() * 1e6});
            client["clients"] = clients.iter().map(one).collect();
        }
        artifacts.client = client.clone();
        reasons.extend(lost.into_iter().map(|(name, why)| Reason {
            verdict: Verdict::Invalid,
            code: "client_lost",
            message: format!("client {name} was lost, so the load was not whole: {why}"),
        }));
        Ok(Measured { artifacts, reasons, event: json!({"client": client}), has_hung })
    }

    /// Where time or conversations decide how many requests there are, what was asked for is what was sent.
    fn note_what_was_sent(&mut self, report: &LoadReport) {
        let load = &self.spec.load;
        let n_sent = report.records.iter().filter(|r| r.phase == tandem_metrics::LoadPhase::Profiling).count() as u64;
        if load.duration.is_some() && (self.spec.turns.is_some() || n_sent < self.load.n_requests) {
            self.load.n_requests = n_sent;
        } else if self.spec.turns.is_some() {
            self.load.n_requests = n_sent + u64::from(report.health.receive.n_not_sent);
        }
    }

    fn context(&self, report: &LoadReport) -> Result<PointContext, Failure> {
        let n_payloads = MAX_PAYLOADS.min(usize::try_from(self.load.n_requests).unwrap_or(usize::MAX));
        let payloads = tandem_load::payloads(&self.spec, self.texts.clone(), n_payloads).or_exit(Exit::Bug)?;
        let osl = self.spec.osl.typical();
        let extra = Map::from_iter([
            ("max_tokens".to_owned(), json!(osl)),
            ("min_tokens".to_owned(), json!(osl)),
            ("ignore_eos".to_owned(), json!(true)),
        ]);
        Ok(PointContext {
            clock: report.run_clock(),
            model: self.spec.model.clone(),
            stimulus: match self.level {
                Level::Concurrency(n) => Stimulus::Concurrency(n),
                Level::Rate(rate) => Stimulus::RequestRate(rate),
                Level::Trace => Stimulus::FixedSchedule,
            },
            load: self.load.clone(),
            input_config: InputConfig {
                url: self.spec.target.label(),
                extra,
                n_prompts: self.load.n_requests,
                n_warmup: u64::from(self.spec.load.n_warmup),
                seed: self.spec.seed,
                artifact_directory: self.out.display().to_string(),
                tokenizer: self.tokenizer_name.clone(),
                telemetry_urls: self.telemetry.urls(),
            },
            payloads,
            telemetry: None,
            measured: self.measured(report),
            exchanges: None,
            options: self.telemetry.options(),
        })
    }
}

impl Point {
    /// What was sampled from the first start to the last end.
    fn measured(&self, report: &LoadReport) -> Option<PointTelemetry> {
        let clock = report.run_clock();
        let from = report.records.iter().map(|record| record.start_ns).min()?;
        let to = report.records.iter().map(|record| record.end_ns).max()?;
        let telemetry = self.session.as_ref()?.window(clock.wall_ns(from), clock.wall_ns(to), TELEMETRY_PATIENCE);
        Some(PointTelemetry { raw_energy: self.telemetry.genai_perf_compat, ..telemetry })
    }
}

/// Notices that no request of a point gets anything any more, long before each has failed by itself and been replaced.
struct Watchdog {
    limit: Duration,
    n_chunks: u64,
    since: Instant,
    hung: bool,
}

impl Watchdog {
    fn new(limit: Duration) -> Self {
        Watchdog { limit, n_chunks: 0, since: Instant::now(), hung: false }
    }

    fn has_hung(&mut self, s: &tandem_load::Snapshot, now: Instant) -> bool {
        if s.n_chunks != self.n_chunks || s.n_in_flight() == 0 {
            (self.n_chunks, self.since) = (s.n_chunks, now);
        }
        self.hung |= now.duration_since(self.since) >= self.limit;
        self.hung
    }
}

fn load_failure(error: tandem_load::LoadError, bench_log: &Path) -> Failure {
    let exit = if matches!(error, tandem_load::LoadError::Spec { .. }) { Exit::Usage } else { Exit::Incomplete };
    let failure = Failure::new(exit, error);
    append_line(bench_log, &failure.to_string());
    failure
}

/// What only the client knows against its figures.
fn client_reasons(report: &LoadReport, spec: &LoadSpec) -> Vec<Reason> {
    let mut reasons = report.health.reasons();
    let mut doubt = |code, message| reasons.push(Reason { verdict: Verdict::Suspect, code, message });
    if report.n_isl_mismatches > 0 {
        let message = format!("the server counted another number of prompt tokens than were sent in {} requests", report.n_isl_mismatches);
        doubt("prompt_tokens", message);
    }
    // Where all outputs are to have one length the verdict on the records says it.
    if report.n_osl_mismatches > 0 && (spec.osl.fixed().is_none() || !matches!(spec.prompts, Prompts::Synthetic { .. })) {
        doubt("output_tokens", format!("{} responses have another length than was asked for", report.n_osl_mismatches));
    }
    if let Some(measured) = report.records.iter().find(|r| r.phase == tandem_metrics::LoadPhase::Profiling) {
        let ramped = measured.scheduled_ns.saturating_sub(report.records.iter().map(|r| r.scheduled_ns).min().unwrap_or(0));
        if ramped < spec.load.ramp.0 {
            doubt("ramp_measured", "requests were measured while the load was still rising: give a longer --warmup".to_owned());
        }
    }
    let (mean, worst) = report.health.schedule_lag;
    if spec.load.arrivals != Arrivals::ClosedLoop && spec.load.max_in_flight.is_none() && mean > MAX_SCHEDULE_LAG {
        doubt(
            "schedule_lag",
            format!("requests were sent {:.1} ms late on average, {:.1} ms at worst", mean.as_millis_f64(), worst.as_millis_f64()),
        );
    }
    reasons.extend(refused_field(report, spec));
    if report.n_repeated_prompts > 0 {
        let message = format!("{} prompts were sent more than once", report.n_repeated_prompts);
        reasons.push(Reason { verdict: Verdict::Suspect, code: "repeated_prompts", message });
    }
    reasons
}

/// Fields that not every server knows. A server that refuses one says so in a status and its text.
const OPTIONAL_FIELDS: [&str; 4] = ["ignore_eos", "min_tokens", "stream_options", "nvext"];

/// What to do when the server refuses a field of ours.
fn refused_field(report: &LoadReport, spec: &LoadSpec) -> Option<Reason> {
    let refusal = report.records.iter().filter(|r| matches!(r.http_status, Some(400 | 422))).find_map(|r| match &r.outcome {
        Outcome::Failed { kind: FailureKind::HttpStatus, message } => Some(message),
        _ => None,
    })?;
    let asked = |field: &&&str| **field != "nvext" || spec.extra_inputs.contains_key("nvext");
    let field = OPTIONAL_FIELDS.iter().filter(asked).find(|field| refusal.contains(**field))?;
    let message = format!("the server refuses the field `{field}`: leave it out with --extra-inputs '{{\"{field}\":null}}'");
    Some(Reason { verdict: Verdict::Invalid, code: "refused_field", message })
}

fn health_line(label: &str, report: &LoadReport) -> String {
    let health = &report.health;
    format!(
        "{label}: {} chunks, stamps by {} (sends by {}, {:.0} us at p99), {:.2} % clumped, {:.1} in flight on average, receive thread busy {:.1} %, client CPU {:.2} s of {:.2} s",
        health.n_chunks,
        health.receive.stamp_source(),
        health.receive.send_stamp_source(),
        health.receive.send_time.quantile(0.99).as_secs_f64() * 1e6,
        health.clumped_share() * 100.0,
        health.in_flight_mean,
        health.receive_utilisation() * 100.0,
        health.cpu_total().as_secs_f64(),
        health.wall.as_secs_f64(),
    )
}

fn health_json(health: &ClientHealth, is_tls: bool) -> Value {
    let us = |time: Nanos| time.as_secs_f64() * 1e6;
    json!({
        "n_chunks": health.n_chunks,
        "n_clumped_chunks": health.n_clumped_chunks,
        "stamp_source": health.receive.stamp_source(),
        // With TLS bytes are stamped as they arrive, before they are decrypted.
        "stamped": if is_tls { "encrypted bytes" } else { "bytes" },
        "stamp_lag_p99_us": us(health.receive.read_lag.quantile(0.99)),
        "send_stamp_source": health.receive.send_stamp_source(),
        "send_time_p50_us": us(health.receive.send_time.quantile(0.5)),
        "send_time_p99_us": us(health.receive.send_time.quantile(0.99)),
        "n_partial_writes": health.receive.n_partial_writes,
        "in_flight_mean": health.in_flight_mean,
        "in_flight_peak": health.in_flight_peak,
        "n_receive_threads": health.n_receive_threads(),
        "receive_utilisation": health.receive_utilisation(),
        "cpu_wait_share": health.cpu_wait_share(),
        "cpu_steal_share": health.steal_share,
        "schedule_lag_mean_ms": health.schedule_lag.0.as_secs_f64() * 1e3,
        "schedule_lag_max_ms": health.schedule_lag.1.as_secs_f64() * 1e3,
        "cpu_s": health.cpu_total().as_secs_f64(),
        "wall_s": health.wall.as_secs_f64(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_bites_when_nothing_moves_while_something_should() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut snapshot = tandem_load::Snapshot {
            elapsed: Nanos(0),
            n_total: 9,
            n_sent: 2,
            n_done: 0,
            n_failed: 0,
            n_chunks: 1,
            n_tokens: 1,
            ttft: None,
            tpot: None,
            of_duration: None,
        };
        let mut watchdog = Watchdog::new(Duration::from_secs(10));
        assert!(!watchdog.has_hung(&snapshot, at(5)));
        assert!(!watchdog.has_hung(&snapshot, at(14)));
        snapshot.n_chunks = 2;
        assert!(!watchdog.has_hung(&snapshot, at(16)));
        // Failures are no progress.
        (snapshot.n_failed, snapshot.n_sent) = (1, 3);
        assert!(watchdog.has_hung(&snapshot, at(26)));
        // Nothing in flight is nothing to wait for.
        let mut idle = Watchdog::new(Duration::from_secs(10));
        (snapshot.n_done, snapshot.n_sent) = (2, 3);
        assert!(!idle.has_hung(&snapshot, at(90)));
    }
}
