//! Prometheus endpoints of serving engines.
//!
//! Every sample of a known engine is kept under its own name, `name{labels}`, but for histogram buckets (their `_sum` and
//! `_count` stay). What all engines have in some form is added under a common name (`server_*`), summed over the
//! endpoint's label sets, or their mean where it is a share.
//!
//! Names are those of vLLM's `v1/metrics/loggers.py` (the Prometheus client adds `_total` to counters), SGLang 0.5.23's metrics collector,
//! TensorRT-LLM's `metrics/collector.py`, Triton's TensorRT-LLM backend (as its documentation prints them) and Dynamo's `prometheus_names.rs`;
//! `vllm:gpu_*` and `dynamo_component_kvstats_*` are those of older versions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tandem_metrics::telemetry::{Subject, SubjectKind};

use crate::http;
use crate::prometheus::{self, Sample};
use crate::source::{Reading, Source};

const INTERVAL: Duration = Duration::from_secs(1);

/// Values of one endpoint that are kept at most; a server with more labels than that describes something else.
const MAX_VALUES: usize = 512;

/// How label sets of one endpoint become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fold {
    Sum,
    Mean,
}

/// An engine: its name, what its metrics begin with.
static ENGINES: [(&str, &str); 8] = [
    ("tandem", "tandem_"),
    ("vllm", "vllm:"),
    ("vllm", "vllm_"),
    ("sglang", "sglang:"),
    ("sglang", "sglang_"),
    ("trtllm", "trtllm_"),
    ("trtllm", "nv_trt_llm_"),
    ("dynamo", "dynamo_"),
];

/// Name (and a label that it must have), common name, factor, fold. Names differ between versions; whichever is there counts.
type Row = (&'static str, Option<(&'static str, &'static str)>, &'static str, f64, Fold);

static COMMON: [Row; 50] = [
    ("tandem_requests_in_flight", None, "server_requests_running", 1.0, Fold::Sum),
    ("tandem_requests_total", None, "server_requests_total", 1.0, Fold::Sum),
    ("tandem_prompt_tokens_total", None, "server_prompt_tokens_total", 1.0, Fold::Sum),
    ("tandem_output_tokens_total", None, "server_output_tokens_total", 1.0, Fold::Sum),
    ("tandem_queue_rejections_total", None, "server_rejections_total", 1.0, Fold::Sum),
    ("tandem_request_retries_total", None, "server_retries_total", 1.0, Fold::Sum),
    ("vllm:num_requests_running", None, "server_requests_running", 1.0, Fold::Sum),
    ("vllm:num_requests_waiting", None, "server_requests_waiting", 1.0, Fold::Sum),
    ("vllm:kv_cache_usage_perc", None, "server_kv_usage_percent", 100.0, Fold::Mean),
    ("vllm:gpu_cache_usage_perc", None, "server_kv_usage_percent", 100.0, Fold::Mean),
    ("vllm:request_success_total", None, "server_requests_total", 1.0, Fold::Sum),
    ("vllm:prompt_tokens_total", None, "server_prompt_tokens_total", 1.0, Fold::Sum),
    ("vllm:generation_tokens_total", None, "server_output_tokens_total", 1.0, Fold::Sum),
    ("vllm:prefix_cache_queries_total", None, "server_prefix_cache_queries_total", 1.0, Fold::Sum),
    ("vllm:gpu_prefix_cache_queries_total", None, "server_prefix_cache_queries_total", 1.0, Fold::Sum),
    ("vllm:prefix_cache_hits_total", None, "server_prefix_cache_hits_total", 1.0, Fold::Sum),
    ("vllm:gpu_prefix_cache_hits_total", None, "server_prefix_cache_hits_total", 1.0, Fold::Sum),
    ("vllm:num_preemptions_total", None, "server_preemptions_total", 1.0, Fold::Sum),
    ("sglang:num_running_reqs", None, "server_requests_running", 1.0, Fold::Sum),
    ("sglang:num_queue_reqs", None, "server_requests_waiting", 1.0, Fold::Sum),
    ("sglang:token_usage", None, "server_kv_usage_percent", 100.0, Fold::Mean),
    ("sglang:num_requests_total", None, "server_requests_total", 1.0, Fold::Sum),
    ("sglang:prompt_tokens_total", None, "server_prompt_tokens_total", 1.0, Fold::Sum),
    ("sglang:generation_tokens_total", None, "server_output_tokens_total", 1.0, Fold::Sum),
    ("sglang:cache_hit_rate", None, "server_prefix_cache_hit_rate", 1.0, Fold::Mean),
    ("sglang:gen_throughput", None, "server_output_tokens_per_s", 1.0, Fold::Sum),
    ("trtllm_num_requests_running", None, "server_requests_running", 1.0, Fold::Sum),
    ("trtllm_num_requests_waiting", None, "server_requests_waiting", 1.0, Fold::Sum),
    ("trtllm_request_success_total", None, "server_requests_total", 1.0, Fold::Sum),
    ("trtllm_kv_cache_utilization", None, "server_kv_usage_percent", 100.0, Fold::Mean),
    ("trtllm_kv_cache_hit_rate", None, "server_prefix_cache_hit_rate", 1.0, Fold::Mean),
    ("trtllm_prompt_tokens_total", None, "server_prompt_tokens_total", 1.0, Fold::Sum),
    ("trtllm_generation_tokens_total", None, "server_output_tokens_total", 1.0, Fold::Sum),
    ("nv_trt_llm_request_metrics", Some(("request_type", "scheduled")), "server_requests_running", 1.0, Fold::Sum),
    ("nv_trt_llm_request_metrics", Some(("request_type", "waiting")), "server_requests_waiting", 1.0, Fold::Sum),
    ("nv_trt_llm_kv_cache_block_metrics", Some(("kv_cache_block_type", "fraction")), "server_kv_usage_percent", 100.0, Fold::Mean),
    ("dynamo_frontend_inflight_requests", None, "server_requests_running", 1.0, Fold::Sum),
    ("dynamo_frontend_queued_requests", None, "server_requests_waiting", 1.0, Fold::Sum),
    ("dynamo_frontend_requests_total", None, "server_requests_total", 1.0, Fold::Sum),
    ("dynamo_frontend_input_sequence_tokens_sum", None, "server_prompt_tokens_total", 1.0, Fold::Sum),
    ("dynamo_frontend_output_tokens_total", None, "server_output_tokens_total", 1.0, Fold::Sum),
    ("dynamo_frontend_output_sequence_tokens_sum", None, "server_output_tokens_total", 1.0, Fold::Sum),
    ("dynamo_component_inflight_requests", None, "server_requests_running", 1.0, Fold::Sum),
    ("dynamo_component_requests_total", None, "server_requests_total", 1.0, Fold::Sum),
    ("dynamo_component_kvstats_gpu_cache_usage_percent", None, "server_kv_usage_percent", 100.0, Fold::Mean),
    ("dynamo_component_kvstats_gpu_prefix_cache_hit_rate", None, "server_prefix_cache_hit_rate", 1.0, Fold::Mean),
    ("dynamo_component_gpu_cache_usage_percent", None, "server_kv_usage_percent", 100.0, Fold::Mean),
    ("dynamo_frontend_cached_tokens_sum", None, "server_prefix_cache_hits_total", 1.0, Fold::Sum),
    ("sglang:num_retracted_requests_total", None, "server_preemptions_total", 1.0, Fold::Sum),
    ("sglang:num_aborted_requests_total", None, "server_rejections_total", 1.0, Fold::Sum),
];

/// One endpoint.
pub(crate) struct Server {
    agent: ureq::Agent,
    url: String,
}

impl Server {
    pub(crate) fn new(url: &str) -> Self {
        Server { agent: http::agent(), url: http::metrics_url(url) }
    }
}

impl Source for Server {
    fn name(&self) -> String {
        self.url.clone()
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    fn sample(&mut self) -> Result<Vec<Reading>, String> {
        let asked = Instant::now();
        let text = http::get(&self.agent, &self.url)?;
        let took_ms = asked.elapsed().as_secs_f64() * 1e3;
        let mut reading = reading(&prometheus::parse(&text), &self.url).ok_or("no metrics of a known engine in its answer")?;
        reading.values.push(("scrape_ms".to_owned(), took_ms));
        Ok(vec![reading])
    }
}

fn reading(samples: &[Sample], url: &str) -> Option<Reading> {
    let engine_of = |sample: &Sample| ENGINES.iter().find(|(_, prefix)| sample.name.starts_with(prefix)).map(|(engine, _)| *engine);
    let mut engines: Vec<&str> = Vec::new();
    let mut own: BTreeMap<String, f64> = BTreeMap::new();
    let mut common: BTreeMap<&str, (&str, f64, f64)> = BTreeMap::new();
    for sample in samples {
        let Some(engine) = engine_of(sample) else { continue };
        if !engines.contains(&engine) {
            engines.push(engine);
        }
        for (name, label, common_name, factor, fold) in &COMMON {
            let is_it = sample.name == *name && label.is_none_or(|(key, value)| sample.label(key) == Some(value));
            if is_it {
                let entry = common.entry(common_name).or_insert((name, 0.0, 0.0));
                // Of two names for the same thing, old and new, only the first is counted.
                if entry.0 == *name {
                    entry.1 += sample.value * factor;
                    entry.2 += f64::from(u8::from(*fold == Fold::Mean));
                }
            }
        }
        if !sample.name.ends_with("_bucket") && own.len() < MAX_VALUES {
            own.insert(key(sample), sample.value);
        }
    }
    (!engines.is_empty()).then(|| {
        let fold = |(name, (_, sum, n)): (&str, (&str, f64, f64))| (name.to_owned(), if n > 0.0 { sum / n } else { sum });
        let subject = Subject {
            kind: SubjectKind::Server,
            host: http::host_of(url).to_owned(),
            id: url.to_owned(),
            index: None,
            name: engines.join("+"),
            role: None,
        };
        Reading { subject, values: common.into_iter().map(fold).chain(own).collect() }
    })
}

/// `name{a="x",b="y"}`, labels in order of name.
fn key(sample: &Sample) -> String {
    if sample.labels.is_empty() {
        return sample.name.clone();
    }
    let mut labels: Vec<String> = sample.labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    labels.sort();
    format!("{}{{{}}}", sample.name, labels.join(","))
}

#[cfg(test)]
mod tests {
    use tandem_metrics::telemetry::quantity;

    use super::*;

    fn read(text: &str) -> Reading {
        reading(&prometheus::parse(text), "http://n1:8000/metrics").unwrap()
    }

    #[test]
    fn vllm_is_understood() {
        let found = read(include_str!("../tests/data/vllm.txt"));
        assert_eq!(found.subject.name, "vllm");
        assert_eq!(found.value("server_requests_running"), Some(12.0), "two engines of one endpoint");
        assert_eq!(found.value("server_kv_usage_percent"), Some(25.0), "shares are averaged");
        assert_eq!(found.value("server_output_tokens_total"), Some(3000.0));
        assert_eq!(found.value("vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"m\"}"), Some(7.0));
        assert!(!found.values.iter().any(|(name, _)| name.contains("_bucket") || name.starts_with("python_")));
    }

    #[test]
    fn sglang_trtllm_dynamo_and_ours_are_understood() {
        let sglang =
            read("sglang:num_running_reqs{model_name=\"m\"} 3\nsglang:num_queue_reqs{model_name=\"m\"} 2\nsglang:token_usage 0.5\n");
        assert_eq!([sglang.value("server_requests_running"), sglang.value("server_requests_waiting")], [Some(3.0), Some(2.0)]);
        assert_eq!(sglang.value("server_kv_usage_percent"), Some(50.0));
        assert_eq!(read("sglang:num_retracted_requests_total{model_name=\"m\"} 4\n").value("server_preemptions_total"), Some(4.0));
        // As Triton's documentation prints it.
        let triton = read(include_str!("../tests/data/triton.txt"));
        assert_eq!((triton.subject.name.as_str(), triton.value("server_requests_running")), ("trtllm", Some(1.0)));
        assert_eq!((triton.value("server_requests_waiting"), triton.value("server_kv_usage_percent")), (Some(1.0), Some(48.75)));
        let dynamo = read("dynamo_frontend_inflight_requests{model=\"m\"} 9\ndynamo_frontend_output_sequence_tokens_sum{model=\"m\"} 77\n");
        assert_eq!((dynamo.value("server_requests_running"), dynamo.value("server_output_tokens_total")), (Some(9.0), Some(77.0)));
        let ours = read("tandem_requests_in_flight 5\ntandem_requests_total{endpoint=\"chat\",outcome=\"ok\"} 6\n");
        assert_eq!((ours.value("server_requests_running"), ours.value("server_requests_total")), (Some(5.0), Some(6.0)));
    }

    #[test]
    fn the_older_name_counts_only_where_the_newer_is_absent() {
        let both = read("vllm:kv_cache_usage_perc 0.5\nvllm:gpu_cache_usage_perc 0.5\n");
        assert_eq!(both.value("server_kv_usage_percent"), Some(50.0));
        assert_eq!(read("vllm:gpu_cache_usage_perc 0.5\n").value("server_kv_usage_percent"), Some(50.0));
    }

    #[test]
    fn other_metrics_are_nobody_we_know() {
        assert_eq!(reading(&prometheus::parse("python_gc_objects_total 3\n"), "u"), None);
        assert!(COMMON.iter().all(|(_, _, name, ..)| quantity(name).is_some()));
    }
}
