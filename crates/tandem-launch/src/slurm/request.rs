//! What a job asks of Slurm, and the script that asks it.
//!
//! Everything is written into the script: Slurm lets `SBATCH_*` variables win over `#SBATCH` lines, so the
//! submission runs without those variables, and whoever reads the script reads what holds.

use std::fmt::Write;
use std::path::Path;

/// How GPUs are asked for; clusters differ in what they know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuRequest {
    /// `--gpus-per-node=N`.
    PerNode,
    /// `--gres=gpu:N`.
    Gres,
    /// Nothing: the cluster hands out whole nodes and has no GPU resource.
    None,
}

/// The nodes without servers (for client, frontend and services) as a component of their own, of other nodes than the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Nodes, the first ones of the job.
    pub n_nodes: u32,
    /// As [`JobRequest::options`], for this component.
    pub options: Vec<(String, String)>,
}

/// One job's demands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRequest {
    /// Job name.
    pub name: String,
    /// Goes into the job's comment, by which a submission without an answer is found again.
    pub token: String,
    /// Nodes, those of the head included.
    pub n_nodes: u32,
    /// Makes the job heterogeneous.
    pub head: Option<Head>,
    /// Tasks that one node must have room for.
    pub n_tasks_per_node: u32,
    /// GPUs of a node; 0 asks for none.
    pub n_gpus_per_node: u32,
    /// How they are asked for.
    pub gpu_request: GpuRequest,
    /// Time limit as Slurm writes it, e.g. `2:00:00`.
    pub time_limit: String,
    /// SIGUSR1 comes this many seconds before the limit; 0 for never.
    pub signal_before_s: u32,
    /// Whole nodes.
    pub exclusive: bool,
    /// Nodes that must share an NVLink domain, where the cluster has `--segment`.
    pub segment: Option<u32>,
    /// `--partition`, `--account`, `--qos`, `--reservation`, `--nodelist`, `--exclude`, `--constraint`, `--mem`, `--nice` …:
    /// name without dashes, and value; a bare flag has none.
    pub options: Vec<(String, String)>,
}

impl JobRequest {
    /// The `#SBATCH` options, each `--name=value` or `--flag`; `hetjob` stands between the components of a heterogeneous job.
    #[must_use]
    pub fn directives(&self, folder: &Path) -> Vec<String> {
        let mut lines = vec![
            format!("--job-name={}", self.name),
            format!("--comment={}", self.token),
            format!("--time={}", self.time_limit),
            format!("--output={}", folder.join("logs/slurm-%j.out").display()),
            // A benchmark that starts again by itself would overwrite what it measured.
            "--no-requeue".to_owned(),
        ];
        if self.signal_before_s > 0 {
            lines.push(format!("--signal=B:USR1@{}", self.signal_before_s));
        }
        let mut n_nodes = self.n_nodes;
        if let Some(head) = &self.head {
            n_nodes = n_nodes.saturating_sub(head.n_nodes);
            lines.extend([format!("--nodes={}", head.n_nodes), "--ntasks-per-node=1".to_owned()]);
            lines.extend(self.exclusive.then(|| "--exclusive".to_owned()));
            lines.extend(written(&head.options));
            // Each component has a comment and a time limit of its own.
            lines.extend(["hetjob".to_owned(), format!("--comment={}", self.token), format!("--time={}", self.time_limit)]);
        }
        lines.extend([format!("--nodes={n_nodes}"), format!("--ntasks-per-node={}", self.n_tasks_per_node)]);
        match (self.gpu_request, self.n_gpus_per_node) {
            (GpuRequest::None, _) | (_, 0) => {}
            (GpuRequest::PerNode, n) => lines.push(format!("--gpus-per-node={n}")),
            (GpuRequest::Gres, n) => lines.push(format!("--gres=gpu:{n}")),
        }
        if self.exclusive {
            lines.push("--exclusive".to_owned());
        }
        lines.extend(self.segment.map(|n| format!("--segment={n}")));
        lines.extend(written(&self.options));
        lines
    }

    /// The job script: its options, and this program in place of the shell, so that signals reach it.
    #[must_use]
    pub fn script(&self, folder: &Path, program: &Path) -> String {
        let mut script = String::from("#!/bin/bash\n");
        for line in self.directives(folder) {
            // A value with a space needs quotes, as in the shell.
            let quoted = if line.contains([' ', '#']) { format!("'{line}'") } else { line };
            let _ = writeln!(script, "#SBATCH {quoted}");
        }
        let _ = writeln!(script, "exec {} orchestrate {}", quote(&program.display().to_string()), quote(&folder.display().to_string()));
        script
    }
}

/// `--name=value`, or `--name` of a flag.
fn written(options: &[(String, String)]) -> impl Iterator<Item = String> {
    options.iter().map(|(name, value)| if value.is_empty() { format!("--{name}") } else { format!("--{name}={value}") })
}

/// `text` as one word of a POSIX shell.
#[must_use]
pub fn quote(text: &str) -> String {
    let plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c));
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> JobRequest {
        JobRequest {
            name: "tandem-deepseek-r1".into(),
            token: "tandem-1".into(),
            n_nodes: 6,
            head: None,
            n_tasks_per_node: 8,
            n_gpus_per_node: 8,
            gpu_request: GpuRequest::PerNode,
            time_limit: "2:00:00".into(),
            signal_before_s: 120,
            exclusive: true,
            segment: None,
            options: vec![("partition".into(), "batch".into()), ("exclude".into(), "n[7-8]".into())],
        }
    }

    #[test]
    fn the_script_says_everything_and_becomes_the_orchestrator() {
        let script = request().script(Path::new("/runs/my job"), Path::new("/opt/tandem"));
        let expected = "#!/bin/bash\n#SBATCH --job-name=tandem-deepseek-r1\n#SBATCH --comment=tandem-1\n#SBATCH --time=2:00:00\n\
            #SBATCH '--output=/runs/my job/logs/slurm-%j.out'\n\
            #SBATCH --no-requeue\n#SBATCH --signal=B:USR1@120\n#SBATCH --nodes=6\n#SBATCH --ntasks-per-node=8\n#SBATCH --gpus-per-node=8\n#SBATCH --exclusive\n\
            #SBATCH --partition=batch\n#SBATCH --exclude=n[7-8]\nexec /opt/tandem orchestrate '/runs/my job'\n";
        assert_eq!(script, expected);
    }

    #[test]
    fn a_head_of_other_nodes_is_the_first_component() {
        let mut job = request();
        job.head = Some(Head { n_nodes: 2, options: vec![("partition".into(), "cpu".into())] });
        let text = job.directives(Path::new("/r")).join(" ");
        let (head, rest) = text.split_once(" hetjob ").expect("two components");
        assert!(head.contains("--nodes=2") && head.contains("--partition=cpu") && !head.contains("gpus"), "{head}");
        assert!(
            rest.contains("--nodes=4") && rest.contains("--partition=batch --exclude=n[7-8]") && rest.contains("--gpus-per-node=8"),
            "{rest}"
        );
    }

    #[test]
    fn what_a_cluster_lacks_is_left_out() {
        let mut lacking = request();
        (lacking.gpu_request, lacking.exclusive, lacking.signal_before_s) = (GpuRequest::None, false, 0);
        let text = lacking.directives(Path::new("/r")).join(" ");
        for option in ["gpus", "gres", "exclusive", "signal", "segment"] {
            assert!(!text.contains(option), "{option}: {text}");
        }
        (lacking.gpu_request, lacking.segment) = (GpuRequest::Gres, Some(9));
        let text = lacking.directives(Path::new("/r")).join(" ");
        assert!(text.contains("--gres=gpu:8") && text.contains("--segment=9"), "{text}");
    }

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quote("/a/b-c.d"), "/a/b-c.d");
        assert_eq!(quote("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quote(""), "''");
    }
}
