//! The files of an llmb installation: the cluster's, the workloads', the release's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tandem_llmb::{Cluster, LlmbError, Workload, release};

use crate::exit::{Exit, Failure, OrExit};

/// Folders below a repository; deeper ones hold no workload.
const MAX_DEPTH: usize = 8;

/// An installation as its files describe it.
#[derive(Debug)]
pub(crate) struct Installation {
    /// `cluster_config.yaml`.
    pub(crate) config: PathBuf,
    pub(crate) cluster: Cluster,
    /// By key; the folder is that of the `metadata.yaml`.
    pub(crate) workloads: Vec<Workload>,
    folders: BTreeMap<String, PathBuf>,
    /// Why a workload that has files cannot be used: two files claim its key.
    ambiguous: BTreeMap<String, String>,
    /// Files that were passed over, and why.
    pub(crate) notes: Vec<String>,
    pub(crate) release: Option<String>,
}

/// `cluster_config.yaml` of this directory, else that of `$LLMB_INSTALL`.
pub(crate) fn find_config() -> Option<PathBuf> {
    const NAME: &str = "cluster_config.yaml";
    let install = std::env::var_os("LLMB_INSTALL").filter(|value| !value.is_empty()).map(|dir| Path::new(&dir).join(NAME));
    [Some(PathBuf::from(NAME)), install].into_iter().flatten().find(|path| path.is_file())
}

/// The cluster's file alone, for commands that need no workload.
pub(crate) fn cluster() -> Result<(PathBuf, Cluster), Failure> {
    let path = find_config().ok_or_else(|| {
        Failure::message(Exit::Usage, "cluster_config.yaml is neither in this directory nor in $LLMB_INSTALL")
            .with_hint("set LLMB_INSTALL to the installation, or make one: `tandem install`")
    })?;
    let cluster = Cluster::parse(&path.display().to_string(), &read(&path)?).map_err(invalid)?;
    Ok((std::path::absolute(&path).or_exit(Exit::Artifact)?, cluster))
}

impl Installation {
    pub(crate) fn load() -> Result<Self, Failure> {
        let (config, cluster) = cluster()?;
        let repo = PathBuf::from(&cluster.llmb_repo);
        if !repo.is_dir() {
            let text = format!("llmb_repo of {} is no folder: {}", config.display(), repo.display());
            return Err(Failure::message(Exit::Recipe, text));
        }
        let mut files = Vec::new();
        find_metadata(&repo, 0, &mut files);
        files.sort();
        let mut all = Installation {
            config,
            cluster,
            workloads: Vec::new(),
            folders: BTreeMap::new(),
            ambiguous: BTreeMap::new(),
            notes: Vec::new(),
            release: None,
        };
        files.iter().for_each(|file| all.take(file));
        let path = repo.join("release.yaml");
        if path.is_file() {
            all.release = release(&path.display().to_string(), &read(&path)?).map_err(invalid)?;
        }
        Ok(all)
    }

    fn take(&mut self, file: &Path) {
        let name = file.display().to_string();
        let text = fs::read_to_string(file).map_err(|e| LlmbError(format!("{name}: {e}")));
        let workload = match text.and_then(|text| Workload::parse(&name, &text)) {
            Ok(Some(workload)) => workload,
            Ok(None) => return self.notes.push(format!("{name}: no general.workload and general.workload_type; skipped")),
            Err(error) => return self.notes.push(format!("{error}; skipped")),
        };
        if let Some(first) = self.folders.get(&workload.key) {
            let text = format!("{} is described twice: in {} and in {name}", workload.key, first.display());
            self.ambiguous.insert(workload.key, text);
            return;
        }
        self.folders.insert(workload.key.clone(), file.parent().unwrap_or(Path::new(".")).to_owned());
        self.workloads.push(workload);
    }

    /// A workload and the folder of its files.
    pub(crate) fn workload(&self, key: &str) -> Result<(&Workload, &Path), Failure> {
        if let Some(text) = self.ambiguous.get(key) {
            return Err(Failure::message(Exit::Recipe, text.clone()));
        }
        let found = self.workloads.iter().find(|w| w.key == key).zip(self.folders.get(key));
        let (workload, folder) = found.ok_or_else(|| Failure::message(Exit::Usage, format!("Workload '{key}' not found.")))?;
        Ok((workload, folder))
    }

    /// `$LLMB_INSTALL/workloads/KEY`.
    pub(crate) fn workload_dir(&self, key: &str) -> PathBuf {
        Path::new(&self.cluster.llmb_install).join("workloads").join(key)
    }
}

/// The workloads of a repository; files that cannot be read are passed over.
pub(crate) fn find_workloads(repo: &Path) -> Vec<Workload> {
    let mut files = Vec::new();
    find_metadata(repo, 0, &mut files);
    files.sort();
    let read = |file: &PathBuf| Workload::parse(&file.display().to_string(), &fs::read_to_string(file).ok()?).ok()?;
    files.iter().filter_map(read).collect()
}

fn find_metadata(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        let (name, path) = (entry.file_name(), entry.path());
        // Links are not followed, so a repository cannot send the search round in a circle.
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if name == "metadata.yaml" && !is_dir {
            found.push(path);
        } else if is_dir && depth < MAX_DEPTH && name != "deprecated" && !name.to_string_lossy().starts_with('.') {
            find_metadata(&path, depth + 1, found);
        }
    }
}

pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Recipe)
}

/// A file or a request that cannot be used.
pub(crate) fn invalid(error: LlmbError) -> Failure {
    Failure::new(Exit::Recipe, error)
}
