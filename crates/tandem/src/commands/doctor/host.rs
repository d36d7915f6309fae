//! What this machine is, as its kernel says.
//!
//! Everything is read from files below a root, so that tests can show it another machine.
//! What cannot be read is left out: a missing fact is never replaced by a guess.

use std::fs;
use std::path::Path;

/// A GPU that the driver has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gpu {
    /// Marketing name, e.g. `NVIDIA H100 80GB HBM3`.
    pub(super) model: String,
}

/// A network interface that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Nic {
    pub(super) name: String,
    /// Megabits a second, where the driver says.
    pub(super) mbit_s: Option<u64>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) cpu: Option<String>,
    pub(super) n_cpus: usize,
    pub(super) memory_bytes: Option<u64>,
    pub(super) n_numa_nodes: usize,
    /// How the kernel picks CPU frequencies; anything but `performance` adds noise.
    pub(super) governor: Option<String>,
    pub(super) nics: Vec<Nic>,
    pub(super) infiniband: Vec<String>,
    pub(super) nvidia_driver: Option<String>,
    pub(super) gpus: Vec<Gpu>,
}

impl Host {
    /// Reads `/proc` and `/sys` below `root` (which is `/` but in tests).
    pub(super) fn read(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let cpuinfo = text("proc/cpuinfo");
        Host {
            cpu: field(&cpuinfo, "model name"),
            n_cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            memory_bytes: field(&text("proc/meminfo"), "MemTotal")
                .and_then(|v| Some(v.split_whitespace().next()?.parse::<u64>().ok()? << 10)),
            n_numa_nodes: names(&root.join("sys/devices/system/node")).iter().filter(|n| is_numbered(n, "node")).count(),
            governor: non_empty(&text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
            nics: nics(root),
            infiniband: names(&root.join("sys/class/infiniband")),
            nvidia_driver: text("proc/driver/nvidia/version")
                .split_whitespace()
                .find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()))
                .map(str::to_owned),
            gpus: gpus(root),
        }
    }
}

/// The value of the first line `key : value`.
fn field(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    })
}

fn non_empty(text: &str) -> Option<String> {
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Names in a directory, sorted; none if it is not there.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

fn nics(root: &Path) -> Vec<Nic> {
    let class = root.join("sys/class/net");
    let read = |name: &str, what: &str| fs::read_to_string(class.join(name).join(what)).unwrap_or_default();
    let up = |name: &String| read(name, "operstate").trim() == "up";
    // The kernel says -1 where a speed makes no sense.
    let speed = |name: &str| read(name, "speed").trim().parse().ok();
    names(&class).into_iter().filter(up).map(|name| Nic { mbit_s: speed(&name), name }).collect()
}

fn gpus(root: &Path) -> Vec<Gpu> {
    let dir = root.join("proc/driver/nvidia/gpus");
    let of = |bus: String| {
        let text = fs::read_to_string(dir.join(&bus).join("information")).ok()?;
        Some(Gpu { model: field(&text, "Model")? })
    };
    names(&dir).into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_gpu_node_is_read_from_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        write(root, "proc/cpuinfo", "processor\t: 0\nmodel name\t: Xeon: big\n\nprocessor\t: 1\nmodel name\t: Xeon: big\n");
        write(root, "proc/meminfo", "MemTotal:       1024 kB\nMemFree: 3 kB\n");
        write(
            root,
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Tue Jan 14\nGCC version: 12.2.0\n",
        );
        write(root, "proc/driver/nvidia/gpus/0000:1b:00.0/information", "Model: \t\t NVIDIA H100\nIRQ: 5\nGPU UUID: \t GPU-1-2\n");
        write(root, "sys/devices/system/node/node0/x", "");
        write(root, "sys/devices/system/node/node1/x", "");
        write(root, "sys/devices/system/node/possible", "0-1");
        write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n");
        write(root, "sys/class/net/eth0/operstate", "up\n");
        write(root, "sys/class/net/eth0/speed", "100000\n");
        write(root, "sys/class/net/eth1/operstate", "down\n");
        write(root, "sys/class/net/veth/operstate", "up\n");
        write(root, "sys/class/net/veth/speed", "-1\n");
        write(root, "sys/class/infiniband/mlx5_0/x", "");
        let host = Host::read(root);
        assert_eq!(host.cpu.as_deref(), Some("Xeon: big"));
        assert_eq!((host.n_cpus, host.memory_bytes, host.n_numa_nodes), (2, Some(1 << 20), 2));
        assert_eq!(host.governor.as_deref(), Some("powersave"));
        assert_eq!(host.nics, [Nic { name: "eth0".into(), mbit_s: Some(100_000) }, Nic { name: "veth".into(), mbit_s: None }]);
        assert_eq!(host.infiniband, ["mlx5_0"]);
        assert_eq!(host.nvidia_driver.as_deref(), Some("570.86.15"));
        assert_eq!(host.gpus, [Gpu { model: "NVIDIA H100".into() }]);
    }

    #[test]
    fn a_machine_that_says_nothing_is_not_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::read(dir.path());
        assert_eq!((host.cpu, host.memory_bytes, host.nvidia_driver), (None, None, None));
        assert!(host.gpus.is_empty() && host.nics.is_empty());
    }
}
