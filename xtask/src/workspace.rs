//! What is in the repository: its packages, from `cargo metadata`, and its files, from git.
//!
//! Read once; every tidy rule is then a pure function over [`Workspace`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The repository as the tidy rules see it.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// Members of the workspace, in name order.
    pub(crate) packages: Vec<Package>,
    /// Text files that git tracks or would track, in path order.
    pub(crate) files: Vec<SourceFile>,
    /// Paths of all files that git tracks or would track, text or not.
    pub(crate) paths: Vec<String>,
}

/// One member of the workspace.
#[derive(Debug, Default, Clone)]
pub(crate) struct Package {
    /// Package name, e.g. `tandem-kv`.
    pub(crate) name: String,
    /// Folder relative to the root, e.g. `crates/tandem-kv`.
    pub(crate) dir: String,
    /// Declared dependencies.
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line of a manifest's dependencies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dependency {
    /// Name of the package depended on.
    pub(crate) name: String,
    /// For tests and benchmarks only.
    pub(crate) dev: bool,
}

/// A text file of the repository.
#[derive(Debug, Clone, Default)]
pub(crate) struct SourceFile {
    /// Path relative to the root, with `/`.
    pub(crate) path: String,
    /// Its contents.
    pub(crate) text: String,
}

/// Files with these endings are read as text.
const TEXT_ENDINGS: [&str; 12] = ["rs", "py", "sh", "toml", "md", "yml", "yaml", "json", "csv", "txt", "snap", "svg"];

/// A larger file is data that nobody wrote by hand.
const MAX_TEXT_BYTES: u64 = 1 << 20;

impl Workspace {
    /// The folder that holds the workspace manifest.
    pub(crate) fn root() -> Result<PathBuf> {
        let own = Path::new(env!("CARGO_MANIFEST_DIR"));
        Ok(own.parent().context("xtask lies directly below the workspace root")?.to_owned())
    }

    /// Reads packages and files of this repository.
    pub(crate) fn read() -> Result<Self> {
        let root = Self::root()?;
        let paths = list_files(&root)?;
        let mut files = Vec::new();
        for path in &paths {
            if let Some(text) = read_text(&root, path)? {
                files.push(SourceFile { path: path.clone(), text });
            }
        }
        Ok(Self { packages: read_packages(&root)?, files, paths })
    }

    /// The file at `path`, if it exists and is text.
    pub(crate) fn file(&self, path: &str) -> Option<&SourceFile> {
        self.files.iter().find(|f| f.path == path)
    }

    /// The package called `name`.
    pub(crate) fn package(&self, name: &str) -> Option<&Package> {
        self.packages.iter().find(|p| p.name == name)
    }

    /// Files inside the folder of `package`.
    pub(crate) fn files_of<'a>(&'a self, package: &'a Package) -> impl Iterator<Item = &'a SourceFile> {
        self.files.iter().filter(|f| f.path.strip_prefix(package.dir.as_str()).is_some_and(|rest| rest.starts_with('/')))
    }

    /// Dependencies between members, those of tests excluded.
    pub(crate) fn internal_edges(&self) -> BTreeMap<&str, Vec<&str>> {
        let own = |d: &&Dependency| !d.dev && self.package(&d.name).is_some();
        self.packages.iter().map(|p| (p.name.as_str(), p.dependencies.iter().filter(own).map(|d| d.name.as_str()).collect())).collect()
    }
}

/// Text of `path`, or `None` for data, binary files and files that were deleted but are still in the index.
fn read_text(root: &Path, path: &str) -> Result<Option<String>> {
    let full = root.join(path);
    let Ok(meta) = std::fs::symlink_metadata(&full) else { return Ok(None) };
    if !meta.is_file() || meta.len() > MAX_TEXT_BYTES {
        return Ok(None);
    }
    let ending = Path::new(path).extension().and_then(|e| e.to_str());
    let is_text = ending.is_some_and(|e| TEXT_ENDINGS.contains(&e));
    if ending.is_some() && !is_text {
        return Ok(None);
    }
    let bytes = std::fs::read(&full).with_context(|| format!("cannot read {path}"))?;
    Ok(String::from_utf8(bytes).ok())
}

/// Folders that are never part of the repository, for copies without git.
const FOREIGN_FOLDERS: [&str; 4] = ["target", ".git", "experiments", "__pycache__"];

/// Files that git tracks, and new ones that it does not ignore; in a copy without git, everything that was not built.
fn list_files(root: &Path) -> Result<Vec<String>> {
    let git = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let mut paths: Vec<String> = match Command::new("git").args(git).current_dir(root).output() {
        Ok(out) if out.status.success() => {
            out.stdout.split(|b| *b == 0).filter(|p| !p.is_empty()).map(|p| String::from_utf8_lossy(p).into_owned()).collect()
        }
        _ => walk(root)?,
    };
    paths.sort();
    paths.dedup();
    Ok(paths)
}

/// All files below `root`, relative to it.
fn walk(root: &Path) -> Result<Vec<String>> {
    let (mut paths, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            let path = entry.path();
            if !entry.file_type()?.is_dir() {
                paths.push(path.strip_prefix(root).context("a file lies below its root")?.to_string_lossy().replace('\\', "/"));
            } else if !FOREIGN_FOLDERS.contains(&entry.file_name().to_string_lossy().as_ref()) {
                open.push(path);
            }
        }
    }
    Ok(paths)
}

/// Members of the workspace as cargo sees them.
fn read_packages(root: &Path) -> Result<Vec<Package>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let out = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr).trim());
    let json: Value = serde_json::from_slice(&out.stdout).context("cargo metadata is not JSON")?;
    let mut packages = json["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?
        .iter()
        .map(|p| parse_package(root, p))
        .collect::<Result<Vec<_>>>()?;
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(packages)
}

fn parse_package(root: &Path, json: &Value) -> Result<Package> {
    let name = json["name"].as_str().context("a package without a name")?.to_owned();
    let manifest = Path::new(json["manifest_path"].as_str().context("a package without a manifest")?);
    let dir = manifest
        .parent()
        .and_then(|d| d.strip_prefix(root).ok())
        .with_context(|| format!("{name} lies outside the workspace"))?
        .to_string_lossy()
        .replace('\\', "/");
    let dependencies = json["dependencies"].as_array().into_iter().flatten().filter_map(parse_dependency).collect();
    Ok(Package { name, dir, dependencies })
}

fn parse_dependency(json: &Value) -> Option<Dependency> {
    Some(Dependency { name: json["name"].as_str()?.to_owned(), dev: json["kind"].as_str() == Some("dev") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_repository_can_be_read() {
        let workspace = Workspace::read().unwrap();
        let xtask = workspace.package("xtask").unwrap();
        assert_eq!(xtask.dir, "xtask");
        assert!(xtask.dependencies.contains(&Dependency { name: "anyhow".into(), dev: false }));
        assert!(workspace.file("xtask/src/workspace.rs").unwrap().text.contains("this_repository_can_be_read"));
        assert!(!walk(&Workspace::root().unwrap()).unwrap().iter().any(|p| p.starts_with("target/")));
        assert!(workspace.files_of(xtask).all(|f| f.path.starts_with("xtask/")));
    }
}
