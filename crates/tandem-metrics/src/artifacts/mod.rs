//! The files of a run, as names and bytes: what the run folder holds besides configurations and logs.
//!
//! [`render_point`] makes the directory of one load point, [`render_run`] what is about the whole run. Both are pure;
//! whoever calls them writes the files. The compatible files (`genai_perf_*`, `inputs`, `profile_export`) follow
//! GenAI-Perf 0.0.16 and AIPerf to the byte where those are fixed; `foreign` alone knows their names for our metrics.
//!
//! | file | module |
//! |---|---|
//! | `<model>-openai-chat-concurrency<N>/profile_export_genai_perf.json` | [`genai_perf_json`], [`input_config`] |
//! | `…/profile_export_genai_perf.csv` | [`genai_perf_csv`] |
//! | `…/profile_export.jsonl` (measured), `…/profile_export_warmup.jsonl` (warm-up, if any) | [`profile_export`] |
//! | `…/profile_export.json` (on request) | [`raw_export`] |
//! | `…/inputs.json` | [`inputs`] |
//! | `…/timeslices.csv` (with slices) | [`crate::analysis::slices`] |
//! | `…/requests.parquet`, `…/chunks.parquet` (on request) | [`parquet`] |
//! | `perf_summary.txt` | [`perf_summary`] |
//! | `result.json` | [`result`] |

pub mod compat;
pub mod content;
mod csv;
pub mod directory;
pub mod foreign;
pub mod genai_perf_csv;
pub mod genai_perf_json;
pub mod input_config;
pub mod inputs;
pub mod parquet;
pub mod perf_summary;
pub mod profile_export;
mod python;
pub mod raw_export;
pub mod result;
pub mod telemetry;

use std::sync::Arc;

use serde_json::Value;

pub use content::{Content, File, RecordLines};
pub use directory::Stimulus;
pub use input_config::InputConfig;
pub use raw_export::Exchange;
pub use telemetry::Telemetry;

use crate::analysis::Analysis;
use crate::metrics::{Load, Sample};
use crate::record::{LoadPhase, RequestRecord, RunClock};
use crate::summary::Summary;
use crate::telemetry::PointTelemetry;
use crate::validity::Reason;

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
    /// The telemetry section of GenAI-Perf's files, where it does not come from `measured`.
    pub telemetry: Option<Telemetry>,
    /// What devices, hosts and servers did meanwhile.
    pub measured: Option<PointTelemetry>,
    /// The measured requests that ended well as they were on the wire, for perf_analyzer's raw file; none writes no such file.
    pub exchanges: Option<Vec<Exchange>>,
    /// How the files are to be made.
    pub options: ArtifactOptions,
}

/// What a user may choose about the artifacts of a load point.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ArtifactOptions {
    /// Length of time slices, s; none writes no slices.
    pub slice_s: Option<f64>,
    /// Whether GenAI-Perf's two files count as GenAI-Perf does, defects included; see [`compat`].
    pub genai_perf_compat: bool,
    /// Whether requests and chunks are written as Parquet tables too.
    pub parquet: bool,
}

/// The artifacts of one load point.
#[derive(Debug, Clone, PartialEq)]
pub struct PointArtifacts {
    /// Directory within the run folder.
    pub directory: String,
    /// Its figures.
    pub summary: Summary,
    /// What its records say beyond that.
    pub analysis: Analysis,
    /// The telemetry section of `result.json`; null without telemetry.
    pub telemetry: Value,
    /// How the client fared, for `result.json`; null where nobody says.
    pub client: Value,
    /// Whether GenAI-Perf's files count as GenAI-Perf does.
    pub genai_perf_compat: bool,
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
pub fn render_point(records: &Arc<Vec<RequestRecord>>, context: &PointContext) -> PointArtifacts {
    let mut sample = Sample::new(records, &context.load);
    let window = sample.window_ns().map(|(from, to)| (context.clock.wall_ns(from), context.clock.wall_ns(to)));
    let measured = window.and_then(|window| Some((context.measured.as_ref()?, window)));
    sample.energy_j = measured.and_then(|(measured, window)| measured.energy(window)).map(|energy| energy.total_j());
    let summary = Summary::of_sample(&sample);
    let analysis = Analysis::of(&sample, context.options.slice_s);
    let telemetry_json =
        measured.map_or(Value::Null, |(measured, window)| measured.to_json(window, (sample.input_tokens(), sample.output_tokens())));
    let section = context.telemetry.clone().or_else(|| measured.and_then(|(measured, window)| Telemetry::of(measured, window)));
    let directory = directory::name(&context.model, context.stimulus);
    let telemetry = section.as_ref();
    let input_config = context.input_config.to_json(&context.model, context.stimulus, &context.load);
    let lines = |phase| {
        let lines = RecordLines { records: records.clone(), phase, clock: context.clock, streaming: context.load.streaming };
        Content::Records(lines)
    };
    let compat = context.options.genai_perf_compat.then(|| compat::summary(records, &context.load));
    let genai = compat.as_ref().unwrap_or(&summary);
    let mut files: Vec<(&str, Content)> = vec![
        ("profile_export_genai_perf.json", genai_perf_json::render(genai, telemetry, input_config).into()),
        ("profile_export_genai_perf.csv", genai_perf_csv::render(genai, telemetry).into()),
        ("profile_export.jsonl", lines(LoadPhase::Profiling)),
        ("inputs.json", inputs::render(&context.payloads).into()),
    ];
    files.extend(analysis.slices_csv(&sample, context.clock).map(|text| ("timeslices.csv", text.into())));
    if records.iter().any(|record| record.phase == LoadPhase::Warmup) {
        files.push(("profile_export_warmup.jsonl", lines(LoadPhase::Warmup)));
    }
    if context.options.parquet {
        files.push(("requests.parquet", Content::Bytes(parquet::requests(records, context.clock, &context.load))));
        files.push(("chunks.parquet", Content::Bytes(parquet::chunks(records, context.clock))));
    }
    if let Some(exchanges) = &context.exchanges {
        let text = raw_export::render(exchanges, context.clock, context.stimulus, window);
        files.push(("profile_export.json", Content::Bytes(text)));
    }
    let files = files.into_iter().map(|(name, content)| (format!("{directory}/{name}"), content)).collect();
    let genai_perf_compat = context.options.genai_perf_compat;
    PointArtifacts { directory, summary, analysis, telemetry: telemetry_json, client: Value::Null, genai_perf_compat, files }
}

/// The files that are about a whole run: `perf_summary.txt` and `result.json`. Those of its points are theirs.
#[must_use]
pub fn render_run(points: &[PointArtifacts], context: &RunContext) -> Vec<File> {
    let summaries: Vec<&Summary> = points.iter().map(|point| &point.summary).collect();
    vec![
        ("perf_summary.txt".to_owned(), perf_summary::render(&summaries).into()),
        ("result.json".to_owned(), result::render(points, context).into()),
    ]
}
