//! A telemetry session: one thread a source, one file, bounded series.

use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tandem_metrics::telemetry::{PointTelemetry, Series, Subject, SubjectKind, line};

use crate::dcgm::Dcgm;
use crate::error::TelemetryError;
use crate::host::Host;
use crate::nvml::Nvml;
use crate::servers::Server;
use crate::source::{Reading, Source};

/// Samples of so long before and after a window are handed out with it, for interpolation at its ends.
const MARGIN_NS: u64 = 3_000_000_000;

/// Where GPUs are sampled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum GpuSource {
    /// NVML if this host has it; otherwise nothing, which the results say.
    #[default]
    Auto,
    /// NVML, or the run does not start.
    Nvml,
    /// DCGM exporters at these URLs, or the run does not start.
    Dcgm(Vec<String>),
    /// No telemetry at all, of hosts and servers neither.
    None,
}

impl FromStr for GpuSource {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "auto" => Ok(GpuSource::Auto),
            "nvml" => Ok(GpuSource::Nvml),
            "none" => Ok(GpuSource::None),
            _ => match text.strip_prefix("dcgm:").map(|urls| urls.split(',').filter(|url| !url.is_empty()).map(str::to_owned).collect()) {
                Some(urls) if urls != Vec::<String>::new() => Ok(GpuSource::Dcgm(urls)),
                _ => Err(TelemetryError::Unknown(text.to_owned())),
            },
        }
    }
}

type RoleOf = dyn Fn(&str, u32) -> Option<String> + Send + Sync;

/// Which role the GPU of a host and index has in the deployment.
#[derive(Clone)]
pub struct Roles(Arc<RoleOf>);

impl Roles {
    /// From a function of host name and GPU index.
    pub fn new(of: impl Fn(&str, u32) -> Option<String> + Send + Sync + 'static) -> Self {
        Roles(Arc::new(of))
    }

    pub(crate) fn of(&self, host: &str, index: u32) -> Option<String> {
        (self.0)(host, index)
    }
}

impl Default for Roles {
    fn default() -> Self {
        Roles::new(|_, _| None)
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Roles")
    }
}

/// What to sample.
#[derive(Debug, Clone, Default)]
pub struct TelemetryConfig {
    /// GPUs.
    pub gpu: GpuSource,
    /// Metrics endpoints of servers.
    pub metrics_urls: Vec<String>,
    /// Name of this host.
    pub host: String,
    /// Roles of GPUs.
    pub roles: Roles,
    /// The file of samples.
    pub file: PathBuf,
    /// Another library in NVML's place.
    pub nvml_library: Option<PathBuf>,
}

/// Samples until it is dropped.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// What this session samples, for people.
    pub sources: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Told after every sample and at the end.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    file: BufWriter<File>,
    series: Vec<Series>,
    notes: Vec<String>,
    stopping: bool,
}

impl Shared {
    /// A thread that panicked while it held the lock left at worst half a line in a buffer.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Opens every source and begins. With [`GpuSource::None`] there is no session.
    ///
    /// # Errors
    /// When a source that was asked for by name cannot be had, or the file cannot be written.
    pub fn start(config: &TelemetryConfig) -> Result<Option<Session>, TelemetryError> {
        if config.gpu == GpuSource::None {
            return Ok(None);
        }
        let mut notes = Vec::new();
        let sources = sources(config, &mut notes)?;
        let file_error = |source| TelemetryError::File { path: config.file.clone(), source };
        let file = BufWriter::new(File::create(&config.file).map_err(file_error)?);
        let state = State { file, series: Vec::new(), notes, stopping: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let mut session = Session { shared, threads: Vec::new(), sources: sources.iter().map(|source| source.name()).collect() };
        for (i, source) in sources.into_iter().enumerate() {
            let shared = session.shared.clone();
            let thread = std::thread::Builder::new().name(format!("telemetry-{i}")).spawn(move || watch(source, &shared));
            session.threads.push(thread.map_err(TelemetryError::Thread)?);
        }
        Ok(Some(session))
    }

    /// Notes so far.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.shared.lock().notes.clone()
    }

    /// Power of all GPUs together at their last sample, W, for a live view.
    #[must_use]
    pub fn gpu_power_w(&self) -> Option<f64> {
        let state = self.shared.lock();
        let gpus = state.series.iter().filter(|series| series.subject.kind == SubjectKind::Gpu);
        let last: Vec<f64> = gpus.filter_map(|series| series.values("power_w").last().map(|(_, watts)| watts)).collect();
        (!last.is_empty()).then(|| last.iter().sum())
    }

    /// What was sampled in a window of wall-clock time, and a little around it.
    ///
    /// Waits (at most `patience`) until every GPU has a sample after the window's end, so that its energy can be interpolated.
    #[must_use]
    pub fn window(&self, from_ns: u64, to_ns: u64, patience: Duration) -> PointTelemetry {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.lock();
        let is_past = |series: &Series| series.subject.kind != SubjectKind::Gpu || series.last_ns().is_some_and(|last| last > to_ns);
        while !state.series.iter().all(is_past) {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else { break };
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let (from, to) = (from_ns.saturating_sub(MARGIN_NS), to_ns.saturating_add(MARGIN_NS));
        let clipped: Vec<Series> = state.series.iter().map(|series| series.clipped(from, to)).filter(|series| !series.is_empty()).collect();
        let mut notes = state.notes.clone();
        if !clipped.iter().any(|series| series.subject.kind == SubjectKind::Gpu) && !notes.iter().any(|note| note.contains("GPU")) {
            notes.push("no GPU was sampled".to_owned());
        }
        let _ = state.file.flush();
        PointTelemetry { series: clipped, notes, raw_energy: false }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // It has nothing more to say; its file is flushed below.
            let _ = thread.join();
        }
        let _ = self.shared.lock().file.flush();
    }
}

fn sources(config: &TelemetryConfig, notes: &mut Vec<String>) -> Result<Vec<Box<dyn Source>>, TelemetryError> {
    let mut all: Vec<Box<dyn Source>> = Vec::new();
    let nvml = || Nvml::open(config.nvml_library.as_deref(), &config.host, &config.roles);
    match &config.gpu {
        GpuSource::Auto => match nvml() {
            Ok(nvml) => all.push(Box::new(nvml)),
            Err(error) => notes.push(format!("no GPU telemetry: {error}")),
        },
        GpuSource::Nvml => all.push(Box::new(nvml()?)),
        GpuSource::Dcgm(urls) => {
            for url in urls {
                all.push(Box::new(answering(Dcgm::new(url, config.roles.clone()), url)?));
            }
        }
        GpuSource::None => {}
    }
    for url in &config.metrics_urls {
        all.push(Box::new(Server::new(url)));
    }
    all.extend(Host::new(&config.host).map(|host| Box::new(host) as Box<dyn Source>));
    Ok(all)
}

/// A source that was named must answer once before anything starts.
fn answering<S: Source>(mut source: S, url: &str) -> Result<S, TelemetryError> {
    source.sample().map_err(|reason| TelemetryError::Endpoint { url: url.to_owned(), reason })?;
    Ok(source)
}

/// Samples at even intervals until told to stop.
fn watch(mut source: Box<dyn Source>, shared: &Shared) {
    let mut failed: u64 = 0;
    let mut due = Instant::now();
    loop {
        let asked_ns = wall_ns();
        let result = source.sample();
        // Half way between question and answer is when the values were true, as well as one can know.
        let at_ns = asked_ns + wall_ns().saturating_sub(asked_ns) / 2;
        let mut state = shared.lock();
        match result {
            Ok(readings) => state.take(at_ns, &readings),
            Err(reason) => {
                failed += 1;
                // The first failure is said; how often it happened is not worth a growing list.
                if failed == 1 {
                    tracing::warn!(source = source.name(), reason, "telemetry");
                    state.notes.push(format!("{}: {reason}", source.name()));
                }
            }
        }
        shared.changed.notify_all();
        due = (due + source.interval()).max(Instant::now());
        while !state.stopping {
            let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else { break };
            state = shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.stopping {
            return;
        }
    }
}

impl State {
    fn take(&mut self, at_ns: u64, readings: &[Reading]) {
        for Reading { subject, values } in readings {
            // A full disk ends the file, not the run; the series in memory go on.
            if let Err(error) = self.file.write_all(line(at_ns, subject, values).as_bytes()) {
                let note = format!("telemetry.jsonl is incomplete: {error}");
                if !self.notes.contains(&note) {
                    self.notes.push(note);
                }
            }
            self.series_of(subject).push(at_ns, values);
        }
    }

    fn series_of(&mut self, subject: &Subject) -> &mut Series {
        let index = self.series.iter().position(|series| series.subject.is_same(subject)).unwrap_or_else(|| {
            self.series.push(Series::new(subject.clone()));
            self.series.len() - 1
        });
        &mut self.series[index]
    }
}

fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpu_sources_are_named() {
        assert_eq!("auto".parse::<GpuSource>().unwrap(), GpuSource::Auto);
        assert_eq!("dcgm:n1:9400,n2:9400".parse::<GpuSource>().unwrap(), GpuSource::Dcgm(vec!["n1:9400".into(), "n2:9400".into()]));
        for wrong in ["dcgm:", "nvm", ""] {
            assert!(wrong.parse::<GpuSource>().unwrap_err().to_string().contains("expected auto, nvml"), "{wrong}");
        }
    }
}
