//! Flags of telemetry and of what is written about a load point.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tandem_metrics::artifacts::ArtifactOptions;
use tandem_plan::{GpuType, Phase, Plan};
use tandem_telemetry::{GpuSource, Roles, Session, TelemetryConfig};

use crate::exit::{Exit, Failure, OrExit};

/// Names another library in NVML's place, for drivers in unusual places and for tests.
const NVML_VARIABLE: &str = "TANDEM_NVML_LIBRARY";

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Telemetry and artifacts")]
pub(crate) struct TelemetryArgs {
    /// Where GPUs are sampled: `auto` (NVML where this host has it), `nvml` (or fail), `dcgm:URL[,URL…]` (DCGM exporters), `none`
    /// (nothing at all is sampled, of hosts and servers neither)
    #[arg(long, value_name = "SOURCE", default_value = "auto", value_parser = |text: &str| text.parse::<GpuSource>().map_err(|e| e.to_string()))]
    pub(crate) telemetry: GpuSource,
    /// Prometheus endpoint of a server to sample as well (vLLM, SGLang, TensorRT-LLM, Dynamo, Tandem); may be repeated
    #[arg(long = "metrics-url", value_name = "URL")]
    pub(crate) metrics_urls: Vec<String>,
    /// Write figures of each span of so many seconds (timeslices.csv, `slices` in result.json)
    #[arg(long, value_name = "SECONDS", value_parser = slice_length)]
    pub(crate) slice: Option<f64>,
    /// Count as GenAI-Perf 0.0.16 does in its two files, defects included (reasoning is ignored, energy is the counter's mean)
    #[arg(long)]
    pub(crate) genai_perf_compat: bool,
}

impl Default for TelemetryArgs {
    fn default() -> Self {
        TelemetryArgs { telemetry: GpuSource::None, metrics_urls: Vec::new(), slice: None, genai_perf_compat: false }
    }
}

fn slice_length(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if seconds.is_finite() && seconds > 0.0 { Ok(seconds) } else { Err("must be positive".to_owned()) }
}

impl TelemetryArgs {
    /// Begins to sample; none when that is not wanted. `more_urls` are endpoints that the caller knows of.
    pub(crate) fn start(&self, host: &str, file: PathBuf, roles: Roles, more_urls: &[String]) -> Result<Option<Arc<Session>>, Failure> {
        let config = TelemetryConfig {
            gpu: self.telemetry.clone(),
            metrics_urls: self.metrics_urls.iter().chain(more_urls).cloned().collect(),
            host: host.to_owned(),
            roles,
            file,
            nvml_library: std::env::var_os(NVML_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from),
        };
        Ok(Session::start(&config).or_exit(Exit::Usage)?.map(Arc::new))
    }

    pub(crate) fn options(&self) -> ArtifactOptions {
        ArtifactOptions { slice_s: self.slice, genai_perf_compat: self.genai_perf_compat }
    }

    /// Where GPUs were scraped, for GenAI-Perf's echo of its configuration.
    pub(crate) fn urls(&self) -> Vec<String> {
        match &self.telemetry {
            GpuSource::Dcgm(urls) => urls.clone(),
            GpuSource::Auto | GpuSource::Nvml | GpuSource::None => Vec::new(),
        }
    }
}

/// Which phase the plan gives to GPU `index` of the one host that it runs on. Devices of a plan without GPUs are no GPUs.
pub(crate) fn roles_of_plan(plan: &Plan, host: &str) -> Roles {
    if plan.hardware.gpu_type == GpuType::Cpu {
        return Roles::default();
    }
    let on_first_node = |worker: &tandem_plan::WorkerPlan| -> Vec<(u32, Phase)> {
        worker.ranks.iter().filter(|rank| rank.node == 0).map(|rank| (rank.device, worker.phase)).collect()
    };
    let places: Vec<(u32, Phase)> = plan.workers.iter().flat_map(on_first_node).collect();
    let this = host.to_owned();
    Roles::new(move |host, index| {
        let on_it = |phase| host == this && places.contains(&(index, phase));
        match (on_it(Phase::Prefill), on_it(Phase::Decode)) {
            (true, true) => Some("prefill+decode".to_owned()),
            (true, false) => Some("prefill".to_owned()),
            (false, true) => Some("decode".to_owned()),
            (false, false) => None,
        }
    })
}
