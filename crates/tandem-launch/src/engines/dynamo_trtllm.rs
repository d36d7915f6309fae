//! Dynamo with TensorRT-LLM workers: the published recipe's own engine.

use tandem_plan::{Phase, Plan, WorkerPlan};

use super::dynamo::{self, Dialect};
use super::dynamo_adapter::{DynamoEngine, DynamoWorkers};
use super::{Binding, Step, args, config_path};
use crate::error::LaunchError;

/// `trtllm-llmapi-launch python3 -m dynamo.trtllm`.
#[derive(Debug)]
pub struct Trtllm;

/// The adapter.
pub const TRTLLM: DynamoEngine<Trtllm> = DynamoEngine(Trtllm);

impl DynamoWorkers for Trtllm {
    fn name(&self) -> &'static str {
        "dynamo-trtllm"
    }

    /// The published image is 0.6.1.
    fn default_dialect(&self) -> Dialect {
        Dialect::V0_6
    }

    fn worker(&self, plan: &Plan, binding: &Binding, _dialect: Dialect, worker: &WorkerPlan) -> Result<Step, LaunchError> {
        // In a job step every rank starts the launcher; on one machine the engine spawns its ranks itself.
        let in_step = binding.in_job;
        let mut argv = if in_step { args(&["trtllm-llmapi-launch"]) } else { Vec::new() };
        let limits = &worker.limits;
        argv.extend(args(&[
            &dynamo::python(plan),
            "-m",
            "dynamo.trtllm",
            "--model-path",
            &dynamo::model_path(plan),
            "--served-model-name",
            &plan.model.served_name,
            // The file has these three too, but they are not always taken from there.
            "--max-num-tokens",
            &limits.max_num_tokens.to_string(),
            "--max-batch-size",
            &limits.max_batch_size.to_string(),
            "--max-seq-len",
            &limits.max_seq_len.to_string(),
            "--disaggregation-mode",
            &worker.phase.to_string(),
        ]));
        argv.extend(args(&["--extra-engine-args", &config_path(binding, worker.phase)]));
        let mut step = Step::worker(worker, argv).with_env(engine_env(plan, binding, worker));
        step.unset = vec!["UCX_TLS"];
        if in_step {
            step.mpi = true;
            step.n_tasks = worker.layout.world_size();
        } else {
            let devices = dynamo::visible_devices(&step);
            step = step.with_env([("CUDA_VISIBLE_DEVICES", devices)]);
        }
        Ok(step)
    }
}

/// The engine's own variables.
fn engine_env(plan: &Plan, binding: &Binding, worker: &WorkerPlan) -> Vec<(&'static str, String)> {
    // Compiled kernels of two servers must not meet in one folder.
    let cache = |name: &str| super::path_text(binding.run_dir.join("cache").join(&worker.name).join(name));
    let mut env = vec![
        ("TLLM_LOG_LEVEL", "INFO".to_owned()),
        ("FLASHINFER_WORKSPACE_BASE", cache("flashinfer")),
        ("TRITON_CACHE_DIR", cache("triton")),
    ];
    // Programmatic dependent launch, only without attention DP in decode servers.
    if plan.workers_of(Phase::Decode).all(|w| !w.layout.attention_dp) {
        env.push(("TRTLLM_ENABLE_PDL", "1".to_owned()));
    }
    env
}
