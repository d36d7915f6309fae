//! TensorRT-LLM without Dynamo: `trtllm-serve disaggregated` in front of `trtllm-serve` workers.
//!
//! Rendered from TensorRT-LLM's documentation; it needs GPUs and was never run by these tests.

use std::fmt::Write as _;
use std::time::Duration;

use tandem_plan::{Phase, Plan, WorkerPlan};

use super::{Adapter, Binding, FRONTEND_LOG, Pair, PortNeeds, Role, Step, args, config_path, dynamo, path_text};
use crate::error::LaunchError;
use crate::probe::{Health, Probe};

/// The frontend's file, below the run folder.
const CONFIG: &str = "configs/disaggregated.yaml";

/// The adapter.
#[derive(Debug)]
pub struct TrtllmServe;

fn authority(plan: &Plan, binding: &Binding, worker: &WorkerPlan) -> String {
    let node = worker.ranks.first().map_or(0, |rank| rank.node);
    format!("{}:{}", binding.address(node), binding.worker_port(plan, &worker.name).unwrap_or(0))
}

impl Adapter for TrtllmServe {
    fn name(&self) -> &'static str {
        "trtllm-serve"
    }

    fn ports(&self, _plan: &Plan) -> PortNeeds {
        PortNeeds { http: true, workers: true, ..PortNeeds::default() }
    }

    fn files(&self, plan: &Plan, binding: &Binding) -> Vec<(String, String)> {
        let mut yaml = format!("hostname: {}\nport: {}\nbackend: pytorch\n", plan.frontend.http.host, binding.ports.http);
        for (key, phase) in [("context_servers", Phase::Prefill), ("generation_servers", Phase::Decode)] {
            let _ = writeln!(yaml, "{key}:\n  num_instances: {}\n  urls:", plan.workers_of(phase).count());
            for worker in plan.workers_of(phase) {
                let _ = writeln!(yaml, "  - \"{}\"", authority(plan, binding, worker));
            }
        }
        vec![(CONFIG.to_owned(), yaml)]
    }

    fn front(&self, plan: &Plan, binding: &Binding) -> Result<Vec<Step>, LaunchError> {
        let argv = args(&["trtllm-serve", "disaggregated", "-c", &path_text(binding.run_dir.join(CONFIG))]);
        let step = Step::new("frontend", Role::Frontend, plan.frontend.node, argv, FRONTEND_LOG);
        Ok(vec![Step { stop_order: 1, ..step }])
    }

    fn workers(&self, plan: &Plan, binding: &Binding) -> Result<Vec<Step>, LaunchError> {
        let in_step = binding.in_job;
        let step = |worker: &WorkerPlan| {
            let (limits, layout) = (&worker.limits, &worker.layout);
            let mut argv = if in_step { args(&["trtllm-llmapi-launch"]) } else { Vec::new() };
            argv.extend(args(&["trtllm-serve", &dynamo::model_path(plan), "--backend", "pytorch"]));
            let mut flag = |name: &str, value: String| argv.extend([name.to_owned(), value]);
            let authority = authority(plan, binding, worker);
            let (host, port) = authority.rsplit_once(':').unwrap_or((&authority, "0"));
            flag("--host", host.to_owned());
            flag("--port", port.to_owned());
            flag("--tp_size", layout.tp.to_string());
            flag("--pp_size", layout.pp.to_string());
            flag("--ep_size", layout.ep.to_string());
            flag("--max_batch_size", limits.max_batch_size.to_string());
            flag("--max_num_tokens", limits.max_num_tokens.to_string());
            flag("--max_seq_len", limits.max_seq_len.to_string());
            flag("--extra_llm_api_options", config_path(binding, worker.phase));
            let mut step = Step::worker(worker, argv).with_env([("TLLM_LOG_LEVEL", "INFO")]);
            step.unset = vec!["UCX_TLS"];
            step.mpi = in_step;
            if in_step {
                step.n_tasks = layout.world_size();
                return step;
            }
            let devices = dynamo::visible_devices(&step);
            step.with_env([("CUDA_VISIBLE_DEVICES", devices)])
        };
        Ok(plan.workers.iter().map(step).collect())
    }

    /// A worker answers `/health` once it serves; the frontend has no counts.
    fn health(&self, probe: &Probe, plan: &Plan, binding: &Binding) -> Result<Health, String> {
        let n_ready = |phase| {
            let ready = |worker: &&WorkerPlan| probe.at(format!("http://{}", authority(plan, binding, worker))).is_ok("/health");
            u32::try_from(plan.workers_of(phase).filter(ready).count()).unwrap_or(u32::MAX)
        };
        let health = Health { n_prefill: n_ready(Phase::Prefill), n_decode: n_ready(Phase::Decode) };
        if health.is_complete(plan) && !probe.is_ok("/health") {
            return Err("all workers are ready, the frontend is not".to_owned());
        }
        Ok(health)
    }

    fn canary(&self, probe: &Probe, plan: &Plan, _pair: &Pair, timeout: Duration) -> Result<(), String> {
        probe.canary(&plan.model.served_name, &[], None, timeout).map(drop)
    }
}
