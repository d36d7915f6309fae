//! `tandem doctor`: what this machine can do, what is missing for what, and how to get it.
//!
//! Reading order: `machine` (CPU, limits, GPUs and their libraries), `cluster` (Slurm, containers), `installation` (images and models
//! of llmb's workloads), `dynamo`; `host` reads the kernel's files.

mod cluster;
mod dynamo;
mod host;
mod installation;
mod machine;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use serde_json::json;

use super::programs::find;
use crate::cli_doctor::{DoctorArgs, Purpose};
use crate::exit::{Exit, Failure};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    /// Works, but figures or limits suffer.
    Note,
    Missing,
}

impl State {
    const fn word(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Note => "note",
            State::Missing => "missing",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug)]
struct Check {
    purpose: Purpose,
    name: String,
    state: State,
    /// What was found, or what its lack means.
    detail: String,
    /// What to do about it.
    fix: String,
}

pub(crate) fn doctor(args: &DoctorArgs) -> Result<(), Failure> {
    let (root, slurm) = (Path::new("/"), args.calls.slurm());
    let host = host::Host::read(root);
    let mut checks = machine::local(&host);
    // What is not asked for is not looked at: a controller that hangs takes seconds.
    let wants = |purpose| args.purpose.is_none_or(|asked| asked == purpose);
    if wants(Purpose::Gpu) {
        checks.extend(machine::gpu(&host, root));
    }
    if wants(Purpose::Slurm) {
        checks.extend(cluster::slurm(&slurm));
    }
    if wants(Purpose::Llmb) {
        checks.extend(installation::llmb());
    }
    if wants(Purpose::Dynamo) {
        checks.extend(dynamo::dynamo(&slurm));
    }
    let text = if args.json { as_json(&checks) } else { as_text(&checks) };
    // A reader that has gone has seen enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let required = args.purpose.unwrap_or(Purpose::Local);
    // Every purpose needs what the simplest one needs.
    let is_required = |c: &&Check| c.purpose == required || c.purpose == Purpose::Local;
    let lacks: Vec<&str> = checks.iter().filter(|c| c.state == State::Missing).filter(is_required).map(|c| c.name.as_str()).collect();
    if lacks.is_empty() {
        return Ok(());
    }
    Err(Failure::message(Exit::CheckFailed, format!("missing for {}: {}", required.word(), lacks.join(", "))))
}

fn check(purpose: Purpose, name: &str, state: State, detail: impl Into<String>, fix: &str) -> Check {
    Check { purpose, name: name.to_owned(), state, detail: detail.into(), fix: fix.to_owned() }
}

/// Whether a program is there; `otherwise` is what its lack means.
fn program(purpose: Purpose, name: &str, otherwise: State, why: &str, fix: &str) -> Check {
    match find(name) {
        Some(path) => check(purpose, name, State::Ok, path.display().to_string(), ""),
        None => check(purpose, name, otherwise, format!("not in PATH: {why}"), fix),
    }
}

fn as_text(checks: &[Check]) -> String {
    let mut text = String::new();
    let mut purpose = None;
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0) + 2;
    for check in checks {
        if purpose != Some(check.purpose) {
            let gap = if purpose.is_some() { "\n" } else { "" };
            let _ = writeln!(text, "{gap}{}: {}", check.purpose.word(), check.purpose.about());
            purpose = Some(check.purpose);
        }
        let _ = writeln!(text, "  {:<8}{:<width$}{}", check.state.word(), check.name, check.detail);
        if check.state != State::Ok && !check.fix.is_empty() {
            let _ = writeln!(text, "  {:<8}{:<width$}→ {}", "", "", check.fix);
        }
    }
    text
}

fn as_json(checks: &[Check]) -> String {
    let entry = |check: &Check| {
        json!({"for": check.purpose.word(), "name": check.name, "state": check.state.word(), "detail": check.detail,
            "fix": Some(&check.fix).filter(|fix| check.state != State::Ok && !fix.is_empty())})
    };
    serde_json::to_string_pretty(&checks.iter().map(entry).collect::<Vec<_>>()).unwrap_or_default() + "\n"
}
