//! `tandem cancel`: ends a job; the job writes what it has.

use tandem_launch::slurm::{JobState, SlurmError, observe};

use super::progress::say;
use crate::cli_jobs::CancelArgs;
use crate::exit::{Exit, Failure};

pub(crate) fn cancel(args: &CancelArgs) -> Result<(), Failure> {
    let slurm = args.calls.slurm();
    let seen = observe(&args.job, &slurm);
    if seen.state.is_final() || seen.state == JobState::NotSubmitted {
        say(&format!("nothing to cancel: {}", seen.state.word()));
        return Ok(());
    }
    let Some(id) = seen.job_id else {
        return Err(Failure::message(Exit::NotReady, format!("which job it is is not known: {}", seen.state.detail())));
    };
    match slurm.call("scancel", &[id.to_string()]) {
        Ok(_) => say(&format!("job {id} is told to end; `tandem watch {}` waits for it", args.job.display())),
        Err(SlurmError::Refused { message, .. }) if message.contains("Invalid job id") => say(&format!("job {id} has ended already")),
        Err(error) => return Err(Failure::new(Exit::NotReady, error)),
    }
    Ok(())
}
