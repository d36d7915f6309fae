//! A real Slurm on one machine: munge, a controller, and one slurmd for each virtual node, all below a temporary folder.
//!
//! Node `nK` is 127.0.1.K, so that servers of different nodes may use the same port number. GPUs are links to /dev/null: Slurm counts
//! them and hands them out. There is no accounting database. Only one lab runs at a time; everything is ended by its process id.

use std::fmt::Write;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::Signal;

use super::{DEADLINE, kill, tandem, wait_for};

const PROGRAMS: [&str; 6] = ["munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol"];
const PACKAGES: [&str; 4] = ["slurmctld", "slurmd", "slurm-client", "munge"];

pub(crate) struct Lab {
    dir: tempfile::TempDir,
    daemons: Vec<(String, Child)>,
    pub(crate) n_nodes: usize,
    _only_one: File,
}

impl Lab {
    /// Starts `n_nodes` nodes of eight GPUs and waits until all are idle; `None`, and said so, where Slurm is not to be had.
    pub(crate) fn start(test: &str, n_nodes: usize) -> Option<Lab> {
        Lab::start_with(test, n_nodes, "")
    }

    /// [`Lab::start`] for a test that waits minutes for Slurm's own clock: only when `TANDEM_SLOW_TESTS` is set.
    pub(crate) fn start_slow(test: &str, n_nodes: usize) -> Option<Lab> {
        if std::env::var_os("TANDEM_SLOW_TESTS").is_none() {
            tandem_testkit::not_run(test, "slow, set TANDEM_SLOW_TESTS=1");
            return None;
        }
        Lab::start(test, n_nodes)
    }

    /// [`Lab::start`] with a `plugstack.conf`.
    pub(crate) fn start_with(test: &str, n_nodes: usize, plugins: &str) -> Option<Lab> {
        if let Err(reason) = provide(&PROGRAMS, &PACKAGES) {
            tandem_testkit::not_run(test, reason);
            return None;
        }
        let lock = File::create(std::env::temp_dir().join("tandem-slurm-lab.lock")).expect("a lock file");
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("a lock");
        let dir = tempfile::Builder::new().prefix("lab").tempdir().expect("a temporary folder");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        let mut lab = Lab { dir, daemons: Vec::new(), n_nodes, _only_one: lock };
        lab.write_configuration(plugins);
        lab.start_munge();
        lab.daemon("slurmctld", "slurmctld", &["-D", "-i"]);
        for node in 1..=n_nodes {
            lab.daemon(&format!("slurmd-n{node}"), "slurmd", &["-D", "-N", &format!("n{node}")]);
        }
        let idle = format!("{n_nodes}");
        wait_for("all nodes to be idle", || {
            let said = lab.slurm("sinfo", &["-h", "-t", "idle", "-o", "%D"]);
            (String::from_utf8_lossy(&said.stdout).trim() == idle).then_some(())
        });
        Some(lab)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A Slurm program, as a user of this cluster calls it.
    pub(crate) fn slurm(&self, program: &str, args: &[&str]) -> Output {
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("SLURM_CONF", self.path("etc/slurm.conf"));
        command.output().expect("a Slurm program starts")
    }

    /// `tandem` on the login node of this cluster. Programs in `bin/` of the lab come before all others.
    pub(crate) fn tandem(&self, args: &[&str]) -> Command {
        let mut command = tandem();
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        command.args(args).env("PATH", path).env("SLURM_CONF", self.path("etc/slurm.conf")).env("HOME", self.dir.path());
        command.env("TANDEM_HOME", self.path("home")).env("TANDEM_SLURM_TIMEOUT", "5");
        command
    }

    /// Kills one of the daemons, e.g. `slurmd-n4`.
    pub(crate) fn kill_daemon(&self, name: &str) {
        let (_, child) = self.daemons.iter().find(|(known, _)| known == name).expect("a daemon of that name");
        kill(i32::try_from(child.id()).expect("a pid"), Signal::KILL);
    }

    /// A program that stands in front of the real one of that name.
    pub(crate) fn shim(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        let real =
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).map(|dir| dir.join(name)).find(|path| path.exists());
        let real = real.expect("the real program").display().to_string();
        fs::write(&path, format!("#!/bin/bash\nREAL={real}\n{script}\n")).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permissions");
    }

    fn write_configuration(&self, plugins: &str) {
        for sub in ["etc", "log", "run", "state", "dev", "bin", "home"] {
            fs::create_dir(self.path(sub)).expect("a folder");
        }
        let key: Vec<u8> = (0..1024_u32).map(|i| u8::try_from((i * 31 + std::process::id()) % 251).expect("small")).collect();
        fs::write(self.path("etc/munge.key"), key).expect("a key");
        fs::set_permissions(self.path("etc/munge.key"), fs::Permissions::from_mode(0o600)).expect("permissions");
        for gpu in 0..8 {
            symlink("/dev/null", self.path(&format!("dev/gpu{gpu}"))).expect("a link");
        }
        // Bound together, so that all differ; closed again for the daemons.
        let free: Vec<TcpListener> = (0..=self.n_nodes).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let ports: Vec<u16> = free.iter().map(|listener| listener.local_addr().expect("bound").port()).collect();
        let at = self.dir.path().display();
        let mut conf = format!(
            "ClusterName=lab\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort={}\nSlurmUser=root\nSlurmdUser=root\n\
             AuthType=auth/munge\nAuthInfo=socket={at}/run/munge.socket\nCredType=cred/munge\nStateSaveLocation={at}/state\n\
             SlurmdSpoolDir={at}/spool/%n\nTmpFS={at}/tmp/%n\nSlurmctldPidFile={at}/run/slurmctld.pid\nSlurmdPidFile={at}/run/%n.pid\n\
             SlurmctldLogFile={at}/log/slurmctld.log\nSlurmdLogFile={at}/log/%n.log\nProctrackType=proctrack/linuxproc\n\
             TaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none\nSwitchType=switch/none\nMpiDefault=none\n\
             PropagateResourceLimits=NONE\nSelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nGresTypes=gpu\n\
             SlurmdParameters=config_overrides\nSchedulerType=sched/backfill\n\
             SchedulerParameters=bf_interval=1,sched_interval=5,batch_sched_delay=0\nReturnToService=2\nEnforcePartLimits=ALL\n\
             SlurmctldTimeout=10\nSlurmdTimeout=10\nInactiveLimit=0\nKillWait=2\nMinJobAge=600\nOverTimeLimit=0\nMessageTimeout=10\n\
             UnkillableStepTimeout=20\nBatchStartTimeout=10\nAccountingStorageType=accounting_storage/none\nMailProg=/bin/true\n",
            ports[0]
        );
        for (node, port) in ports.iter().enumerate().skip(1) {
            fs::create_dir_all(self.path(&format!("spool/n{node}"))).expect("a folder");
            fs::create_dir_all(self.path(&format!("tmp/n{node}"))).expect("a folder");
            let _ = writeln!(
                conf,
                "NodeName=n{node} NodeHostname=localhost NodeAddr=127.0.1.{node} Port={port} CPUs=16 RealMemory=8000 Gres=gpu:h100:8 State=UNKNOWN"
            );
        }
        let _ = writeln!(conf, "PartitionName=batch Nodes=n[1-{}] Default=YES MaxTime=INFINITE DefaultTime=10 State=UP", self.n_nodes);
        let _ = writeln!(conf, "PartitionName=cpu Nodes=n[1-{}] Default=NO MaxTime=INFINITE DefaultTime=10 State=UP", self.n_nodes);
        fs::write(self.path("etc/slurm.conf"), conf).expect("slurm.conf");
        let gres = format!("NodeName=n[1-{}] Name=gpu Type=h100 File={at}/dev/gpu[0-7]\n", self.n_nodes);
        fs::write(self.path("etc/gres.conf"), gres).expect("gres.conf");
        fs::write(self.path("etc/plugstack.conf"), plugins).expect("plugstack.conf");
        let cgroup = "CgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\nConstrainDevices=no\n";
        fs::write(self.path("etc/cgroup.conf"), cgroup).expect("cgroup.conf");
    }

    fn start_munge(&mut self) {
        let arg = |flag: &str, file: &str| format!("--{flag}={}", self.path(file).display());
        let args = [
            "--foreground".to_owned(),
            "--force".to_owned(),
            arg("key-file", "etc/munge.key"),
            arg("socket", "run/munge.socket"),
            arg("pid-file", "run/munged.pid"),
            arg("log-file", "log/munged.log"),
            arg("seed-file", "run/munged.seed"),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.daemon("munged", "munged", &args);
        let socket = self.path("run/munge.socket");
        wait_for("munge's socket", || socket.exists().then_some(()));
    }

    fn daemon(&mut self, name: &str, program: &str, args: &[&str]) {
        let log = File::create(self.path(&format!("log/{name}.out"))).expect("a log");
        let mut command = Command::new(program);
        command.args(args).env("SLURM_CONF", self.path("etc/slurm.conf")).process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.daemons.push((name.to_owned(), command.spawn().expect("a daemon starts")));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.slurm("scancel", &["-u", "root"]);
        let start = std::time::Instant::now();
        while start.elapsed() < DEADLINE && !self.slurm("squeue", &["-h"]).stdout.is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        for (_, child) in &self.daemons {
            // Their state is thrown away, and a polite end takes them seconds.
            kill(i32::try_from(child.id()).expect("a pid"), Signal::KILL);
        }
        for (_, child) in &mut self.daemons {
            let _ = child.wait();
        }
        // The steps of a node whose slurmd was killed have nobody else to end them.
        for pid in self.processes() {
            kill(pid, Signal::KILL);
        }
    }
}

impl Lab {
    /// What lives with this lab's configuration: Slurm's own processes and those of its jobs.
    fn processes(&self) -> Vec<i32> {
        let ours = format!("SLURM_CONF={}", self.path("etc/slurm.conf").display());
        let pids = fs::read_dir("/proc").expect("/proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let is_ours = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|b| *b == 0).any(|variable| variable == ours.as_bytes())
        };
        pids.filter(is_ours).collect()
    }
}

/// Makes programs (or files, by their absolute path) available: they are there, or root installs Debian's packages.
pub(crate) fn provide(programs: &[&str], packages: &[&str]) -> Result<(), String> {
    let named = || packages.join(", ");
    if !rustix::process::geteuid().is_root() {
        return Err(format!("needs root and {}", named()));
    }
    if missing(programs).is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(format!("no apt-get to install {}", named()));
    }
    let apt = |args: &[&str]| {
        let output = Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).output();
        output.is_ok_and(|output| output.status.success())
    };
    let mut args = vec!["install", "-y", "-q", "--no-install-recommends"];
    args.extend(packages);
    let installed = apt(&args) || (apt(&["update", "-q"]) && apt(&args));
    if !installed {
        return Err(format!("apt-get cannot install {}", named()));
    }
    let missing = missing(programs);
    if missing.is_empty() { Ok(()) } else { Err(format!("still missing: {}", missing.join(", "))) }
}

fn missing<'p>(programs: &[&'p str]) -> Vec<&'p str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    // Joining an absolute path gives that path.
    programs.iter().copied().filter(|program| !dirs.iter().any(|dir| dir.join(program).exists())).collect()
}
