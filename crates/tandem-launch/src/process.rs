//! One child process: its own group, a log file, an end with the launcher, and how it ended.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::engines::Step;
use crate::error::LaunchError;
use crate::logs;

/// Lines of the log that an [`Exited`] carries.
const TAIL_LINES: usize = 12;

/// How to start a process.
#[derive(Debug, Clone)]
pub struct ProcessSpec {
    /// `frontend`, `prefill-0` …
    pub name: String,
    /// Executable.
    pub program: PathBuf,
    /// Arguments.
    pub args: Vec<String>,
    /// Where standard output and error go.
    pub log: PathBuf,
    /// Whether the first line of standard output is an announcement for the launcher.
    pub announces: bool,
    /// Variables to set.
    pub env: Vec<(String, String)>,
    /// Variables to remove.
    pub unset: Vec<&'static str>,
    /// Processes are told to end in rising order.
    pub stop_order: u8,
}

impl ProcessSpec {
    /// The process of a step on this machine; its log is below `run_dir`.
    #[must_use]
    pub fn of_step(step: &Step, run_dir: &Path) -> Self {
        let (program, args) = step.argv.split_first().map_or((PathBuf::new(), Vec::new()), |(p, args)| (PathBuf::from(p), args.to_vec()));
        ProcessSpec {
            name: step.name.clone(),
            program,
            args,
            log: run_dir.join(&step.log),
            announces: step.announces,
            env: step.env.clone(),
            unset: step.unset.clone(),
            stop_order: step.stop_order,
        }
    }
}

/// A process that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exited {
    /// Its name.
    pub name: String,
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Its log.
    pub log: PathBuf,
    /// The last lines of its log.
    pub tail: Vec<String>,
}

impl fmt::Display for Exited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "{} ended with exit code {code}", self.name)?,
            (None, Some(signal)) => write!(f, "{} was ended by signal {signal}", self.name)?,
            (None, None) => write!(f, "{} ended", self.name)?,
        }
        write!(f, "; last lines of {}:", self.log.display())?;
        if self.tail.is_empty() {
            write!(f, "\n  (empty)")?;
        }
        self.tail.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// What the launcher wants of all its processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Run,
    /// Those up to this stop order end.
    Terminate(u8),
    Kill(u8),
}

/// The processes of a deployment. Dropping it kills what still runs.
#[derive(Debug)]
pub struct Processes {
    tasks: JoinSet<Exited>,
    want: watch::Sender<Want>,
    pids: Vec<(String, u32)>,
    /// Stop order of each process that has not been seen to end.
    orders: Vec<(String, u8)>,
}

impl Default for Processes {
    fn default() -> Self {
        Processes { tasks: JoinSet::new(), want: watch::Sender::new(Want::Run), pids: Vec::new(), orders: Vec::new() }
    }
}

impl Processes {
    /// Starts a process; returns its announcement reader if it announces.
    ///
    /// # Errors
    /// When the log cannot be created or the program not be started.
    pub fn start(&mut self, spec: &ProcessSpec) -> Result<Option<Announcement>, LaunchError> {
        let log = File::create(&spec.log).map_err(|source| LaunchError::Io { path: spec.log.clone(), source })?;
        let spawn = || -> std::io::Result<Child> {
            let stdout = if spec.announces { Stdio::piped() } else { Stdio::from(log.try_clone()?) };
            let mut command = Command::new(&spec.program);
            for name in &spec.unset {
                command.env_remove(name);
            }
            command
                .args(&spec.args)
                .envs(spec.env.iter().map(|(name, value)| (name, value)))
                .stdin(Stdio::piped())
                .stdout(stdout)
                .stderr(Stdio::from(log.try_clone()?))
                .process_group(0)
                .kill_on_drop(true)
                .spawn()
        };
        let mut child = spawn().map_err(|source| LaunchError::Spawn { name: spec.name.clone(), source })?;
        self.pids.extend(child.id().map(|pid| (spec.name.clone(), pid)));
        let announcement = child.stdout.take().map(|stdout| Announcement { reader: BufReader::new(stdout) });
        self.orders.push((spec.name.clone(), spec.stop_order));
        self.tasks.spawn(own(child, spec.name.clone(), spec.log.clone(), spec.stop_order, self.want.subscribe()));
        Ok(announcement)
    }

    /// Name and process id of everything that was started.
    #[must_use]
    pub fn pids(&self) -> &[(String, u32)] {
        &self.pids
    }

    /// Waits for the next process that ends; pends forever when none runs. Safe to cancel.
    pub async fn next_exit(&mut self) -> Exited {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(exited)) => {
                    self.orders.retain(|(name, _)| *name != exited.name);
                    return exited;
                }
                Some(Err(error)) => tracing::error!(%error, "a process task failed"),
                None => std::future::pending().await,
            }
        }
    }

    /// Ends everything, one stop order after the other: SIGTERM, and SIGKILL for what still runs after `grace`. Returns how each ended.
    pub async fn stop(mut self, grace: Duration) -> Vec<Exited> {
        let mut exits = Vec::new();
        while let Some(order) = self.orders.iter().map(|(_, order)| *order).min() {
            self.want.send_replace(Want::Terminate(order));
            if tokio::time::timeout(grace, self.drain(order, &mut exits)).await.is_err() {
                self.want.send_replace(Want::Kill(order));
                self.drain(order, &mut exits).await;
            }
        }
        exits
    }

    /// Waits until no process of `order` or below runs. Safe to cancel: what has ended is in `exits`.
    async fn drain(&mut self, order: u8, exits: &mut Vec<Exited>) {
        while self.orders.iter().any(|(_, o)| *o <= order) {
            match self.tasks.join_next().await {
                Some(Ok(exited)) => {
                    self.orders.retain(|(name, _)| *name != exited.name);
                    exits.push(exited);
                }
                Some(Err(error)) => tracing::error!(%error, "a process task failed"),
                None => self.orders.clear(),
            }
        }
    }
}

/// Owns one child until it ends. Only this task signals it, so a reaped process id is never signalled.
async fn own(mut child: Child, name: String, log: PathBuf, stop_order: u8, mut want: watch::Receiver<Want>) -> Exited {
    // Held until the end: the child stops when this closes. Waiting would drop it if it stayed in `child`.
    let _stdin = child.stdin.take();
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            changed = want.changed() => {
                if changed.is_err() {
                    // The launcher dropped us without a stop: do not outlive it.
                    signal_group(&child, Signal::KILL);
                    break child.wait().await;
                }
                match *want.borrow_and_update() {
                    Want::Terminate(order) if order == stop_order => signal_group(&child, Signal::TERM),
                    Want::Kill(order) if order == stop_order => signal_group(&child, Signal::KILL),
                    Want::Run | Want::Terminate(_) | Want::Kill(_) => {}
                }
            }
        }
    };
    let tail = logs::tail(&log, TAIL_LINES);
    let (code, signal) = status.map_or((None, None), split);
    Exited { name, code, signal, log, tail }
}

fn signal_group(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended in this moment; `wait` then says how.
        let _ = kill_process_group(pid, signal);
    }
}

fn split(status: ExitStatus) -> (Option<i32>, Option<i32>) {
    use std::os::unix::process::ExitStatusExt;
    (status.code(), status.signal())
}

/// The line with which a process tells the launcher its addresses.
#[derive(Debug)]
pub struct Announcement {
    reader: BufReader<ChildStdout>,
}

impl Announcement {
    /// Longest announcement, bytes.
    const LIMIT: u64 = 64 * 1024;

    /// The first line of the process's standard output, parsed; `None` when it ended without one.
    pub async fn read(self) -> Option<serde_json::Value> {
        let mut line = String::new();
        self.reader.take(Self::LIMIT).read_line(&mut line).await.ok()?;
        serde_json::from_str(&line).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(dir: &tempfile::TempDir, name: &str, script: &str, announces: bool) -> ProcessSpec {
        ProcessSpec {
            name: name.into(),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            log: dir.path().join(format!("{name}.log")),
            announces,
            env: Vec::new(),
            unset: Vec::new(),
            stop_order: 0,
        }
    }

    async fn soon<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
    }

    #[tokio::test]
    async fn an_exit_names_the_process_its_code_and_its_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let mut processes = Processes::default();
        processes.start(&shell(&dir, "prefill-0", "echo one; echo two >&2; exit 7", false)).unwrap();
        let exited = soon(processes.next_exit()).await;
        assert_eq!((exited.name.as_str(), exited.code, exited.signal), ("prefill-0", Some(7), None));
        assert_eq!(exited.tail, ["one", "two"]);
        let text = exited.to_string();
        assert!(text.starts_with("prefill-0 ended with exit code 7"), "{text}");
    }

    #[tokio::test]
    async fn a_signal_is_told_apart_from_an_exit_code() {
        let dir = tempfile::tempdir().unwrap();
        let mut processes = Processes::default();
        processes.start(&shell(&dir, "w", "kill -9 $$", false)).unwrap();
        let exited = soon(processes.next_exit()).await;
        assert_eq!((exited.code, exited.signal), (None, Some(9)));
    }

    #[tokio::test]
    async fn what_ignores_the_polite_signal_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let mut processes = Processes::default();
        let script = "trap '' TERM; sleep 600 & echo $! >\"$0.child\"; echo '{\"ready\":1}'; wait; wait; sleep 600";
        let mut spec = shell(&dir, "stubborn", script, true);
        spec.args.push(dir.path().join("pid").display().to_string());
        let announcement = processes.start(&spec).unwrap().expect("announces");
        assert_eq!(soon(announcement.read()).await.unwrap()["ready"], 1);
        let exits = soon(processes.stop(Duration::from_millis(200))).await;
        assert_eq!(exits.len(), 1);
        assert_eq!(exits[0].signal, Some(9));
        let child: i32 = std::fs::read_to_string(dir.path().join("pid.child")).unwrap().trim().parse().unwrap();
        let gone = async {
            let pid = Pid::from_raw(child).unwrap();
            while is_running(pid) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon(gone).await;
    }

    /// A killed orphan may stay a zombie where nobody reaps it; that is not running.
    fn is_running(pid: Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X']) && !rest.is_empty())
    }

    #[tokio::test]
    async fn what_stops_later_outlives_what_stops_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut processes = Processes::default();
        // Each notes its own end; the service would note its end first if both were told at once.
        let script = "trap 'sleep $PAUSE; echo $NAME >>\"$ENDS\"; exit 0' TERM; echo '{}'; while :; do sleep 0.01; done";
        for (name, order, pause) in [("service", 1, "0"), ("worker", 0, "0.3")] {
            let mut spec = shell(&dir, name, script, true);
            spec.stop_order = order;
            let ends = dir.path().join("ends").display().to_string();
            spec.env = [("NAME", name), ("PAUSE", pause), ("ENDS", &ends)].map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec();
            let announcement = processes.start(&spec).unwrap().expect("announces");
            assert!(soon(announcement.read()).await.is_some());
        }
        soon(processes.stop(Duration::from_secs(15))).await;
        assert_eq!(std::fs::read_to_string(dir.path().join("ends")).unwrap(), "worker\nservice\n");
    }

    #[tokio::test]
    async fn standard_input_stays_open_until_the_stop() {
        let dir = tempfile::tempdir().unwrap();
        let mut processes = Processes::default();
        // `read` returns only when its input closes, and the line is written only then.
        let announcement = processes.start(&shell(&dir, "w", "echo '{}'; read line; echo closed >&2", true)).unwrap().expect("announces");
        assert!(soon(announcement.read()).await.is_some());
        assert!(tokio::time::timeout(Duration::from_millis(200), processes.next_exit()).await.is_err());
        let exits = soon(processes.stop(Duration::from_secs(5))).await;
        assert_eq!(exits[0].signal, Some(15), "{exits:?}");
    }

    #[tokio::test]
    async fn a_process_that_ends_without_announcing_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut processes = Processes::default();
        let announcement = processes.start(&shell(&dir, "w", "exit 3", true)).unwrap().expect("announces");
        assert!(soon(announcement.read()).await.is_none());
    }
}
