//! What the whole-system tests share: starting `tandem`, waiting with deadlines, asking over HTTP.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

pub(crate) mod slurm_lab;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Everything here is far faster than this; a test that reaches it has hung.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// The binary under test, without the caller's knobs in its environment.
pub(crate) fn tandem() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    command.env_clear();
    for keep in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(keep) {
            command.env(keep, value);
        }
    }
    command
}

/// Runs `tandem` to its end.
pub(crate) fn output(args: &[&str]) -> Output {
    tandem().args(args).output().expect("tandem starts")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until `condition` yields something, or fails the test.
pub(crate) fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_within(DEADLINE, what, condition)
}

/// [`wait_for`] what waits for Slurm's own clock.
pub(crate) fn wait_for_long<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_within(3 * DEADLINE, what, condition)
}

fn wait_within<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A `tandem` that runs in the background; killed when dropped.
pub(crate) struct Background {
    pub(crate) child: Child,
    /// Lines of standard error so far are in this file.
    pub(crate) stderr_path: PathBuf,
    pub(crate) out: PathBuf,
    _dir: tempfile::TempDir,
}

impl Background {
    /// `tandem run ARGS --out <fresh folder>`.
    pub(crate) fn run(args: &[&str]) -> Self {
        Self::start(&[&["run"], args].concat())
    }

    /// `tandem ARGS --out <fresh folder>`.
    pub(crate) fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (out, stderr_path) = (dir.path().join("run"), dir.path().join("stderr"));
        let log = fs::File::create(&stderr_path).expect("a log");
        let child = tandem().args(args).arg("--out").arg(&out).stdout(Stdio::piped()).stderr(log).spawn().expect("tandem starts");
        Background { child, stderr_path, out, _dir: dir }
    }

    /// `tandem run --serve-only ARGS`; returns it with its URL once it serves.
    pub(crate) fn serve(args: &[&str]) -> (Self, String) {
        let mut all = vec!["--serve-only", "--port", "0"];
        all.extend_from_slice(args);
        let mut run = Self::run(&all);
        let mut line = String::new();
        let read = BufReader::new(run.child.stdout.as_mut().expect("piped")).read_line(&mut line);
        assert!(read.is_ok_and(|n| n > 0), "it ended before it served: {}", run.stderr());
        let announced: Value = serde_json::from_str(&line).expect("one JSON line");
        (run, announced["url"].as_str().expect("a url").to_owned())
    }

    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr_path).unwrap_or_default()
    }

    /// Name and pid of each process of the deployment, once all have started.
    pub(crate) fn pids(&self, n_processes: usize) -> Vec<(String, i32)> {
        wait_for("the processes to start", || {
            let started: Vec<_> = events(&self.out).into_iter().filter(|e| e["event"] == "process_started").collect();
            (started.len() >= n_processes).then(|| {
                let pid = |e: &Value| i32::try_from(e["pid"].as_i64().expect("a pid")).expect("a pid");
                started.iter().map(|e| (e["name"].as_str().expect("a name").to_owned(), pid(e))).collect()
            })
        })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(i32::try_from(self.child.id()).expect("a pid"), signal);
    }

    /// Waits for the end; the exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let status = wait_for("tandem to end", || self.child.try_wait().expect("a child"));
        status.code()
    }

    pub(crate) fn stdout_rest(&mut self) -> String {
        let mut text = String::new();
        if let Some(out) = self.child.stdout.as_mut() {
            let _ = out.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The live page of a small search; ended when dropped.
pub(crate) struct Live {
    child: Child,
    /// Host and port.
    pub(crate) address: String,
}

impl Live {
    /// `tandem explore ARGS --serve` over a few points of the published recipe.
    pub(crate) fn start() -> Self {
        Self::of(&["deepseek-r1", "--gpu-type", "gb200", "--set", "NCTX=3,4,6", "--set", "GEN_MAX_BATCH_SIZE=64,128"])
    }

    /// `tandem explore ARGS --serve`.
    pub(crate) fn of(args: &[&str]) -> Self {
        let mut child = tandem().arg("explore").args(args).arg("--serve").stdout(Stdio::piped()).spawn().expect("tandem starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let address = lines.filter_map(|l| Some(l.split_once("live page: http://")?.1.split_once('/')?.0.to_owned())).next();
        Live { address: address.expect("it says where it serves"), child }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn kill(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).expect("a pid"), signal);
}

/// Whether a process computes or waits (a zombie does not).
pub(crate) fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
}

pub(crate) fn wait_until_gone(pids: &[(String, i32)]) {
    for (name, pid) in pids {
        wait_for(&format!("{name} to be gone"), || (!is_running(*pid)).then_some(()));
    }
}

/// The events of a run so far; a last line that is being written is left out.
pub(crate) fn events(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("events.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Fails unless every `.json` and `.jsonl` below `folder` parses; returns how many there are.
pub(crate) fn check_all_json(folder: &Path) -> usize {
    let mut n_files = 0;
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            n_files += check_all_json(&path);
            continue;
        }
        let text = || fs::read_to_string(&path).expect("text");
        match path.extension().and_then(|e| e.to_str()) {
            Some("json") => {
                serde_json::from_str::<Value>(&text()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                n_files += 1;
            }
            Some("jsonl") => {
                for line in text().lines() {
                    serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{}: {e}: {line}", path.display()));
                }
                n_files += 1;
            }
            _ => {}
        }
    }
    n_files
}

pub(crate) fn read_json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().proxy(None).http_status_as_error(false).timeout_global(Some(DEADLINE));
    config.build().new_agent()
}

/// POSTs JSON; status and body.
pub(crate) fn post(url: &str, path: &str, body: &Value) -> (u16, Value) {
    let mut response = agent().post(format!("{url}{path}")).send_json(body).expect("an answer");
    (response.status().as_u16(), response.body_mut().read_json().expect("JSON"))
}

/// GETs text; status and body.
pub(crate) fn get(url: &str, path: &str) -> (u16, String) {
    let mut response = agent().get(format!("{url}{path}")).call().expect("an answer");
    (response.status().as_u16(), response.body_mut().read_to_string().expect("text"))
}

/// Values of a gauge or counter in `/metrics`, by its whole label set.
pub(crate) fn metric(url: &str, name: &str) -> Vec<(String, f64)> {
    let (_, text) = get(url, "/metrics");
    let of_name = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    of_name
        .map(|line| {
            let (key, value) = line.rsplit_once(' ').expect("a value");
            (key.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

/// The environment with Dynamo and a model directory, or why there is none.
pub(crate) fn dynamo() -> Result<(String, String), String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/dynamo/install.sh");
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("dynamo");
    let done = Command::new("sh").arg(script).arg(&dir).output().map_err(|e| e.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !done.status.success() {
        let reason = text(&done.stderr);
        return Err(reason.lines().last().unwrap_or("it could not be installed").to_owned());
    }
    Ok((dir.join("venv/bin/python").display().to_string(), dir.join("model").display().to_string()))
}

/// Reads one request with a body from a client that keeps its connection; false when there is no further one.
pub(crate) fn read_request(reader: &mut impl BufRead) -> bool {
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    length > 0 && reader.read_exact(&mut vec![0; length]).is_ok()
}
