//! Finding other programs of this machine.

use std::path::{Path, PathBuf};

/// Where `PATH` has `name`.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Free bytes below `path`, of its nearest folder that exists.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    let dir = path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("."));
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    rustix::fs::statvfs(dir).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Bytes for people.
pub(super) fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_where_path_has_them() {
        assert!(find("sh").is_some() && find("no-such-program-here").is_none());
        assert!(free_bytes(Path::new("/no/such/folder")).is_some());
    }
}
