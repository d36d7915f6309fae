//! `tandem logs`: the logs of a job or run by the names of its processes.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use tandem_launch::logs::tail;

use crate::cli_jobs::LogsArgs;
use crate::exit::{Exit, Failure, OrExit};

pub(crate) fn logs(args: &LogsArgs) -> Result<(), Failure> {
    let known = known_logs(&args.job);
    let mut out = std::io::stdout();
    let Some(name) = &args.name else {
        for (name, path) in known {
            writeln!(out, "{name:<12} {}", path.display()).or_exit(Exit::Artifact)?;
        }
        return Ok(());
    };
    let Some((_, path)) = known.iter().find(|(known, _)| known == name) else {
        let names: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
        return Err(Failure::message(Exit::Usage, format!("{} has no log of `{name}` (it has {})", args.job.display(), names.join(", "))));
    };
    for line in tail(path, args.tail) {
        writeln!(out, "{line}").or_exit(Exit::Artifact)?;
    }
    Ok(())
}

/// Logs by the name of what wrote them: the files of the recipe count servers from 1, the plan from 0.
fn known_logs(folder: &Path) -> Vec<(String, PathBuf)> {
    let files = fs::read_dir(folder.join("logs")).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let mut known: Vec<(String, PathBuf)> = files.filter_map(|path| Some((name_of(path.file_name()?.to_str()?)?, path))).collect();
    known.sort();
    known
}

fn name_of(file: &str) -> Option<String> {
    let stem = file.strip_suffix(".log").or_else(|| file.strip_suffix(".out"))?;
    match stem.strip_prefix("output_") {
        Some("server") => Some("frontend".to_owned()),
        Some(worker) => match worker.rsplit_once('_').and_then(|(phase, n)| Some((phase, n.parse::<u32>().ok()?.checked_sub(1)?))) {
            Some((phase, index)) => Some(format!("{phase}-{index}")),
            None => Some(worker.to_owned()),
        },
        None if stem.starts_with("slurm-") => Some("slurm".to_owned()),
        None => Some(stem.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_names_of_the_plan() {
        let names =
            ["output_server.log", "output_prefill_1.log", "output_decode_12.log", "bench.log", "slurm-7.out", "output_etcd.log", "x"];
        let read: Vec<_> = names.iter().map(|file| name_of(file)).collect();
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(read, [some("frontend"), some("prefill-0"), some("decode-11"), some("bench"), some("slurm"), some("etcd"), None]);
    }
}
