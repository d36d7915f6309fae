//! `manifest.json`: what one has to know to repeat a run, or to doubt it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tandem_launch::slurm::{Allocation, Slurm};
use tandem_llmb::submission::is_secret;
use tandem_plan::Plan;

use super::measure::{host_name, wall_ns};
use super::run_folder::RunFolder;
use crate::cli::{Cli, Command, RunArgs};
use crate::exit::{Exit, Failure, OrExit};

/// A program that says what it found may take this long; then its part is left out.
const ASK: Duration = Duration::from_secs(5);

/// Variables that change what a run measures, by the beginning of their names.
const RELEVANT: [&str; 20] = [
    "CUDA_", "NVIDIA_", "NCCL_", "UCX_", "NIXL_", "TRTLLM_", "TLLM_", "DYN_", "HF_", "OMP_", "GLIBC_", "MALLOC_", "LD_", "PATH", "TANDEM_",
    "SLURM_", "SBATCH_", "ETCD_", "NATS_", "RAYON_",
];

/// Writes the manifest of a run that begins.
pub(crate) fn write(folder: &RunFolder, plan: &Plan, allocation: Option<&Allocation>) -> Result<(), Failure> {
    let slurm = allocation.map(|a| {
        let image = a.settings.container.image().map(image_facts);
        json!({"job_id": a.job_id, "nodes": a.used_nodes(plan), "settings": a.settings.to_json(), "image": image})
    });
    let manifest = json!({
        "schema_version": 1,
        "tandem": {"version": env!("CARGO_PKG_VERSION"), "program": std::env::current_exe().ok().map(|path| path.display().to_string())},
        "started_ns": wall_ns(),
        "argv": std::env::args().collect::<Vec<_>>(),
        "directory": std::env::current_dir().ok().map(|path| path.display().to_string()),
        "plan_hash": plan.hash(),
        "deployment_hash": plan.deployment_hash(),
        "executor": if allocation.is_some() { "slurm" } else { "local" },
        "slurm": slurm,
        "host": host(),
        "gpus": gpus(),
        "git": git(),
        "environment": environment(),
    });
    folder.write("manifest.json", format!("{manifest:#}\n").as_bytes())
}

/// Adds the command line of every process, which is known only once its ports are.
pub(crate) fn add_processes(folder: &RunFolder, commands: &[Value]) -> Result<(), Failure> {
    let path = folder.path("manifest.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Artifact)?;
    let mut manifest: Value = serde_json::from_str(&text).or_exit(Exit::Artifact)?;
    manifest["processes"] = Value::from(commands.to_vec());
    folder.write("manifest.json", format!("{manifest:#}\n").as_bytes())
}

/// Bytes at either end of an image that its fingerprint covers: reading all of its tens of gigabytes would delay each job by minutes.
const FINGERPRINT_BYTES: u64 = 1 << 20;

/// What is known of a container image: the digest in its name or in a `.sha256` file beside it, else a fingerprint of its size and ends.
fn image_facts(image: &str) -> Value {
    if let Some((_, digest)) = image.split_once("@sha256:") {
        return json!({"image": image, "sha256": digest});
    }
    let beside = fs::read_to_string(format!("{image}.sha256")).ok();
    let digest = beside.as_deref().and_then(|text| text.split_whitespace().next());
    let fingerprint = || -> std::io::Result<(u64, String)> {
        let mut file = fs::File::open(image)?;
        let n_bytes = file.metadata()?.len();
        let mut ends = n_bytes.to_le_bytes().to_vec();
        file.by_ref().take(FINGERPRINT_BYTES).read_to_end(&mut ends)?;
        file.seek(SeekFrom::Start(n_bytes.saturating_sub(FINGERPRINT_BYTES)))?;
        file.take(FINGERPRINT_BYTES).read_to_end(&mut ends)?;
        Ok((n_bytes, Sha256::digest(&ends).iter().map(|byte| format!("{byte:02x}")).collect()))
    };
    let (n_bytes, fingerprint) = fingerprint().ok().unzip();
    json!({"image": image, "sha256": digest, "n_bytes": n_bytes, "fingerprint": fingerprint})
}

/// The machine that the manifest is written on: that of the run, or the first node of the job.
fn host() -> Value {
    let read = |path: &str| fs::read_to_string(path).ok();
    let after = |text: Option<String>, key: &str| {
        let line = text?.lines().find(|line| line.starts_with(key))?.to_owned();
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let names = |dir: &str, prefix: &str| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| name.starts_with(prefix) && name != "lo");
        names.sort();
        names
    };
    let is_node = |name: &&String| name.strip_prefix("node").is_some_and(|n| n.parse::<u32>().is_ok());
    let uname = rustix::system::uname();
    json!({
        "name": host_name(),
        "kernel": uname.release().to_string_lossy(),
        "architecture": uname.machine().to_string_lossy(),
        "cpu": after(read("/proc/cpuinfo"), "model name"),
        "n_cpus": std::thread::available_parallelism().ok().map(std::num::NonZero::get),
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").map(|text| text.trim().to_owned()),
        "memory": after(read("/proc/meminfo"), "MemTotal"),
        "n_numa_nodes": names("/sys/devices/system/node", "node").iter().filter(is_node).count(),
        "nics": names("/sys/class/net", ""),
        "hcas": names("/sys/class/infiniband", ""),
    })
}

/// GPUs, driver and clocks by `nvidia-smi`; none where there is none.
fn gpus() -> Value {
    let query = "--query-gpu=index,name,uuid,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit,persistence_mode";
    // Like Slurm's programs it may hang, so it is called in the same way.
    let Ok(text) = Slurm::new(ASK).call("nvidia-smi", &[query, "--format=csv,noheader"]) else { return Value::Null };
    let keys = ["index", "name", "uuid", "driver", "memory", "sm_clock", "max_sm_clock", "power_limit", "persistence"];
    let gpu = |line: &str| -> Value {
        let pairs = keys.iter().zip(line.split(", ")).map(|(key, value)| ((*key).to_owned(), Value::from(value.trim())));
        Value::Object(pairs.collect())
    };
    Value::Array(text.lines().map(gpu).collect())
}

/// The state of the repository in which the command was given, for those who keep recipes in one.
fn git() -> Value {
    let git = Slurm::new(ASK);
    let Ok(commit) = git.call("git", &["rev-parse", "HEAD"]) else { return Value::Null };
    let dirty = git.call("git", &["status", "--porcelain"]).ok().map(|text| !text.trim().is_empty());
    json!({"commit": commit.trim(), "dirty": dirty})
}

fn environment() -> BTreeMap<String, String> {
    let vars = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    vars.filter(|(name, _)| is_relevant(name) && !is_secret(name)).collect()
}

fn is_relevant(name: &str) -> bool {
    RELEVANT.iter().any(|prefix| name.starts_with(prefix)) || tandem_recipe::KNOBS.iter().any(|knob| knob.env_name() == name)
}

/// The flags of the `tandem run` that wrote a run folder.
pub(crate) fn run_args(folder: &Path) -> Result<RunArgs, Failure> {
    let path = folder.join("manifest.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Artifact)?;
    let manifest: Value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display())).or_exit(Exit::Artifact)?;
    let words = manifest["argv"].as_array().into_iter().flatten().filter_map(Value::as_str);
    match Cli::try_parse_from(words).context("the run was made by another version of this program").or_exit(Exit::Artifact)?.command {
        Command::Run(args) => Ok(args),
        _ => Err(Failure::message(Exit::Artifact, format!("{} is no run of `tandem run` or `tandem submit`", folder.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_its_digest_or_its_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.sqsh");
        let name = path.display().to_string();
        fs::write(&path, vec![1; 3 << 20]).unwrap();
        let first = image_facts(&name);
        assert_eq!((first["n_bytes"].as_u64(), &first["sha256"]), (Some(3 << 20), &Value::Null));
        let mut other = vec![1; 3 << 20];
        other[5] = 2;
        fs::write(&path, other).unwrap();
        assert_ne!(first["fingerprint"], image_facts(&name)["fingerprint"]);
        fs::write(format!("{name}.sha256"), "abc  i.sqsh\n").unwrap();
        assert_eq!(image_facts(&name)["sha256"], "abc");
        assert_eq!(image_facts("registry/x@sha256:12")["sha256"], "12");
        assert_eq!(image_facts("/no/such")["fingerprint"], Value::Null);
    }

    #[test]
    fn variables_that_matter_are_kept_and_secrets_are_not() {
        assert!(is_relevant("NCCL_DEBUG") && is_relevant("CONCURRENCY") && !is_relevant("EDITOR"));
        assert!(is_secret("TANDEM_API_KEY") && is_secret("HF_TOKEN") && !is_secret("NCCL_DEBUG"));
    }
}
