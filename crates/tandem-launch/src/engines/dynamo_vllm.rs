//! Dynamo with vLLM workers. Rendered from vLLM's and Dynamo's documentation; it needs GPUs and was never run by these tests.

use tandem_plan::{Phase, Plan, WorkerPlan};

use super::dynamo::{self, Dialect};
use super::dynamo_adapter::{DynamoEngine, DynamoWorkers};
use super::{Binding, Step, args};
use crate::error::LaunchError;

/// `python -m dynamo.vllm`.
#[derive(Debug)]
pub struct Vllm;

/// The adapter.
pub const VLLM: DynamoEngine<Vllm> = DynamoEngine(Vllm);

impl DynamoWorkers for Vllm {
    fn name(&self) -> &'static str {
        "dynamo-vllm"
    }

    fn default_dialect(&self) -> Dialect {
        Dialect::V1
    }

    fn worker(&self, plan: &Plan, _binding: &Binding, dialect: Dialect, worker: &WorkerPlan) -> Result<Step, LaunchError> {
        dynamo::one_node_only(self.name(), worker)?;
        let (layout, limits) = (&worker.layout, &worker.limits);
        // vLLM divides by request with replicas of one rank, which share the experts.
        let (tp, dp) = if layout.attention_dp { (1, layout.tp) } else { (layout.tp, 1) };
        let mut argv = args(&[&dynamo::python(plan), "-m", "dynamo.vllm", "--model", &dynamo::model_path(plan)]);
        argv.extend(args(&["--served-model-name", &plan.model.served_name]));
        let kv_role = if worker.phase == Phase::Prefill { "kv_producer" } else { "kv_consumer" };
        match (dialect, worker.phase) {
            (Dialect::V1, phase) => {
                argv.extend(args(&["--disaggregation-mode", &phase.to_string(), "--kv-transfer-config"]));
                argv.push(format!("{{\"kv_connector\":\"NixlConnector\",\"kv_role\":\"{kv_role}\"}}"));
            }
            (Dialect::V0_6, Phase::Prefill) => argv.extend(args(&["--is-prefill-worker", "--connector", "nixl"])),
            (Dialect::V0_6, Phase::Decode) => argv.extend(args(&["--is-decode-worker", "--connector", "nixl"])),
        }
        let mut flag = |name: &str, value: String| argv.extend([name.to_owned(), value]);
        flag("--tensor-parallel-size", tp.to_string());
        flag("--pipeline-parallel-size", layout.pp.to_string());
        flag("--data-parallel-size", dp.to_string());
        flag("--max-num-seqs", limits.max_batch_size.to_string());
        flag("--max-num-batched-tokens", limits.max_num_tokens.to_string());
        flag("--max-model-len", limits.max_seq_len.to_string());
        flag("--block-size", worker.kv.block_size.to_string());
        flag("--gpu-memory-utilization", dynamo::memory_share(worker));
        argv.extend((layout.ep > 1).then(|| "--enable-expert-parallel".to_owned()));
        argv.push("--no-enable-prefix-caching".to_owned());
        let step = Step::worker(worker, argv);
        let devices = dynamo::visible_devices(&step);
        Ok(step.with_env([("CUDA_VISIBLE_DEVICES", devices)]))
    }
}
