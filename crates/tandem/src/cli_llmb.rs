//! The flags of llmb's workloads: those that `tandem submit` takes, and the whole command line of `llmb-run`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cli_jobs::SlurmCalls;

/// Which workload of an llmb installation runs, and how often.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Workloads of an llmb installation")]
pub(crate) struct WorkloadArgs {
    /// Workloads, KEY or KEY_SIZE, e.g. inference_deepseek-r1-dynamo_671b
    #[arg(short = 'w', long = "workload", value_name = "KEY", value_delimiter = ',')]
    pub(crate) workloads: Vec<String>,
    /// Model size, e.g. 671b (with exactly one -w)
    #[arg(short = 's', long, value_name = "SIZE")]
    pub(crate) model_size: Option<String>,
    /// Number formats (default: all that the workload lists)
    #[arg(short = 'd', long = "dtype", value_name = "DTYPE", value_delimiter = ',')]
    pub(crate) dtypes: Vec<String>,
    /// Numbers of GPUs
    #[arg(long = "scale", value_name = "GPUS", value_delimiter = ',')]
    pub(crate) scales: Vec<u32>,
    /// All listed numbers of GPUs up to this one, and powers of two above the largest listed one
    #[arg(long, value_name = "GPUS")]
    pub(crate) max_scale: Option<u32>,
    /// The smallest listed number of GPUs
    #[arg(long)]
    pub(crate) min_scale: bool,
    /// Listed numbers of GPUs only
    #[arg(long)]
    pub(crate) exact_scales: bool,
    /// Task file: .yaml or .yml is YAML, anything else is text
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Jobs of each configuration
    #[arg(short = 'r', long, value_name = "N", default_value_t = 1)]
    pub(crate) repeats: u32,
    /// Profile the runs
    #[arg(long)]
    pub(crate) profile: bool,
    /// Runs that stand in for larger ones: the workload's proxy scales
    #[arg(long)]
    pub(crate) proxy: bool,
    /// One job, whatever dtypes and scales the workload lists
    #[arg(long)]
    pub(crate) force: bool,
    /// Lower the priority by this much
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) nice: Option<i64>,
    /// Any other option of sbatch, without dashes: KEY=VALUE, or a bare flag; may be given several times
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub(crate) slurm_arg: Vec<String>,
    /// Print the whole environment of each job
    #[arg(long)]
    pub(crate) dump_env: bool,
    /// Submit what can run although a part of what was asked for cannot
    #[arg(long)]
    pub(crate) allow_partial: bool,
    /// Follow a release's habits instead of correcting them: the cluster's file wins over the shell, the whole login environment goes
    /// to scripts, partly invalid batches are submitted, a task file ignores -r, -d, --profile, --proxy and --scale, and
    /// deepseek-r1 sends 10 x CONCURRENCY requests
    #[arg(long, value_enum, value_name = "RELEASE")]
    pub(crate) compat: Option<CompatArg>,
    /// What runs a workload: Tandem's own recipe, or the workload's script (default: Tandem's where it has one)
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) launcher: Option<LauncherArg>,
}

impl WorkloadArgs {
    /// Whether the command line is about a workload.
    pub(crate) fn is_asked(&self) -> bool {
        let selects = !self.workloads.is_empty() || self.file.is_some() || self.model_size.is_some() || !self.scales.is_empty();
        selects || self.max_scale.is_some() || self.min_scale
    }

    /// A flag that means something for workloads only, if one is given.
    pub(crate) fn stray(&self) -> Option<&'static str> {
        let given = [
            (!self.dtypes.is_empty(), "--dtype"),
            (self.exact_scales, "--exact-scales"),
            (self.repeats != 1, "--repeats"),
            (self.profile, "--profile"),
            (self.proxy, "--proxy"),
            (self.force, "--force"),
            (self.nice.is_some(), "--nice"),
            (!self.slurm_arg.is_empty(), "--slurm-arg"),
            (self.dump_env, "--dump-env"),
            (self.allow_partial, "--allow-partial"),
            (self.compat.is_some(), "--compat"),
            (self.launcher.is_some(), "--launcher"),
        ];
        given.into_iter().find(|(is_given, _)| *is_given).map(|(_, name)| name)
    }
}

/// A release whose habits are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompatArg {
    /// Release 26.02 of the benchmark collection
    #[value(name = "dgxc-26.02")]
    Dgxc2602,
}

/// What runs a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LauncherArg {
    /// Tandem's recipe and executor
    Tandem,
    /// The launch script that the workload's metadata names
    Script,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only these workloads of the llmb installation
    #[arg(short = 'w', long = "workload", value_name = "KEY", value_delimiter = ',')]
    pub(crate) workloads: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ExemplarArgs {
    /// Runs of each configuration (default: what exemplar.yaml says); the last is profiled if the file asks for that
    #[arg(short = 'r', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeats: Option<u32>,
    /// Print everything, submit nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) calls: SlurmCalls,
}

#[derive(Debug, Args)]
pub(crate) struct ArchiveArgs {
    /// The archive (default: llmb-archive-TIME.tar.zst in $LLMB_INSTALL)
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<JobsCommand>,
    #[command(flatten)]
    pub(crate) calls: SlurmCalls,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// All jobs with their workloads, states and figures (the default)
    List,
    /// Everything that is known about a job
    Show {
        /// Slurm's number of the job
        id: u64,
    },
    /// The log of a job
    Log {
        /// Slurm's number of the job
        id: u64,
        /// Lines at the end
        #[arg(long, value_name = "N", default_value_t = 200)]
        tail: usize,
        /// Go on until the job has ended
        #[arg(short, long)]
        follow: bool,
        /// Print the path of the log instead
        #[arg(long, conflicts_with_all = ["follow", "dir", "list"])]
        path: bool,
        /// Print the folder of the logs instead
        #[arg(long, conflicts_with_all = ["follow", "list"])]
        dir: bool,
        /// List the logs of the job instead
        #[arg(long, conflicts_with = "follow")]
        list: bool,
    },
    /// Ask Slurm about jobs that have not ended (default: all of them)
    Refresh {
        /// Slurm's numbers
        ids: Vec<u64>,
    },
    /// Take in jobs of which only the llmb-config file is left
    Rebuild,
}

/// Runs benchmark workloads of an llmb installation (Tandem under the name llmb-run).
#[derive(Debug, Parser)]
#[command(name = "llmb-run", version, max_term_width = 110, arg_required_else_help = true)]
pub(crate) struct LlmbCli {
    #[command(subcommand)]
    pub(crate) command: LlmbCommand,
    /// Say more on standard error
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LlmbCommand {
    /// Submit jobs
    Submit(Box<LlmbSubmitArgs>),
    /// List workloads
    List(ListArgs),
    /// Submit the runs of exemplar.yaml
    Exemplar(ExemplarArgs),
    /// Pack configurations, logs and results
    Archive(ArchiveArgs),
    /// Look at jobs
    Jobs(JobsArgs),
    /// One job (deprecated: submit)
    #[command(hide = true)]
    Single(OldArgs),
    /// The jobs of a file (deprecated: submit -f FILE)
    #[command(hide = true)]
    Bulk(OldArgs),
    /// All trained workloads (deprecated: submit)
    #[command(hide = true)]
    SubmitAll(OldArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LlmbSubmitArgs {
    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,
    /// Print jobs, commands and environment; submit nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Nodes that the job must have
    #[arg(long)]
    pub(crate) nodelist: Option<String>,
    /// Nodes that the job must not have
    #[arg(long)]
    pub(crate) exclude: Option<String>,
    /// Reservation
    #[arg(long)]
    pub(crate) reservation: Option<String>,
    /// Nodes of one NVLink domain
    #[arg(long)]
    pub(crate) segment: Option<u32>,
    /// Variable of the job, KEY=VALUE; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) env: Vec<String>,
    /// Submit even though a job with the same plan is waiting or running
    #[arg(long)]
    pub(crate) again: bool,
    /// Wait until all jobs have ended
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) calls: SlurmCalls,
}

impl LlmbSubmitArgs {
    /// Without any option of Slurm's.
    pub(crate) fn of(workload: WorkloadArgs, dry_run: bool, calls: SlurmCalls) -> Self {
        LlmbSubmitArgs {
            workload,
            dry_run,
            nodelist: None,
            exclude: None,
            reservation: None,
            segment: None,
            env: Vec::new(),
            again: false,
            wait: false,
            calls,
        }
    }
}

/// Options of the deprecated commands; `-d` is the dry run there.
#[derive(Debug, Args)]
pub(crate) struct OldArgs {
    /// Task file (bulk)
    pub(crate) file: Option<PathBuf>,
    /// Workloads
    #[arg(short = 'w', long = "workloads", alias = "workload", value_delimiter = ',')]
    pub(crate) workloads: Vec<String>,
    /// Model size
    #[arg(short = 's', long)]
    pub(crate) model_size: Option<String>,
    /// Number formats
    #[arg(long = "dtype", value_delimiter = ',')]
    pub(crate) dtypes: Vec<String>,
    /// Numbers of GPUs
    #[arg(long = "scales", alias = "scale", value_delimiter = ',')]
    pub(crate) scales: Vec<u32>,
    /// Largest number of GPUs
    #[arg(long)]
    pub(crate) max_scale: Option<u32>,
    /// Smallest number of GPUs
    #[arg(long)]
    pub(crate) min_scale: bool,
    /// Jobs of each configuration
    #[arg(long, default_value_t = 1)]
    pub(crate) repeats: u32,
    /// Profile
    #[arg(short = 'p', long)]
    pub(crate) profile: bool,
    /// Submit nothing
    #[arg(short = 'd', long)]
    pub(crate) dry_run: bool,
    /// Lower the priority by this much
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) nice: Option<i64>,
    #[command(flatten)]
    pub(crate) calls: SlurmCalls,
}
