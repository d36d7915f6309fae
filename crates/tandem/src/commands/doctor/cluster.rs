//! Slurm's programs and controller, authentication, GPUs as Slurm counts them, and what starts containers.

use tandem_launch::slurm::{Slurm, SlurmError};

use super::{Check, State, check, program};
use crate::cli_doctor::Purpose;
use crate::commands::programs::find;

pub(super) fn slurm(slurm: &Slurm) -> Vec<Check> {
    const CLIENT: &str = "install Slurm's client commands (Debian: slurm-client), or work on a login node";
    let p = Purpose::Slurm;
    let mut checks: Vec<Check> = [
        ("sbatch", "submits"),
        ("srun", "starts servers"),
        ("squeue", "says what waits and runs"),
        ("scancel", "ends jobs"),
        ("scontrol", "names nodes"),
    ]
    .into_iter()
    .map(|(name, why)| program(p, name, State::Missing, why, CLIENT))
    .collect();
    if find("sinfo").is_some() {
        checks.extend(controller(slurm));
    }
    if find("munge").is_some() {
        // Without munged every call of Slurm fails with a message about protocols.
        checks.push(match slurm.call("munge", &["-n"]) {
            Ok(_) => check(p, "munge", State::Ok, "munged answers", ""),
            Err(error) => check(p, "munge", State::Missing, error.to_string(), "start munged, with the key of the cluster"),
        });
    }
    checks.push(program(
        p,
        "sacct",
        State::Note,
        "past jobs are known from their own files only",
        "needs an accounting database; nothing depends on it",
    ));
    checks.push(containers(slurm));
    checks
}

fn controller(slurm: &Slurm) -> Vec<Check> {
    let p = Purpose::Slurm;
    let text = match slurm.call("sinfo", &["--noheader", "--format=%P|%D|%t|%G"]) {
        Ok(text) => text,
        Err(error) => {
            let fix = match error {
                SlurmError::NoAnswer { .. } => "the controller hangs; --slurm-timeout waits longer",
                _ => "is slurmctld up, and does this machine's slurm.conf name it?",
            };
            return vec![check(p, "controller", State::Missing, error.to_string(), fix)];
        }
    };
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
    let partitions: Vec<String> = rows.iter().map(|row| row.iter().take(3).copied().collect::<Vec<_>>().join(" ")).collect();
    let mut gres: Vec<&str> = rows.iter().filter_map(|row| row.get(3).copied()).filter(|gres| gres.contains("gpu")).collect();
    gres.sort_unstable();
    gres.dedup();
    vec![
        check(p, "controller", State::Ok, partitions.join("; "), ""),
        if gres.is_empty() {
            check(p, "gres", State::Note, "Slurm counts no GPUs here", "submit with --gpu-request none, or have gres.conf list them")
        } else {
            check(p, "gres", State::Ok, gres.join("; "), "")
        },
    ]
}

/// What starts engines that are in images: pyxis (a plugin of srun) with enroot, or Apptainer.
fn containers(slurm: &Slurm) -> Check {
    let p = Purpose::Slurm;
    let has_pyxis = slurm.call("srun", &["--help"]).is_ok_and(|help| help.contains("--container-image"));
    let (enroot, apptainer) = (find("enroot").is_some(), find("apptainer").is_some());
    let found: Vec<&str> = [(has_pyxis, "pyxis"), (enroot, "enroot"), (apptainer, "apptainer")]
        .into_iter()
        .filter(|(has, _)| *has)
        .map(|(_, name)| name)
        .collect();
    match (has_pyxis, apptainer) {
        (false, false) => check(
            p,
            "containers",
            State::Note,
            format!("srun has no --container-image{}, and there is no apptainer", if enroot { " (enroot is here)" } else { "" }),
            "install pyxis (with enroot on the nodes) or Apptainer; engines that run bare need neither",
        ),
        _ => check(p, "containers", State::Ok, found.join(", "), ""),
    }
}
