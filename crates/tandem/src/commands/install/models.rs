//! Models: fetched by `hf`, checked by size and checksum, and not fetched again.
//!
//! `hf download --local-dir DIR` keeps, for each file, what the hub says about it in `DIR/.cache/huggingface/download/FILE.metadata`
//! (commit, ETag, time); the ETag of a large file is its SHA-256. It goes on where it was when it is called again. When all is right a
//! note is written into the folder, and later calls compare sizes only.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tandem_llmb::install::Model;

use super::Plan;
use crate::commands::programs::{find, free_bytes, gib};
use crate::commands::progress::say;
use crate::commands::run_folder::write_whole;
use crate::exit::{Exit, Failure, OrExit};

/// Tries of one download in one call.
const TRIES: u32 = 3;

/// What is kept free for everything else.
const RESERVE: u64 = 5 << 30;

/// Where the note on a model is: in its folder, or beside the cache.
fn note_path(dir: &Path, model: &Model) -> PathBuf {
    match model.dir.is_empty() {
        false => dir.join(".tandem-model.json"),
        true => dir.join(".cache/huggingface").join(format!("tandem-{}.json", model.repo_id.replace('/', "--"))),
    }
}

/// Whether a model is complete, and what is known about it. `dir` is its folder; for the hub's cache the installation.
pub(crate) fn state(dir: &Path, model: &Model) -> (bool, String) {
    let Ok(text) = fs::read_to_string(note_path(dir, model)) else {
        let bytes = size_of(dir);
        let started = !model.dir.is_empty() && bytes > 0;
        return (false, if started { format!("{} there, not known to be complete", gib(bytes)) } else { "not there".to_owned() });
    };
    let note: Value = serde_json::from_str(&text).unwrap_or_default();
    if note["repo_id"] != model.repo_id.as_str()
        || note["revision"].as_str() != model.revision.as_deref()
        || note["include"] != json!(model.include)
    {
        return (false, "another revision or other files were asked for".to_owned());
    }
    let files = note["files"].as_object().cloned().unwrap_or_default();
    let differs = files.iter().find(|(name, size)| fs::metadata(dir.join(name)).map(|meta| meta.len()).ok() != size.as_u64());
    match differs {
        Some((name, _)) => (false, format!("{name} is missing or has another size")),
        None => (true, format!("{} files, {}", files.len(), gib(files.values().filter_map(Value::as_u64).sum()))),
    }
}

fn folder(plan: &Plan, model: &Model) -> PathBuf {
    plan.root.join(&model.dir)
}

/// Refuses when what is still to be fetched has no room.
pub(super) fn check_space(plan: &Plan) -> Result<(), Failure> {
    let open: Vec<&Model> = plan.models.iter().filter(|model| !state(&folder(plan, model), model).0).collect();
    let need: u64 =
        open.iter().map(|m| m.bytes.unwrap_or(0).saturating_sub(if m.dir.is_empty() { 0 } else { size_of(&folder(plan, m)) })).sum();
    let Some(free) = free_bytes(&plan.root) else { return Ok(()) };
    if need == 0 || need.saturating_add(RESERVE) <= free {
        return Ok(());
    }
    let names: Vec<&str> = open.iter().map(|model| model.repo_id.as_str()).collect();
    let text = format!("{} needs {} more in {}, where {} are free", names.join(", "), gib(need), plan.root.display(), gib(free));
    Err(Failure::message(Exit::Infeasible, text).with_hint("install elsewhere, or make room; nothing was fetched"))
}

/// Fetches what is not complete.
pub(super) fn fetch(plan: &Plan) -> Result<(), Failure> {
    plan.models.iter().try_for_each(|model| one(plan, model))
}

fn one(plan: &Plan, model: &Model) -> Result<(), Failure> {
    let dir = folder(plan, model);
    let name = &model.repo_id;
    let (is_there, detail) = state(&dir, model);
    if is_there && !plan.verify {
        say(&format!("model {name} is there: {detail}"));
        return Ok(());
    }
    if is_there {
        let files = verify(&dir)?;
        say(&format!("model {name} is right: {} files", files.len()));
        return Ok(());
    }
    let program = ["hf", "huggingface-cli"].into_iter().find(|program| find(program).is_some());
    let words = arguments(&dir, model);
    if plan.dry_run {
        say(&format!("would run {} {}", program.unwrap_or("hf"), words.join(" ")));
        return Ok(());
    }
    let program = program.ok_or_else(|| {
        Failure::message(Exit::NotReady, format!("hf is needed for {name}, and not in PATH")).with_hint("pip install huggingface_hub")
    })?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display())).or_exit(Exit::Artifact)?;
    for attempt in 1..=TRIES {
        say(&format!("model {name}: {program} {}", words.join(" ")));
        let mut download = Command::new(program);
        // The token, if the repository needs one, is in the environment (HF_TOKEN) or in hf's own file.
        download.args(&words).stdin(Stdio::null()).stdout(Stdio::null()).env("HF_HOME", plan.root.join(".cache/huggingface"));
        let status = download.status().with_context(|| format!("cannot start {program}")).or_exit(Exit::NotReady)?;
        if status.success() {
            break;
        }
        if attempt == TRIES {
            return Err(Failure::message(Exit::NotReady, format!("{program} failed {TRIES} times for {name}: {status}"))
                .with_hint("what was fetched is kept: run `tandem install` again, it goes on from there"));
        }
        say(&format!("{program} ended with {status}; once more in {} s", plan.retry_after.as_secs()));
        std::thread::sleep(plan.retry_after);
    }
    let files = if model.dir.is_empty() { Map::new() } else { verify(&dir)? };
    let note = json!({
        "repo_id": name, "revision": model.revision, "include": model.include, "files": files,
    });
    write_whole(&note_path(&dir, model), format!("{note:#}\n").as_bytes())?;
    say(&format!("model {name} is complete: {}", state(&dir, model).1));
    Ok(())
}

fn arguments(dir: &Path, model: &Model) -> Vec<String> {
    let mut words = vec!["download".to_owned(), model.repo_id.clone()];
    let mut flag = |name: &str, value: &str| words.extend([name.to_owned(), value.to_owned()]);
    if model.repo_type != "model" {
        flag("--repo-type", &model.repo_type);
    }
    if let Some(revision) = &model.revision {
        flag("--revision", revision);
    }
    model.include.iter().for_each(|pattern| flag("--include", pattern));
    model.exclude.iter().for_each(|pattern| flag("--exclude", pattern));
    if !model.dir.is_empty() {
        flag("--local-dir", &dir.display().to_string());
    }
    words
}

/// Sizes of all files, by name, when every checksum is right and every shard of an index is there.
fn verify(dir: &Path) -> Result<Map<String, Value>, Failure> {
    let wrong = |text: String| Failure::message(Exit::CheckFailed, text).with_hint("delete the file and run `tandem install` again");
    let mut files = Map::new();
    for name in files_of(dir) {
        let path = dir.join(&name);
        let size = fs::metadata(&path).map(|meta| meta.len()).with_context(|| path.display().to_string()).or_exit(Exit::Artifact)?;
        if let Some(expected) = checksum_of(dir, &name) {
            let found = sha256(&path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Artifact)?;
            if found != expected {
                return Err(wrong(format!("{} is damaged: SHA-256 {found}, the hub says {expected}", path.display())));
            }
        }
        files.insert(name, Value::from(size));
    }
    if files.is_empty() {
        return Err(wrong(format!("nothing was fetched into {}", dir.display())));
    }
    let index = dir.join("model.safetensors.index.json");
    if let Ok(text) = fs::read_to_string(&index) {
        let index: Value = serde_json::from_str(&text).with_context(|| index.display().to_string()).or_exit(Exit::Artifact)?;
        let shards = index["weight_map"].as_object().into_iter().flatten().filter_map(|(_, shard)| shard.as_str());
        if let Some(shard) = shards.into_iter().find(|shard| !files.contains_key(*shard)) {
            return Err(wrong(format!("{} lacks {shard}, which its index names", dir.display())));
        }
    }
    Ok(files)
}

/// The SHA-256 that the hub states for a file, if it states one: small files have another kind of ETag.
fn checksum_of(dir: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(dir.join(".cache/huggingface/download").join(format!("{name}.metadata"))).ok()?;
    let etag = text.lines().nth(1)?.trim().to_ascii_lowercase();
    (etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit())).then_some(etag)
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Files below a folder, relative to it, sorted, without those whose names begin with a dot.
fn files_of(dir: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, all: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            if path.is_dir() {
                walk(root, &path, all);
            } else if let Ok(name) = path.strip_prefix(root) {
                all.push(name.display().to_string());
            }
        }
    }
    let mut all = Vec::new();
    walk(dir, dir, &mut all);
    all.sort();
    all
}

/// Bytes of a model's folder, unfinished files included.
fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let size = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => size_of(&entry.path()),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |meta| meta.len()),
        _ => 0,
    };
    entries.map(size).sum()
}
