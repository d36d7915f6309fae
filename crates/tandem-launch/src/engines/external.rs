//! A deployment that somebody else runs: any OpenAI-compatible URL, with the role counts that the recipe states.
//!
//! Nothing is started or stopped, and the counts are believed: the URL alone shows no workers.

use std::time::Duration;

use tandem_plan::{Phase, Plan};

use super::{Adapter, Binding, Pair, PortNeeds, Step, dynamo};
use crate::error::LaunchError;
use crate::probe::{Health, Probe};

/// The adapter.
#[derive(Debug)]
pub struct External;

impl Adapter for External {
    fn name(&self) -> &'static str {
        "external"
    }

    fn needs_cluster(&self, _plan: &Plan) -> Option<String> {
        None
    }

    fn ports(&self, _plan: &Plan) -> PortNeeds {
        PortNeeds::default()
    }

    fn url(&self, plan: &Plan, _binding: &Binding) -> String {
        dynamo::knob(plan, "ENGINE_URL").trim_end_matches('/').to_owned()
    }

    fn front(&self, plan: &Plan, binding: &Binding) -> Result<Vec<Step>, LaunchError> {
        if self.url(plan, binding).is_empty() {
            return Err(LaunchError::Unsupported("ENGINE=external needs ENGINE_URL, e.g. http://127.0.0.1:8000".into()));
        }
        Ok(Vec::new())
    }

    fn workers(&self, _plan: &Plan, _binding: &Binding) -> Result<Vec<Step>, LaunchError> {
        Ok(Vec::new())
    }

    fn health(&self, probe: &Probe, plan: &Plan, _binding: &Binding) -> Result<Health, String> {
        let body = probe.get_json("/v1/models")?;
        let names: Vec<&str> = body["data"].as_array().into_iter().flatten().filter_map(|model| model["id"].as_str()).collect();
        if !names.contains(&plan.model.served_name.as_str()) {
            return Err(format!("it serves {}, not {} (SERVED_MODEL_NAME)", names.join(", "), plan.model.served_name));
        }
        let stated = |phase| u32::try_from(plan.workers_of(phase).count()).unwrap_or(u32::MAX);
        Ok(Health { n_prefill: stated(Phase::Prefill), n_decode: stated(Phase::Decode) })
    }

    fn canary(&self, probe: &Probe, plan: &Plan, _pair: &Pair, timeout: Duration) -> Result<(), String> {
        probe.canary(&plan.model.served_name, &[], None, timeout).map(drop)
    }
}
