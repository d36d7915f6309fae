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
    /// Which GPUs do what, e.g. `prefill=0,1` and `decode=node-b:0`; may be repeated. Energy is told apart by role, and other GPUs do not
    /// count (default: what the plan says, else all GPUs count together)
    #[arg(long = "gpu-role", value_name = "ROLE=[HOST:]GPU[,…]", value_parser = gpu_roles)]
    pub(crate) gpu_roles: Vec<GpuRole>,
    /// Write figures of each span of so many seconds (timeslices.csv, `slices` in result.json)
    #[arg(long, value_name = "SECONDS", value_parser = slice_length)]
    pub(crate) slice: Option<f64>,
    /// Count as GenAI-Perf 0.0.16 does in its two files, defects included (reasoning is ignored, energy is the counter's mean)
    #[arg(long)]
    pub(crate) genai_perf_compat: bool,
    /// Write every request and event as perf_analyzer does (profile_export.json), for GenAI-Perf and its plots. Holds them in memory, about
    /// half a kilobyte a chunk; not for conversations
    #[arg(long)]
    pub(crate) raw_export: bool,
    /// Write requests and chunks as Parquet tables too (requests.parquet, chunks.parquet)
    #[arg(long)]
    pub(crate) parquet: bool,
}

impl Default for TelemetryArgs {
    fn default() -> Self {
        TelemetryArgs {
            telemetry: GpuSource::None,
            metrics_urls: Vec::new(),
            gpu_roles: Vec::new(),
            slice: None,
            genai_perf_compat: false,
            raw_export: false,
            parquet: false,
        }
    }
}

/// A role and its GPUs: a host, or any, and an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GpuRole {
    role: String,
    gpus: Vec<(Option<String>, u32)>,
}

fn gpu_roles(text: &str) -> Result<GpuRole, String> {
    let (role, gpus) = text.split_once('=').filter(|(role, _)| !role.is_empty()).ok_or("expected ROLE=GPU[,GPU…]")?;
    let gpu = |text: &str| {
        let (host, index) = text.rsplit_once(':').map_or((None, text), |(host, index)| (Some(host.to_owned()), index));
        index.parse().map(|index| (host, index)).map_err(|_| format!("{index:?} is not the index of a GPU"))
    };
    Ok(GpuRole { role: role.to_owned(), gpus: gpus.split(',').map(gpu).collect::<Result<_, _>>()? })
}

fn slice_length(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if seconds.is_finite() && seconds > 0.0 { Ok(seconds) } else { Err("must be positive".to_owned()) }
}

impl TelemetryArgs {
    /// Begins to sample; none when that is not wanted. `more_urls` are endpoints that the caller knows of.
    pub(crate) fn start(&self, host: &str, file: PathBuf, roles: Roles, more_urls: &[String]) -> Result<Option<Arc<Session>>, Failure> {
        let named = self.gpu_roles.clone();
        let roles = if named.is_empty() { roles } else { Roles::new(move |host, index| role_of(&named, host, index)) };
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
        ArtifactOptions { slice_s: self.slice, genai_perf_compat: self.genai_perf_compat, parquet: self.parquet }
    }

    /// Where GPUs were scraped, for GenAI-Perf's echo of its configuration.
    pub(crate) fn urls(&self) -> Vec<String> {
        match &self.telemetry {
            GpuSource::Dcgm(urls) => urls.clone(),
            GpuSource::Auto | GpuSource::Nvml | GpuSource::None => Vec::new(),
        }
    }
}

fn role_of(roles: &[GpuRole], host: &str, index: u32) -> Option<String> {
    let is_it = |(on, i): &(Option<String>, u32)| *i == index && on.as_ref().is_none_or(|on| on == host);
    let found: Vec<&str> = roles.iter().filter(|role| role.gpus.iter().any(is_it)).map(|role| role.role.as_str()).collect();
    (!found.is_empty()).then(|| found.join("+"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_have_the_roles_that_they_are_given() {
        let roles = [gpu_roles("prefill=0,1").unwrap(), gpu_roles("decode=b:0,3").unwrap()];
        let of = |host: &str, index| role_of(&roles, host, index);
        assert_eq!(of("a", 0).as_deref(), Some("prefill"));
        assert_eq!(of("b", 0).as_deref(), Some("prefill+decode"));
        assert_eq!((of("a", 3).as_deref(), of("a", 2)), (Some("decode"), None));
        assert!(["prefill", "=0", "prefill=x"].iter().all(|text| gpu_roles(text).is_err()));
    }
}
