//! The embedded engine: `tandem serve` and one `tandem worker` for each worker of the plan.

use std::time::Duration;

use tandem_plan::{Phase, Plan};

use super::{Adapter, Binding, FRONTEND_LOG, Pair, PortNeeds, Role, Step, args};
use crate::error::LaunchError;
use crate::probe::{Health, Probe};

/// The embedded engine, computing or modeled.
#[derive(Debug)]
pub struct Tandem;

impl Adapter for Tandem {
    fn name(&self) -> &'static str {
        "tandem"
    }

    /// Its frontend binds free ports itself and announces them.
    fn ports(&self, _plan: &Plan) -> PortNeeds {
        PortNeeds::default()
    }

    fn front(&self, plan: &Plan, binding: &Binding) -> Result<Vec<Step>, LaunchError> {
        let mut argv = vec![binding.program.display().to_string()];
        argv.extend(args(&["serve", "--plan", &binding.plan_path(), "--announce"]));
        argv.extend(binding.stop_with_stdin.then(|| "--stop-with-stdin".to_owned()));
        let step = Step::new("frontend", Role::Frontend, plan.frontend.node, argv, FRONTEND_LOG);
        Ok(vec![Step { announces: true, ..step }])
    }

    fn workers(&self, plan: &Plan, binding: &Binding) -> Result<Vec<Step>, LaunchError> {
        let control = binding.control.as_ref().unwrap_or(&plan.frontend.control).to_string();
        let step = |worker| {
            let worker: &tandem_plan::WorkerPlan = worker;
            let mut argv = vec![binding.program.display().to_string()];
            argv.extend(args(&["worker", "--plan", &binding.plan_path(), "--name", &worker.name, "--frontend", &control]));
            argv.extend(binding.stop_with_stdin.then(|| "--stop-with-stdin".to_owned()));
            Step::worker(worker, argv)
        };
        Ok(plan.workers.iter().map(step).collect())
    }

    fn health(&self, probe: &Probe, _plan: &Plan, _binding: &Binding) -> Result<Health, String> {
        let body = probe.get_json("/health")?;
        let ready = |phase: Phase| -> Result<u32, String> {
            let n = body["workers"][phase.to_string()]["ready"].as_u64().ok_or_else(|| format!("/health lacks workers.{phase}.ready"))?;
            u32::try_from(n).map_err(|e| e.to_string())
        };
        Ok(Health { n_prefill: ready(Phase::Prefill)?, n_decode: ready(Phase::Decode)? })
    }

    /// The frontend routes to the pair that the headers name, and says in the answer's headers who served.
    fn canary(&self, probe: &Probe, plan: &Plan, pair: &Pair, timeout: Duration) -> Result<(), String> {
        let headers = [("x-tandem-prefill", pair.prefill.as_str()), ("x-tandem-decode", pair.decode.as_str())];
        let answer = probe.canary(&plan.model.served_name, &headers, None, timeout)?;
        let served = |name: &str| answer.header(name).unwrap_or("nobody").to_owned();
        let (by_prefill, by_decode) = (served("x-tandem-prefill-worker"), served("x-tandem-decode-worker"));
        if (by_prefill.as_str(), by_decode.as_str()) != (pair.prefill.as_str(), pair.decode.as_str()) {
            return Err(format!("it was served by {by_prefill} and {by_decode}"));
        }
        Ok(())
    }

    fn health_interval(&self) -> Duration {
        Duration::from_millis(20)
    }

    fn stop_grace(&self) -> Duration {
        Duration::from_secs(5)
    }
}
