//! Dynamo's mocker: real frontend, routing, discovery and request plane; workers that only take time. No GPU.

use tandem_plan::{Phase, Plan, WorkerPlan};

use super::dynamo::{self, Dialect};
use super::dynamo_adapter::{DynamoEngine, DynamoWorkers};
use super::{Binding, Step, args};
use crate::error::LaunchError;

/// `python -m dynamo.mocker`.
#[derive(Debug)]
pub struct Mocker;

/// The adapter.
pub const MOCKER: DynamoEngine<Mocker> = DynamoEngine(Mocker);

impl DynamoWorkers for Mocker {
    fn name(&self) -> &'static str {
        "dynamo-mocker"
    }

    fn default_dialect(&self) -> Dialect {
        Dialect::V1
    }

    fn worker(&self, plan: &Plan, _binding: &Binding, dialect: Dialect, worker: &WorkerPlan) -> Result<Step, LaunchError> {
        let mut argv = args(&[&dynamo::python(plan), "-m", "dynamo.mocker", "--model-path", &dynamo::model_path(plan)]);
        argv.extend(args(&["--model-name", &plan.model.served_name]));
        match (dialect, worker.phase) {
            (Dialect::V1, phase) => argv.extend(args(&["--disaggregation-mode", &phase.to_string()])),
            // Both default to the same endpoint.
            (Dialect::V0_6, Phase::Prefill) => argv.extend(args(&["--is-prefill-worker", "--endpoint", "dyn://dynamo.prefill.generate"])),
            (Dialect::V0_6, Phase::Decode) => argv.extend(args(&["--is-decode-worker", "--endpoint", "dyn://dynamo.backend.generate"])),
        }
        let mut flag = |name: &str, value: String| argv.extend([name.to_owned(), value]);
        flag("--num-gpu-blocks-override", worker.kv.n_blocks.to_string());
        flag("--block-size", worker.kv.block_size.to_string());
        flag("--max-num-seqs", worker.limits.max_batch_size.to_string());
        flag("--max-num-batched-tokens", worker.limits.max_num_tokens.to_string());
        let speedup = plan.knob("ENGINE_SPEEDUP").and_then(serde_json::Value::as_f64).unwrap_or(1.0);
        flag("--speedup-ratio", speedup.to_string());
        if worker.layout.attention_dp_size() > 1 {
            flag("--data-parallel-size", worker.layout.attention_dp_size().to_string());
        }
        if dialect == Dialect::V1 {
            // Its own estimate ignores latent attention.
            flag("--kv-bytes-per-token", worker.memory.kv_bytes_per_token.max(1).to_string());
        }
        argv.push(if worker.limits.chunked_prefill { "--enable-chunked-prefill" } else { "--no-enable-chunked-prefill" }.to_owned());
        argv.push("--no-enable-prefix-caching".to_owned());
        Ok(Step::worker(worker, argv))
    }
}
