//! `tandem install`: the folders, the cluster's file, the images and the models of an llmb installation.
//!
//! Reading order: `detect` (what Slurm and the machine say), `images`, `models`. Not done here, and said at the end: Python
//! environments, profilers and setup scripts of workloads, which Tandem does not need.

mod detect;
mod images;
mod models;

use std::fs;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use tandem_launch::slurm::Slurm;
use tandem_llmb::install::{Answers, Model, OWN_METADATA, models as models_of};
use tandem_llmb::{Cluster, Workload};

pub(crate) use detect::cluster_name;
pub(crate) use models::state as model_state;

use super::llmb::installation::find_workloads;
use super::progress::say;
use super::run_folder::write_whole;
use crate::cli_doctor::{InstallArgs, Part};
use crate::exit::{Exit, Failure, OrExit};

/// The workload that Tandem runs by a recipe of its own.
const OWN: &str = "inference_deepseek-r1-dynamo";

pub(crate) fn install(args: &InstallArgs) -> Result<(), Failure> {
    let slurm = args.calls.slurm();
    let answers = answers(args, &slurm)?;
    if let Some(path) = &args.record {
        record(path, &answers)?;
    }
    let plan = Plan::new(args, &answers)?;
    let wants = |part| args.only.is_empty() || args.only.contains(&part);
    if wants(Part::Site) {
        plan.site(&answers, &slurm)?;
    }
    // All that can be refused is refused before the first byte is fetched.
    if wants(Part::Models) {
        models::check_space(&plan)?;
    }
    if wants(Part::Images) {
        images::prepare(&plan, &answers)?;
    }
    if wants(Part::Models) {
        models::fetch(&plan)?;
    }
    plan.leftovers();
    let done = if plan.dry_run { "dry run: nothing was done" } else { "installed" };
    say(&format!("{done}; export LLMB_INSTALL={}", plan.root.display()));
    Ok(())
}

/// What is installed where.
#[derive(Debug)]
struct Plan {
    root: PathBuf,
    repo: PathBuf,
    gpu: String,
    workloads: Vec<Workload>,
    models: Vec<Model>,
    dry_run: bool,
    verify: bool,
    retry_after: std::time::Duration,
}

impl Plan {
    fn new(args: &InstallArgs, answers: &Answers) -> Result<Self, Failure> {
        let root = PathBuf::from(answers.install_path.as_deref().unwrap_or_default());
        let repo = PathBuf::from(answers.llmb_repo.as_deref().unwrap_or_default());
        let gpu = answers.gpu_type.clone().unwrap_or_default();
        let mut known = find_workloads(&repo);
        if !known.iter().any(|w| w.key == OWN) {
            known.extend(Workload::parse("metadata.yaml", OWN_METADATA).or_exit(Exit::Bug)?);
        }
        let is_all = answers.workloads == ["all"];
        let workloads: Vec<Workload> = match is_all {
            true => known.into_iter().filter(|w| w.models(&gpu).is_some()).collect(),
            false => {
                let names: Vec<String> = known.iter().map(|w| w.key.clone()).collect();
                let unknown = answers.workloads.iter().find(|key| !names.contains(key));
                if let Some(key) = unknown {
                    let text = format!("workload '{key}' is not in {} (it has {})", repo.display(), names.join(", "));
                    return Err(Failure::message(Exit::Usage, text).with_hint("--repo DIR names the benchmark collection"));
                }
                known.into_iter().filter(|w| answers.workloads.contains(&w.key)).collect()
            }
        };
        if let Some(workload) = workloads.iter().find(|w| w.models(&gpu).is_none()) {
            return Err(Failure::message(Exit::Usage, format!("{} does not run on {gpu}", workload.key)));
        }
        let mut models: Vec<Model> = workloads.iter().flat_map(|w| models_of(w, &gpu)).chain(answers.models.iter().cloned()).collect();
        let mut seen = Vec::new();
        models.retain(|model| {
            let key = (model.repo_id.clone(), model.dir.clone());
            let is_new = !seen.contains(&key);
            seen.push(key);
            is_new
        });
        let retry_after = std::time::Duration::from_secs(args.retry_after);
        Ok(Plan { root, repo, gpu, workloads, models, dry_run: args.dry_run, verify: args.verify, retry_after })
    }

    /// Folders and `cluster_config.yaml`.
    fn site(&self, answers: &Answers, slurm: &Slurm) -> Result<(), Failure> {
        let path = self.root.join("cluster_config.yaml");
        let old = fs::read_to_string(&path).ok();
        // What another call installed stays installed.
        let kept = old.as_deref().and_then(|text| Cluster::parse("", text).ok()).map(|cluster| cluster.installed).unwrap_or_default();
        let named = Answers { workloads: self.workloads.iter().map(|w| w.key.clone()).collect(), ..answers.clone() };
        let text = named.cluster_config(detect::cluster_name(slurm).as_deref(), &kept);
        if self.dry_run {
            say(&format!("would write {}:\n{text}", path.display()));
            return Ok(());
        }
        let folders = [".cache", "images", "datasets", "tools", "venvs"].map(str::to_owned).into_iter();
        let experiments = self.workloads.iter().map(|w| format!("workloads/{}/experiments", w.key));
        for folder in folders.chain(experiments) {
            let folder = self.root.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display())).or_exit(Exit::Artifact)?;
        }
        if self.workloads.iter().any(|w| w.key == OWN) && !find_workloads(&self.repo).iter().any(|w| w.key == OWN) {
            let path = self.repo.join("inference/deepseek-r1-dynamo/metadata.yaml");
            write_whole(&path, OWN_METADATA.as_bytes())?;
            say(&format!("wrote {}", path.display()));
        }
        match old {
            Some(old) if old == text => return Ok(()),
            Some(old) => {
                let before = self.root.join("cluster_config.yaml.old");
                write_whole(&before, old.as_bytes())?;
                say(&format!("the file as it was is {}", before.display()));
            }
            None => {}
        }
        write_whole(&path, text.as_bytes())?;
        say(&format!("wrote {}", path.display()));
        Ok(())
    }

    /// What the tools' installer does and this does not.
    fn leftovers(&self) {
        for workload in self.workloads.iter().filter(|w| w.key != OWN) {
            for task in workload.setup_tasks() {
                say(&format!("note: {}: its setup task is not run: {task}", workload.key));
            }
            if workload.needs_venv() {
                say(&format!("note: {}: it wants a Python environment, which is not made", workload.key));
            }
        }
    }
}

/// Play file, flags, what is installed, what is detected; then questions, on a terminal.
fn answers(args: &InstallArgs, slurm: &Slurm) -> Result<Answers, Failure> {
    let mut answers = match &args.play {
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Recipe)?;
            Answers::parse(&path.display().to_string(), &text).or_exit(Exit::Recipe)?
        }
        None => Answers::default(),
    };
    let text = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
    let stated = std::env::var("LLMB_INSTALL").ok().filter(|value| !value.is_empty());
    answers.install_path = args.path.as_deref().map(text).or(answers.install_path).or(stated);
    answers.llmb_repo = args.repo.as_deref().map(text).or(answers.llmb_repo);
    answers.image_folder = args.image_folder.as_deref().map(text).or(answers.image_folder);
    if !args.workloads.is_empty() {
        answers.workloads.clone_from(&args.workloads);
    }
    let asks = args.play.is_none() && !args.yes && std::io::stdin().is_terminal();
    if args.play.is_none() {
        detect::fill(&mut answers, slurm);
    }
    if asks {
        ask(&mut answers, std::io::stdin().lock().lines())?;
    }
    if answers.workloads.is_empty() {
        answers.workloads = vec![OWN.to_owned()];
    }
    let missing = answers.missing();
    if !missing.is_empty() {
        let text = format!("these are neither stated nor detected: {}", missing.join(", "));
        return Err(Failure::message(Exit::Usage, text).with_hint("write them into a file for --play, or answer on a terminal"));
    }
    answers.install_method.get_or_insert_with(|| "local".to_owned());
    let root = PathBuf::from(answers.install_path.clone().unwrap_or_default());
    answers.llmb_repo.get_or_insert_with(|| root.join("llmb_repo").display().to_string());
    Ok(answers)
}

/// One question for each value, with what was found as the default.
fn ask(answers: &mut Answers, mut lines: impl Iterator<Item = std::io::Result<String>>) -> Result<(), Failure> {
    let mut question = |label: &str, value: &mut Option<String>| -> Result<(), Failure> {
        let _ = write!(std::io::stderr(), "{label} [{}]: ", value.as_deref().unwrap_or(""));
        let line = match lines.next() {
            Some(line) => line.or_exit(Exit::Artifact)?,
            None => return Err(Failure::message(Exit::Interrupted, "no more answers")),
        };
        if !line.trim().is_empty() {
            *value = Some(line.trim().to_owned());
        }
        Ok(())
    };
    question("installation", &mut answers.install_path)?;
    question("GPU type (h100, b200, gb200, b300, gb300)", &mut answers.gpu_type)?;
    question("architecture of the nodes (x86_64, aarch64)", &mut answers.node_architecture)?;
    question("Slurm account", &mut answers.account)?;
    question("partition of GPU jobs", &mut answers.gpu_partition)?;
    question("partition of CPU jobs", &mut answers.cpu_partition)?;
    let mut gres = answers.gpu_gres.map(|n| n.to_string());
    question("GPUs of a node that jobs ask for, empty for none", &mut gres)?;
    answers.gpu_gres = gres.and_then(|text| text.parse().ok()).filter(|n| (1..=8).contains(n));
    question("images are made: local, or slurm (on a compute node)", &mut answers.install_method)?;
    question("folder of the benchmark collection, empty for Tandem's own recipe only", &mut answers.llmb_repo)?;
    let mut workloads = Some(answers.workloads.join(",")).filter(|text| !text.is_empty()).or_else(|| Some(OWN.to_owned()));
    question("workloads, or all", &mut workloads)?;
    answers.workloads = workloads.unwrap_or_default().split(',').map(|key| key.trim().to_owned()).filter(|key| !key.is_empty()).collect();
    Ok(())
}

/// The answers name accounts and may hold tokens in variables, so only the user reads them.
fn record(path: &Path, answers: &Answers) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;
    write_whole(path, answers.play_file().as_bytes())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(|| format!("{}", path.display())).or_exit(Exit::Artifact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_answer_takes_what_was_found_and_any_other_replaces_it() {
        let found = Answers { gpu_type: Some("h100".into()), account: Some("a".into()), gpu_gres: Some(8), ..Answers::default() };
        let mut answers = found.clone();
        let typed = ["/llmb", "", "x86_64", "b", "batch", "", "4", "", "", "pretrain_x, pretrain_y"];
        ask(&mut answers, typed.iter().map(|line| Ok((*line).to_owned()))).unwrap();
        assert_eq!((answers.install_path.as_deref(), answers.gpu_type.as_deref()), (Some("/llmb"), Some("h100")));
        assert_eq!((answers.account.as_deref(), answers.gpu_gres), (Some("b"), Some(4)));
        assert_eq!(answers.workloads, ["pretrain_x", "pretrain_y"]);
        assert!(answers.missing().is_empty());
        // Whoever closes the terminal has not agreed.
        assert_eq!(ask(&mut found.clone(), std::iter::empty()).unwrap_err().exit, Exit::Interrupted);
    }
}
