//! Container images: linked where they are, else made by `enroot import`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use tandem_llmb::install::{Answers, image_file, image_url};

use super::Plan;
use crate::commands::programs::find;
use crate::commands::progress::say;
use crate::exit::{Exit, Failure, OrExit};

/// Minutes that a job for one image gets, as the tools give it.
const IMPORT_MINUTES: u32 = 35;

/// Every image of the workloads.
pub(super) fn prepare(plan: &Plan, answers: &Answers) -> Result<(), Failure> {
    let mut images: Vec<&String> = plan.workloads.iter().flat_map(|w| w.images(&plan.gpu)).collect();
    images.sort();
    images.dedup();
    images.into_iter().try_for_each(|image| one(plan, answers, image))
}

fn one(plan: &Plan, answers: &Answers, image: &str) -> Result<(), Failure> {
    let file = image_file(image);
    let path = plan.root.join("images").join(&file);
    if path.exists() {
        say(&format!("image {file} is there"));
        return Ok(());
    }
    let ready = answers.image_folder.as_deref().map(|dir| Path::new(dir).join(&file)).filter(|path| path.is_file());
    if let Some(ready) = ready {
        if plan.dry_run {
            say(&format!("would link {} to {}", path.display(), ready.display()));
            return Ok(());
        }
        make_parent(&path)?;
        // A link to a file that is gone counts as no image.
        let _ = fs::remove_file(&path);
        symlink(&ready, &path).with_context(|| format!("cannot link {}", path.display())).or_exit(Exit::Artifact)?;
        say(&format!("image {file} is linked to {}", ready.display()));
        return Ok(());
    }
    // Beside its place first, so that a file with the right name is a whole one. Enroot does not overwrite.
    let partial = path.with_extension("sqsh.partial");
    let words = command(answers, image, &partial);
    if plan.dry_run {
        say(&format!("would run {}", words.join(" ")));
        return Ok(());
    }
    if find(&words[0]).is_none() {
        return Err(Failure::message(Exit::NotReady, format!("{} is needed for the image {image}, and not in PATH", words[0]))
            .with_hint("install it, or name a folder that has the image: --image-folder DIR"));
    }
    make_parent(&path)?;
    let _ = fs::remove_file(&partial);
    say(&format!("image {file}: {}", words.join(" ")));
    let mut import = Command::new(&words[0]);
    import.args(&words[1..]).stdin(Stdio::null());
    // Layers that were fetched before an import broke off are in this cache.
    import.env("ENROOT_CACHE_PATH", plan.root.join(".cache/enroot"));
    let status = import.status().with_context(|| format!("cannot start {}", words[0])).or_exit(Exit::NotReady)?;
    if !status.success() || !partial.is_file() {
        let _ = fs::remove_file(&partial);
        return Err(Failure::message(Exit::NotReady, format!("{} failed for {image}: {status}", words[0])).with_hint(
            "layers that were fetched are kept: run `tandem install` again; private registries need ~/.config/enroot/.credentials",
        ));
    }
    fs::rename(&partial, &path).with_context(|| format!("cannot rename {}", partial.display())).or_exit(Exit::Artifact)
}

/// `enroot import`, on this machine or on a compute node.
fn command(answers: &Answers, image: &str, output: &Path) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    if answers.install_method.as_deref() == Some("slurm") {
        words.push("srun".to_owned());
        words.extend(answers.account.iter().map(|account| format!("--account={account}")));
        // Importing needs no GPU.
        let partition = answers.cpu_partition.as_ref().or(answers.gpu_partition.as_ref());
        words.extend(partition.map(|partition| format!("--partition={partition}")));
        words.extend(["-N1", "-n1", "--exclusive"].map(str::to_owned));
        words.push(format!("--time={IMPORT_MINUTES}"));
    }
    words.extend(["enroot", "import", "-o"].map(str::to_owned));
    words.push(output.display().to_string());
    words.extend(answers.node_architecture.iter().flat_map(|arch| ["-a".to_owned(), arch.clone()]));
    words.push(image_url(image));
    words
}

fn make_parent(path: &Path) -> Result<(), Failure> {
    let dir = path.parent().map_or_else(PathBuf::new, Path::to_owned);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display())).or_exit(Exit::Artifact)
}
