//! The flags of `tandem doctor` and `tandem install`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli_jobs::SlurmCalls;

/// What a machine may be wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Purpose {
    /// The embedded engine and the load generator on this machine
    Local,
    /// GPUs of this machine, and their telemetry
    Gpu,
    /// Deployments on a Slurm cluster
    Slurm,
    /// An installation of llmb's workloads: images, models, space
    Llmb,
    /// Dynamo's mocker on this machine
    Dynamo,
}

impl Purpose {
    /// As the command line spells it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Purpose::Local => "local",
            Purpose::Gpu => "gpu",
            Purpose::Slurm => "slurm",
            Purpose::Llmb => "llmb",
            Purpose::Dynamo => "dynamo",
        }
    }

    /// As people say it.
    pub(crate) const fn about(self) -> &'static str {
        match self {
            Purpose::Local => "the embedded engine and the load generator",
            Purpose::Gpu => "GPUs of this machine",
            Purpose::Slurm => "deployments on a cluster",
            Purpose::Llmb => "workloads of an llmb installation",
            Purpose::Dynamo => "NVIDIA Dynamo with its mocker",
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Exit code 8 when something is missing for what `--for` names (default: local); notes never fail. Compute nodes may differ from this
machine: `srun -N1 tandem doctor --for gpu` looks at one.")]
pub(crate) struct DoctorArgs {
    /// Look only at what this needs, and fail if it lacks something
    #[arg(long = "for", value_enum, value_name = "PURPOSE")]
    pub(crate) purpose: Option<Purpose>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) calls: SlurmCalls,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What is not stated is detected (Slurm, GPUs, architecture); on a terminal each value is asked for, with what was found as the default.
The play file is llmb-install's; `image_folder`, `llmb_repo` and `models` may be in it too.

Nothing that is there is fetched twice: images by name, models by the sizes that were noted when their checksums were right. A
download that broke off goes on where it was.

Examples:
  tandem install /lustre/llmb --dry-run
  tandem install /lustre/llmb --play cluster.yaml
  tandem install --play cluster.yaml --only models")]
pub(crate) struct InstallArgs {
    /// The installation (default: the play file's install_path, else $LLMB_INSTALL)
    pub(crate) path: Option<PathBuf>,
    /// Take all answers from this file and ask nothing
    #[arg(long, value_name = "FILE")]
    pub(crate) play: Option<PathBuf>,
    /// Write the answers into this file, for --play
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    /// Take what was detected without asking
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Workloads to prepare, or `all` (default: inference_deepseek-r1-dynamo)
    #[arg(short = 'w', long = "workload", value_name = "KEY", value_delimiter = ',')]
    pub(crate) workloads: Vec<String>,
    /// Folder of the benchmark collection (default: the installation's llmb_repo)
    #[arg(long, value_name = "DIR")]
    pub(crate) repo: Option<PathBuf>,
    /// Folder with images that are there already; they are linked
    #[arg(short, long, value_name = "DIR")]
    pub(crate) image_folder: Option<PathBuf>,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    pub(crate) only: Vec<Part>,
    /// Seconds between tries of a download that broke off; there are three in all
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) retry_after: u64,
    /// Compute the checksums of models again, also of those that were right once
    #[arg(long)]
    pub(crate) verify: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) calls: SlurmCalls,
}

/// A part of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// cluster_config.yaml and the folders
    Site,
    /// Container images
    Images,
    /// Weights, tokenizers, data sets
    Models,
}
