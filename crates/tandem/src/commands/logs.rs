//! `tandem logs`: the logs of a job or run by the names of its processes.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tandem_launch::job;
use tandem_launch::logs::tail;

use super::submit::LOOK_EVERY;
use crate::cli_jobs::LogsArgs;
use crate::exit::{Exit, Failure, OrExit};

pub(crate) fn logs(args: &LogsArgs) -> Result<(), Failure> {
    let known = known_logs(&args.job);
    let mut out = std::io::stdout();
    let Some(name) = &args.name else {
        for (name, path) in known {
            writeln!(out, "{name:<12} {}", path.display()).or_exit(Exit::Artifact)?;
        }
        return Ok(());
    };
    let Some((_, path)) = known.iter().find(|(known, _)| known == name) else {
        let names: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
        return Err(Failure::message(Exit::Usage, format!("{} has no log of `{name}` (it has {})", args.job.display(), names.join(", "))));
    };
    let mut follower = Follower::open(path).or_exit(Exit::Artifact)?;
    for line in tail(path, args.tail) {
        writeln!(out, "{line}").or_exit(Exit::Artifact)?;
    }
    if !args.follow {
        return Ok(());
    }
    loop {
        // Asked before reading: what was written before the end is still shown.
        let ended = has_ended(&args.job);
        let text = follower.more().or_exit(Exit::Artifact)?;
        out.write_all(&text).and_then(|()| out.flush()).or_exit(Exit::Artifact)?;
        match (ended, text.is_empty()) {
            (true, true) => return Ok(()),
            (false, true) => std::thread::sleep(LOOK_EVERY),
            (_, false) => {}
        }
    }
}

/// Whether a run or its job will write nothing more.
fn has_ended(folder: &Path) -> bool {
    job::result(folder).is_some() || job::last_event(folder).is_some_and(|event| event["event"] == "run_ended")
}

/// Reads what is added to a file.
struct Follower {
    path: PathBuf,
    at: u64,
}

impl Follower {
    /// From the present end on.
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Follower { path: path.to_owned(), at: fs::metadata(path)?.len() })
    }

    /// What has been added since the last call; a file that became shorter is read from its beginning.
    fn more(&mut self) -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(&self.path)?;
        let length = file.metadata()?.len();
        if length < self.at {
            self.at = 0;
        }
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = Vec::new();
        file.take(length - self.at).read_to_end(&mut bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes)
    }
}

/// Logs by the name of what wrote them: the files of the recipe count servers from 1, the plan from 0.
fn known_logs(folder: &Path) -> Vec<(String, PathBuf)> {
    let files = fs::read_dir(folder.join("logs")).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let mut known: Vec<(String, PathBuf)> = files.filter_map(|path| Some((name_of(path.file_name()?.to_str()?)?, path))).collect();
    known.sort();
    known
}

fn name_of(file: &str) -> Option<String> {
    let stem = file.strip_suffix(".log").or_else(|| file.strip_suffix(".out"))?;
    match stem.strip_prefix("output_") {
        Some("server") => Some("frontend".to_owned()),
        Some(worker) => match worker.rsplit_once('_').and_then(|(phase, n)| Some((phase, n.parse::<u32>().ok()?.checked_sub(1)?))) {
            Some((phase, index)) => Some(format!("{phase}-{index}")),
            None => Some(worker.to_owned()),
        },
        None if stem.starts_with("slurm-") => Some("slurm".to_owned()),
        None => Some(stem.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_sees_what_is_added_and_starts_again_when_the_file_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        fs::write(&path, "old\n").unwrap();
        let mut follower = Follower::open(&path).unwrap();
        assert!(follower.more().unwrap().is_empty());
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"new\n").unwrap();
        assert_eq!(follower.more().unwrap(), b"new\n");
        fs::write(&path, "a\n").unwrap();
        assert_eq!(follower.more().unwrap(), b"a\n");
    }

    #[test]
    fn files_have_the_names_of_the_plan() {
        let names =
            ["output_server.log", "output_prefill_1.log", "output_decode_12.log", "bench.log", "slurm-7.out", "output_etcd.log", "x"];
        let read: Vec<_> = names.iter().map(|file| name_of(file)).collect();
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(read, [some("frontend"), some("prefill-0"), some("decode-11"), some("bench"), some("slurm"), some("etcd"), None]);
    }
}
