//! Reads run folders for reports and comparisons.
//!
//! `result.json` must be readable. Whatever else is missing or damaged becomes a remark in the report, so that one broken
//! log does not hide the figures. Records are read line by line and reduced point by point.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Context;
use tandem_metrics::artifacts::profile_export::parse_line;
use tandem_metrics::{RequestRecord, RunClock};
use tandem_plan::Phase;
use tandem_report::{Evidence, PhaseLog, Run};

use crate::exit::{Exit, Failure, OrExit};

/// Records are placed by wall-clock time; the report takes the first start as its zero.
const CLOCK: RunClock = RunClock { wall_origin_ns: 0 };

/// Files of a run, besides those of its points, that a report rests on.
const RUN_FILES: [&str; 7] =
    ["result.json", "plan.json", "perf_summary.txt", "events.jsonl", "telemetry.jsonl", "logs/prefill.log", "logs/decode.log"];
/// Files of a load point.
const POINT_FILES: [&str; 3] = ["profile_export.jsonl", "profile_export_warmup.jsonl", "profile_export_genai_perf.json"];

/// Reads every run; a folder without `result.json` stands for the runs right below it.
pub(super) fn read_all(paths: &[PathBuf]) -> Result<Vec<Run>, Failure> {
    let folders: Vec<PathBuf> = paths.iter().map(|path| run_folders(path)).collect::<Result<Vec<_>, _>>()?.concat();
    let names = unique_names(&folders);
    folders.iter().zip(names).map(|(folder, name)| read(folder, name)).collect()
}

fn run_folders(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if path.join("result.json").is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Artifact)?;
    let mut below: Vec<PathBuf> =
        entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).filter(|path| path.join("result.json").is_file()).collect();
    below.sort();
    if below.is_empty() {
        let message = format!("{} is no run folder: it has no result.json, and no folder in it has", path.display());
        return Err(Failure::message(Exit::Artifact, message)
            .with_hint("a run that ended before its first load point still writes result.json; give the folder that --out named"));
    }
    Ok(below)
}

/// The last parts of the paths, as many as it takes to tell them apart.
fn unique_names(folders: &[PathBuf]) -> Vec<String> {
    let parts: Vec<Vec<String>> = folders.iter().map(|folder| parts_of(folder)).collect();
    let longest = parts.iter().map(Vec::len).max().unwrap_or(1);
    let names_of = |n: usize| -> Vec<String> { parts.iter().map(|parts| parts[parts.len().saturating_sub(n)..].join("/")).collect() };
    let is_unique = |names: &Vec<String>| names.iter().enumerate().all(|(i, name)| !names[..i].contains(name));
    let names = (1..=longest).map(names_of).find(is_unique);
    // The same folder twice: number them.
    names.unwrap_or_else(|| names_of(1).into_iter().enumerate().map(|(i, name)| format!("{name} ({})", i + 1)).collect())
}

fn parts_of(folder: &Path) -> Vec<String> {
    let absolute = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let parts = absolute.components().filter(|part| matches!(part, std::path::Component::Normal(_)));
    let parts: Vec<String> = parts.map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    if parts.is_empty() { vec![folder.display().to_string()] } else { parts }
}

fn read(folder: &Path, name: String) -> Result<Run, Failure> {
    let path = folder.join("result.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Artifact)?;
    let mut run =
        Run::new(name, folder.display().to_string(), &text).with_context(|| path.display().to_string()).or_exit(Exit::Artifact)?;
    match fs::read_to_string(folder.join("plan.json")) {
        Ok(text) => run.set_plan(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => run.add_problem(format!("plan.json: {error}")),
    }
    let sources: Vec<_> = run.point_sources().collect();
    for source in &sources {
        match records(&folder.join(&source.directory)) {
            Ok(records) => run.set_records(source.index, &records),
            Err(error) => run.add_problem(format!("{}: {error:#}", source.directory)),
        }
    }
    for (phase, name) in [(Phase::Prefill, "logs/prefill.log"), (Phase::Decode, "logs/decode.log")] {
        match phase_log(&folder.join(name)) {
            Ok(log) => run.set_log(phase, log),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => run.add_problem(format!("{name}: {error}")),
        }
    }
    match fs::read_to_string(folder.join("telemetry.jsonl")) {
        Ok(text) => run.set_telemetry(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => run.add_problem(format!("telemetry.jsonl: {error}")),
    }
    let files = RUN_FILES.iter().map(|name| (*name).to_owned());
    let of_points = sources.iter().flat_map(|source| POINT_FILES.iter().map(|name| format!("{}/{name}", source.directory)));
    for path in files.chain(of_points) {
        if let Ok(metadata) = fs::metadata(folder.join(&path)) {
            run.add_evidence(Evidence { path, bytes: metadata.len() });
        }
    }
    Ok(run)
}

/// The measured requests of a load point and those of its warm-up, if that was kept.
fn records(directory: &Path) -> anyhow::Result<Vec<RequestRecord>> {
    let mut records = Vec::new();
    append_records(&directory.join("profile_export.jsonl"), &mut records)?;
    let warmup = directory.join("profile_export_warmup.jsonl");
    if warmup.exists() {
        append_records(&warmup, &mut records)?;
    }
    Ok(records)
}

fn append_records(path: &Path, records: &mut Vec<RequestRecord>) -> anyhow::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let file = fs::File::open(path).with_context(|| name.clone())?;
    for (i, line) in BufReader::with_capacity(1 << 20, file).lines().enumerate() {
        let line = line.with_context(|| name.clone())?;
        if !line.trim().is_empty() {
            records.push(parse_line(&line, i + 1, CLOCK).with_context(|| name.clone())?);
        }
    }
    Ok(())
}

/// A log may hold anything a process wrote, so lines need not be UTF-8.
fn phase_log(path: &Path) -> io::Result<PhaseLog> {
    let mut log = PhaseLog::new();
    let mut reader = BufReader::with_capacity(1 << 20, fs::File::open(path)?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        log.push_line(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_short_as_they_can_be() {
        let names = |paths: &[&str]| unique_names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(names(&["/x/a", "/x/b"]), ["a", "b"]);
        assert_eq!(names(&["/x/a", "/y/a"]), ["x/a", "y/a"]);
        assert_eq!(names(&["/x/a", "/x/a"]), ["a (1)", "a (2)"]);
    }

    #[test]
    fn a_folder_without_results_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let failure = read_all(&[dir.path().to_owned()]).unwrap_err();
        assert_eq!(failure.exit, Exit::Artifact);
        fs::write(dir.path().join("result.json"), "{").unwrap();
        assert_eq!(read_all(&[dir.path().to_owned()]).unwrap_err().exit, Exit::Artifact);
    }
}
