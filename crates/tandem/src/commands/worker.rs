//! `tandem worker`: one prefill or decode worker of a plan.

use std::time::Duration;

use anyhow::Context;
use tandem_plan::{Plan, WorkerPlan};
use tandem_worker::WorkerError;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::recipe::read_plan;
use crate::cli::WorkerArgs;
use crate::exit::{Exit, Failure, OrExit};
use crate::signals::{Interrupts, until_stopped};

/// When the frontend is gone, the order to stop may still be on its way for this long.
const TEARDOWN: Duration = Duration::from_millis(500);

pub(crate) fn worker(args: WorkerArgs) -> Result<(), Failure> {
    let plan = read_plan(&args.plan)?;
    let worker = choose(&plan, &args)?.clone();
    let rank = args.rank_from.as_ref().and_then(|variable| std::env::var(variable).ok()).and_then(|rank| rank.parse().ok());
    if rank.unwrap_or(0_u32) > 0 {
        return hold_place();
    }
    let frontend = args.frontend.clone().unwrap_or_else(|| plan.frontend.control.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Bug)?;
    runtime.block_on(until_stopped(args.stop_with_stdin, async |shutdown| {
        // Loading weights takes a while and must not keep an interrupt from being seen.
        let loading = (plan.clone(), worker.clone());
        let engine = tokio::task::spawn_blocking(move || tandem_engine::build_engine(&loading.0, &loading.1)).await;
        let engine = engine.or_exit(Exit::Bug)?.or_exit(Exit::NotReady)?;
        let kv = TcpListener::bind(&args.kv).await.with_context(|| format!("cannot listen on {}", args.kv)).or_exit(Exit::NotReady)?;
        let options = tandem_worker::WorkerOptions::new(frontend, kv);
        let ended = tandem_worker::run(&plan, &worker, engine, options, shutdown.clone()).await;
        if matches!(ended, Err(WorkerError::FrontendLost(_))) && timeout(TEARDOWN, shutdown.cancelled()).await.is_ok() {
            // The whole deployment stops, and the frontend was only faster.
            return Ok(());
        }
        ended.or_exit(Exit::Died)
    }))
}

/// What the other ranks of a worker do: nothing, until they are told to end. They say nothing either, for rank 0 has the word.
fn hold_place() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Bug)?;
    runtime.block_on(async {
        Interrupts::install()?.next().await;
        Ok(())
    })
}

fn choose<'a>(plan: &'a Plan, args: &WorkerArgs) -> Result<&'a WorkerPlan, Failure> {
    let name = args.name.clone().unwrap_or_else(|| format!("{}-{}", args.role.as_deref().unwrap_or_default(), args.index));
    plan.worker(&name).ok_or_else(|| {
        let names: Vec<&str> = plan.workers.iter().map(|w| w.name.as_str()).collect();
        Failure::message(Exit::Usage, format!("the plan has no worker `{name}` (it has {})", names.join(", ")))
    })
}
