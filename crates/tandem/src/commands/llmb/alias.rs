//! The command line under the name `llmb-run`: its options, and its exit codes 0 (ok), 1 (request or configuration), 2 (system).

use std::path::Path;

use clap::{CommandFactory, FromArgMatches};

use super::submit::{Request, submit};
use super::{archive, exemplar, jobs, list};
use crate::cli_llmb::{LlmbCli, LlmbCommand, LlmbSubmitArgs, OldArgs, WorkloadArgs};
use crate::commands::progress::say;
use crate::exit::{Exit, Failure};

/// Whether the program was started under that name.
pub(crate) fn is_llmb_run() -> bool {
    let name = std::env::args_os().next().unwrap_or_default();
    Path::new(&name).file_name().is_some_and(|name| name == "llmb-run")
}

/// Parses its command line. `-p` means something else in `tandem submit`, so it is added here only.
pub(crate) fn parse() -> Result<LlmbCli, clap::Error> {
    let command = LlmbCli::command().mut_subcommand("submit", |submit| submit.mut_arg("profile", |arg| arg.short('p')));
    let matches = command.try_get_matches()?;
    LlmbCli::from_arg_matches(&matches)
}

pub(crate) fn run(cli: &LlmbCli) -> Result<(), Failure> {
    match &cli.command {
        LlmbCommand::Submit(args) => submit(&Request::of_llmb(args)?),
        LlmbCommand::List(args) => list::workloads(&args.workloads),
        LlmbCommand::Exemplar(args) => exemplar::exemplar(args),
        LlmbCommand::Archive(args) => archive::archive(args),
        LlmbCommand::Jobs(args) => jobs::jobs(args),
        LlmbCommand::Single(args) | LlmbCommand::Bulk(args) | LlmbCommand::SubmitAll(args) => old(args),
    }
}

/// The deprecated commands are `submit` with other names for its options.
fn old(args: &OldArgs) -> Result<(), Failure> {
    say("warning: this command is deprecated; `llmb-run submit` does the same");
    submit(&Request::of_llmb(&LlmbSubmitArgs::of(
        WorkloadArgs {
            workloads: args.workloads.clone(),
            model_size: args.model_size.clone(),
            dtypes: args.dtypes.clone(),
            scales: args.scales.clone(),
            max_scale: args.max_scale,
            min_scale: args.min_scale,
            file: args.file.clone(),
            repeats: args.repeats,
            profile: args.profile,
            nice: args.nice,
            ..WorkloadArgs::default()
        },
        args.dry_run,
        args.calls.clone(),
    ))?)
}

/// Its exit code for a failure.
pub(crate) fn exit_code(failure: &Failure) -> u8 {
    match failure.exit {
        Exit::Usage | Exit::Recipe | Exit::Infeasible => 1,
        Exit::Interrupted => 130,
        _ => 2,
    }
}
