//! The folder of one run: where it is, and writing files into it whole or not at all.

use std::borrow::Cow;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use tandem_metrics::artifacts::Content;

use crate::exit::{Exit, Failure, OrExit};

/// A folder that this run created and owns.
#[derive(Debug)]
pub(crate) struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// Creates the folder at `path` with `logs/` and `configs/`. It may exist, but must be empty.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Failure::message(Exit::Usage, format!("{} is not empty", path.display()))
                .with_hint("a run never overwrites another: name a new folder with --out, or leave --out away"));
        }
        let create = |dir: &Path| fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()));
        create(&path.join("logs")).or_exit(Exit::Artifact)?;
        create(&path.join("configs")).or_exit(Exit::Artifact)?;
        // Children get paths in it as arguments, whatever their working directory will be.
        let root = path.canonicalize().with_context(|| format!("cannot find {}", path.display())).or_exit(Exit::Artifact)?;
        Ok(RunFolder { root })
    }

    /// Takes over a folder that a submission prepared.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let root = path.canonicalize().with_context(|| format!("cannot find {}", path.display())).or_exit(Exit::Artifact)?;
        Ok(RunFolder { root })
    }

    /// `experiments/isl<ISL>_osl<OSL>_<YYYYmmdd_HHMMSS>` below `$LLMB_WORKLOAD`, or here; a number is added while it exists.
    pub(crate) fn default_path(isl: u32, osl: u32) -> PathBuf {
        let base = std::env::var_os("LLMB_WORKLOAD").filter(|v| !v.is_empty()).map_or_else(PathBuf::new, PathBuf::from);
        RunFolder::default_below(&base, isl, osl)
    }

    /// [`RunFolder::default_path`] below a given folder.
    pub(crate) fn default_below(base: &Path, isl: u32, osl: u32) -> PathBuf {
        let time = jiff::Zoned::now().strftime("%Y%m%d_%H%M%S");
        RunFolder::free(&base.join("experiments").join(format!("isl{isl}_osl{osl}_{time}")))
    }

    /// `path`, or `path_2`, `path_3` … while it exists.
    pub(crate) fn free(path: &Path) -> PathBuf {
        let numbered = (2..).map(|n| PathBuf::from(format!("{}_{n}", path.display())));
        std::iter::once(path.to_owned()).chain(numbered).find(|path| !path.exists()).unwrap_or_else(|| path.to_owned())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes a file of the run: beside it first, then renamed, so that a reader never sees half of it.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        write_whole(&self.root.join(name), bytes)
    }

    /// As [`RunFolder::write`], a piece at a time.
    pub(crate) fn write_content(&self, name: &str, content: &Content) -> Result<(), Failure> {
        write_pieces(&self.root.join(name), content.pieces())
    }
}

/// Writes `path` (and its folder) whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    write_pieces(path, std::iter::once(Cow::Borrowed(bytes)))
}

fn write_pieces<'a>(path: &Path, mut pieces: impl Iterator<Item = Cow<'a, [u8]>>) -> Result<(), Failure> {
    let mut write = || -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let beside = folder.join(format!(".{name}.{}", std::process::id()));
        let written = fs::File::create(&beside).and_then(|file| {
            let mut out = BufWriter::new(file);
            pieces.try_for_each(|piece| out.write_all(&piece))?;
            out.into_inner()?.sync_all()
        });
        written.and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
            let _ = fs::remove_file(&beside);
        })
    };
    write().with_context(|| format!("cannot write {}", path.display())).or_exit(Exit::Artifact)
}

/// Adds a line to a log. A log that cannot be written must not end a run that is otherwise fine.
pub(crate) fn append_line(path: &Path, line: &str) {
    let append = || writeln!(fs::OpenOptions::new().create(true).append(true).open(path)?, "{line}");
    if let Err(error) = append() {
        tracing::warn!(%error, path = %path.display(), "a log cannot be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_files_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let folder = RunFolder::create(&path).unwrap();
        folder.write("a/b.json", b"{}").unwrap();
        assert_eq!(fs::read(path.join("a/b.json")).unwrap(), b"{}");
        assert_eq!(RunFolder::create(&path).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(&dir.path().join("run")).unwrap();
        // A directory in the place of the file makes the rename fail.
        fs::create_dir_all(folder.path("x.json/full")).unwrap();
        let failure = folder.write("x.json", b"{}").unwrap_err();
        assert!(failure.to_string().contains("x.json"));
        let names: Vec<_> = fs::read_dir(folder.root()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(names.iter().all(|n| !n.to_string_lossy().starts_with('.')), "{names:?}");
    }
}
