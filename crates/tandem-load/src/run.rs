//! Runs a load from a specification to records: starts the threads, watches them, puts together what they return.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use tandem_metrics::{Exchange, LoadPhase, RequestRecord, RunClock, TextTokens};
use tandem_plan::Nanos;

use crate::clock::Clock;
use crate::decode::assemble::{Common, Finished, count_output};
use crate::decode::thread::{Received, decode};
use crate::error::LoadError;
use crate::gate::{AtOnce, Gate};
use crate::health::{
    ClientHealth, DECODE_THREAD, MachineCpu, PROMPT_THREAD, RECEIVE_THREAD, ReceiveHealth, in_flight, raise_thread_priority, thread_cpu,
    thread_cpu_wait,
};
use crate::progress::{Live, Progress};
use crate::prompts::body::BodyTemplate;
use crate::prompts::requests::{Made, Requests};
use crate::prompts::sessions::{Conversations, Scripts};
use crate::prompts::texts::Texts;
use crate::spec::LoadSpec;
use crate::stop::StopSignal;
use crate::transport::desk::Desk;
use crate::transport::outbox::outbox;
use crate::transport::receive::{ReceiveConfig, Receiver, receive};
use crate::transport::request::RequestHead;
use crate::transport::route::Route;
use crate::transport::stamps::switch_on;
use crate::transport::supply::supply;
use crate::transport::turns::{TurnQueue, turns};

/// How often progress is shown.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Files that a process has open beside its connections.
const OTHER_FILES: u64 = 64;

/// What a run yields.
#[derive(Debug)]
pub struct LoadReport {
    /// One for each request that was sent, warm-up first, each phase in the order of sending.
    pub records: Vec<RequestRecord>,
    /// The clock of the records' times.
    pub clock: Clock,
    /// How the client fared.
    pub health: ClientHealth,
    /// Prompts that had been sent before, for want of different ones of that length.
    pub n_repeated_prompts: u32,
    /// Measured requests whose `usage.prompt_tokens` was not what the prompt and the chat template make together.
    pub n_isl_mismatches: u32,
    /// Measured requests that ended well with another number of output tokens than they asked for.
    pub n_osl_mismatches: u32,
    /// The measured requests that ended well as they were on the wire, in the order of their records; none unless they are kept.
    pub exchanges: Option<Vec<Exchange>>,
}

impl LoadReport {
    /// Ties the records' times to the wall clock.
    #[must_use]
    pub fn run_clock(&self) -> RunClock {
        RunClock { wall_origin_ns: self.clock.origin_unix_nanos() }
    }

    /// Whether every request of the specification was sent.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.health.receive.n_not_sent == 0 && !self.health.receive.stopped
    }
}

/// Runs `spec` to its end, or until `stop` says otherwise; blocks.
///
/// Requests that fail are records with an outcome.
///
/// # Errors
/// When the specification is impossible, the server cannot be reached at all, or the system refuses what a run needs.
pub fn run(spec: &LoadSpec, texts: Arc<dyn Texts>, progress: &mut dyn Progress, stop: &Arc<StopSignal>) -> Result<LoadReport, LoadError> {
    run_from(spec, texts, progress, stop, Arc::new(AtOnce))
}

/// As [`run`]; when everything is ready the load begins as `gate` says.
///
/// # Errors
/// As [`run`].
pub fn run_from(
    spec: &LoadSpec,
    texts: Arc<dyn Texts>,
    progress: &mut dyn Progress,
    stop: &Arc<StopSignal>,
    gate: Arc<dyn Gate>,
) -> Result<LoadReport, LoadError> {
    spec.check()?;
    let n_repeated = Arc::new(AtomicU32::new(0));
    let scripts = Arc::new(Scripts::default());
    let requests = Requests::new(spec, texts.clone(), n_repeated.clone(), scripts.clone())?;
    allow_open_files(spec)?;
    let route = Route::find(&spec.target, &spec.tls, spec.timeouts.connect.into())?;
    let config = ReceiveConfig {
        route: Arc::new(route),
        max_in_flight: spec.n_slots(),
        n_open_first: spec.n_open_first(),
        n_ready: spec.n_open_first(),
        timeouts: spec.timeouts,
        limits: spec.limits,
        kernel_stamps: spec.kernel_stamps,
    };
    let keep_answer = spec.turns.is_some() || spec.keep.text_tokens;
    let common = Common { isl: 0, osl: spec.osl.typical(), keep_text: true, keep_answer, keep_events: spec.keep.exchanges };
    let _stamping = spec.kernel_stamps.then(switch_on);
    let clock = Clock::start();
    let machine_before = MachineCpu::now();
    let (received, made, mut health) = run_threads(spec, config, clock, (requests, scripts), common, progress, (stop, gate))?;
    let mut made: HashMap<_, _> = made.into_iter().map(|made| (made.key, made)).collect();
    let (finished, n_isl_mismatches, n_osl_mismatches) = finish_records(received, &mut made, &*texts, spec.keep.text_tokens);
    let (records, exchanges): (Vec<_>, Vec<_>) = finished.into_iter().unzip();
    let exchanges = spec.keep.exchanges.then(|| exchanges.into_iter().flatten().collect());
    health.steal_share = machine_before.and_then(|before| MachineCpu::now()?.steal_since(before));
    describe_load(&mut health, &records, spec, spec.own_cap());
    let n_repeated_prompts = n_repeated.load(Ordering::Relaxed);
    Ok(LoadReport { n_isl_mismatches, n_osl_mismatches, records, clock, health, n_repeated_prompts, exchanges })
}

fn run_threads(
    spec: &LoadSpec,
    config: ReceiveConfig,
    clock: Clock,
    (requests, scripts): (Requests, Arc<Scripts>),
    common: Common,
    progress: &mut dyn Progress,
    (stop, gate): (&Arc<StopSignal>, Arc<dyn Gate>),
) -> Result<(Received, Vec<Made>, ClientHealth), LoadError> {
    let duration = spec.load.duration;
    let live = Arc::new(Live::default());
    let (supply, maker) = supply();
    let (ended, at_end) = channel::<()>();
    let (n_total, n_threads) = (spec.n_total(), spec.n_receive_threads());
    let desk = Arc::new(Desk::new(spec, supply, n_threads));
    let n_log = usize::try_from(n_total).unwrap_or(usize::MAX) / n_threads;
    // All of them exist before the first begins: a thread that is missing would be waited for.
    let mut loops = Vec::new();
    for i in 0..n_threads {
        let share = |n: usize| n / n_threads + usize::from(i < n % n_threads);
        let own = ReceiveConfig { max_in_flight: share(config.max_in_flight), n_open_first: share(config.n_open_first), ..config.clone() };
        let (outbox, inbox) = outbox();
        let (conversations, queue) = conversations(spec, &scripts)?.unzip();
        let receiver = Receiver::new(own, clock, desk.clone(), outbox, live.clone(), stop.clone(), queue);
        loops.push((receiver.map_err(|source| LoadError::System { action: "prepare to receive", source })?, inbox, conversations));
    }
    let prompts = spawn(PROMPT_THREAD, move || {
        let mut requests = requests;
        maker.run(&mut requests);
        requests.into_made()
    })?;
    let mut threads = Vec::new();
    for (receiver, inbox, conversations) in loops {
        let (ended, live, gate) = (ended.clone(), live.clone(), gate.clone());
        let decoder = spawn(DECODE_THREAD, move || decode(&inbox, common, n_log, &live, conversations.as_ref()))?;
        let receiver = spawn(RECEIVE_THREAD, move || {
            let _ended = ended;
            let priority_raised = raise_thread_priority();
            let health = receive(receiver, &*gate)?;
            Ok(ReceiveHealth { priority_raised, cpu_wait: thread_cpu_wait(), ..health })
        })?;
        threads.push((receiver, decoder));
    }
    drop(ended);
    while at_end.recv_timeout(PROGRESS_EVERY) == Err(RecvTimeoutError::Timeout) {
        progress.show(&live.snapshot(clock.now(), n_total, duration));
    }
    let (mut all, mut receive, mut cpu) = (Received::default(), None::<ReceiveHealth>, Vec::new());
    for (receiver, decoder) in threads {
        let (result, receive_cpu) = join(receiver, RECEIVE_THREAD)?;
        let (received, decode_cpu) = join(decoder, DECODE_THREAD)?;
        let health = result.map_err(|source: io::Error| LoadError::System { action: "receive", source })?;
        all.merge(received);
        cpu.extend([(RECEIVE_THREAD, receive_cpu), (DECODE_THREAD, decode_cpu)]);
        receive = Some(match receive {
            Some(others) => others.merged(&health),
            None => health,
        });
    }
    let mut receive = receive.unwrap_or_default();
    (receive.n_not_sent, receive.n_supply_waits) = (desk.n_left(), desk.n_supply_waits());
    // The prompt thread may wait for somebody to take what it has made.
    drop(desk);
    let (made, prompt_cpu) = join(prompts, PROMPT_THREAD)?;
    cpu.push((PROMPT_THREAD, prompt_cpu));
    let last = live.snapshot(clock.now(), n_total, duration);
    progress.show(&last);
    let health = ClientHealth {
        receive,
        cpu,
        wall: last.elapsed.into(),
        n_chunks: all.n_chunks,
        n_clumped_chunks: all.n_clumped,
        in_flight_nominal: None,
        in_flight_mean: 0.0,
        in_flight_peak: 0,
        schedule_lag: (Nanos::ZERO, Nanos::ZERO),
        steal_share: None,
    };
    Ok((all, made, health))
}

/// What a pair of threads needs to carry conversations on: a conversation stays with the pair that began it.
fn conversations(spec: &LoadSpec, scripts: &Arc<Scripts>) -> Result<Option<(Conversations, TurnQueue)>, LoadError> {
    let Some(asked) = &spec.turns else { return Ok(None) };
    let (to_receiver, queue) = turns();
    let head = RequestHead::new(&spec.target, spec.streaming, spec.api_key.as_ref(), &spec.headers)?;
    let body = BodyTemplate::new(spec)?;
    Ok(Some((Conversations { scripts: scripts.clone(), head, body, n_turns_max: asked.max, to_receiver }, queue)))
}

type Running<T> = thread::JoinHandle<(T, Duration)>;

/// Starts a thread that also returns its CPU time.
fn spawn<T: Send + 'static>(name: &'static str, work: impl FnOnce() -> T + Send + 'static) -> Result<Running<T>, LoadError> {
    let body = move || {
        let value = work();
        (value, thread_cpu())
    };
    thread::Builder::new().name(name.to_owned()).spawn(body).map_err(|source| LoadError::System { action: "start a thread", source })
}

fn join<T>(running: Running<T>, thread: &'static str) -> Result<(T, Duration), LoadError> {
    running.join().map_err(|_| LoadError::Panicked { thread })
}

/// The records in the order of sending, with what is known from their making; and how many measured ones have another ISL, another OSL
/// than they asked for. Each with what was on the wire, where that is kept and it ended well.
fn finish_records(
    received: Received,
    made: &mut HashMap<(LoadPhase, u32), Made>,
    texts: &dyn Texts,
    count_texts: bool,
) -> (Vec<(RequestRecord, Option<Exchange>)>, u32, u32) {
    let mut finished: Vec<_> = received.finished.into_iter().map(|finished| (finished, None)).collect();
    let (mut n_isl, mut n_osl, mut has_turns) = (0, 0, false);
    for (finished, exchange) in &mut finished {
        count_output(finished, &|text| texts.count(text));
        let Finished { record, answer, events, .. } = finished;
        let Some(made) = u32::try_from(record.index).ok().and_then(|index| made.get_mut(&(record.phase, index))) else { continue };
        record.isl.client = made.isl;
        if count_texts {
            record.text_tokens = TextTokens { prompt: made.n_text, answer: texts.count(answer) };
        }
        if let Some(payload) = made.body.take().filter(|_| record.outcome.is_ok()) {
            *exchange = Some(Exchange { start_ns: record.start_ns, payload, responses: std::mem::take(events) });
        }
        (record.session, record.turn) = (u64::from(made.session), made.turn);
        has_turns |= made.turn > 0;
        let differ = |a: Option<u32>, b: Option<u32>| a.zip(b).is_some_and(|(a, b)| a != b);
        if record.phase == LoadPhase::Profiling {
            n_isl += u32::from(differ(record.isl.server, made.isl_at_server));
            n_osl += u32::from(record.is_kept() && differ(record.osl_tokens(), Some(made.osl)));
        }
    }
    let mut records: Vec<_> = finished.into_iter().map(|(finished, exchange)| (finished.record, exchange)).collect();
    order(&mut records, has_turns);
    (records, n_isl, n_osl)
}

/// What the records say about how the load was held, against `cap`.
pub(crate) fn describe_load(health: &mut ClientHealth, records: &[RequestRecord], spec: &LoadSpec, cap: Option<usize>) {
    health.schedule_lag = schedule_lag(records, spec);
    (health.in_flight_mean, health.in_flight_peak) = in_flight(records);
    health.in_flight_nominal = cap.and_then(|n| u32::try_from(n).ok());
}

/// Puts records in the order of sending, warm-up first. Those of conversations are numbered anew in that order.
pub(crate) fn order(records: &mut [(RequestRecord, Option<Exchange>)], has_turns: bool) {
    records.sort_by_key(|(r, _)| (r.phase == LoadPhase::Profiling, if has_turns { r.start_ns } else { r.index }, r.index));
    if has_turns {
        // Tickets leave gaps where conversations are short.
        let n_warmup = records.iter().filter(|(r, _)| r.phase == LoadPhase::Warmup).count() as u64;
        for (i, (record, _)) in (0..).zip(records) {
            record.index = if i < n_warmup { i } else { i - n_warmup };
        }
    }
}

/// Mean and worst delay between when a request was due and when its sending began.
fn schedule_lag(records: &[RequestRecord], spec: &LoadSpec) -> (Nanos, Nanos) {
    if spec.load.arrivals == crate::pacing::Arrivals::ClosedLoop || records.is_empty() {
        return (Nanos::ZERO, Nanos::ZERO);
    }
    let lags = || records.iter().map(|r| r.start_ns.saturating_sub(r.scheduled_ns));
    (Nanos(lags().sum::<u64>() / records.len() as u64), Nanos(lags().max().unwrap_or(0)))
}

/// Raises the limit of open files as far as the run needs and the system lets it.
#[cfg(unix)]
fn allow_open_files(spec: &LoadSpec) -> Result<(), LoadError> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    let system = |action| move |e: nix::errno::Errno| LoadError::System { action, source: io::Error::from(e) };
    let wanted = spec.n_slots() as u64 + OTHER_FILES;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(system("read the limit of open files"))?;
    if soft >= wanted {
        return Ok(());
    }
    if hard < wanted && spec.load.max_in_flight.is_some() {
        let reason = format!("needs {wanted} open files, but the system allows {hard} (ulimit -n)");
        return Err(LoadError::Spec { field: "concurrency", reason });
    }
    setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard).map_err(system("raise the limit of open files"))
}

#[cfg(not(unix))]
fn allow_open_files(_: &LoadSpec) -> Result<(), LoadError> {
    Ok(())
}
