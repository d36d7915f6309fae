//! The command line: every flag with its help, and nothing done yet.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tandem_plan::GpuType;

use crate::cli_doctor::{DoctorArgs, InstallArgs};
use crate::cli_jobs::{
    CancelArgs, HistoryArgs, LogsArgs, OrchestrateArgs, RerunArgs, RetryArgs, StatusArgs, SubmitArgs, TryPortsArgs, WatchArgs,
};
use crate::cli_llmb::{ArchiveArgs, ExemplarArgs, JobsArgs, ListArgs};
use crate::mode_args::ModeArgs;
use crate::network_args::NetworkArgs;
use crate::selftest_args::{ClientArgs, LoadCommand};
use crate::telemetry_args::TelemetryArgs;

/// Deploys, drives and measures disaggregated LLM inference.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, max_term_width = 110, arg_required_else_help = true, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// What goes to standard error: error, warn, info, debug, trace, or a filter such as `tandem_worker=debug`
    #[arg(long, global = true, value_name = "FILTER", env = "TANDEM_LOG", hide_env = true)]
    pub(crate) log: Option<String>,
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

const AFTER_HELP: &str = "\
Start here:
  tandem run                       deploy the embedded nano model on this machine, drive it, print the summary
  tandem plan deepseek-r1 --gpu-type h100    what the published recipe would run where
  tandem list                      built-in recipes

Exit codes: 0 ok, 1 bug, 2 usage, 3 recipe invalid, 4 no feasible plan, 5 not ready in time, 6 deployment died,
7 load incomplete, 8 check failed, 9 artifact unreadable, 130 interrupted after clean teardown.";

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Deploy a recipe on this machine, drive it with load, write the run folder, print the summary
    Run(RunArgs),
    /// Show what would run where, and whether it fits; start nothing
    Plan(PlanArgs),
    /// Run a recipe in virtual time: same schedulers, same run folder, marked simulated
    Simulate(SimulateArgs),
    /// Drive any OpenAI-compatible endpoint with load
    Load(Box<LoadCommand>),
    /// Make a page, a table or JSON of one or more run folders
    Report(ReportArgs),
    /// Compare two runs, and fail when a figure got worse than it may
    Compare(CompareArgs),
    /// Say what this machine can do, what is missing for what, and how to get it
    Doctor(DoctorArgs),
    /// Prepare an llmb installation: cluster_config.yaml, container images, models
    Install(InstallArgs),
    /// List the built-in recipes, and the workloads of an llmb installation
    List(ListArgs),
    /// Run a recipe as a Slurm job: write a complete job folder, submit it
    Submit(Box<SubmitArgs>),
    /// Say where jobs are: what they wrote themselves, then what Slurm says
    Status(StatusArgs),
    /// Follow a job until it has ended
    Watch(WatchArgs),
    /// Show the log of a server of a job or run
    Logs(LogsArgs),
    /// End a job; it writes what was measured so far
    Cancel(CancelArgs),
    /// Look at all jobs of an llmb installation: table, details, logs, states
    Jobs(JobsArgs),
    /// Pack configurations, logs and results of an llmb installation into one file
    Archive(ArchiveArgs),
    /// Submit the runs of an llmb installation's exemplar.yaml
    Exemplar(ExemplarArgs),
    /// Submit a job that has ended once more, into a folder of its own
    Retry(RetryArgs),
    /// List the jobs that were submitted from this installation
    History(HistoryArgs),
    /// Repeat a run from its plan and manifest, into a folder of its own
    Rerun(RerunArgs),
    /// Run a job folder inside its allocation (the job script calls this)
    #[command(hide = true)]
    Orchestrate(OrchestrateArgs),
    /// Say which ports of a job's block cannot be bound on this node (a step of the job calls this)
    #[command(hide = true)]
    TryPorts(TryPortsArgs),
    /// Predict measured rows (CSV) and show by how much the predictions are off
    Evaluate(EvaluateArgs),
    /// Search knobs for the frontier of throughput per GPU against throughput per user, predicted or measured
    Explore(ExploreArgs),
    /// Fit the constants of the performance model to measured rows (CSV) or to runs
    Calibrate(CalibrateArgs),
    /// Serve the OpenAI API in front of the workers of a plan (one process of a deployment)
    Serve(ServeArgs),
    /// Compute for a frontend (one process of a deployment)
    Worker(WorkerArgs),
}

/// What to deploy. Last wins: built-in recipe < site file < recipe file < environment (NCTX, CONCURRENCY …) < --set.
#[derive(Debug, Clone, Args)]
pub(crate) struct RecipeArgs {
    /// Built-in recipe (see `tandem list`) or a YAML recipe file
    #[arg(default_value = "nano")]
    pub(crate) recipe: String,
    /// GPU type whose defaults apply: gb200, b200, h100, h200, b300, gb300 or cpu, or NAME:LIKE for one of your own; several sweep
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    pub(crate) gpu_type: Vec<GpuType>,
    /// Set a knob, e.g. `--set NCTX=3`; several values sweep: `--set CONCURRENCY=1,8,64`
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub(crate) sets: Vec<String>,
    /// Facts of this site (YAML), below the recipe file
    #[arg(long, value_name = "FILE", env = "TANDEM_SITE", hide_env = true)]
    pub(crate) site: Option<PathBuf>,
    /// Hugging Face directory of the model (config.json, tokenizer.json, *.safetensors); same as --set MODEL=DIR
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<String>,
    /// `auto` reads the weights, `dummy` makes random ones from a seed (config.json is enough); same as --set LOAD_FORMAT=…
    #[arg(long, value_name = "FORMAT")]
    pub(crate) load_format: Option<String>,
    /// Memory of one device, e.g. 512MiB: what weights and KV cache must fit in; same as --set DEVICE_MEMORY=…
    #[arg(long, value_name = "SIZE")]
    pub(crate) device_memory: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tandem run
  tandem run --set CONCURRENCY=1,4,16 --out my-sweep
  tandem run nano --set NCTX=1 --set ISL=1024
  tandem run --model DIR --load-format dummy --device-memory 2GiB
  tandem run --serve-only         deploy, print the URL, serve until ctrl-C

Ctrl-C once stops sending, finishes what is in flight, writes what there is, marked partial; twice ends at once.")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// The run folder (default: `experiments/isl<ISL>_osl<OSL>_<time>`, below $LLMB_WORKLOAD if that is set)
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Seconds until the deployment must be ready
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) ready_timeout: u64,
    /// Seconds that in-flight requests get after the first ctrl-C
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) grace: u64,
    /// Seconds that one load point may take; then it is stopped and its results are partial (default: no limit)
    #[arg(long, value_name = "SECONDS")]
    pub(crate) point_timeout: Option<u64>,
    /// Seconds without a byte from the servers after which a load point has hung
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) no_progress: u64,
    /// Do not measure again what a run below --out has measured: the same deployment, the same point, a result that stands
    #[arg(long, requires = "out")]
    pub(crate) resume: bool,
    /// Times that a deployment which failed is started again, for the points that it did not measure
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) retries: u32,
    /// Exit with code 8 unless the verdict on the figures is `valid`
    #[arg(long)]
    pub(crate) strict: bool,
    /// Deploy and serve until ctrl-C, without load
    #[arg(long)]
    pub(crate) serve_only: bool,
    /// HTTP port of the frontend (default: the recipe's DYNAMO_FRONTEND_PORT; 0 = any free one)
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryArgs,
}

/// What the performance model predicts with.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// Constants of the performance model (default: those that ship; `tandem calibrate` makes others)
    #[arg(long, value_name = "FILE")]
    pub(crate) constants: Option<PathBuf>,
    /// Measured operators in place of the roofline's terms: a folder of tables, AIConfigurator's `systems/data` or your own CSV with the
    /// same columns. Use constants that were fitted with them
    #[arg(long, value_name = "DIR")]
    pub(crate) tables: Option<PathBuf>,
    /// A hardware table of your own, in the form of the shipped one: its GPUs are added (use --gpu-type NAME:LIKE), or stand in the place
    /// of those that ship under the same name
    #[arg(long, value_name = "FILE")]
    pub(crate) hardware: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// Print the plan as JSON (a list when the recipe sweeps over several deployments)
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Say what a knob is, its value, and which layer set it
    #[arg(long, value_name = "NAME", conflicts_with = "json")]
    pub(crate) explain: Option<String>,
    /// Write the engine's configuration files (configs/…) below this directory
    #[arg(long, value_name = "DIR", conflicts_with = "explain")]
    pub(crate) render: Option<PathBuf>,
    /// Print what the model is in numbers: parameters and bytes by part and format, operations, KV cache, traffic between ranks; with
    /// --json the same for programs
    #[arg(long, conflicts_with_all = ["explain", "render"])]
    pub(crate) facts: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The key of a protected endpoint comes from TANDEM_API_KEY or OPENAI_API_KEY; it is never printed or written.

Examples (each also with --url and --model):
  tandem load --url http://127.0.0.1:8000 --model nano --concurrency 8 --requests 64 --isl 256 --osl 64 --out out
  tandem load … --concurrency 1,8,64                          three points, closed loop
  tandem load … --request-rate 20 --duration 60               open loop, Poisson arrivals for a minute
  tandem load … --request-rate 20 --arrival gamma --burstiness 0.5 --max-concurrency 256
  tandem load … --trace mooncake.jsonl --time-scale 2         a recorded trace at half its speed
  tandem load … --isl-dist normal:4000,800 --osl-dist lognormal:500,300
  tandem load … --isl 4096 --prefix-len 3072 --prefix-pool 8  prompts that share beginnings
  tandem load … --prompts sharegpt.json --turns 2-6 --think-time lognormal:3000,2000
  tandem load … --search concurrency --goodput ttft:2000,itl:30 --goodput-fraction 0.95
  tandem load --url https://host … --ca-file ca.pem           or unix:/path/of/socket, or --proxy http://proxy:3128
  tandem load … --concurrency 4096 --clients 2                one load from two processes; or from agents on other hosts

Ctrl-C once stops sending, finishes what is in flight, writes what there is, marked partial; twice ends at once.")]
pub(crate) struct LoadArgs {
    /// Base URL of the endpoint, e.g. http://127.0.0.1:8000, https://host, or unix:/path/of/socket (needed)
    // Required by `load` itself: the tools below `tandem load` do without.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) url: String,
    /// Model name that the endpoint serves (needed)
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) model: String,
    /// Requests in flight; several values run one after another
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub(crate) concurrency: Vec<u32>,
    /// Measured requests of each point (default: 8 x concurrency, 60 s of a rate, the whole trace; with --duration as many as fit)
    #[arg(long)]
    pub(crate) requests: Option<u32>,
    /// Requests before the measured ones (default: 2 x concurrency, 10 s of a rate and its ramp, none of a trace)
    #[arg(long)]
    pub(crate) warmup: Option<u32>,
    /// Input tokens of each request
    #[arg(long, default_value_t = 256)]
    pub(crate) isl: u32,
    /// Output tokens of each request (default: those that --prompts names, else 64)
    #[arg(long)]
    pub(crate) osl: Option<u32>,
    /// Directory of the model's tokenizer.json (default: byte-level, as the nano model)
    #[arg(long, value_name = "DIR")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Whether responses stream; without it TTFT and TPOT do not apply
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(crate) streaming: bool,
    /// Seed of the prompts
    #[arg(long, default_value_t = 100)]
    pub(crate) seed: u64,
    /// Fields of each request's body to set, as a JSON object; null leaves one out, e.g. `{"min_tokens":null}` for a server that refuses it
    #[arg(long, value_name = "JSON")]
    pub(crate) extra_inputs: Option<String>,
    /// A request fails after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) request_timeout: u64,
    /// Seconds that in-flight requests get after the first ctrl-C
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) grace: u64,
    #[command(flatten)]
    pub(crate) modes: ModeArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    #[command(flatten)]
    pub(crate) clients: ClientArgs,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryArgs,
    /// GPUs behind the endpoint, for the throughput per GPU
    #[arg(long, default_value_t = 1)]
    pub(crate) gpus: u32,
    /// Exit with code 8 unless the verdict on the figures is `valid`
    #[arg(long)]
    pub(crate) strict: bool,
    /// Directory for the results
    #[arg(long, value_name = "DIR", default_value = "artifacts")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tandem report my-sweep --html report.html
  tandem report before after --html comparison.html     later runs are compared with the first
  tandem report my-sweep --json | jq .frontier

The page is one file: it needs no network and no other file.
Without --html, --markdown or --json, Markdown goes to standard output.")]
pub(crate) struct ReportArgs {
    /// Run folders; a folder of several runs stands for all of them
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// Write one self-contained HTML page
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write Markdown, to standard output unless `=FILE` follows
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    pub(crate) markdown: Option<PathBuf>,
    /// Write JSON, to standard output unless `=FILE` follows
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    pub(crate) json: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// What the steps of an engine on this machine cost, from `tandem calibrate --from-run`; runs of ENGINE=cpu are predicted with it only
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A condition is METRIC[.STAT] < or > NUMBER[%]: with % the relative change of the candidate,
without it the difference in the metric's unit. Metrics are those of result.json; tokens_per_gpu,
tokens_per_user and latency are short for output_throughput_per_gpu, output_throughput_per_user
and request_latency. A condition is judged at every load point that both runs have; what cannot be
judged (a figure is missing, a run is invalid, no common load) fails.

Examples:
  tandem compare before after
  tandem compare before after --fail-if \"tokens_per_gpu<-3%\" --fail-if \"ttft.p99>10%\"")]
pub(crate) struct CompareArgs {
    /// Run folder to compare with
    #[arg(value_name = "BASELINE")]
    pub(crate) baseline: PathBuf,
    /// Run folder to judge
    #[arg(value_name = "CANDIDATE")]
    pub(crate) candidate: PathBuf,
    /// Exit with code 8 when this holds, e.g. `tokens_per_gpu<-3%`; may be given several times
    #[arg(long, value_name = "CONDITION")]
    pub(crate) fail_if: Vec<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The plan (plan.json of a run folder, or the output of `tandem plan --json`)
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: PathBuf,
    /// Listen for clients here instead of where the plan says, e.g. 0.0.0.0:8000
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) http: Option<String>,
    /// Listen for workers here instead of where the plan says
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) control: Option<String>,
    /// Print one JSON line with the bound addresses on standard output
    #[arg(long)]
    pub(crate) announce: bool,
    /// End when standard input closes (so that it ends with what started it)
    #[arg(long)]
    pub(crate) stop_with_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// The plan (plan.json of a run folder, or the output of `tandem plan --json`)
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: PathBuf,
    /// Which worker of the plan, e.g. decode-0
    #[arg(long, required_unless_present = "role")]
    pub(crate) name: Option<String>,
    /// Phase of the worker, with --index instead of --name
    #[arg(long, value_parser = ["prefill", "decode"], conflicts_with = "name")]
    pub(crate) role: Option<String>,
    /// Index of the worker within its phase
    #[arg(long, default_value_t = 0, conflicts_with = "name")]
    pub(crate) index: u32,
    /// Control address of the frontend (default: the plan's)
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) frontend: Option<String>,
    /// Rank of this process, from this environment variable. The embedded engine computes a worker in one process: ranks
    /// above 0 only hold their place
    #[arg(long, value_name = "VARIABLE", hide = true)]
    pub(crate) rank_from: Option<String>,
    /// Listen for KV transfers here
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    pub(crate) kv: String,
    /// End when standard input closes (so that it ends with what started it)
    #[arg(long)]
    pub(crate) stop_with_stdin: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The table has one measured configuration a line; columns are found by their names (id, kind, hardware, framework, precision, isl, osl,
concurrency, n_ctx, ctx_tp …, n_gen, gen_tp …, out_tps_per_gpu, tpot_ms_median, ttft_ms_median, ttft_ms_p99). What a row leaves open
gets a default that the JSON names. No row is refused; lines without a concurrency are counted and skipped.")]
pub(crate) struct EvaluateArgs {
    /// Measured rows
    #[arg(long, value_name = "CSV")]
    pub(crate) rows: PathBuf,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Print JSON: tables, and the prediction of each row
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Here --set makes axes: A,B,C is a list, LO..HI every whole number, LO..HI:STEP every STEP-th, LO..HI:xF each F times the one before;
an expression of other knobs makes a knob that follows: CONCURRENCY=GEN_MAX_BATCH_SIZE*GEN_WORLD_SIZE. GEN_MAX_NUM_TOKENS follows
from batch and MTP sizes by itself when those vary.

Examples:
  tandem explore deepseek-r1 --gpu-type gb200 --set NCTX=1..8 --set GEN_WORLD_SIZE=8,16 --set GEN_MAX_BATCH_SIZE=16..512:x2 \\
      --set CONCURRENCY=GEN_MAX_BATCH_SIZE*GEN_WORLD_SIZE --max-gpus 48 --slo tpot:50,ttft:5000 --out search
  tandem explore deepseek-r1 --gpu-type gb200 --set NCTX=1..8 --out search --measured runs/
  tandem explore deepseek-r1 --gpu-type b200 --set NCTX=1..8 --serve")]
pub(crate) struct ExploreArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// A condition that every point must satisfy, over knobs, GPUS, CTX_GPUS, GEN_GPUS and TOTAL_CONCURRENCY, e.g.
    /// `GEN_GPUS<=32 && NCTX>=NGEN`; may be given several times
    #[arg(long = "where", value_name = "CONDITION")]
    pub(crate) conditions: Vec<String>,
    /// GPUs that a deployment may take
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_gpus: Option<u32>,
    /// Service levels: tpot, ttft (median), ttft_p99 in ms, at most; tokens_per_user, tokens_per_gpu, at least
    #[arg(long, value_name = "METRIC:LIMIT", value_delimiter = ',')]
    pub(crate) slo: Vec<String>,
    /// Simulate the points that the screen puts within this many percent of its frontier
    #[arg(long, value_name = "PERCENT", default_value_t = 15.0, allow_negative_numbers = true)]
    pub(crate) band: f64,
    /// Points to simulate, at most
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) simulate: u32,
    /// Points to propose for measuring
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) propose: usize,
    /// Run folders whose points are drawn in and count as known
    #[arg(long, value_name = "RUN", num_args = 1..)]
    pub(crate) measured: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// What the steps of an engine on this machine cost, from `tandem calibrate --from-run`; ENGINE=cpu needs it
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
    /// Folder for explore.json, explore.csv, explore.html and the state from which a later call goes on
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Print JSON instead of plot and tables
    #[arg(long)]
    pub(crate) json: bool,
    /// Then serve a page on this machine with a slider for each axis that predicts while it is moved, until ctrl-C
    #[arg(long)]
    pub(crate) serve: bool,
    /// Port of that page; 0 = any free one
    #[arg(long, value_name = "PORT", default_value_t = 0, requires = "serve")]
    pub(crate) port: u16,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tandem simulate deepseek-r1 --gpu-type gb200 --out sim
  tandem run --out measured && tandem calibrate --from-run measured --out costs.json
  tandem simulate --calibration costs.json --set CONCURRENCY=1,4,16 --out sim
  tandem simulate deepseek-r1 --gpu-type gb200 --inject worker-lost:prefill-0@30s --inject slow-link:x4 --out worse

Equal inputs give equal files to the last byte; times in them count from 1970.")]
pub(crate) struct SimulateArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// The run folder (default: as of `tandem run`)
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// What the engine's steps cost, from `tandem calibrate --from-run`; the CPU engine needs it
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// A fault: worker-lost:NAME@SECONDSs, slow-rank:NAMExFACTOR, slow-link:xFACTOR
    #[arg(long, value_name = "FAULT")]
    pub(crate) inject: Vec<String>,
    /// Requests per second at random times (a Poisson process) instead of a fixed concurrency
    #[arg(long, value_name = "RATE", conflicts_with = "trace")]
    pub(crate) rate: Option<f64>,
    /// With --rate: shape of the gaps; 1 is Poisson, smaller burstier, larger more regular
    #[arg(long, value_name = "SHAPE", default_value_t = 1.0, requires = "rate")]
    pub(crate) burstiness: f64,
    /// Send at these times instead: a file with one time in seconds a line, ascending
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Replay a run of the embedded engine: its plan, the times at which its requests were sent, and the begin and end of each of its
    /// steps; what each step holds is decided anew
    #[arg(long, value_name = "RUN", conflicts_with_all = ["rate", "trace", "inject"])]
    pub(crate) replay: Option<PathBuf>,
    /// Exit with code 8 unless the verdict on the figures is `valid`
    #[arg(long)]
    pub(crate) strict: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CalibrateArgs {
    /// Measured rows, in the form that `tandem evaluate` reads
    #[arg(long, value_name = "CSV", required_unless_present = "from_run")]
    pub(crate) rows: Option<PathBuf>,
    /// Run folders. Of the embedded engine: fits what its steps cost here, for `tandem simulate --calibration`. Of a cluster: refits the
    /// performance model to it, for `--constants`; three load points or more give intervals of their own
    #[arg(long, value_name = "RUN", num_args = 1.., conflicts_with_all = ["rows", "fit_only", "source", "assignments", "unseen"])]
    pub(crate) from_run: Vec<PathBuf>,
    /// Constants that runs of a cluster are compared with (default: those that ship)
    #[arg(long, value_name = "FILE", requires = "from_run")]
    pub(crate) constants: Option<PathBuf>,
    /// Measured operators in place of the roofline's terms, as of `tandem plan --tables`; the constants are fitted on top
    #[arg(long, value_name = "DIR", conflicts_with = "from_run")]
    pub(crate) tables: Option<PathBuf>,
    /// Where the constants go
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// What the file says about where the rows come from
    #[arg(long, value_name = "TEXT", default_value = "rows given by the user")]
    pub(crate) source: String,
    /// Assignments of configurations to the five folds that are examined: one can be lucky
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(crate) assignments: u64,
    /// Writes the first assignment's predictions of rows that were not fitted, in the form of `tandem evaluate --json`
    #[arg(long, value_name = "FILE", conflicts_with = "fit_only")]
    pub(crate) unseen: Option<PathBuf>,
    /// Fit only; skip the tables of errors on rows that were not fitted (and the intervals that come from them)
    #[arg(long)]
    pub(crate) fit_only: bool,
}
