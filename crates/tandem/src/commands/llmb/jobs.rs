//! `jobs`: what was submitted from this installation, by Tandem and by llmb-run, with states and figures.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tandem_launch::logs::tail;
use tandem_launch::slurm::{JobState, Slurm, SlurmError, observe, text};
use tandem_llmb::lines::billions;

use super::script::description;
use super::submit::print;
use crate::cli_llmb::{JobsArgs, JobsCommand};
use crate::commands::history::{self, Entry, Seen, Store, WorkloadJob, foreign};
use crate::commands::progress::say;
use crate::commands::submit::LOOK_EVERY;
use crate::exit::{Exit, Failure, OrExit};

/// Slurm's words for a job that has ended; `PURGED` is ours, and the tools', for one that Slurm has forgotten.
const TERMINAL: [&str; 9] =
    ["BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PURGED", "TIMEOUT"];

/// Jobs that one call of `sacct` is asked about.
const CHUNK: usize = 200;

/// A job that is unknown to Slurm and older than this was purged.
const PURGE_AFTER: Duration = Duration::from_secs(300);

/// Jobs that are shown.
const MAX_SHOWN: usize = 10_000;

pub(crate) fn jobs(args: &JobsArgs) -> Result<(), Failure> {
    let slurm = args.calls.slurm();
    match args.command.as_ref().unwrap_or(&JobsCommand::List) {
        JobsCommand::List => list(&slurm),
        JobsCommand::Show { id } => show(*id),
        JobsCommand::Log { id, tail, follow, path, dir, list } => {
            let (entry, _) = find(*id)?;
            let logs = logs(&entry, *id);
            if *dir {
                return print(&format!("{}\n", log_dir(&entry).display()));
            }
            if *list {
                return print(&logs.iter().map(|path| format!("{}\n", path.display())).collect::<String>());
            }
            let Some(log) = logs.first() else {
                return Err(Failure::message(Exit::Artifact, format!("job {id} has no log in {}", log_dir(&entry).display())));
            };
            if *path { print(&format!("{}\n", log.display())) } else { log_lines(log, *tail, *follow, &entry, &slurm) }
        }
        JobsCommand::Refresh { ids } => {
            let mut store = open()?;
            let known = store.newest(MAX_SHOWN).map_err(unreadable)?;
            let wanted = |(entry, _): &(Entry, Seen)| ids.is_empty() || entry.job_id.is_some_and(|id| ids.contains(&id));
            let missing = ids.iter().find(|id| known.iter().all(|(entry, _)| entry.job_id != Some(**id)));
            if let Some(id) = missing {
                return Err(Failure::message(Exit::Usage, format!("the history has no job {id}")));
            }
            let asked: Vec<(Entry, Seen)> = known.into_iter().filter(wanted).collect();
            let n_asked = asked.len();
            let (n_known, trouble) = refresh(&mut store, asked, &slurm, !ids.is_empty())?;
            if let Some(trouble) = trouble {
                return Err(Failure::message(Exit::NotReady, format!("Slurm cannot be asked: {trouble}")));
            }
            print(&format!("Refreshed {n_known} of {n_asked} jobs.\n"))
        }
        JobsCommand::Rebuild => rebuild(),
    }
}

fn open() -> Result<Store, Failure> {
    history::open().map_err(unreadable)
}

fn unreadable(error: String) -> Failure {
    Failure::message(Exit::Artifact, error)
}

/// Jobs of the history, then those that only llmb-run knows.
fn all(store: &Store) -> Result<Vec<(Entry, Seen)>, Failure> {
    let mut all = store.newest(MAX_SHOWN).map_err(unreadable)?;
    let install = super::installation::cluster().ok().map(|(_, cluster)| PathBuf::from(cluster.llmb_install));
    let install = install.or_else(|| std::env::var_os("LLMB_INSTALL").filter(|v| !v.is_empty()).map(PathBuf::from));
    let theirs = match install.map(|dir| foreign::read(&dir)) {
        Some(Ok(jobs)) => jobs,
        Some(Err(error)) => {
            say(&format!("warning: llmb-run's history is left out: {error}"));
            Vec::new()
        }
        None => Vec::new(),
    };
    let ours: Vec<Option<u64>> = all.iter().map(|(entry, _)| entry.job_id).collect();
    all.extend(theirs.into_iter().filter(|(entry, _)| !ours.contains(&entry.job_id)));
    Ok(all)
}

fn find(id: u64) -> Result<(Entry, Seen), Failure> {
    let store = open()?;
    let found = all(&store)?.into_iter().find(|(entry, _)| entry.job_id == Some(id));
    found.ok_or_else(|| Failure::message(Exit::Usage, format!("the history has no job {id}")))
}

fn is_terminal(seen: &Seen) -> bool {
    TERMINAL.contains(&seen.state.as_str())
}

/// Asks about jobs that have not ended, and notes the answers. How many were known, and why some were not asked about.
fn refresh(store: &mut Store, jobs: Vec<(Entry, Seen)>, slurm: &Slurm, every: bool) -> Result<(usize, Option<String>), Failure> {
    let open: Vec<(Entry, Seen)> = jobs.into_iter().filter(|(_, seen)| every || !is_terminal(seen)).collect();
    let (mut n_known, mut trouble) = (0, None);
    for chunk in open.chunks(CHUNK) {
        // One call for all; what it does not know is asked one by one, from the job's own files first.
        let answers = sacct(slurm, chunk).unwrap_or_default();
        for (entry, before) in chunk {
            let answered = entry.job_id.and_then(|id| answers.iter().find(|(known, _)| *known == id)).map(|(_, seen)| seen.clone());
            let (id, seen) = match answered {
                Some(seen) => (entry.job_id, seen),
                None => {
                    let observed = observe(&entry.folder, slurm);
                    let state = match &observed.state {
                        JobState::Ended { exit_code: 0, .. } => "COMPLETED".to_owned(),
                        JobState::Ended { .. } => "FAILED".to_owned(),
                        JobState::Pending(_) => "PENDING".to_owned(),
                        JobState::Running(_) => "RUNNING".to_owned(),
                        JobState::Lost(word) => word.clone(),
                        JobState::NotSubmitted | JobState::Unknown(_) if is_old(entry) && !is_silent(&observed.state) => {
                            "PURGED".to_owned()
                        }
                        JobState::NotSubmitted => before.state.clone(),
                        JobState::Unknown(why) => {
                            trouble = trouble.or_else(|| Some(why.clone()));
                            continue;
                        }
                    };
                    (observed.job_id, Seen { state, ..before.clone() })
                }
            };
            store.note(&entry.folder, id, &seen).map_err(unreadable)?;
            n_known += 1;
        }
    }
    Ok((n_known, trouble))
}

/// Whether nobody answered, as opposed to answers that the job is not there.
fn is_silent(state: &JobState) -> bool {
    matches!(state, JobState::Unknown(why) if ["did not answer", "cannot start", "contact", "timed out"].iter().any(|t| why.contains(t)))
}

fn is_old(entry: &Entry) -> bool {
    let age = crate::commands::measure::wall_ns().saturating_sub(entry.submitted_ns);
    u128::from(age) > PURGE_AFTER.as_nanos()
}

fn sacct(slurm: &Slurm, jobs: &[(Entry, Seen)]) -> Result<Vec<(u64, Seen)>, SlurmError> {
    let ids: Vec<String> = jobs.iter().filter_map(|(entry, _)| entry.job_id).map(|id| id.to_string()).collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let jobs = format!("--jobs={}", ids.join(","));
    let answer = slurm.call("sacct", &["-X", "-P", "--noheader", &jobs, "--format=JobIDRaw,State,Elapsed,Submit,NodeList,ExitCode"])?;
    let seen = |line: &str| {
        let mut parts = line.split('|');
        let id = parts.next()?.trim().parse().ok()?;
        let mut next = || parts.next().unwrap_or_default().trim().to_owned();
        let (state, elapsed, _, nodes, exit_code) = (text::state_word(&next()), next(), next(), next(), next());
        Some((id, Seen { state, elapsed, nodes, exit_code }))
    };
    Ok(answer.lines().filter_map(seen).collect())
}

fn list(slurm: &Slurm) -> Result<(), Failure> {
    let mut store = open()?;
    let known = store.newest(MAX_SHOWN).map_err(unreadable)?;
    let (_, trouble) = refresh(&mut store, known, slurm, false)?;
    if let Some(trouble) = trouble {
        say(&format!("warning: status may be stale ({trouble})"));
    }
    let mut jobs = all(&store)?;
    let size = |entry: &Entry| entry.workload.as_ref().map_or(0.0, |w| billions(&w.model_size));
    // Workload, size descending, dtype, scale, profile, newest first.
    jobs.sort_by(|(a, _), (b, _)| {
        let key = |e: &Entry| e.workload.as_ref().map_or_else(|| (e.recipe.clone(), String::new(), 0, false), facts);
        let ((ka, da, sa, pa), (kb, db, sb, pb)) = (key(a), key(b));
        let by_size = || size(b).total_cmp(&size(a));
        ka.cmp(&kb).then_with(by_size).then_with(|| (da, sa, pa).cmp(&(db, sb, pb))).then(b.submitted_ns.cmp(&a.submitted_ns))
    });
    let mut rows = vec![
        ["Workload", "DType", "Scale", "Job ID", "Profile", "Submit Time", "Slurm Status", "Elapsed", "Tokens/s/GPU", "TPOT ms"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(jobs.iter().map(|(entry, seen)| row(entry, seen)));
    print(&table(&rows))
}

fn facts(w: &WorkloadJob) -> (String, String, u32, bool) {
    (w.key.clone(), w.dtype.clone(), w.scale, w.profile)
}

fn row(entry: &Entry, seen: &Seen) -> Vec<String> {
    let w = entry.workload.clone().unwrap_or_default();
    let name = if w.key.is_empty() { entry.recipe.clone() } else { format!("{}_{}", w.key, w.model_size) };
    let (throughput, tpot) = figures(&entry.folder).unwrap_or_default();
    vec![
        name,
        w.dtype,
        if w.scale > 0 { w.scale.to_string() } else { String::new() },
        entry.job_id.map_or_else(|| "?".to_owned(), |id| id.to_string()),
        if w.profile { "yes" } else { "no" }.to_owned(),
        history::time_text(entry.submitted_ns),
        seen.state.clone(),
        seen.elapsed.clone(),
        throughput,
        tpot,
    ]
}

/// Throughput per GPU and mean TPOT of the point that stands for a run; marked when the verdict is not `valid`.
fn figures(folder: &Path) -> Option<(String, String)> {
    let result: Value = serde_json::from_str(&fs::read_to_string(folder.join("result.json")).ok()?).ok()?;
    let mark = result["validity"].as_str().filter(|verdict| *verdict != "valid").map_or_else(String::new, |v| format!(" ({v})"));
    let metric = |name: &str| result["summary"][name]["avg"].as_f64().map_or_else(String::new, |value| format!("{value:.2}"));
    Some((format!("{}{mark}", metric("output_throughput_per_gpu")), metric("tpot")))
}

fn table(rows: &[Vec<String>]) -> String {
    let n_columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..n_columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn show(id: u64) -> Result<(), Failure> {
    let (entry, seen) = find(id)?;
    let w = entry.workload.clone().unwrap_or_default();
    let path = |path: &Path| path.display().to_string();
    let mut lines = vec![
        ("Job ID", id.to_string()),
        ("Workload", if w.key.is_empty() { entry.recipe.clone() } else { w.key.clone() }),
        ("Model Size", w.model_size.clone()),
        ("DType", w.dtype.clone()),
        ("Scale", if w.scale > 0 { w.scale.to_string() } else { String::new() }),
        ("Profile", w.profile.to_string()),
        ("Proxy", w.proxy.to_string()),
        ("Launcher", w.launcher.clone()),
        ("Submit Time", history::time_text(entry.submitted_ns)),
        ("Slurm Status", seen.state),
        ("Elapsed", seen.elapsed),
        ("Nodes", seen.nodes),
        ("Exit Code", seen.exit_code),
        ("Folder", path(&entry.folder)),
        ("Logs", path(&log_dir(&entry))),
        ("Config", w.config.as_deref().map(path).unwrap_or_default()),
        ("Plan", entry.plan_hash.clone()),
    ];
    if let Some(argv) = description(&entry.folder).and_then(|d| Some(d["argv"].as_array()?.clone())) {
        lines.push(("Command", argv.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")));
    }
    lines.retain(|(_, value)| !value.is_empty());
    print(&lines.iter().map(|(label, value)| format!("{label:<13}: {value}\n")).collect::<String>())
}

fn log_dir(entry: &Entry) -> PathBuf {
    entry
        .workload
        .as_ref()
        .map(|w| w.log_dir.clone())
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or_else(|| entry.folder.join("logs"))
}

/// Logs of a job, the telling one first: `log-*_<id>_<retry>.out`, then `slurm-<id>.out`, then the servers' of a run.
fn logs(entry: &Entry, id: u64) -> Vec<PathBuf> {
    let dir = log_dir(entry);
    let files = fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok).map(|file| file.path());
    let rank = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        match name {
            _ if name.starts_with("log-") && name.contains(&format!("_{id}_")) => Some(0),
            _ if name == format!("slurm-{id}.out") => Some(1),
            // Other files of a folder that jobs share belong to others.
            _ if name.ends_with(".log") && entry.workload.as_ref().is_none_or(|w| w.launcher == "tandem") => Some(2),
            _ => None,
        }
    };
    let mut found: Vec<(u32, PathBuf)> = files.filter_map(|path| Some((rank(&path)?, path))).collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// The end of a log, and what is added until the job has ended.
fn log_lines(log: &Path, n: usize, follow: bool, entry: &Entry, slurm: &Slurm) -> Result<(), Failure> {
    let mut at = fs::metadata(log).map_or(0, |meta| meta.len());
    print(&tail(log, n).iter().map(|line| format!("{line}\n")).collect::<String>())?;
    let (mut looks, mut is_over) = (0_u32, false);
    let mut has_ended = !follow;
    while !has_ended {
        let mut more = Vec::new();
        let read = fs::File::open(log).and_then(|mut file| file.seek(SeekFrom::Start(at)).and_then(|_| file.read_to_end(&mut more)));
        at += u64::try_from(read.unwrap_or(0)).unwrap_or(0);
        std::io::stdout().write_all(&more).or_exit(Exit::Artifact)?;
        // Slurm is asked less often than the file is read; after its answer the file is read once more.
        let was_asked = looks.is_multiple_of(10);
        if was_asked && is_over {
            has_ended = true;
        } else if was_asked {
            is_over = observe(&entry.folder, slurm).state.is_final();
        }
        if !is_over {
            looks += 1;
            std::thread::sleep(LOOK_EVERY);
        }
    }
    Ok(())
}

/// Takes in jobs of `llmb-config_<JOBID>.yaml` files that the history lacks.
fn rebuild() -> Result<(), Failure> {
    let (_, cluster) = super::installation::cluster()?;
    let mut store = open()?;
    let known: Vec<Option<u64>> = all(&store)?.into_iter().map(|(entry, _)| entry.job_id).collect();
    let mut files = Vec::new();
    find_configs(&Path::new(&cluster.llmb_install).join("workloads"), 0, &mut files);
    let (mut n_imported, n_scanned) = (0, files.len());
    for file in &files {
        match entry_of(file) {
            Some(entry) if !known.contains(&entry.job_id) => {
                store.add(&entry).map_err(unreadable)?;
                n_imported += 1;
            }
            _ => {}
        }
    }
    print(&format!("Scanned {n_scanned} llmb-config files; imported {n_imported}, skipped {}.\n", n_scanned - n_imported))
}

fn find_configs(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth < 6 => find_configs(&entry.path(), depth + 1, found),
            Ok(kind) if kind.is_file() && name.starts_with("llmb-config_") && name.ends_with(".yaml") => found.push(entry.path()),
            _ => {}
        }
    }
}

fn entry_of(config: &Path) -> Option<Entry> {
    let read = tandem_llmb::read_config(&config.display().to_string(), &fs::read_to_string(config).ok()?).ok()?;
    let dir = config.parent()?.to_owned();
    let time: jiff::civil::DateTime = read.launch_time.parse().ok()?;
    let submitted = time.to_zoned(jiff::tz::TimeZone::system()).ok()?.timestamp().as_nanosecond();
    let is_run = dir.join("plan.json").exists();
    // A script's job has no folder of its own; its configuration's name is unique.
    let folder = if is_run || dir.join("job/receipt.json").exists() { dir.clone() } else { config.with_extension("") };
    let launcher = if is_run { "tandem" } else { "script" };
    Some(Entry {
        folder,
        job_id: Some(read.job_id),
        recipe: read.task.workload.clone(),
        plan_hash: String::new(),
        submitted_ns: u64::try_from(submitted).ok()?,
        workload: Some(WorkloadJob {
            key: read.task.workload,
            model_size: read.task.size,
            dtype: read.task.dtype,
            scale: read.task.scale,
            profile: read.task.profile,
            proxy: read.task.proxy,
            launcher: launcher.to_owned(),
            log_dir: if is_run { dir.join("logs") } else { dir },
            config: Some(config.to_owned()),
        }),
    })
}
