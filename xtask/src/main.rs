//! Developer tasks of this repository: `cargo xtask ci`, `cargo xtask tidy`, `cargo xtask codegen`.
//!
//! The product is `tandem`; nothing here is shipped. This crate depends on almost nothing,
//! because everybody waits for it before anything else runs.
//!
//! Reading order: `workspace` (what is in the repository), `tidy` (rules about it), `step`
//! (running a tool), `codegen` (generated references), `ci` (all of it in order).

#![expect(clippy::print_stdout, reason = "a developer tool talks to the terminal")]

mod ci;
mod codegen;
mod step;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::workspace::Workspace;

const USAGE: &str = "\
usage: cargo xtask <task>

tasks:
  ci                 all checks, the same here and on a build machine
  tidy               rules about the repository itself: tiers, headers, purity, links
  codegen [--check]  writes docs/reference/{cli,knobs}.md, or compares them
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one task; `false` means that it ran and found something.
fn run(args: &[&str]) -> Result<bool> {
    match args {
        ["ci"] => ci::run(&Workspace::root()?),
        ["tidy"] => tidy::report(&Workspace::read()?),
        ["codegen"] => codegen::write(&Workspace::root()?),
        ["codegen", "--check"] => codegen::check(&Workspace::root()?),
        ["help" | "--help" | "-h"] | [] => {
            print!("{USAGE}");
            Ok(true)
        }
        other => bail!("unknown task `{}`\n\n{USAGE}", other.join(" ")),
    }
}
