//! Dynamo with SGLang workers. Rendered from SGLang's and Dynamo's documentation; it needs GPUs and was never run by these tests.

use tandem_plan::{Plan, WorkerPlan};

use super::dynamo::{self, Dialect};
use super::dynamo_adapter::{DynamoEngine, DynamoWorkers};
use super::{Binding, Step, args};
use crate::error::LaunchError;

/// `python -m dynamo.sglang`.
#[derive(Debug)]
pub struct Sglang;

/// The adapter.
pub const SGLANG: DynamoEngine<Sglang> = DynamoEngine(Sglang);

impl DynamoWorkers for Sglang {
    fn name(&self) -> &'static str {
        "dynamo-sglang"
    }

    fn default_dialect(&self) -> Dialect {
        Dialect::V1
    }

    /// Roles are SGLang's own flags, alike in both dialects; it reserves the bootstrap port itself.
    fn worker(&self, plan: &Plan, _binding: &Binding, _dialect: Dialect, worker: &WorkerPlan) -> Result<Step, LaunchError> {
        dynamo::one_node_only(self.name(), worker)?;
        let (layout, limits) = (&worker.layout, &worker.limits);
        let ranks = layout.attention_dp_size();
        let mut argv = args(&[&dynamo::python(plan), "-m", "dynamo.sglang", "--model-path", &dynamo::model_path(plan)]);
        let mut flag = |name: &str, value: String| argv.extend([name.to_owned(), value]);
        flag("--served-model-name", plan.model.served_name.clone());
        flag("--disaggregation-mode", worker.phase.to_string());
        flag("--disaggregation-transfer-backend", "nixl".to_owned());
        flag("--tp-size", layout.tp.to_string());
        flag("--pp-size", layout.pp.to_string());
        flag("--ep-size", layout.ep.to_string());
        flag("--dp-size", ranks.to_string());
        // SGLang counts both over all attention ranks.
        flag("--max-running-requests", limits.max_batch_size.saturating_mul(ranks).to_string());
        flag(
            "--chunked-prefill-size",
            if limits.chunked_prefill { limits.max_num_tokens.saturating_mul(ranks).to_string() } else { "-1".into() },
        );
        flag("--context-length", limits.max_seq_len.to_string());
        flag("--page-size", worker.kv.block_size.to_string());
        flag("--mem-fraction-static", dynamo::memory_share(worker));
        flag("--stream-interval", worker.stream_interval.to_string());
        argv.extend(layout.attention_dp.then(|| "--enable-dp-attention".to_owned()));
        argv.push("--disable-radix-cache".to_owned());
        let step = Step::worker(worker, argv);
        let devices = dynamo::visible_devices(&step);
        Ok(step.with_env([("CUDA_VISIBLE_DEVICES", devices)]))
    }
}
