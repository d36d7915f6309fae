//! Jobs that go wrong on a real Slurm: who is to blame is named, what was measured is kept, nothing is left.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::slurm_lab::Lab;
use common::{events, kill, stdout, wait_for, wait_for_long};
use rustix::process::Signal;
use serde_json::Value;

/// A load that goes on until something happens.
const LONG: [&str; 16] = [
    "--set",
    "ENGINE=modeled",
    "--set",
    "NCTX=1",
    "--set",
    "NGEN=1",
    "--set",
    "ISL=64",
    "--set",
    "OSL=256",
    "--set",
    "CONCURRENCY=2",
    "--set",
    "MULTI_ROUND=1000",
    "--grace",
    "1",
];

struct Job {
    lab: Lab,
    waiting: Child,
}

impl Job {
    /// Submits and waits in the background.
    fn start(lab: Lab, more: &[&str]) -> Self {
        let out = lab.path("job").display().to_string();
        let tokenizer = concat!("TOKENIZER=", env!("CARGO_MANIFEST_DIR"), "/../../models/nano");
        let mut args = vec!["submit", "--out", &out, "--wait"];
        args.extend_from_slice(&LONG);
        if lab.n_nodes == 4 {
            // Prefill over n1 and n2, decode over n3 and n4.
            args.extend_from_slice(&["deepseek-r1", "--gpu-type", "h100", "--set", "LOAD_FORMAT=dummy", "--set", tokenizer]);
        }
        args.extend_from_slice(more);
        if !more.contains(&"--time") {
            args.extend(["--time", "5"]);
        }
        let log = fs::File::create(lab.path("stderr")).expect("a log");
        let waiting = lab.tandem(&args).stdout(Stdio::null()).stderr(log).spawn().expect("tandem starts");
        Job { lab, waiting }
    }

    fn event(&self, name: &str) -> Value {
        wait_for(name, || events(&self.lab.path("job")).into_iter().find(|event| event["event"] == name))
    }

    /// Waits until the load runs.
    fn loaded(&self) {
        self.event("point_started");
        let progress = self.lab.path("job/logs/output_decode_1.log");
        wait_for("the decode server to work", || {
            fs::read_to_string(&progress).is_ok_and(|log| log.contains("num_generation")).then_some(())
        });
    }

    /// The job's result: exit code and message.
    fn ended(&mut self) -> (u64, String) {
        let stderr = self.lab.path("stderr");
        let status = wait_for("the job to end", || self.waiting.try_wait().expect("a child"));
        let said = fs::read_to_string(stderr).unwrap_or_default();
        let result = fs::read(self.lab.path("job/job/result.json")).unwrap_or_else(|_| panic!("no result: {said}"));
        let result: Value = serde_json::from_slice(&result).expect("JSON");
        let code = result["exit_code"].as_u64().expect("a code");
        assert_eq!(status.code().map(|c| u64::try_from(c).unwrap_or(0)), Some(code), "{said}");
        (code, result["message"].as_str().expect("a message").to_owned())
    }

    fn has_figures(&self) -> bool {
        self.lab.path("job/perf_summary.txt").exists()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.waiting.kill();
        let _ = self.waiting.wait();
    }
}

/// A process of this job by what it does: `worker` with its name or `serve`; its command line holds the job's folder.
fn pid_of(folder: &Path, command: &str, name: &str) -> i32 {
    let folder = folder.display().to_string();
    let matches = |pid: &str| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        words.get(1).is_some_and(|word| word == command) && words.iter().any(|w| w == name) && words.iter().any(|w| w.starts_with(&folder))
    };
    wait_for(name, || {
        let pids = fs::read_dir("/proc").expect("/proc").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        pids.filter(|pid| pid.parse::<i32>().is_ok()).find(|pid| matches(pid)).map(|pid| pid.parse().expect("a pid"))
    })
}

#[test]
fn a_decode_server_that_dies_under_load_is_named_with_node_and_task() {
    let Some(lab) = Lab::start("slurm: dead decode", 4) else { return };
    let mut job = Job::start(lab, &[]);
    job.loaded();
    kill(pid_of(&job.lab.path("job"), "worker", "decode-0"), Signal::KILL);
    let (code, message) = job.ended();
    assert_eq!(code, 6, "{message}");
    // Its tasks are on two nodes, and whichever was found first was killed.
    let is_named = ["(n3 task ", "(n4 task "].iter().any(|culprit| message.contains(culprit));
    assert!(message.starts_with("decode-0 ended") && is_named, "{message}");
    assert!(job.has_figures());
}

#[test]
fn a_prefill_server_that_cannot_start_ends_the_job_with_its_last_words_and_advice() {
    let Some(lab) = Lab::start("slurm: dead prefill", 2) else { return };
    lab.shim(
        "srun",
        "case \"$*\" in *--job-name=prefill-0*) exec $REAL -N1 -n1 --overlap -w n1 sh -c 'echo CUDA out of memory; exit 7';; esac\nexec $REAL \"$@\"",
    );
    let mut job = Job::start(lab, &[]);
    let (code, message) = job.ended();
    assert_eq!(code, 6, "{message}");
    for part in ["prefill-0 ended with exit code 7", "n1 task 0", "a device ran out of memory", "\n  CUDA out of memory"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let result = fs::read_to_string(job.lab.path("job/job/result.json")).expect("a result");
    assert!(result.contains("CTX_MAX_NUM_TOKENS"), "{result}");
}

#[test]
fn a_frontend_that_is_late_is_waited_for() {
    let Some(lab) = Lab::start("slurm: late frontend", 2) else { return };
    lab.shim("srun", "case \"$*\" in *--job-name=frontend*) sleep 2;; esac\nexec $REAL \"$@\"");
    let mut job = Job::start(lab, &["--set", "MULTI_ROUND=2", "--set", "OSL=8"]);
    assert_eq!(job.ended().0, 0);
}

#[test]
fn a_node_that_fails_ends_the_job_as_a_death() {
    let Some(lab) = Lab::start("slurm: node down", 4) else { return };
    let mut job = Job::start(lab, &[]);
    job.loaded();
    job.lab.slurm("scontrol", &["update", "nodename=n4", "state=down", "reason=test"]);
    let (code, message) = job.ended();
    assert_eq!(code, 6, "{message}");
    // Slurm ends the servers of all nodes at once; the one that lived on the failed node is named.
    assert!(message.starts_with("decode-0 ended") && message.contains("(n4: Node failure)"), "{message}");
}

#[test]
fn a_cancelled_job_writes_what_it_measured() {
    let Some(lab) = Lab::start("slurm: scancel", 2) else { return };
    let mut job = Job::start(lab, &[]);
    job.loaded();
    let folder = job.lab.path("job").display().to_string();
    assert!(job.lab.tandem(&["cancel", &folder]).status().expect("tandem starts").success());
    let (code, message) = job.ended();
    assert_eq!(code, 130, "{message}");
    assert!(job.has_figures());
}

#[test]
fn near_the_time_limit_the_load_stops_and_partial_results_are_written() {
    let Some(lab) = Lab::start("slurm: time limit", 2) else { return };
    let mut job = Job::start(lab, &[]);
    job.loaded();
    // What `--signal=B:USR1@120` has Slurm do, without the wait of minutes.
    job.lab.slurm("scancel", &["--signal=USR1", "--batch", "1"]);
    let (code, message) = job.ended();
    assert_eq!(code, 7, "{message}");
    assert!(message.contains("time limit") && job.has_figures(), "{message}");
    let result: Value = serde_json::from_slice(&fs::read(job.lab.path("job/result.json")).expect("result.json")).expect("JSON");
    assert_eq!(result["partial"], true, "{result}");
}

#[test]
fn the_real_time_limit_announces_itself_and_what_was_measured_is_kept() {
    let Some(lab) = Lab::start_slow("slurm: the real time limit", 2) else { return };
    let mut job = Job::start(lab, &["--time", "1", "--stop-before", "10"]);
    job.loaded();
    let (code, message) = job.ended();
    assert_eq!(code, 7, "{message}");
    assert!(message.contains("time limit") && job.has_figures(), "{message}");
}

#[test]
fn a_time_limit_that_nobody_announced_is_no_death_and_leaves_figures() {
    let Some(lab) = Lab::start_slow("slurm: a time limit without a signal", 2) else { return };
    let mut job = Job::start(lab, &["--time", "1", "--stop-before", "0"]);
    job.loaded();
    let status = wait_for_long("the job to end", || job.waiting.try_wait().expect("a child"));
    let said = fs::read_to_string(job.lab.path("stderr")).unwrap_or_default();
    assert_eq!(status.code(), Some(7), "{said}");
    assert!(job.has_figures(), "{said}");
}

#[test]
fn a_node_whose_daemon_vanishes_ends_the_job() {
    let Some(lab) = Lab::start_slow("slurm: slurmd killed", 4) else { return };
    let mut job = Job::start(lab, &[]);
    job.loaded();
    job.lab.kill_daemon("slurmd-n4");
    let status = wait_for_long("the job to end", || job.waiting.try_wait().expect("a child"));
    assert_eq!(status.code(), Some(6), "{}", fs::read_to_string(job.lab.path("stderr")).unwrap_or_default());
}

#[test]
fn a_frontend_that_accepts_and_never_answers_is_given_up() {
    let Some(lab) = Lab::start("slurm: hung frontend", 2) else { return };
    let mut job = Job::start(lab, &["--no-progress", "2"]);
    job.loaded();
    // Stopped, not ended: nothing in Slurm or in the process table says so.
    kill(pid_of(&job.lab.path("job"), "serve", "--announce"), Signal::STOP);
    let (code, message) = job.ended();
    assert_eq!(code, 7, "{message}");
    assert!(message.contains("no server has sent anything for 2 s") && job.has_figures(), "{message}");
}

#[test]
fn a_load_point_that_takes_too_long_is_stopped() {
    let Some(lab) = Lab::start("slurm: a deadline of a load point", 2) else { return };
    let mut job = Job::start(lab, &["--point-timeout", "2"]);
    let folder = job.lab.path("job").display().to_string();
    job.loaded();
    // A follower sees the log grow, and ends with the run.
    let followed = job.lab.tandem(&["logs", &folder, "decode-0", "--follow", "--tail", "1"]).output().expect("tandem starts");
    assert!(stdout(&followed).lines().count() > 20, "{}", stdout(&followed));
    let (code, message) = job.ended();
    assert_eq!(code, 7, "{message}");
    assert!(message.contains("took longer than 2 s") && job.has_figures(), "{message}");
}

#[test]
fn a_squeue_that_hangs_and_a_missing_sacct_leave_the_state_known_or_unknown_but_never_wrong() {
    let Some(lab) = Lab::start("slurm: hung squeue", 2) else { return };
    let mut job = Job::start(lab, &[]);
    job.loaded();
    let folder = job.lab.path("job").display().to_string();
    let status = |job: &Job| {
        let output = job.lab.tandem(&["status", &folder, "--slurm-timeout", "1"]).output().expect("tandem starts");
        stdout(&output)
    };
    assert!(status(&job).contains("running"), "{}", status(&job));
    for program in ["squeue", "scontrol", "sacct"] {
        job.lab.shim(program, "sleep 600");
    }
    let said = status(&job);
    assert!(said.contains("unknown") && said.contains("did not answer"), "{said}");
    for program in ["squeue", "scontrol"] {
        fs::remove_file(job.lab.path("bin").join(program)).expect("removed");
    }
    let mut cancel = Command::new("scancel");
    cancel.arg("1").env("SLURM_CONF", job.lab.path("etc/slurm.conf")).status().expect("scancel starts");
    job.ended();
    // Without its own result the job's end is known from Slurm, which has no accounting here.
    fs::remove_file(job.lab.path("job/job/result.json")).expect("removed");
    wait_for("Slurm's word", || {
        let said = status(&job);
        (said.contains("cancelled") || said.contains("failed") || said.contains("completed")).then_some(())
    });
}
