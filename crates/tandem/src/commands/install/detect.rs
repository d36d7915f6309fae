//! What Slurm and the machine say about a cluster. Each answer may be missing; nothing is guessed.

use tandem_launch::slurm::Slurm;
use tandem_llmb::install::{Answers, gpu_type_of, partitions};

/// Fills what is not stated.
pub(super) fn fill(answers: &mut Answers, slurm: &Slurm) {
    let known = partitions(&slurm.call("sinfo", &["-h", "-o", "%P|%D|%G"]).unwrap_or_default());
    // Of several partitions with GPUs the cluster's default is taken, else the first.
    let with_gpus = || known.iter().filter(|p| p.gpus.is_some());
    let gpu = with_gpus().find(|p| p.is_default).or_else(|| with_gpus().next()).or_else(|| known.iter().find(|p| p.is_default));
    let stated = answers.gpu_partition.as_deref().and_then(|name| known.iter().find(|p| p.name == name));
    if let Some(partition) = stated.or(gpu) {
        answers.gpu_partition.get_or_insert_with(|| partition.name.clone());
        if let Some((kind, n_gpus)) = &partition.gpus {
            answers.gpu_gres.get_or_insert(*n_gpus);
            let named = kind.as_deref().and_then(gpu_type_of);
            answers.gpu_type = answers.gpu_type.take().or_else(|| named.map(str::to_owned));
        }
    }
    let without = known.iter().find(|p| p.gpus.is_none());
    answers.cpu_partition =
        answers.cpu_partition.take().or_else(|| without.map(|p| p.name.clone())).or_else(|| answers.gpu_partition.clone());
    answers.gpu_type = answers.gpu_type.take().or_else(|| {
        let names = slurm.call("nvidia-smi", &["--query-gpu=name", "--format=csv,noheader"]).ok()?;
        gpu_type_of(&names).map(str::to_owned)
    });
    answers.account = answers.account.take().or_else(|| account(slurm));
    answers.node_architecture.get_or_insert_with(|| match answers.gpu_type.as_deref() {
        // Grace is an Arm processor, whatever this login node is.
        Some("gb200" | "gb300") => "aarch64".to_owned(),
        _ => rustix::system::uname().machine().to_string_lossy().into_owned(),
    });
}

/// The user's only account; of several none is guessed.
fn account(slurm: &Slurm) -> Option<String> {
    let user = std::env::var("USER").ok()?;
    let answer = slurm.call("sacctmgr", &["-n", "-P", "show", "assoc", &format!("user={user}"), "format=account"]).ok()?;
    let mut accounts: Vec<&str> = answer.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    accounts.sort_unstable();
    accounts.dedup();
    match accounts.as_slice() {
        [one] => Some((*one).to_owned()),
        _ => None,
    }
}

/// The name of the cluster in Slurm's configuration.
pub(crate) fn cluster_name(slurm: &Slurm) -> Option<String> {
    let answer = slurm.call("scontrol", &["show", "config"]).ok()?;
    let line = answer.lines().find_map(|line| line.strip_prefix("ClusterName"))?;
    Some(line.trim_start_matches([' ', '=']).trim().to_owned())
}
