//! Whole sessions: a fake NVML library, endpoints on this host, the file, the window, and what is missing.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tandem_metrics::telemetry::{PointTelemetry, SubjectKind, UNASSIGNED, parse};
use tandem_telemetry::{GpuSource, Roles, Session, TelemetryConfig, TelemetryError};

const DEADLINE: Duration = Duration::from_secs(60);

fn now_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos()).expect("before 2554")
}

/// The fake library, compiled; none where there is no compiler.
fn fake_nvml(dir: &Path) -> Option<PathBuf> {
    tandem_testkit::shared_library(
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/fake_nvml.c"),
        dir,
        "NVML telemetry with a fake library",
    )
}

fn config(dir: &Path) -> TelemetryConfig {
    TelemetryConfig { host: "here".to_owned(), file: dir.join("telemetry.jsonl"), ..TelemetryConfig::default() }
}

/// The window since `from`, as soon as `enough` of it has been sampled.
fn window_when(session: &Session, from_ns: u64, enough: impl Fn(&PointTelemetry) -> bool) -> (PointTelemetry, (u64, u64)) {
    let start = Instant::now();
    loop {
        let to_ns = now_ns();
        let found = session.window(from_ns, to_ns, Duration::from_secs(2));
        if enough(&found) {
            return (found, (from_ns, to_ns));
        }
        assert!(start.elapsed() < DEADLINE, "not sampled in time: {found:?}");
    }
}

/// Answers every GET with `text` until dropped.
struct Endpoint {
    url: String,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Endpoint {
    fn serve(text: &'static str) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let mut request = [0u8; 4096];
                let _ = stream.read(&mut request);
                let head =
                    format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
                let _ = stream.write_all((head + text).as_bytes());
            }
        });
        Endpoint { url: format!("http://{address}/metrics"), stop, thread: Some(thread) }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let address = self.url.trim_start_matches("http://").trim_end_matches("/metrics").to_owned();
        let _ = TcpStream::connect(address);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[test]
fn a_fake_nvml_is_sampled_and_its_energy_is_that_of_its_power() {
    let dir = tempfile::tempdir().unwrap();
    let Some(library) = fake_nvml(dir.path()) else { return };
    let roles = Roles::new(|host, index| (host == "here").then(|| if index == 0 { "prefill" } else { "decode" }.to_owned()));
    let config = TelemetryConfig { gpu: GpuSource::Nvml, nvml_library: Some(library), roles, ..config(dir.path()) };
    let session = Session::start(&config).unwrap().expect("telemetry is on");
    let from_ns = now_ns();
    let sampled = |found: &PointTelemetry| found.series.iter().filter(|s| s.subject.kind == SubjectKind::Gpu && s.len() >= 12).count() == 2;
    let (found, window) = window_when(&session, from_ns, sampled);
    assert_eq!(session.gpu_power_w(), Some(800.0));
    drop(session);

    let energy = found.energy(window).unwrap();
    let roles = energy.by_role();
    for (role, watts) in [("prefill", 300.0), ("decode", 500.0)] {
        let mean = roles[role].energy_j / energy.duration_s;
        // Counter and stamps are of two moments some microseconds (on a busy machine: milliseconds) apart.
        assert!((mean / watts - 1.0).abs() < 0.1, "{role}: {mean} W");
    }
    assert!(energy.gpus.iter().all(|gpu| (gpu.integrated_j.unwrap() / gpu.energy_j - 1.0).abs() < 0.1), "{energy:?}");
    let first = found.series.iter().find(|s| s.subject.id == "GPU-fake-1").unwrap();
    let last = |name: &str| first.values(name).last().map(|(_, value)| value);
    let expected = [
        ("power_instant_w", 300.3),
        ("power_limit_w", 700.0),
        ("temperature_c", 51.0),
        ("memory_temperature_c", 61.0),
        ("sm_clock_mhz", 1980.0),
        ("memory_clock_mhz", 2619.0),
        ("throttle_reasons", 4.0),
        ("gpu_utilization_percent", 91.0),
        ("memory_total_bytes", 85_520_809_984.0),
        ("ecc_uncorrected_aggregate", 11.0),
        ("pcie_rx_kb_per_s", 2000.0),
        ("pcie_replays", 3.0),
        ("power_throttle_us", 7000.0),
    ];
    for (name, value) in expected {
        assert_eq!(last(name), Some(value), "{name}");
    }
    assert_eq!(last("encoder_utilization_percent"), None, "what is not supported is left out");
    assert_eq!(last("pcie_link_width"), None, "what the library does not have is left out");

    let saved = parse(&std::fs::read_to_string(dir.path().join("telemetry.jsonl")).unwrap()).unwrap();
    let saved = saved.iter().find(|s| s.subject.id == "GPU-fake-1").expect("the file has it too");
    assert!(saved.len() >= first.len() && saved.subject.role.as_deref() == Some("prefill"));
}

#[test]
fn exporters_and_servers_are_scraped() {
    let dir = tempfile::tempdir().unwrap();
    let dcgm = Endpoint::serve(include_str!("data/dcgm.txt"));
    let vllm = Endpoint::serve(include_str!("data/vllm.txt"));
    let config =
        TelemetryConfig { gpu: GpuSource::Dcgm(vec![dcgm.url.clone()]), metrics_urls: vec![vllm.url.clone()], ..config(dir.path()) };
    let session = Session::start(&config).unwrap().expect("telemetry is on");
    let wanted = |found: &PointTelemetry| {
        let n = |kind| found.series.iter().filter(|s| s.subject.kind == kind && s.len() >= 2).count();
        n(SubjectKind::Gpu) == 3 && n(SubjectKind::Server) == 1
    };
    let (found, window) = window_when(&session, now_ns(), wanted);
    assert_eq!(found.energy(window).unwrap().by_role()[UNASSIGNED].n_gpus, 3, "two have power only");
    let json = found.to_json(window, (None, None));
    let server = &json["servers"][0];
    assert_eq!(server["name"], "vllm");
    assert_eq!(server["figures"]["server_requests_running"]["avg"], 12.0);
}

#[test]
fn what_was_asked_for_by_name_must_be_there_and_the_rest_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Some(dir.path().join("no-such-library.so"));
    let error = Session::start(&TelemetryConfig { gpu: GpuSource::Nvml, nvml_library: missing.clone(), ..config(dir.path()) }).unwrap_err();
    assert!(matches!(error, TelemetryError::Library { .. }), "{error}");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = Session::start(&TelemetryConfig { gpu: GpuSource::Dcgm(vec![closed.clone()]), ..config(dir.path()) }).unwrap_err();
    assert!(error.to_string().starts_with(&closed), "{error}");
    assert!(Session::start(&TelemetryConfig { gpu: GpuSource::None, ..config(dir.path()) }).unwrap().is_none());

    let config = TelemetryConfig { nvml_library: missing, metrics_urls: vec![closed], ..config(dir.path()) };
    let session = Session::start(&config).unwrap().expect("telemetry is on");
    let (found, window) = window_when(&session, now_ns(), |found| found.notes.len() >= 2);
    assert!(found.notes[0].contains("no GPU telemetry"), "{:?}", found.notes);
    assert!(found.energy(window).is_none());
}
