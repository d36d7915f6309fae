//! Calls Slurm's programs: with a deadline, a clean environment, and text as the answer.
//!
//! A controller that is overloaded makes `squeue` hang for minutes, and a variable such as `SQUEUE_FORMAT`
//! changes what it prints; neither may decide what becomes of a run.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use thiserror::Error;

/// Variables that Slurm's programs get; the rest of the caller's environment stays away from them.
const KEPT: [&str; 6] = ["PATH", "HOME", "USER", "LOGNAME", "TZ", "SLURM_CONF"];

/// Pause between two looks at whether a program has ended.
const POLL: Duration = Duration::from_millis(5);

/// Why a Slurm program gave no usable answer.
#[derive(Debug, Error)]
pub enum SlurmError {
    /// It is not installed, or not in `PATH`.
    #[error("cannot start {program}")]
    Missing {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It did not end within the deadline: nothing is known.
    #[error("{program} did not answer within {seconds} s")]
    NoAnswer {
        /// The program.
        program: String,
        /// The deadline.
        seconds: u64,
    },
    /// It ended with a failure.
    #[error("{program} failed with code {code}: {message}")]
    Refused {
        /// The program.
        program: String,
        /// Exit code; -1 when a signal ended it.
        code: i32,
        /// What it said on standard error (or output).
        message: String,
    },
    /// It ended well and said something that cannot be read.
    #[error("{program} said something unexpected: {text}")]
    Unreadable {
        /// The program.
        program: String,
        /// What it said.
        text: String,
    },
}

impl SlurmError {
    /// Whether this means that nothing is known (as opposed to a clear no).
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        // "Unable to contact slurm controller", "Socket timed out on send/recv", "Connection refused" …
        const TROUBLE: [&str; 4] = ["contact slurm controller", "timed out", "Connection refused", "Zero Bytes"];
        match self {
            SlurmError::Refused { message, .. } => TROUBLE.iter().any(|text| message.contains(text)),
            _ => true,
        }
    }
}

/// Slurm's command line programs.
#[derive(Debug, Clone)]
pub struct Slurm {
    timeout: Duration,
    env: Vec<(OsString, OsString)>,
}

impl Slurm {
    /// Programs found in `PATH`, each call limited to `timeout`.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        let kept = KEPT.iter().filter_map(|name| std::env::var_os(name).map(|value| (OsString::from(name), value)));
        let env = kept.chain([(OsString::from("LC_ALL"), OsString::from("C"))]).collect();
        Slurm { timeout, env }
    }

    /// Runs `program` and returns its standard output. Blocking.
    ///
    /// # Errors
    /// [`SlurmError`]; [`SlurmError::is_unknown`] tells "no answer" from "no".
    pub fn call<S: AsRef<str>>(&self, program: &str, args: &[S]) -> Result<String, SlurmError> {
        self.call_with(program, args, &[])
    }

    /// [`Slurm::call`] with more variables in the environment of the program (those of a job that is submitted).
    ///
    /// # Errors
    /// As [`Slurm::call`].
    pub fn call_with<S: AsRef<str>>(&self, program: &str, args: &[S], env: &[(String, String)]) -> Result<String, SlurmError> {
        let mut command = Command::new(program);
        command.args(args.iter().map(AsRef::as_ref)).env_clear().envs(self.env.iter().cloned()).envs(env.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|source| SlurmError::Missing { program: program.to_owned(), source })?;
        let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
        let deadline = Instant::now() + self.timeout;
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
                _ => {
                    end(&mut child);
                    return Err(SlurmError::NoAnswer { program: program.to_owned(), seconds: self.timeout.as_secs() });
                }
            }
        };
        let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        if status.success() {
            return Ok(out);
        }
        let said = if err.trim().is_empty() { &out } else { &err };
        let code = status.code().unwrap_or(-1);
        Err(SlurmError::Refused { program: program.to_owned(), code, message: said.trim().replace('\n', "; ") })
    }

    /// What the programs see of the environment, for people.
    #[must_use]
    pub fn environment(&self) -> Vec<String> {
        self.env.iter().map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.to_string_lossy())).collect()
    }
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The program may be a script with children of its own: its whole group ends.
fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_a_refusal_and_silence_are_three_things() {
        let slurm = Slurm::new(Duration::from_secs(20));
        assert_eq!(slurm.call("sh", &["-c", "echo $LC_ALL"]).unwrap(), "C\n");
        let refused = slurm.call("sh", &["-c", "echo 'Invalid job id specified' >&2; exit 1"]).unwrap_err();
        assert_eq!(refused.to_string(), "sh failed with code 1: Invalid job id specified");
        assert!(!refused.is_unknown());
        let silent = Slurm::new(Duration::from_millis(100)).call("sh", &["-c", "sleep 600 & wait"]).unwrap_err();
        assert!(matches!(silent, SlurmError::NoAnswer { .. }) && silent.is_unknown(), "{silent}");
        assert!(slurm.call("no-such-program-of-slurm", &["x"]).unwrap_err().is_unknown());
        let down = slurm.call("sh", &["-c", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"]).unwrap_err();
        assert!(down.is_unknown(), "{down}");
    }
}
