//! The files of a run, as names and bytes: what the run folder holds besides configurations and logs.
//!
//! [`render_point`] writes the directory of one load point, [`render_run`] adds what is about the whole run. Both are pure;
//! whoever calls them writes the files. The compatible files (`genai_perf_*`, `inputs`, `profile_export`) follow
//! GenAI-Perf 0.0.16 and AIPerf to the byte where those are fixed; `foreign` alone knows their names for our metrics.
//!
//! | file | module |
//! |---|---|
//! | `<model>-openai-chat-concurrency<N>/profile_export_genai_perf.json` | [`genai_perf_json`], [`input_config`] |
//! | `…/profile_export_genai_perf.csv` | [`genai_perf_csv`] |
//! | `…/profile_export.jsonl` (measured), `…/profile_export_warmup.jsonl` (warm-up, if any) | [`profile_export`] |
//! | `…/inputs.json` | [`inputs`] |
//! | `perf_summary.txt` | [`perf_summary`] |
//! | `result.json` | [`result`] |

mod csv;
pub mod directory;
pub mod foreign;
pub mod genai_perf_csv;
pub mod genai_perf_json;
pub mod input_config;
pub mod inputs;
pub mod perf_summary;
pub mod profile_export;
mod python;
pub mod result;
pub mod telemetry;

use serde_json::Value;

pub use directory::Stimulus;
pub use input_config::InputConfig;
pub use telemetry::Telemetry;

use crate::metrics::Load;
use crate::record::{LoadPhase, RequestRecord, RunClock};
use crate::summary::Summary;
use crate::validity::Reason;

/// A path relative to the run folder and what belongs there.
pub type File = (String, Vec<u8>);

/// What the artifacts of one load point need besides its records.
#[derive(Debug, Clone, PartialEq)]
pub struct PointContext {
    /// Ties record times to the wall clock.
    pub clock: RunClock,
    /// The served model's name.
    pub model: String,
    /// What drove the load.
    pub stimulus: Stimulus,
    /// What was asked.
    pub load: Load,
    /// What is echoed.
    pub input_config: InputConfig,
    /// Request bodies of the measured phase in order, for `inputs.json`.
    pub payloads: Vec<Value>,
    /// What the GPUs did meanwhile.
    pub telemetry: Option<Telemetry>,
}

/// The artifacts of one load point.
#[derive(Debug, Clone, PartialEq)]
pub struct PointArtifacts {
    /// Directory within the run folder.
    pub directory: String,
    /// Its figures.
    pub summary: Summary,
    /// Its files, relative to the run folder.
    pub files: Vec<File>,
}

/// Whether figures come from a deployment or from a prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    /// A deployment was driven.
    Measured,
    /// Virtual time.
    Simulated,
}

impl RunKind {
    /// The name in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            RunKind::Measured => "measured",
            RunKind::Simulated => "simulated",
        }
    }
}

/// What `result.json` says about a run besides its figures.
#[derive(Debug, Clone, PartialEq)]
pub struct RunContext {
    /// Measured or simulated.
    pub kind: RunKind,
    /// Name of the recipe.
    pub recipe: String,
    /// The served model's name.
    pub model: String,
    /// Hash of the plan, hex; empty (null in the file) when a foreign endpoint was driven.
    pub plan_hash: String,
    /// Program and version, e.g. `("tandem", "0.1.0")`.
    pub versions: Vec<(String, String)>,
    /// Host names, in node order.
    pub machines: Vec<String>,
    /// GPUs (devices) of the deployment.
    pub n_gpus: u32,
    /// Wall-clock nanoseconds at which the run began.
    pub started_wall_ns: u64,
    /// Wall-clock nanoseconds at which it ended.
    pub ended_wall_ns: u64,
    /// Whether it was cut short.
    pub is_partial: bool,
    /// What the caller knows against the figures, e.g. a process that died.
    pub reasons: Vec<Reason>,
}

/// Computes the summary of one load point and renders its directory.
///
/// `records` are those of the point in order of issue, warm-up and failed ones included.
#[must_use]
pub fn render_point(records: &[RequestRecord], context: &PointContext) -> PointArtifacts {
    let summary = Summary::of(records, &context.load);
    let directory = directory::name(&context.model, context.stimulus);
    let telemetry = context.telemetry.as_ref();
    let input_config = context.input_config.to_json(&context.model, context.stimulus, &context.load);
    let lines = |phase| {
        let records = records.iter().filter(move |record| record.phase == phase);
        profile_export::render(records, context.clock, context.load.streaming)
    };
    let mut texts = vec![
        ("profile_export_genai_perf.json", genai_perf_json::render(&summary, telemetry, input_config)),
        ("profile_export_genai_perf.csv", genai_perf_csv::render(&summary, telemetry)),
        ("profile_export.jsonl", lines(LoadPhase::Profiling)),
        ("inputs.json", inputs::render(&context.payloads)),
    ];
    let warmup = lines(LoadPhase::Warmup);
    if !warmup.is_empty() {
        texts.push(("profile_export_warmup.jsonl", warmup));
    }
    let files = texts.into_iter().map(|(name, text)| (format!("{directory}/{name}"), text.into_bytes())).collect();
    PointArtifacts { directory, summary, files }
}

/// All files of a run: those of its points, `perf_summary.txt` and `result.json`.
#[must_use]
pub fn render_run(points: Vec<PointArtifacts>, context: &RunContext) -> Vec<File> {
    let summaries: Vec<&Summary> = points.iter().map(|point| &point.summary).collect();
    let about_run = [
        ("perf_summary.txt".to_owned(), perf_summary::render(&summaries).into_bytes()),
        ("result.json".to_owned(), result::render(&points, context).into_bytes()),
    ];
    points.into_iter().flat_map(|point| point.files).chain(about_run).collect()
}
