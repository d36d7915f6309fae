//! `exemplar`: the runs of `exemplar.yaml`, by which an installation is judged.

use std::path::Path;

use tandem_llmb::exemplar_tasks;

use super::installation::{Installation, invalid, read};
use super::submit::{Request, refuse_inside_a_job, submit_tasks};
use crate::cli_llmb::{ExemplarArgs, LlmbSubmitArgs, WorkloadArgs};
use crate::exit::Failure;

pub(crate) fn exemplar(args: &ExemplarArgs) -> Result<(), Failure> {
    let request =
        Request::of_llmb(&LlmbSubmitArgs::of(WorkloadArgs { repeats: 1, ..WorkloadArgs::default() }, args.dry_run, args.calls.clone()))?;
    refuse_inside_a_job(&request)?;
    let site = Installation::load()?;
    let path = Path::new(&site.cluster.llmb_repo).join("exemplar.yaml");
    let name = path.display().to_string();
    let gpu = &site.cluster.gpu_type;
    let tasks = exemplar_tasks(&name, &read(&path)?, &site.workloads, &site.cluster.installed, gpu, args.repeats).map_err(invalid)?;
    submit_tasks(&request, &site, tasks, Vec::new())
}
