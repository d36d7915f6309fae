//! What is known only at launch: where the nodes are, which ports are free, where the files lie.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use tandem_plan::{Address, Plan};

use super::PortNeeds;

/// A node of the deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeBinding {
    /// Its name for the executor (a Slurm node name).
    pub name: String,
    /// The address at which the other nodes reach it.
    pub address: String,
}

/// Ports that were chosen; 0 where the engine needs none or binds itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports {
    /// The frontend's HTTP port.
    pub http: u16,
    /// etcd, clients.
    pub etcd: u16,
    /// etcd, peers.
    pub etcd_peer: u16,
    /// NATS.
    pub nats: u16,
    /// One for each worker, in the plan's order, if the engine wants them.
    pub workers: Vec<u16>,
}

/// Where a deployment runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The run folder as the processes see it.
    pub run_dir: PathBuf,
    /// The `tandem` executable.
    pub program: PathBuf,
    /// By plan node index.
    pub nodes: Vec<NodeBinding>,
    /// Chosen ports.
    pub ports: Ports,
    /// Where workers register with an embedded frontend; known once that has announced it, or bound before.
    pub control: Option<Address>,
    /// Whether processes end when their standard input closes: the local launcher holds a pipe, a job step has none.
    pub stop_with_stdin: bool,
    /// Whether each process is a step of a job, started once for each rank, with addresses that other nodes reach.
    pub in_job: bool,
}

impl Binding {
    /// Everything on this machine, with free ports where `needs` asks for some.
    ///
    /// A port is free when this returns and may be taken by another process before its server binds it; that server then fails
    /// and is named.
    ///
    /// # Errors
    /// When the system has no free port.
    pub fn local(plan: &Plan, run_dir: &Path, program: &Path, needs: PortNeeds) -> std::io::Result<Binding> {
        let host = "127.0.0.1";
        let n_workers = if needs.workers { plan.workers.len() } else { 0 };
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut free = free_ports(ip, 4)?.into_iter();
        let mut take = |needed: bool| if needed { free.next().unwrap_or(0) } else { 0 };
        let stated = plan.frontend.http.port;
        let ports = Ports {
            http: if needs.http && stated == 0 { take(true) } else { stated },
            etcd: stated_port(plan, "ETCD_SERVER_PORT").unwrap_or_else(|| take(needs.etcd)),
            etcd_peer: take(needs.etcd),
            nats: stated_port(plan, "NATS_SERVER_PORT").unwrap_or_else(|| take(needs.nats)),
            workers: free_low_ports(ip, n_workers)?,
        };
        let node = NodeBinding { name: "localhost".into(), address: host.into() };
        Ok(Binding {
            // Servers may change their working directory.
            run_dir: std::path::absolute(run_dir)?,
            program: program.to_owned(),
            nodes: vec![node; usize::try_from(plan.n_nodes.max(1)).unwrap_or(1)],
            ports,
            control: None,
            stop_with_stdin: true,
            in_job: false,
        })
    }

    /// The address of a node; loopback for one that the binding does not know.
    #[must_use]
    pub fn address(&self, node: u32) -> &str {
        let index = usize::try_from(node).unwrap_or(usize::MAX);
        self.nodes.get(index).map_or("127.0.0.1", |node| node.address.as_str())
    }

    /// The name of a node; empty for one that the binding does not know.
    #[must_use]
    pub fn node_name(&self, node: u32) -> &str {
        self.nodes.get(usize::try_from(node).unwrap_or(usize::MAX)).map_or("", |node| node.name.as_str())
    }

    /// `http://HOST:PORT` of the frontend.
    #[must_use]
    pub fn url(&self, plan: &Plan) -> String {
        format!("http://{}:{}", self.address(plan.frontend.node), self.ports.http)
    }

    /// The plan as processes read it.
    #[must_use]
    pub fn plan_path(&self) -> String {
        super::path_text(self.run_dir.join("plan.json"))
    }

    /// The port of the worker called `name`, if workers have ports.
    #[must_use]
    pub fn worker_port(&self, plan: &Plan, name: &str) -> Option<u16> {
        let index = plan.workers.iter().position(|w| w.name == name)?;
        self.ports.workers.get(index).copied()
    }
}

/// The port that somebody set in knob `name`. The recipe's own default is none: two runs on one machine would meet there.
#[must_use]
pub fn stated_port(plan: &Plan, name: &str) -> Option<u16> {
    let record = plan.knobs.get(name).filter(|record| !record.layer.starts_with("built-in"))?;
    u16::try_from(record.value.as_u64()?).ok().filter(|port| *port > 0)
}

/// As [`free_ports`], but below 32,768: Dynamo reads a worker's port as a signed 16-bit number.
fn free_low_ports(ip: IpAddr, n: usize) -> std::io::Result<Vec<u16>> {
    const RANGE: std::ops::Range<u16> = 12_000..32_000;
    let span = u32::from(RANGE.end - RANGE.start);
    // Launchers that start at the same time look in different places.
    let first = std::process::id().wrapping_mul(7919) % span;
    let candidates = (0..span).map(|i| RANGE.start + u16::try_from((first + i) % span).unwrap_or(0));
    let found: Vec<u16> = candidates.filter(|&port| TcpListener::bind((ip, port)).is_ok()).take(n).collect();
    if found.len() == n { Ok(found) } else { Err(std::io::ErrorKind::AddrInUse.into()) }
}

/// `n` different ports that are free at `ip` now.
fn free_ports(ip: IpAddr, n: usize) -> std::io::Result<Vec<u16>> {
    // All are held at once, so that none is given twice.
    let listeners: Vec<TcpListener> = (0..n).map(|_| TcpListener::bind((ip, 0))).collect::<Result<_, _>>()?;
    listeners.iter().map(|listener| listener.local_addr().map(|address| address.port())).collect()
}
