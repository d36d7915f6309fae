//! The adapter of every engine behind Dynamo: an engine adds its name, its dialect and the command of a worker.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use tandem_plan::{Plan, WorkerPlan};

use super::dynamo::{self, Dialect};
use super::{Adapter, Binding, Pair, PortNeeds, Step};
use crate::error::LaunchError;
use crate::probe::{Health, Probe};

/// What an engine behind Dynamo adds.
pub trait DynamoWorkers: fmt::Debug + Send + Sync {
    /// The engine's name in recipes.
    fn name(&self) -> &'static str;

    /// The dialect when the recipe says `auto`.
    fn default_dialect(&self) -> Dialect;

    /// The step of `worker`, with the engine's own variables; those of every Dynamo process are added to it.
    ///
    /// # Errors
    /// [`LaunchError::Unsupported`] when the plan asks for what the engine cannot do.
    fn worker(&self, plan: &Plan, binding: &Binding, dialect: Dialect, worker: &WorkerPlan) -> Result<Step, LaunchError>;
}

/// An engine behind Dynamo's frontend.
#[derive(Debug)]
pub struct DynamoEngine<W>(pub W);

impl<W: DynamoWorkers> DynamoEngine<W> {
    fn dialect(&self, plan: &Plan) -> Dialect {
        dynamo::dialect(plan, self.0.default_dialect())
    }
}

impl<W: DynamoWorkers> Adapter for DynamoEngine<W> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn ports(&self, plan: &Plan) -> PortNeeds {
        dynamo::ports(plan, self.dialect(plan))
    }

    fn front(&self, plan: &Plan, binding: &Binding) -> Result<Vec<Step>, LaunchError> {
        dynamo::front(plan, binding, self.dialect(plan))
    }

    fn workers(&self, plan: &Plan, binding: &Binding) -> Result<Vec<Step>, LaunchError> {
        let dialect = self.dialect(plan);
        let step = |worker: &WorkerPlan| {
            let step = self.0.worker(plan, binding, dialect, worker)?;
            Ok(step.with_env(dynamo::worker_env(plan, binding, dialect, worker)))
        };
        plan.workers.iter().map(step).collect()
    }

    fn health(&self, probe: &Probe, plan: &Plan, _binding: &Binding) -> Result<Health, String> {
        dynamo::health(probe, plan, self.dialect(plan))
    }

    fn canary(&self, probe: &Probe, plan: &Plan, pair: &Pair, timeout: Duration) -> Result<(), String> {
        dynamo::canary(probe, plan, pair, self.dialect(plan), timeout)
    }

    /// What recipes for old versions send, beside the field of the same name that means the same; from 1.3 on it is refused.
    fn request_fields(&self, plan: &Plan) -> Vec<(&'static str, Value)> {
        if self.dialect(plan) == Dialect::V1 { Vec::new() } else { vec![("nvext", json!({"ignore_eos": true}))] }
    }

    fn n_prefilled(&self, probe: &Probe, plan: &Plan, binding: &Binding) -> Option<u64> {
        dynamo::n_prefilled(probe, plan, binding)
    }
}
