//! The `input_config` that GenAI-Perf echoes into its JSON: what was asked, under its names.
//!
//! Settings that have no counterpart here hold GenAI-Perf's defaults, so that whoever parses the file finds every key.

use serde_json::{Map, Value, json};

use crate::artifacts::directory::Stimulus;
use crate::artifacts::foreign;
use crate::metrics::Load;

/// What the load point itself does not say.
#[derive(Debug, Clone, PartialEq)]
pub struct InputConfig {
    /// `host:port` of the endpoint.
    pub url: String,
    /// Fields added to every request, e.g. `max_tokens`.
    pub extra: Map<String, Value>,
    /// Different prompts.
    pub n_prompts: u64,
    /// Requests before the measured ones.
    pub n_warmup: u64,
    /// Seed of the prompts.
    pub seed: u64,
    /// Where the artifacts go, as the user named it.
    pub artifact_directory: String,
    /// Name or path of the tokenizer.
    pub tokenizer: String,
    /// Telemetry endpoints that were scraped.
    pub telemetry_urls: Vec<String>,
}

impl InputConfig {
    /// The whole section.
    #[must_use]
    pub fn to_json(&self, model: &str, stimulus: Stimulus, load: &Load) -> Value {
        let (key, value) = stimulus.entry();
        json!({
            "model_names": [model],
            "subcommand": "profile",
            "verbose": false,
            "template_filename": "genai_perf_config.yaml",
            "analyze": {"sweep_parameters": {"concurrency": {"min": 1, "max": 1024}}},
            "endpoint": {
                "model_selection_strategy": "round_robin",
                "backend": "tensorrtllm",
                "custom": "v1/chat/completions",
                "type": "chat",
                "streaming": load.streaming,
                "server_metrics_urls": self.telemetry_urls,
                "url": self.url,
                "grpc_method": "",
                "service_kind": "openai",
                "output_format": "openai_chat_completions",
            },
            "perf_analyzer": {
                "path": "perf_analyzer",
                "verbose": false,
                "stimulus": {key: value},
                "stability_percentage": 999,
                "measurement": {"mode": "request_count", "num": load.n_requests},
                "warmup_request_count": self.n_warmup,
            },
            "input": self.input(load),
            "output": {
                "artifact_directory": self.artifact_directory,
                "checkpoint_directory": "checkpoint",
                "profile_export_file": "profile_export.json",
                "generate_plots": false,
                "enable_checkpointing": false,
            },
            "tokenizer": {"name": self.tokenizer, "revision": "main", "trust_remote_code": false, "_enable_debug_logging": true},
            "process": {"input_path": "aggregated"},
        })
    }

    fn input(&self, load: &Load) -> Value {
        json!({
            "batch_size": 1,
            "extra": self.extra,
            "goodput": goodput(load),
            "header": "",
            "file": "",
            "num_dataset_entries": self.n_prompts,
            "random_seed": self.seed,
            "audio": {
                "batch_size": 1,
                "length": {"mean": 0, "stddev": 0},
                "format": "wav",
                "depths": [16],
                "sample_rates": [16],
                "num_channels": 1,
            },
            "image": {"width": {"mean": 0, "stddev": 0}, "height": {"mean": 0, "stddev": 0}, "batch_size": 1, "format": "png"},
            "output_tokens": {"mean": load.osl, "deterministic": false, "stddev": 0},
            "synthetic_tokens": {"mean": load.isl, "stddev": 0},
            "prefix_prompt": {"num": 0, "length": 100},
            "sessions": {
                "num": 0,
                "turns": {"mean": 1, "stddev": 0},
                "turn_delay": {"mean": 0, "ratio": 1.0, "stddev": 0},
            },
            "prompt_source": "synthetic",
            "synthetic_files": [],
            "payload_file": "",
        })
    }
}

/// SLOs under their foreign names; an empty string without, as GenAI-Perf has it.
fn goodput(load: &Load) -> Value {
    if load.slos.is_empty() {
        return "".into();
    }
    let name = |slo: &crate::metrics::goodput::Slo| foreign::tag_of(slo.metric()).unwrap_or(slo.metric().name).to_owned();
    Value::Object(load.slos.iter().map(|slo| (name(slo), slo.limit().into())).collect())
}
