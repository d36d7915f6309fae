//! `archive`: configurations, logs and results of all workloads as one `.tar.zst`.
//!
//! The tools pack `KEY/experiments` only; jobs of plain scripts have their configuration and Slurm's log beside that folder, so an
//! archive of theirs holds "0 experiments". Here both are in it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::installation::cluster;
use super::submit::print;
use crate::cli_llmb::ArchiveArgs;
use crate::exit::{Exit, Failure, OrExit};

/// Folders of code, weights and traces: large, and no results.
const LEFT_OUT: [&str; 5] = ["code", "checkpoints", "nsys_profile", "torch_profile", "pytorch_profile"];

const ZSTD_LEVEL: i32 = 5;

pub(crate) fn archive(args: &ArchiveArgs) -> Result<(), Failure> {
    let (_, cluster) = cluster()?;
    let install = Path::new(&cluster.llmb_install);
    let time = jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string();
    let top = format!("llmb-archive-{time}");
    let output = args.output.clone().unwrap_or_else(|| install.join(format!("{top}.tar.zst")));
    let parent = output.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if output.exists() {
        return Err(Failure::message(Exit::Usage, format!("Archive output already exists: {}", output.display())));
    }
    if !parent.is_dir() {
        return Err(Failure::message(Exit::Usage, format!("Output directory does not exist: {}", parent.display())));
    }
    let workloads = install.join("workloads");
    let entries = entries(&workloads).with_context(|| format!("cannot read {}", workloads.display())).or_exit(Exit::Artifact)?;
    let file = OpenOptions::new().write(true).create_new(true).open(&output);
    let file = file.with_context(|| format!("cannot create {}", output.display())).or_exit(Exit::Artifact)?;
    let packed = pack(file, &workloads, &top, &entries);
    if packed.is_err() {
        // Half an archive is worse than none.
        let _ = fs::remove_file(&output);
    }
    packed.with_context(|| format!("cannot write {}", output.display())).or_exit(Exit::Artifact)?;
    print(&format!("Archive created: {}\nArchived {} experiments.\n", output.display(), n_experiments(&entries)))
}

/// What goes in, relative to the folder of workloads, sorted.
fn entries(workloads: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = BTreeSet::new();
    for workload in fs::read_dir(workloads)? {
        let workload = workload?;
        if !workload.file_type()?.is_dir() {
            continue;
        }
        for entry in fs::read_dir(workload.path())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let relative = Path::new(&workload.file_name()).join(&name);
            let is_file = entry.file_type()?.is_file();
            let is_of_a_job =
                name.starts_with("llmb-config_") && name.ends_with(".yaml") || name.starts_with("slurm-") && name.ends_with(".out");
            if is_file && is_of_a_job {
                all.insert(relative);
            } else if name == "experiments" && !is_file {
                walk(workloads, &relative, &mut all)?;
            }
        }
    }
    Ok(all.into_iter().collect())
}

fn walk(root: &Path, relative: &Path, all: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    all.insert(relative.to_owned());
    for entry in fs::read_dir(root.join(relative))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = relative.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if !LEFT_OUT.contains(&name.as_str()) {
                walk(root, &path, all)?;
            }
        } else if (kind.is_file() || kind.is_symlink()) && !is_left_out(&name) {
            all.insert(path);
        }
    }
    Ok(())
}

fn is_left_out(name: &str) -> bool {
    let is_trace = name.ends_with(".nsys-rep") || name.ends_with("_trace.json") || name.ends_with(".pt.trace.json");
    is_trace || name.contains(".tar.")
}

/// Jobs of which the archive has the configuration, and runs without one.
fn n_experiments(entries: &[PathBuf]) -> usize {
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let configs: Vec<&PathBuf> = entries.iter().filter(|path| name(path).starts_with("llmb-config_")).collect();
    let runs = entries.iter().filter(|path| name(path) == "plan.json");
    let without = runs.filter(|run| configs.iter().all(|config| config.parent() != run.parent()));
    configs.len() + without.count()
}

fn pack(file: File, workloads: &Path, top: &str, entries: &[PathBuf]) -> io::Result<()> {
    let mut tar = tar::Builder::new(zstd::Encoder::new(BufWriter::new(file), ZSTD_LEVEL)?);
    // Links stay links: what they point to may be a model of a terabyte.
    tar.follow_symlinks(false);
    for entry in entries {
        let source = workloads.join(entry);
        let name = Path::new(top).join(entry);
        if source.symlink_metadata()?.is_dir() {
            tar.append_dir(&name, &source)?;
        } else {
            tar.append_path_with_name(&source, &name)?;
        }
    }
    let mut file = tar.into_inner()?.finish()?;
    file.flush()?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}
