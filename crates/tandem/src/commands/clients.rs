//! `tandem load --clients` and `tandem load agent`: one load from several processes or hosts.
//!
//! What a client needs to know travels as the coordinator's command line: it reads the same flags and the same files, and takes its
//! part. The rest is `tandem_load::clients`'.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use clap::Parser;
use serde_json::{Value, json};
use tandem_load::clients::{Fleet, FleetReport, Prepared, Token, serve_one};
use tandem_load::{LoadError, LoadSpec, Progress, StopSignal, Texts};

use super::load::{Asked, ask};
use super::measure::Point;
use super::progress::say;
use crate::cli::{Cli, Command};
use crate::exit::{Exit, Failure, OrExit};
use crate::mode_args::Level;
use crate::selftest_args::{AgentArgs, ClientArgs};

/// Where the token is when no file holds it.
const TOKEN_VARIABLE: &str = "TANDEM_AGENT_TOKEN";
/// Processes of this host at most.
const MAX_LOCAL: u32 = 256;

/// Clients that are ready, and the processes among them that were started here.
#[derive(Debug)]
pub(crate) struct Clients {
    fleet: Mutex<Fleet>,
    setup: Value,
    /// They end with their standard input, so also when this process dies.
    children: Vec<Child>,
}

impl Clients {
    /// The clients that were asked for, if any were.
    pub(crate) fn start(args: &ClientArgs) -> Result<Option<Arc<Self>>, Failure> {
        let Some(wanted) = args.clients.as_deref() else { return Ok(None) };
        let setup = json!({"argv": std::env::args().collect::<Vec<_>>()});
        let (addresses, token, children): (Vec<String>, Token, Vec<Child>) = match wanted.parse::<u32>() {
            Ok(n) if (1..=MAX_LOCAL).contains(&n) => {
                let (token, text) = Token::random().or_exit(Exit::Bug)?;
                let started: Vec<(String, Child)> = (0..n).map(|_| start_here(&text)).collect::<Result<_, _>>()?;
                let (addresses, children) = started.into_iter().unzip();
                (addresses, token, children)
            }
            Ok(_) => return Err(Failure::message(Exit::Usage, format!("--clients {wanted}: must be between 1 and {MAX_LOCAL}"))),
            Err(_) => {
                let addresses = wanted.split(',').map(|address| address.trim().to_owned()).collect();
                (addresses, token(args.agent_token_file.as_deref())?, Vec::new())
            }
        };
        // Kept from here on: what was started ends when this does.
        let mut clients = Clients { fleet: Mutex::new(Fleet::connect(&[], &token).or_exit(Exit::Bug)?), setup, children };
        clients.fleet = Mutex::new(Fleet::connect(&addresses, &token).or_exit(Exit::NotReady)?);
        Ok(Some(Arc::new(clients)))
    }

    /// Drives one point from all clients.
    pub(crate) fn run(
        &self,
        (index, level): (usize, Level),
        spec: &LoadSpec,
        texts: &Arc<dyn Texts>,
        progress: &mut dyn Progress,
        stop: &StopSignal,
    ) -> Result<FleetReport, LoadError> {
        let point = json!({"index": index, "level": level_json(level)});
        let mut fleet = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        fleet.run((&self.setup, &point), spec, texts, progress, stop)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.stdin.take());
        }
        for child in &mut self.children {
            // One that cannot be waited for is not there.
            let _ = child.wait();
        }
    }
}

/// Starts this program as an agent here; its address.
fn start_here(token: &str) -> Result<(String, Child), Failure> {
    let program = std::env::current_exe().or_exit(Exit::Bug)?;
    let mut child = Process::new(program)
        .args(["load", "agent", "--stop-with-stdin"])
        .env(TOKEN_VARIABLE, token)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start a client")
        .or_exit(Exit::NotReady)?;
    let mut address = String::new();
    BufReader::new(child.stdout.take().expect("the output is piped")).read_line(&mut address).or_exit(Exit::NotReady)?;
    if address.is_empty() {
        let status = child.wait().or_exit(Exit::NotReady)?;
        return Err(Failure::message(Exit::NotReady, format!("a client ended before it listened: {status}")));
    }
    Ok((address.trim().to_owned(), child))
}

fn token(file: Option<&Path>) -> Result<Token, Failure> {
    let text = match file {
        Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string()).or_exit(Exit::Usage)?,
        None => std::env::var(TOKEN_VARIABLE).ok().filter(|text| !text.is_empty()).ok_or_else(|| {
            let hint = "make one with `openssl rand -hex 32`, and give it to both sides in a file or in that variable";
            Failure::message(Exit::Usage, format!("no token: neither a file nor {TOKEN_VARIABLE}")).with_hint(hint)
        })?,
    };
    Token::new(&text).or_exit(Exit::Usage)
}

pub(crate) fn agent(args: &AgentArgs) -> Result<(), Failure> {
    let token = token(args.token_file.as_deref())?;
    let listener = TcpListener::bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen)).or_exit(Exit::NotReady)?;
    let mut out = io::stdout();
    let address = listener.local_addr().or_exit(Exit::NotReady)?;
    writeln!(out, "{address}").and_then(|()| out.flush()).or_exit(Exit::Bug)?;
    if !args.stop_with_stdin {
        serve(&listener, &token);
    }
    // It is left behind when standard input ends: there is nobody to finish for.
    std::thread::Builder::new().name("load-agent".into()).spawn(move || serve(&listener, &token)).or_exit(Exit::Bug)?;
    io::copy(&mut io::stdin(), &mut io::sink()).or_exit(Exit::Bug)?;
    Ok(())
}

fn serve(listener: &TcpListener, token: &Token) -> ! {
    loop {
        if let Err(error) = serve_one(listener, token, &prepare) {
            say(&format!("a connection ended: {error}"));
        }
    }
}

/// The load of a coordinator's command line and point, as it would be here.
fn prepare(setup: &Value, point: &Value) -> Result<Prepared, String> {
    let argv: Vec<String> = serde_json::from_value(setup["argv"].clone()).map_err(|e| format!("the command line: {e}"))?;
    let cli = Cli::try_parse_from(argv).map_err(|e| format!("the command line: {e}"))?;
    let Command::Load(command) = cli.command else { return Err("the command line is not that of a load".into()) };
    let index = point["index"].as_u64().and_then(|index| usize::try_from(index).ok()).ok_or("the point has no number")?;
    let level = level_of(&point["level"]).ok_or("the point has no level")?;
    let prepared = || -> Result<Prepared, Failure> {
        let asked = Asked::of(&command.load)?;
        let nowhere = PathBuf::new();
        Ok(Point::new(&ask(&command.load, &asked, None, level), index, &nowhere, &nowhere)?.into_load())
    };
    prepared().map_err(|failure| format!("{:#}", failure.error))
}

fn level_json(level: Level) -> Value {
    match level {
        Level::Concurrency(n) => json!({"concurrency": n}),
        Level::Rate(rate) => json!({"rate": rate}),
        Level::Trace => json!("trace"),
    }
}

fn level_of(value: &Value) -> Option<Level> {
    if let Some(n) = value["concurrency"].as_u64() {
        return u32::try_from(n).ok().map(Level::Concurrency);
    }
    value["rate"].as_f64().map(Level::Rate).or_else(|| (value == "trace").then_some(Level::Trace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_comes_back_from_its_json() {
        for level in [Level::Concurrency(3), Level::Rate(0.1 + 0.2), Level::Trace] {
            assert_eq!(level_of(&level_json(level)), Some(level));
        }
        assert_eq!(level_of(&json!({"concurrency": -1})), None);
    }

    #[test]
    fn a_command_line_that_is_not_a_load_prepares_nothing() {
        let point = json!({"index": 0, "level": "trace"});
        for argv in [json!(["tandem", "list"]), json!(["tandem", "load", "--nonsense"]), json!(7)] {
            assert!(prepare(&json!({"argv": argv}), &point).is_err(), "{argv}");
        }
    }
}
