//! One server as an `srun` step: its nodes, tasks, GPUs, container and environment.

use serde_json::{Value, json};

/// What every step of a job has in common.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepSettings {
    /// `--mpi`, e.g. `pmix`; none when the engine needs no MPI.
    pub mpi: Option<String>,
    /// Where the server's files are.
    pub container: Container,
    /// Whether steps ask for GPUs (false where the job could not either).
    pub ask_gpus: bool,
    /// More arguments of `srun`, as they are.
    pub extra: Vec<String>,
}

/// Where a server's files are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Container {
    /// On the node.
    #[default]
    None,
    /// In an image that the pyxis plugin starts with enroot.
    Pyxis {
        /// Image file or registry reference.
        image: String,
        /// `SOURCE:TARGET[:FLAGS]`.
        mounts: Vec<String>,
    },
    /// In an image that Apptainer starts.
    Apptainer {
        /// Image file.
        image: String,
        /// `SOURCE:TARGET[:FLAGS]`.
        mounts: Vec<String>,
    },
}

impl Container {
    /// The image, if there is one.
    #[must_use]
    pub fn image(&self) -> Option<&str> {
        match self {
            Container::None => None,
            Container::Pyxis { image, .. } | Container::Apptainer { image, .. } => Some(image),
        }
    }
}

/// Variables whose values mean the node's own folders: inside a container the image's hold, or its programs would not be found.
const OF_THE_HOST: [&str; 4] = ["PATH", "HOME", "USER", "LD_LIBRARY_PATH"];

/// One server, placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Process name, also the name of the step.
    pub name: String,
    /// Node names, in the order of the ranks.
    pub nodes: Vec<String>,
    /// The component of a heterogeneous job that these nodes are in.
    pub het_group: Option<u32>,
    /// Tasks over all nodes.
    pub n_tasks: u32,
    /// GPUs that the job has on each node; 0 for a step that needs none.
    pub n_gpus_per_node: u32,
    /// Devices of the server on a node when it does not have the whole node.
    pub devices: Option<Vec<u32>>,
    /// The server's command line.
    pub argv: Vec<String>,
    /// Variables that it gets, besides Slurm's own.
    pub env: Vec<(String, String)>,
}

impl StepSettings {
    /// Arguments of `srun` for this step; the caller gives `srun` the step's variables in its own environment.
    #[must_use]
    pub fn srun_args(&self, job_id: u64, step: &Step) -> Vec<String> {
        let mut args = vec![
            format!("--jobid={job_id}"),
            format!("--job-name={}", step.name),
            format!("--nodelist={}", step.nodes.join(",")),
            format!("--nodes={}", step.nodes.len()),
            format!("--ntasks={}", step.n_tasks),
            // Steps share the nodes of the job; who uses which GPU is the plan's decision.
            "--overlap".to_owned(),
            "--cpu-bind=none".to_owned(),
            // Without these a server of which one rank died would hang until the time limit.
            "--kill-on-bad-exit=1".to_owned(),
            "--unbuffered".to_owned(),
            format!("--export={}", exported(step)),
        ];
        args.extend(step.het_group.map(|group| format!("--het-group={group}")));
        if self.ask_gpus {
            args.push(format!("--gpus-per-node={}", step.n_gpus_per_node));
        }
        args.extend(self.mpi.as_ref().map(|mpi| format!("--mpi={mpi}")));
        if let Container::Pyxis { image, mounts } = &self.container {
            args.push(format!("--container-image={image}"));
            args.push(format!("--container-name=tandem-{job_id}"));
            if !mounts.is_empty() {
                args.push(format!("--container-mounts={}", mounts.join(",")));
            }
            let inside: Vec<&str> = step.env.iter().map(|(name, _)| name.as_str()).filter(|name| !OF_THE_HOST.contains(name)).collect();
            if !inside.is_empty() {
                args.push(format!("--container-env={}", inside.join(",")));
            }
            args.push("--no-container-mount-home".to_owned());
        }
        args.extend(self.extra.iter().cloned());
        args.extend(self.command(step));
        args
    }

    fn command(&self, step: &Step) -> Vec<String> {
        let mut command = Vec::new();
        if let Some(devices) = &step.devices {
            // Slurm sets this variable in each task, so it is narrowed behind Slurm, in front of the server. What Slurm gave need not
            // begin with 0: another job may have those. The plan's device N is the Nth of them.
            let of_node = joined(0..step.n_gpus_per_node);
            let ours = joined(devices.iter().map(|device| device + 1));
            let narrow =
                format!("export CUDA_VISIBLE_DEVICES=$(echo ${{CUDA_VISIBLE_DEVICES:-{of_node}}} | cut -d, -f{ours}); exec \"$@\"");
            command.extend(["sh".to_owned(), "-c".to_owned(), narrow, "sh".to_owned()]);
        }
        if let Container::Apptainer { image, mounts } = &self.container {
            command.extend(["apptainer".to_owned(), "exec".to_owned(), "--nv".to_owned()]);
            command.extend(mounts.iter().flat_map(|mount| ["--bind".to_owned(), mount.clone()]));
            command.push(image.clone());
        }
        command.extend(step.argv.iter().cloned());
        command
    }

    /// For `job.json`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let container = match &self.container {
            Container::None => json!({"runtime": "none"}),
            Container::Pyxis { image, mounts } => json!({"runtime": "pyxis", "image": image, "mounts": mounts}),
            Container::Apptainer { image, mounts } => json!({"runtime": "apptainer", "image": image, "mounts": mounts}),
        };
        json!({"mpi": self.mpi, "container": container, "ask_gpus": self.ask_gpus, "srun_args": self.extra})
    }

    /// Reads what [`StepSettings::to_json`] wrote; `None` when it is something else.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        let texts =
            |value: &Value| -> Option<Vec<String>> { value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect() };
        let container = &value["container"];
        let image = || container["image"].as_str().map(str::to_owned);
        let container = match container["runtime"].as_str()? {
            "none" => Container::None,
            "pyxis" => Container::Pyxis { image: image()?, mounts: texts(&container["mounts"])? },
            "apptainer" => Container::Apptainer { image: image()?, mounts: texts(&container["mounts"])? },
            _ => return None,
        };
        let mpi = value["mpi"].as_str().map(str::to_owned);
        Some(StepSettings { mpi, container, ask_gpus: value["ask_gpus"].as_bool()?, extra: texts(&value["srun_args"])? })
    }
}

/// Names only: `srun` takes the values from its own environment, where a comma is no trouble.
fn exported(step: &Step) -> String {
    if step.env.is_empty() { "NONE".to_owned() } else { names(step) }
}

fn joined(numbers: impl Iterator<Item = u32>) -> String {
    numbers.map(|n| n.to_string()).collect::<Vec<_>>().join(",")
}

fn names(step: &Step) -> String {
    let names: Vec<&str> = step.env.iter().map(|(name, _)| name.as_str()).collect();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step() -> Step {
        Step {
            name: "decode-0".into(),
            nodes: vec!["n5".into(), "n6".into()],
            het_group: None,
            n_tasks: 16,
            n_gpus_per_node: 8,
            devices: None,
            argv: vec!["server".into(), "--x".into()],
            env: vec![("PATH".into(), "/bin".into()), ("UCX_TLS".into(), "rc,sm".into())],
        }
    }

    #[test]
    fn a_bare_step_names_nodes_tasks_gpus_and_listed_variables_only() {
        let settings = StepSettings { ask_gpus: true, mpi: Some("pmix".into()), ..StepSettings::default() };
        let text = settings.srun_args(7, &step()).join(" ");
        let expected = "--jobid=7 --job-name=decode-0 --nodelist=n5,n6 --nodes=2 --ntasks=16 --overlap --cpu-bind=none \
            --kill-on-bad-exit=1 --unbuffered --export=PATH,UCX_TLS --gpus-per-node=8 --mpi=pmix server --x";
        assert_eq!(text, expected);
    }

    #[test]
    fn containers_wrap_the_command_or_become_options_of_srun() {
        let mounts = vec!["/models:/models:ro".to_owned()];
        let container = Container::Pyxis { image: "/i.sqsh".into(), mounts: mounts.clone() };
        let mut settings = StepSettings { container, ..StepSettings::default() };
        let text = settings.srun_args(7, &step()).join(" ");
        let options = "--container-image=/i.sqsh --container-name=tandem-7 --container-mounts=/models:/models:ro \
            --container-env=UCX_TLS --no-container-mount-home server --x";
        assert!(text.ends_with(options), "{text}");
        settings.container = Container::Apptainer { image: "/i.sif".into(), mounts };
        let packed = Step { devices: Some(vec![4, 5, 6, 7]), ..step() };
        let text = settings.srun_args(7, &packed).join(" ");
        let command = "sh -c export CUDA_VISIBLE_DEVICES=$(echo ${CUDA_VISIBLE_DEVICES:-0,1,2,3,4,5,6,7} | cut -d, -f5,6,7,8); \
            exec \"$@\" sh apptainer exec --nv --bind /models:/models:ro /i.sif server --x";
        assert!(text.ends_with(command) && !text.contains("--gpus"), "{text}");
        assert_eq!(StepSettings::from_json(&settings.to_json()), Some(settings));
    }
}
