//! The flags of jobs: submitting them to Slurm and looking after them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::cli::RunArgs;
use crate::cli_llmb::WorkloadArgs;

/// Every call of a Slurm program is limited.
#[derive(Debug, Clone, Args)]
pub(crate) struct SlurmCalls {
    /// Seconds that a call of a Slurm program may take; after that its answer is "unknown"
    #[arg(long, value_name = "SECONDS", default_value_t = 15, env = "TANDEM_SLURM_TIMEOUT", hide_env = true)]
    slurm_timeout: u64,
}

impl SlurmCalls {
    pub(crate) fn slurm(&self) -> tandem_launch::slurm::Slurm {
        tandem_launch::slurm::Slurm::new(Duration::from_secs(self.slurm_timeout.max(1)))
    }
}

/// How GPUs are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GpuRequestArg {
    /// --gpus-per-node=N
    PerNode,
    /// --gres=gpu:N
    Gres,
    /// Not at all: the cluster hands out whole nodes
    None,
}

/// How many jobs a sweep becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum JobsArg {
    /// One that holds enough nodes for the largest deployment
    One,
    /// One for each deployment
    Each,
}

/// Where the files of servers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ContainerArg {
    /// On the nodes
    None,
    /// In an image, started by the pyxis plugin of Slurm
    Pyxis,
    /// In an image, started by Apptainer
    Apptainer,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Partition, account, time limit and GPUs of a node are knobs too (SBATCH_PARTITION …), so recipe and site file may set them. The other
options come from the flag, then the SBATCH_* variable of the shell, then the `slurm` mapping of the site file (same names with
underscores: qos, reservation, nodelist, exclude, constraint, segment, exclusive, mem, gpu_request, container, image, mpi).

The job folder is the run folder: plan, configurations, job script, logs, events, results. A sweep writes its runs side by side below --out; --resume goes on with it.

Examples:
  tandem submit deepseek-r1 --gpu-type h100 --partition batch --time 2:00:00 --dry-run
  tandem submit nano --wait
  tandem submit -w inference_deepseek-r1-dynamo -s 671b --dtype fp8 --scale 48    a workload of $LLMB_INSTALL
  tandem status; tandem watch DIR; tandem logs DIR decode-0; tandem cancel DIR")]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) calls: SlurmCalls,
    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,
    /// Partition (default: the knob SBATCH_PARTITION, else the cluster's)
    #[arg(short, long)]
    pub(crate) partition: Option<String>,
    /// Account (default: the knob SBATCH_ACCOUNT, else the user's)
    #[arg(short = 'A', long)]
    pub(crate) account: Option<String>,
    /// Time limit as Slurm writes it, e.g. 2:00:00 (default: the knob SBATCH_TIMELIMIT)
    #[arg(short, long, value_name = "LIMIT")]
    pub(crate) time: Option<String>,
    /// Quality of service
    #[arg(long, env = "SBATCH_QOS", hide_env = true)]
    pub(crate) qos: Option<String>,
    /// Reservation
    #[arg(long, env = "SBATCH_RESERVATION", hide_env = true)]
    pub(crate) reservation: Option<String>,
    /// Nodes that the job must have
    #[arg(long, env = "SBATCH_NODELIST", hide_env = true)]
    pub(crate) nodelist: Option<String>,
    /// Nodes that the job must not have
    #[arg(long, env = "SBATCH_EXCLUDE", hide_env = true)]
    pub(crate) exclude: Option<String>,
    /// Features that nodes must have
    #[arg(long, env = "SBATCH_CONSTRAINT", hide_env = true)]
    pub(crate) constraint: Option<String>,
    /// Memory of a node, e.g. 0 for all
    #[arg(long, env = "SBATCH_MEM_PER_NODE", hide_env = true)]
    pub(crate) mem: Option<String>,
    /// Nodes of one NVLink domain (clusters with Slurm's block topology)
    #[arg(long, value_name = "NODES", env = "SBATCH_SEGMENT_SIZE", hide_env = true)]
    pub(crate) segment: Option<u32>,
    /// Whether the job has its nodes for itself (default: true)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) exclusive: Option<bool>,
    /// How GPUs are asked for; clusters differ (default: per-node)
    #[arg(long, value_enum)]
    pub(crate) gpu_request: Option<GpuRequestArg>,
    /// Any other option of sbatch, e.g. `--option licenses=x` or `--option requeue`; may be given several times
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) option: Vec<String>,
    /// Seconds before the time limit at which the load stops and partial results are written; 0 = never
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) stop_before: u32,
    /// MPI of the servers' steps, e.g. pmix
    #[arg(long)]
    pub(crate) mpi: Option<String>,
    /// Container runtime of the servers' steps (default: none)
    #[arg(long, value_enum)]
    pub(crate) container: Option<ContainerArg>,
    /// Container image (default: the knob RUN_CONF_IMAGE)
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// Mount into the container; the job folder and this program are mounted anyway
    #[arg(long, value_name = "SOURCE:TARGET[:FLAGS]")]
    pub(crate) mount: Vec<String>,
    /// Variable for the servers; without a value, that of this shell
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Any other argument of the servers' srun
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) srun_arg: Vec<String>,
    /// Partition of the nodes without servers (CLIENT_DEDICATED_NODE, FRONTEND_DEDICATED_NODE): the job becomes heterogeneous
    #[arg(long, value_name = "PARTITION")]
    pub(crate) head_partition: Option<String>,
    /// Any other option of sbatch for these nodes; may be given several times
    #[arg(long, value_name = "NAME[=VALUE]", requires = "head_partition")]
    pub(crate) head_option: Vec<String>,
    /// Whether a recipe that sweeps over deployments becomes one job that runs them one after another, or a job for each
    #[arg(long, value_enum, default_value_t = JobsArg::Each)]
    pub(crate) jobs: JobsArg,
    /// Print the job script, the environment and every command; write and submit nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait until the job has ended, and exit as it did
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) wait: bool,
    /// Submit even though a job with the same plan is waiting or running
    #[arg(long)]
    pub(crate) again: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Job folders (default: the last ten of the history)
    pub(crate) jobs: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) calls: SlurmCalls,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Job folder
    pub(crate) job: PathBuf,
    #[command(flatten)]
    pub(crate) calls: SlurmCalls,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Job or run folder
    pub(crate) job: PathBuf,
    /// frontend, prefill-0, decode-0 …, bench, or slurm for what the job script printed (default: list them)
    pub(crate) name: Option<String>,
    /// Lines at the end
    #[arg(long, default_value_t = 200)]
    pub(crate) tail: usize,
    /// Go on with what is written, until the run has ended
    #[arg(short, long, requires = "name")]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// Job folder
    pub(crate) job: PathBuf,
    #[command(flatten)]
    pub(crate) calls: SlurmCalls,
}

#[derive(Debug, Args)]
pub(crate) struct RetryArgs {
    /// Job folder
    pub(crate) job: PathBuf,
    /// The folder of the new job (default: the old name with `-retry-N`)
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Retry although it succeeded, or although nobody knows whether it has ended
    #[arg(long)]
    pub(crate) force: bool,
    /// Wait until the job has ended, and exit as it did
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) calls: SlurmCalls,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// The newest jobs
    #[arg(long, default_value_t = 20)]
    pub(crate) last: usize,
    /// Print JSON, one object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RerunArgs {
    /// Run folder
    pub(crate) run: PathBuf,
    /// The folder of the new run (default: the old name with `-rerun-N`)
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct TryPortsArgs {
    /// First port of the block
    #[arg(long, value_name = "PORT")]
    pub(crate) first: u16,
    /// Address of each node; the one that runs this takes its own
    #[arg(value_name = "NODE=ADDRESS")]
    pub(crate) nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct OrchestrateArgs {
    /// Job folder
    pub(crate) job: PathBuf,
}
