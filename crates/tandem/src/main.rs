//! `tandem`: the command line from which a user deploys, drives and measures.
//!
//! Reading order: `cli` (flags), `commands` (one file each), `exit` (codes and failures).
//! Standard output carries results only; everything else goes to standard error.

mod bench_args;
mod cli;
mod cli_doctor;
mod cli_jobs;
mod cli_llmb;
mod commands;
mod exit;
mod mode_args;
mod network_args;
mod selftest_args;
mod signals;
mod telemetry_args;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command, LogFormat};
use commands::llmb::alias;
use exit::{Exit, Failure};

fn main() -> ExitCode {
    if alias::is_llmb_run() {
        return llmb_run();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error),
    };
    let is_process = matches!(cli.command, Command::Serve(_) | Command::Worker(_) | Command::Orchestrate(_));
    let default = if is_process { "info" } else { "warn" };
    if let Err(failure) = init_logging(cli.log.as_deref().unwrap_or(default), cli.log_format) {
        return report(&failure);
    }
    let outcome = match cli.command {
        Command::Run(args) => commands::run::run(args),
        Command::Plan(args) => commands::plan::plan(&args),
        Command::Load(args) => commands::load::load(*args),
        Command::Report(args) => commands::report::report(&args),
        Command::Compare(args) => commands::compare::compare(&args),
        Command::List(args) => commands::list::list(&args),
        Command::Simulate(args) => commands::simulate::simulate(&args),
        Command::Doctor(args) => commands::doctor::doctor(&args),
        Command::Install(args) => commands::install::install(&args),
        Command::Jobs(args) => commands::llmb::jobs::jobs(&args),
        Command::Archive(args) => commands::llmb::archive::archive(&args),
        Command::Exemplar(args) => commands::llmb::exemplar::exemplar(&args),
        Command::Submit(args) => commands::submit::submit(&args),
        Command::Status(args) => commands::status::status(&args),
        Command::Watch(args) => commands::status::watch(&args),
        Command::Logs(args) => commands::logs::logs(&args),
        Command::Cancel(args) => commands::cancel::cancel(&args),
        Command::Retry(args) => commands::retry::retry(&args),
        Command::History(args) => commands::history::history(&args),
        Command::Rerun(args) => commands::retry::rerun(&args),
        Command::Orchestrate(args) => commands::orchestrate::orchestrate(&args),
        Command::TryPorts(args) => commands::orchestrate::try_ports(&args),
        Command::Evaluate(args) => commands::evaluate::evaluate(&args),
        Command::Explore(args) => commands::explore::explore(args),
        Command::Calibrate(args) => commands::calibrate::calibrate(&args),
        Command::Bench(args) => commands::bench::bench(&args),
        Command::Serve(args) => commands::serve::serve(args),
        Command::Worker(args) => commands::worker::worker(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

/// The same program under the name `llmb-run`.
fn llmb_run() -> ExitCode {
    let cli = match alias::parse() {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error),
    };
    let outcome = init_logging(if cli.verbose { "info" } else { "warn" }, LogFormat::Text).and_then(|()| alias::run(&cli));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure);
            ExitCode::from(alias::exit_code(&failure))
        }
    }
}

fn not_parsed(error: &clap::Error) -> ExitCode {
    // Nothing better can be done when standard error is closed.
    let _ = error.print();
    let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if is_help { ExitCode::SUCCESS } else { Exit::Usage.into() }
}

fn report(failure: &Failure) -> ExitCode {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{failure}");
    failure.exit.into()
}

/// Log lines go to standard error. The processes of a deployment say what happens (info), the others what is wrong (warn).
fn init_logging(directives: &str, format: LogFormat) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(directives).map_err(|e| Failure::message(Exit::Usage, format!("--log {directives}: {e}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
