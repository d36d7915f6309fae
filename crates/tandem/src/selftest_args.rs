//! Flags of `tandem load selftest` and of the server that it measures itself against.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::LoadArgs;

/// `tandem load`, or one of its tools.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct LoadCommand {
    #[command(subcommand)]
    pub(crate) tool: Option<LoadTool>,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LoadTool {
    /// Certify this host: how exact the load generator is here, and how much it can drive
    Selftest(SelftestArgs),
    /// Answer on a fixed schedule and log when each chunk was really sent, to measure any client against
    PacedServer(PacedServerArgs),
    /// Wait for `tandem load --clients` elsewhere, and drive a part of its load from this host
    Agent(AgentArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Prints the address that it listens on, and serves one coordinator after another. Both sides prove to each other that they have the
same token, from the file or from TANDEM_AGENT_TOKEN; the token itself and the API key (TANDEM_API_KEY, here too) never cross the network,
but everything else does in the clear: outside a network that you trust, go through a tunnel. The coordinator's files
(tokenizer, prompts, trace, certificates) have to be at the same paths here; what this client would send is compared with it.

Example:
  openssl rand -hex 32 > token                                      once, then copied to each host
  tandem load agent --listen 0.0.0.0:7010 --token-file token        on each client host
  tandem load … --clients host1:7010,host2:7010 --agent-token-file token")]
pub(crate) struct AgentArgs {
    /// Where to listen; port 0 is any free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// File with the token (default: what TANDEM_AGENT_TOKEN holds)
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// End when standard input does
    #[arg(long, hide = true)]
    pub(crate) stop_with_stdin: bool,
}

/// Flags of a load from several clients.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Several clients")]
pub(crate) struct ClientArgs {
    /// Split the load over clients: a number starts so many processes here, HOST:PORT,… are agents (`tandem load agent`) elsewhere. Together
    /// they send what one would; their records become one run
    #[arg(long, value_name = "N|HOST:PORT,…")]
    pub(crate) clients: Option<String>,
    /// File with the token that the agents have (default: what TANDEM_AGENT_TOKEN holds)
    #[arg(long, value_name = "FILE", requires = "clients")]
    pub(crate) agent_token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The built-in paced server runs as a process of its own on this machine and logs when it really wrote each chunk; every
figure is the client's record against that log. A real server elsewhere leaves the client more of this machine.
Exit code 8: this host cannot measure what was asked; the table says which bar it misses.

Examples:
  tandem load selftest
  tandem load selftest --bars --tokenizer DIR
  tandem load selftest --concurrency 2048 --isl 8150 --ttft-ms 1000 --itl-ms 25 --json selftest.json")]
pub(crate) struct SelftestArgs {
    /// Requests in flight; several values are tested one after another
    #[arg(long, value_delimiter = ',', default_value = "64,1024", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub(crate) concurrency: Vec<u32>,
    /// The server's time to first token
    #[arg(long, value_name = "MS", default_value_t = 50.0)]
    pub(crate) ttft_ms: f64,
    /// The server's time between tokens
    #[arg(long, value_name = "MS", default_value_t = 10.0)]
    pub(crate) itl_ms: f64,
    /// Input bytes of each request
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) isl: u32,
    /// Output tokens of each request
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) osl: u32,
    /// Tokens in each chunk
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) tokens_per_chunk: u32,
    /// Requests of each slot, one after another
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub(crate) rounds: u32,
    /// Threads that receive (default: as `tandem load`)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) receive_threads: Option<u32>,
    /// Threads of the server; several where one cannot offer the load
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) server_threads: u32,
    /// Leave out the ceilings: as many chunks and requests a second as client and server manage together
    #[arg(long)]
    pub(crate) no_ceiling: bool,
    /// Measure everything that the load generator is held to instead, each figure beside its target (about two minutes on a quiet machine)
    #[arg(long, conflicts_with_all = ["concurrency", "ttft_ms", "itl_ms", "isl", "osl", "tokens_per_chunk", "rounds", "no_ceiling", "json"])]
    pub(crate) bars: bool,
    /// Directory of a tokenizer.json, e.g. DeepSeek's, for the start-up bars
    #[arg(long, value_name = "DIR", requires = "bars")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Write every figure as JSON, too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Prints its URL and serves POST /v1/chat/completions until standard input ends; then the log goes to --log or to standard
output: a line of counts, then one line of JSON for each request with the times (CLOCK_MONOTONIC, ns) of its arrival and
of each write. The length of an answer is the request's max_tokens.")]
pub(crate) struct PacedServerArgs {
    /// Where to listen; port 0 is any free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// From the request's arrival to its first chunk
    #[arg(long, value_name = "MS", default_value_t = 50.0)]
    pub(crate) ttft_ms: f64,
    /// Between tokens
    #[arg(long, value_name = "MS", default_value_t = 10.0)]
    pub(crate) itl_ms: f64,
    /// Tokens in each chunk
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) tokens_per_chunk: u32,
    /// What `usage.prompt_tokens` says
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) prompt_tokens: u32,
    /// Threads that serve
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) threads: u32,
    /// Where the log goes
    #[arg(long, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
}
