//! The allocation of a job: its nodes and their addresses, found once, and servers as steps on them.

use std::time::Duration;

use tandem_plan::{GpuType, Plan, WorkerPlan};

use super::client::Slurm;
use super::hostlist;
use super::ports;
use super::step::{Step, StepSettings};
use super::text;
use crate::error::LaunchError;
use crate::process::ProcessSpec;

/// A job that this process runs in.
#[derive(Debug, Clone)]
pub struct Allocation {
    /// Its id.
    pub job_id: u64,
    /// Node names, in Slurm's order: node 0 of the plan is the first.
    pub nodes: Vec<String>,
    /// Where each node is reached.
    pub addresses: Vec<String>,
    /// How servers become steps.
    pub settings: StepSettings,
    /// Variables that servers get.
    pub env: Vec<(String, String)>,
    slurm: Slurm,
}

impl Allocation {
    /// Reads the allocation that this process runs in from Slurm's variables, and asks `scontrol` for addresses. Blocking.
    ///
    /// # Errors
    /// [`LaunchError::Allocation`] outside a job, or when it has fewer nodes than the plan.
    pub fn bind(plan: &Plan, settings: StepSettings, env: Vec<(String, String)>, slurm: Slurm) -> Result<Self, LaunchError> {
        let variable =
            |name: &str| std::env::var(name).map_err(|_| LaunchError::Allocation(format!("{name} is not set: this is no Slurm job")));
        let job_id = variable("SLURM_JOB_ID")?;
        let job_id = job_id.parse().map_err(|_| LaunchError::Allocation(format!("SLURM_JOB_ID is `{job_id}`")))?;
        let list = variable("SLURM_JOB_NODELIST")?;
        let nodes = hostlist::expand(&list).ok_or_else(|| LaunchError::Allocation(format!("cannot read the node list `{list}`")))?;
        if nodes.len() < usize::try_from(plan.n_nodes).unwrap_or(usize::MAX) {
            return Err(LaunchError::Allocation(format!("the plan needs {} nodes, the job has {}: {list}", plan.n_nodes, nodes.len())));
        }
        let addresses = addresses(&slurm, &list, &nodes);
        Ok(Allocation { job_id, nodes, addresses, settings, env, slurm })
    }

    /// An allocation that does not exist, to show what would be started in one.
    #[must_use]
    pub fn imagined(nodes: Vec<String>, settings: StepSettings, env: Vec<(String, String)>, slurm: Slurm) -> Self {
        Allocation { job_id: 0, addresses: nodes.clone(), nodes, settings, env, slurm }
    }

    /// Free ports for the frontend's clients and workers on its node: `(http, control)`, and those found busy.
    ///
    /// The orchestrator runs on the first node of the job, and the frontend beside it, so binding here is binding there.
    ///
    /// # Errors
    /// [`LaunchError::Allocation`] when the block of the job has no two free ports.
    pub fn frontend_ports(&self, plan: &Plan) -> Result<(u16, u16, Vec<u16>), LaunchError> {
        let host = self.address(plan.frontend.node);
        let found = ports::find(host, self.job_id, 2);
        match found.free[..] {
            [http, control] => Ok((http, control, found.busy)),
            _ => {
                let first = ports::block_of(self.job_id);
                Err(LaunchError::Allocation(format!("no two free ports on {host} from {first} to {}", first + ports::BLOCK - 1)))
            }
        }
    }

    /// The address of a node of the plan.
    #[must_use]
    pub fn address(&self, node: u32) -> &str {
        self.addresses.get(usize::try_from(node).unwrap_or(usize::MAX)).map_or("127.0.0.1", String::as_str)
    }

    /// Nodes that the plan uses, by name.
    #[must_use]
    pub fn used_nodes(&self, plan: &Plan) -> &[String] {
        &self.nodes[..usize::try_from(plan.n_nodes).unwrap_or(usize::MAX).min(self.nodes.len())]
    }

    /// A server without devices (the frontend) as a step of one task on a node of the plan.
    #[must_use]
    pub fn client_step(&self, spec: ProcessSpec, node: u32) -> ProcessSpec {
        self.step(spec, &[node], 1, 0, None)
    }

    /// A worker as a step over its nodes, one task a rank.
    #[must_use]
    pub fn worker_step(&self, spec: ProcessSpec, plan: &Plan, worker: &WorkerPlan) -> ProcessSpec {
        let mut nodes: Vec<u32> = worker.ranks.iter().map(|rank| rank.node).collect();
        nodes.dedup();
        let n_tasks = worker.layout.world_size();
        let has_gpus = plan.hardware.gpu_type != GpuType::Cpu;
        let per_node = if has_gpus { plan.hardware.devices_per_node } else { 0 };
        // A worker on part of a node gets its own devices; one that fills nodes has all of each.
        let part = nodes.len() == 1 && n_tasks < per_node;
        let devices = part.then(|| worker.ranks.iter().map(|rank| rank.device).collect());
        self.step(spec, &nodes, n_tasks, per_node, devices)
    }

    fn step(&self, spec: ProcessSpec, nodes: &[u32], n_tasks: u32, n_gpus_per_node: u32, devices: Option<Vec<u32>>) -> ProcessSpec {
        let name_of = |node: &u32| self.nodes[usize::try_from(*node).unwrap_or(usize::MAX)].clone();
        let argv = std::iter::once(spec.program.display().to_string()).chain(spec.args).collect();
        let nodes = nodes.iter().map(name_of).collect();
        let step = Step { name: spec.name.clone(), nodes, n_tasks, n_gpus_per_node, devices, argv, env: self.env.clone() };
        ProcessSpec {
            name: spec.name,
            program: "srun".into(),
            args: self.settings.srun_args(self.job_id, &step),
            log: spec.log,
            announces: spec.announces,
            env: Some(self.srun_env()),
        }
    }

    /// `srun` sees the servers' variables and which job it belongs to. The rest of Slurm's variables would add options to each step.
    fn srun_env(&self) -> Vec<(String, String)> {
        let kept =
            ["SLURM_CONF", "PATH", "HOME"].iter().filter_map(|name| std::env::var(name).ok().map(|value| ((*name).to_owned(), value)));
        let mut env: Vec<(String, String)> = kept.collect();
        env.push(("SLURM_JOB_ID".to_owned(), self.job_id.to_string()));
        env.extend(self.env.iter().cloned());
        env
    }

    /// Sends SIGTERM to the tasks of every step. TERM to `srun` would have Slurm kill them within 30 ms. Blocking.
    ///
    /// Says why when it could not; the caller then ends the steps the hard way.
    pub(crate) fn terminate_steps(&self) -> Result<usize, String> {
        let steps = self.slurm.call("squeue", &["-h", "-s", "-j", &self.job_id.to_string(), "-o", "%i"]).map_err(|e| e.to_string())?;
        let is_server = |step: &&str| step.rsplit('.').next().is_some_and(|id| id.parse::<u32>().is_ok());
        let steps: Vec<&str> = steps.lines().map(str::trim).filter(is_server).collect();
        if steps.is_empty() {
            return Ok(0);
        }
        let mut args = vec!["-s", "TERM"];
        args.extend(&steps);
        match self.slurm.call("scancel", &args) {
            Ok(_) => Ok(steps.len()),
            // Slurm 22.05 says so of each step although it has signalled it.
            Err(error) if error.to_string().contains("Invalid job id") => Ok(steps.len()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// How long [`Allocation::terminate_steps`] may take at most, for the caller's own deadline.
    pub(crate) const TERMINATE_WITHIN: Duration = Duration::from_secs(10);
}

/// `NodeAddr` of each node; its name where Slurm does not say (it usually resolves).
fn addresses(slurm: &Slurm, list: &str, nodes: &[String]) -> Vec<String> {
    let said = slurm.call("scontrol", &["-o", "show", "node", list]).unwrap_or_else(|error| {
        tracing::warn!(%error, "no node addresses: names are used");
        String::new()
    });
    let known: Vec<_> = said.lines().map(text::fields).collect();
    let address_of = |name: &String| known.iter().find(|node| node.get("NodeName") == Some(name)).and_then(|node| node.get("NodeAddr"));
    nodes.iter().map(|name| address_of(name).unwrap_or(name).clone()).collect()
}
