//! The allocation of a job: its nodes and their addresses, found once, and servers as steps on them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tandem_plan::{Address, GpuType, Plan, WorkerPlan};

use super::client::{Slurm, SlurmError};
use super::hostlist;
use super::ports::{self, Pool};
use super::step::{Step, StepSettings};
use super::text;
use crate::engines::binding::{Binding, NodeBinding, Ports, stated_port};
use crate::engines::{self, adapter};
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
    /// The component of each node when the job is heterogeneous; empty when it is not.
    het_groups: Vec<u32>,
    /// The job, or every component of it.
    component_ids: Vec<u64>,
    /// How servers become steps.
    pub settings: StepSettings,
    /// Variables that servers get.
    pub env: Vec<(String, String)>,
    /// GPUs that the job has on each node; 0 on machines without.
    n_gpus_per_node: u32,
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
        let (mut nodes, mut het_groups, mut component_ids, mut lists) = (Vec::new(), Vec::new(), vec![job_id], Vec::new());
        let n_groups = std::env::var("SLURM_HET_SIZE").ok().and_then(|size| size.parse::<u32>().ok()).unwrap_or(0);
        let mut take = |list: String, group: Option<u32>| {
            let of_list = hostlist::expand(&list).ok_or_else(|| LaunchError::Allocation(format!("cannot read the node list `{list}`")))?;
            het_groups.extend(of_list.iter().filter_map(|_| group));
            nodes.extend(of_list);
            lists.push(list);
            Ok::<(), LaunchError>(())
        };
        for group in 0..n_groups {
            take(variable(&format!("SLURM_JOB_NODELIST_HET_GROUP_{group}"))?, Some(group))?;
            component_ids.extend(variable(&format!("SLURM_JOB_ID_HET_GROUP_{group}"))?.parse::<u64>().ok());
        }
        if n_groups == 0 {
            take(variable("SLURM_JOB_NODELIST")?, None)?;
        }
        let list = lists.join(",");
        if nodes.len() < usize::try_from(plan.n_nodes).unwrap_or(usize::MAX) {
            return Err(LaunchError::Allocation(format!("the plan needs {} nodes, the job has {}: {list}", plan.n_nodes, nodes.len())));
        }
        let addresses = addresses(&slurm, &list, &nodes);
        Ok(Allocation { job_id, nodes, addresses, het_groups, component_ids, settings, env, n_gpus_per_node: n_gpus(plan), slurm })
    }

    /// An allocation that does not exist, to show what would be started in one. The first `n_head` nodes are a component of their own.
    #[must_use]
    pub fn imagined(plan: &Plan, n_head: u32, settings: StepSettings, env: Vec<(String, String)>, slurm: Slurm) -> Self {
        let nodes: Vec<String> = (0..plan.n_nodes).map(|node| format!("NODE_{node}")).collect();
        let het_groups = if n_head == 0 { Vec::new() } else { (0..plan.n_nodes).map(|node| u32::from(node >= n_head)).collect() };
        let (job_id, component_ids, n_gpus_per_node) = (0, Vec::new(), n_gpus(plan));
        Allocation { job_id, addresses: nodes.clone(), nodes, het_groups, component_ids, settings, env, n_gpus_per_node, slurm }
    }

    /// The component of a node in a heterogeneous job.
    fn het_group(&self, node: u32) -> Option<u32> {
        self.het_groups.get(usize::try_from(node).ok()?).copied()
    }

    /// Binds `plan` to this job: addresses, and ports that were free when they were tried on their own node; also those found busy.
    /// Blocking.
    ///
    /// This process runs on the first node of the job and tries the ports there itself; for other nodes a step does.
    ///
    /// # Errors
    /// [`LaunchError::Allocation`] when the block of the job has not enough free ports on a node.
    pub fn binding(&self, plan: &Plan, run_dir: &Path, program: &Path, http: u16) -> Result<(Binding, Vec<u16>), LaunchError> {
        let mut pool = Pool::new(self.job_id, self.busy_ports(plan, program));
        // A port that was asked for is a promise to clients; any other comes from the block of the job.
        let stated = |name| stated_port(plan, name);
        let http = if http == 0 { stated("DYNAMO_FRONTEND_PORT") } else { Some(http) };
        let binding = self.binding_with(plan, run_dir, program, [http, stated("ETCD_SERVER_PORT"), stated("NATS_SERVER_PORT")], &mut pool);
        let busy = pool.busy();
        match binding {
            Some(binding) => Ok((binding, busy)),
            None => {
                let first = ports::block_of(self.job_id);
                let message = format!("too few free ports from {first} to {} (busy: {busy:?})", first + ports::BLOCK - 1);
                Err(LaunchError::Allocation(message))
            }
        }
    }

    /// A binding with ports that were not tried, to show what would be started.
    ///
    /// # Errors
    /// As [`Allocation::binding`].
    pub fn imagined_binding(&self, plan: &Plan, run_dir: &Path, program: &Path) -> Result<Binding, LaunchError> {
        let mut pool = Pool::new(self.job_id, BTreeMap::new());
        let stated = ["DYNAMO_FRONTEND_PORT", "ETCD_SERVER_PORT", "NATS_SERVER_PORT"].map(|name| stated_port(plan, name));
        let binding = self.binding_with(plan, run_dir, program, stated, &mut pool);
        binding.ok_or_else(|| LaunchError::Allocation(format!("a node needs more than {} ports", ports::BLOCK)))
    }

    /// `stated` are the ports of HTTP, etcd and NATS as far as somebody chose them.
    fn binding_with(&self, plan: &Plan, run_dir: &Path, program: &Path, stated: [Option<u16>; 3], pool: &mut Pool) -> Option<Binding> {
        let front = plan.frontend.node;
        let mut services = Vec::new();
        // HTTP, control, etcd, its peers, NATS.
        for stated in [stated[0], None, stated[1], None, stated[2]] {
            services.push(match stated {
                Some(port) => port,
                None => pool.take(front)?,
            });
        }
        let workers = plan.workers.iter().map(|worker| pool.take(first_node(worker))).collect::<Option<Vec<u16>>>()?;
        let node = |(name, address): (&String, &String)| NodeBinding { name: name.clone(), address: address.clone() };
        Some(Binding {
            run_dir: run_dir.to_owned(),
            program: program.to_owned(),
            nodes: self.nodes.iter().zip(&self.addresses).map(node).collect(),
            ports: Ports { http: services[0], etcd: services[2], etcd_peer: services[3], nats: services[4], workers },
            control: Some(Address { host: self.address(front).to_owned(), port: services[1] }),
            stop_with_stdin: true,
            in_job: true,
        })
    }

    /// Busy ports of the job's block on each node whose servers will bind some. A node that cannot be asked is left out.
    fn busy_ports(&self, plan: &Plan, program: &Path) -> BTreeMap<u32, Vec<u16>> {
        let first = ports::block_of(self.job_id);
        let mut needed = vec![plan.frontend.node];
        if adapter(plan).ports(plan).workers {
            needed.extend(plan.workers.iter().map(first_node));
        }
        needed.sort_unstable();
        needed.dedup();
        let (here, elsewhere): (Vec<u32>, Vec<u32>) = needed.into_iter().partition(|node| *node == 0);
        let mut busy: BTreeMap<u32, Vec<u16>> = here.iter().map(|&node| (node, ports::busy(self.address(node), first))).collect();
        if elsewhere.is_empty() {
            return busy;
        }
        // A step has nodes of one component.
        for nodes in elsewhere.chunk_by(|a, b| self.het_group(*a) == self.het_group(*b)) {
            match self.ask_nodes(nodes, first, program) {
                Ok(answers) => busy.extend(answers),
                Err(error) => tracing::warn!(%error, "ports of other nodes were not tried"),
            }
        }
        busy
    }

    /// Runs `tandem try-ports` once on each of `nodes`.
    fn ask_nodes(&self, nodes: &[u32], first: u16, program: &Path) -> Result<BTreeMap<u32, Vec<u16>>, SlurmError> {
        let named = |node: &u32| self.nodes.get(usize::try_from(*node).unwrap_or(usize::MAX)).cloned().unwrap_or_default();
        let names: Vec<String> = nodes.iter().map(named).collect();
        let step = Step {
            name: "try-ports".into(),
            n_tasks: u32::try_from(names.len()).unwrap_or(u32::MAX),
            nodes: names.clone(),
            het_group: nodes.first().and_then(|node| self.het_group(*node)),
            n_gpus_per_node: 0,
            devices: None,
            argv: Vec::new(),
            env: self.env.clone(),
        };
        // On the node itself: its ports are those of the containers.
        let bare = StepSettings { ask_gpus: self.settings.ask_gpus, ..StepSettings::default() };
        let mut args = bare.srun_args(self.job_id, &step);
        args.extend([program.display().to_string(), "try-ports".into(), format!("--first={first}")]);
        args.extend(nodes.iter().zip(&names).map(|(&node, name)| format!("{name}={}", self.address(node))));
        let said = self.slurm.call_with("srun", &args, &self.srun_env(&self.env))?;
        let answers: BTreeMap<&str, Vec<u16>> = said.lines().filter_map(read_busy).collect();
        Ok(nodes.iter().zip(&names).filter_map(|(&node, name)| Some((node, answers.get(name.as_str())?.clone()))).collect())
    }

    /// What would be started for `plan`, services and frontend first, as command lines.
    ///
    /// # Errors
    /// What the engine cannot do.
    pub fn command_lines(&self, plan: &Plan, run_dir: &Path, program: &Path) -> Result<Vec<Vec<String>>, LaunchError> {
        let (adapter, binding) = (adapter(plan), self.imagined_binding(plan, run_dir, program)?);
        let mut steps = adapter.front(plan, &binding)?;
        steps.extend(adapter.workers(plan, &binding)?);
        let line = |step: &engines::Step| {
            let process = self.process_of(step, run_dir);
            std::iter::once(process.program.display().to_string()).chain(process.args).collect()
        };
        Ok(steps.iter().map(line).collect())
    }

    /// A node of the job that Slurm holds for down, if there is one; none when Slurm does not answer. Blocking.
    #[must_use]
    pub fn failed_node(&self) -> Option<String> {
        let list = self.nodes.join(",");
        let answer = self.slurm.call("scontrol", &["--oneliner", "show", "node", &list]).ok()?;
        answer.lines().map(text::fields).find_map(|fields| {
            let is_down = fields.get("State").is_some_and(|state| state.starts_with("DOWN") || state.starts_with("FAIL"));
            fields.get("NodeName").filter(|_| is_down).cloned()
        })
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

    /// The `srun` that runs a server as a step of this job.
    #[must_use]
    pub fn process_of(&self, server: &engines::Step, run_dir: &Path) -> ProcessSpec {
        let name_of = |node: &u32| self.nodes.get(usize::try_from(*node).unwrap_or(usize::MAX)).cloned();
        let mut env = self.env.clone();
        env.retain(|(name, _)| !server.unset.contains(&name.as_str()) && !server.env.iter().any(|(set, _)| set == name));
        env.extend(server.env.iter().cloned());
        let per_node = self.n_gpus_per_node;
        let n_devices = u32::try_from(server.devices.len()).unwrap_or(u32::MAX);
        let step = Step {
            name: server.name.clone(),
            nodes: server.nodes.iter().filter_map(name_of).collect(),
            het_group: server.nodes.first().and_then(|node| self.het_group(*node)),
            n_tasks: server.n_tasks,
            n_gpus_per_node: if n_devices == 0 { 0 } else { per_node },
            // A server on part of a node gets its own devices; one that fills nodes has all of each.
            devices: (0 < n_devices && n_devices < per_node).then(|| server.devices.clone()),
            argv: server.argv.clone(),
            env,
        };
        let mut settings = self.settings.clone();
        // Only ranks of one MPI world need it, and the others must not wait for it.
        settings.mpi = server.mpi.then(|| self.settings.mpi.clone().unwrap_or_else(|| "pmix".to_owned()));
        ProcessSpec {
            name: server.name.clone(),
            program: "srun".into(),
            args: settings.srun_args(self.job_id, &step),
            log: run_dir.join(&server.log),
            announces: server.announces,
            env: self.srun_env(&step.env),
            clear_env: true,
            unset: Vec::new(),
            stop_order: server.stop_order,
        }
    }

    /// `srun` sees the servers' variables and which job it belongs to. The rest of Slurm's variables would add options to each step.
    fn srun_env(&self, servers: &[(String, String)]) -> Vec<(String, String)> {
        let kept =
            ["SLURM_CONF", "PATH", "HOME"].iter().filter_map(|name| std::env::var(name).ok().map(|value| ((*name).to_owned(), value)));
        let mut env: Vec<(String, String)> = kept.collect();
        env.push(("SLURM_JOB_ID".to_owned(), self.job_id.to_string()));
        env.extend(servers.iter().cloned());
        env
    }

    /// Sends SIGTERM to the tasks of the named steps. TERM to `srun` would have Slurm kill them within 30 ms. Blocking.
    ///
    /// Says why when it could not; the caller then ends the steps the hard way.
    pub(crate) fn terminate_steps(&self, names: &[String]) -> Result<(), String> {
        let ids: Vec<String> = self.component_ids.iter().map(ToString::to_string).collect();
        let steps = self.slurm.call("squeue", &["-h", "-s", "-j", &ids.join(","), "-o", "%i|%j"]).map_err(|e| e.to_string())?;
        let named = |line: &'_ str| {
            line.split_once('|').filter(|(_, name)| names.iter().any(|n| n == name.trim())).map(|(id, _)| id.trim().to_owned())
        };
        let steps: Vec<String> = steps.lines().filter_map(named).collect();
        if steps.is_empty() {
            return Ok(());
        }
        let mut args = vec!["-s".to_owned(), "TERM".to_owned()];
        args.extend(steps);
        match self.slurm.call("scancel", &args) {
            Ok(_) => Ok(()),
            // Slurm 22.05 says so of each step although it has signalled it.
            Err(error) if error.to_string().contains("Invalid job id") => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// How long [`Allocation::terminate_steps`] may take at most, for the caller's own deadline.
    pub(crate) const TERMINATE_WITHIN: Duration = Duration::from_secs(10);
}

/// One line of `tandem try-ports`: `NODE busy PORT PORT …`.
fn read_busy(line: &str) -> Option<(&str, Vec<u16>)> {
    let (node, ports) = line.split_once(" busy")?;
    Some((node, ports.split_whitespace().filter_map(|port| port.parse().ok()).collect()))
}

/// Where rank 0 of a worker is, which binds its ports.
fn first_node(worker: &WorkerPlan) -> u32 {
    worker.ranks.first().map_or(0, |rank| rank.node)
}

fn n_gpus(plan: &Plan) -> u32 {
    if plan.hardware.gpu_type == GpuType::Cpu { 0 } else { plan.hardware.devices_per_node }
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
