//! The machine itself: CPU, memory, disk, limits; GPUs, their driver and the libraries that servers load.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use super::host::Host;
use super::{Check, State, check};
use crate::cli_doctor::Purpose;
use crate::commands::programs::{free_bytes, gib};

/// A load of 4,096 connections with its server on the same machine.
const FILES_WANTED: u64 = 8_256;

/// The built-in model with its run folder, generously.
const DISK_WANTED: u64 = 1 << 30;

/// What `tandem run` of the embedded engine and `tandem load` need.
pub(super) fn local(host: &Host) -> Vec<Check> {
    let check = |name: &str, state, detail: String, fix: &str| check(Purpose::Local, name, state, detail, fix);
    let mut checks = vec![check(
        "cpu",
        if simd() == "portable" { State::Note } else { State::Ok },
        format!("{} × {}, {} kernels", host.n_cpus, host.cpu.as_deref().unwrap_or("unknown"), simd()),
        "the embedded engine is several times faster with AVX2 or AVX-512",
    )];
    if let Some(governor) = &host.governor {
        let state = if governor == "performance" { State::Ok } else { State::Note };
        checks.push(check(
            "cpu frequency",
            state,
            format!("governor {governor}"),
            "cpupower frequency-set -g performance, for figures that repeat",
        ));
    }
    if let Some(memory) = host.memory_bytes {
        checks.push(check("memory", State::Ok, gib(memory), ""));
    }
    checks.push(match free_bytes(Path::new(".")) {
        Some(free) if free < DISK_WANTED => {
            check("disk", State::Note, format!("{} free here", gib(free)), "write run folders elsewhere: --out DIR")
        }
        Some(free) => check("disk", State::Ok, format!("{} free here", gib(free)), ""),
        None => check("disk", State::Missing, "this directory is gone".into(), "start it from a directory that exists"),
    });
    checks.push(match TcpListener::bind(("127.0.0.1", 0)) {
        Ok(_) => check("loopback", State::Ok, "127.0.0.1 can be bound".into(), ""),
        Err(error) => check("loopback", State::Missing, format!("127.0.0.1: {error}"), "bring the interface lo up"),
    });
    // The load generator raises the soft limit itself, up to the hard one; no limit is `None`.
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let state = if files < FILES_WANTED { State::Note } else { State::Ok };
    checks.push(check(
        "open files",
        state,
        format!("hard limit {files}"),
        "raise nofile in /etc/security/limits.conf for loads of thousands of connections",
    ));
    checks
}

/// The instruction set that the CPU engine will find.
fn simd() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") {
            return "AVX-512";
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            return "AVX2";
        }
    }
    "portable"
}

pub(super) fn gpu(host: &Host, root: &Path) -> Vec<Check> {
    let check = |name: &str, state, detail: String, fix: &str| check(Purpose::Gpu, name, state, detail, fix);
    let driver = match &host.nvidia_driver {
        Some(version) => check("nvidia driver", State::Ok, version.clone(), ""),
        None => check(
            "nvidia driver",
            State::Missing,
            "no /proc/driver/nvidia".into(),
            "install NVIDIA's driver; without a GPU nothing here needs it",
        ),
    };
    let models: Vec<&str> = host.gpus.iter().map(|gpu| gpu.model.as_str()).collect();
    let gpus = if models.is_empty() {
        check("gpus", State::Missing, "none found".into(), "`nvidia-smi` says what the driver sees")
    } else {
        check("gpus", State::Ok, format!("{}: {}", models.len(), models.join(", ")), "")
    };
    let mut checks = vec![driver, gpus];
    for (library, otherwise, why, fix) in LIBRARIES {
        checks.push(match find_library(root, library) {
            Some(path) => check(library, State::Ok, path.display().to_string(), ""),
            None => check(library, otherwise, why.to_owned(), fix),
        });
    }
    let hcas = &host.infiniband;
    let nics: Vec<String> =
        host.nics.iter().map(|nic| nic.mbit_s.map_or_else(|| nic.name.clone(), |mbit| format!("{} {mbit} Mbit/s", nic.name))).collect();
    checks.push(if hcas.is_empty() {
        let detail = format!("no InfiniBand or RoCE device; interfaces: {}", nics.join(", "));
        check(
            "network",
            State::Note,
            detail,
            "the KV cache moves over TCP, which is slow between nodes: install rdma-core and the adapter's driver",
        )
    } else {
        check("network", State::Ok, hcas.join(", "), "")
    });
    checks
}

/// Libraries by what loads them. Those of engines may be in their image instead, so their lack is a note.
const LIBRARIES: [(&str, State, &str, &str); 4] = [
    ("libnvidia-ml.so.1", State::Missing, "GPU telemetry loads it", "it comes with NVIDIA's driver (Debian: libnvidia-ml1)"),
    ("libcuda.so.1", State::Missing, "every CUDA program loads it", "it comes with NVIDIA's driver (Debian: libcuda1)"),
    (
        "libcudart.so",
        State::Note,
        "engines that run bare load it; images bring it",
        "install the CUDA toolkit, or run engines in their image",
    ),
    (
        "libnccl.so.2",
        State::Note,
        "engines that run bare load it; images bring it",
        "install NCCL (libnccl2), or run engines in their image",
    ),
];

/// Where the loader would find a library: `LD_LIBRARY_PATH`, then the usual folders below `root`.
fn find_library(root: &Path, name: &str) -> Option<PathBuf> {
    const USUAL: [&str; 7] = [
        "usr/lib/x86_64-linux-gnu",
        "usr/lib/aarch64-linux-gnu",
        "usr/lib64",
        "usr/lib",
        "usr/local/cuda/lib64",
        "usr/local/nvidia/lib64",
        "lib64",
    ];
    let stated = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&stated).filter(|dir| dir.is_absolute()).chain(USUAL.iter().map(|dir| root.join(dir)));
    dirs.map(|dir| dir.join(name)).find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_gpu_node_without_its_network_and_toolkit_gets_notes() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let write = |path: &str, text: &str| {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        };
        let state = |name: &str| {
            let checks = gpu(&Host::read(root), root);
            let check = checks.into_iter().find(|check| check.name == name).unwrap();
            (check.state, check.detail)
        };
        assert_eq!(state("nvidia driver").0, State::Missing);
        write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Tue\n");
        write("proc/driver/nvidia/gpus/0000:1b:00.0/information", "Model: \t NVIDIA H100\n");
        write("usr/lib64/libnvidia-ml.so.1", "");
        assert_eq!(state("nvidia driver"), (State::Ok, "570.86.15".into()));
        assert_eq!(state("gpus"), (State::Ok, "1: NVIDIA H100".into()));
        assert_eq!(state("libnvidia-ml.so.1").0, State::Ok);
        assert_eq!((state("libcuda.so.1").0, state("libcudart.so").0), (State::Missing, State::Note));
        assert_eq!(state("network").0, State::Note);
        write("sys/class/infiniband/mlx5_0/x", "");
        assert_eq!(state("network"), (State::Ok, "mlx5_0".into()));
    }
}
