//! Puts a worker together: engine thread, frontend connection, KV transfer, shutdown.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tandem_engine::Engine;
use tandem_kv::{KvReceiver, KvSender, KvShape};
use tandem_plan::{EngineKind, Phase, Plan, WorkerPlan};
use tandem_sched::{SchedConfig, Scheduler};
use tandem_wire::worker::{FromWorker, PROTOCOL_VERSION};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::decode::{Decode, DecodeConfig};
use crate::engine_loop::{EngineLoop, Resources, Side, Totals};
use crate::inbox::{Inbox, N_COMMANDS, N_KV_EVENTS};
use crate::iteration_log::IterationLog;
use crate::link::Link;
use crate::options::{WorkerError, WorkerOptions};
use crate::outgoing::{Outbox, Outgoing};
use crate::prefill::Prefill;

/// The engine thread, seen from outside.
struct EngineThread {
    ended: oneshot::Receiver<Result<(), WorkerError>>,
}

/// The half of KV transfer that this phase has.
enum Transfer {
    Sender(KvSender),
    Receiver(KvReceiver),
}

/// Serves one phase of a plan until `shutdown`, on the current tokio runtime (one thread suffices) and one more
/// thread for the engine. Shutdown finishes the step that runs, releases every request and closes all connections.
///
/// # Errors
/// [`WorkerError`]: whatever ends a worker before shutdown.
///
/// # Panics
/// Outside a tokio runtime.
pub async fn run(
    plan: &Plan,
    worker: &WorkerPlan,
    engine: Box<dyn Engine>,
    options: WorkerOptions,
    shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    let n_ranks = worker.layout.world_size();
    // The modeled engine stands for all ranks of a worker; any other computes one.
    if n_ranks != 1 && plan.engine != EngineKind::Modeled {
        return Err(WorkerError::Layout { name: worker.name.clone(), n_ranks });
    }
    let (commands, inbox_commands) = mpsc::channel(N_COMMANDS);
    let outbox = Arc::new(Outbox::default());
    let link = Link {
        address: options.frontend.clone(),
        hello: hello(plan, worker),
        outbox: Arc::clone(&outbox),
        commands,
        connect_within: options.connect_within,
        reconnect: options.reconnect,
    };
    let (mut thread, transfer) = start(plan, worker, engine, options, outbox, inbox_commands)?;
    let cause = tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        ended = &mut thread.ended => Some(ended.unwrap_or(Err(WorkerError::Panicked))),
        error = link.run() => error.map(Err),
    };
    // The link is dropped by now, and with it the commands: an engine thread that still runs ends after its step.
    let engine = if thread.ended.is_terminated() { Ok(()) } else { thread.ended.await.unwrap_or(Err(WorkerError::Panicked)) };
    match transfer {
        Transfer::Sender(sender) => sender.shutdown().await,
        Transfer::Receiver(receiver) => receiver.shutdown().await,
    }
    cause.unwrap_or(Ok(())).and(engine)
}

fn hello(plan: &Plan, worker: &WorkerPlan) -> FromWorker {
    FromWorker::Hello {
        version: PROTOCOL_VERSION,
        plan_hash: plan.hash(),
        name: worker.name.clone(),
        phase: worker.phase,
        max_seq_len: worker.limits.max_seq_len,
    }
}

/// Starts KV transfer and the engine thread.
fn start(
    plan: &Plan,
    worker: &WorkerPlan,
    engine: Box<dyn Engine>,
    options: WorkerOptions,
    outbox: Arc<Outbox>,
    commands: mpsc::Receiver<crate::inbox::Command>,
) -> Result<(EngineThread, Transfer), WorkerError> {
    let info = engine.info();
    let shape = KvShape { n_layers: info.n_kv_layers, bytes_per_token_layer: info.kv_bytes_per_token_layer() };
    let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let n_drafts = if worker.phase == Phase::Decode { worker.mtp_size } else { 0 };
    // The engine knows what it has allocated; the plan asked for it.
    let config = SchedConfig {
        block_size: narrow(info.block_size),
        n_blocks: narrow(info.n_blocks),
        ..SchedConfig::new(&worker.limits, &worker.kv, n_drafts)
    };
    let resources = Resources { scheduler: Scheduler::new(config)?, engine, out: Outgoing::new(outbox), totals: Totals::default() };
    let eos = plan.model.config.eos_token_id;
    let (arrived_tx, arrived) = mpsc::channel(N_KV_EVENTS);
    let (sent_tx, sent) = mpsc::unbounded_channel();
    let inbox = Inbox { commands, arrived, sent, runtime: Handle::current() };
    let deadline = options.reservation_deadline(Duration::from_millis(plan.frontend.request_timeout_ms));
    let log = IterationLog::new(options.iteration_log);
    match worker.phase {
        Phase::Prefill => {
            drop(options.kv_listener);
            let sender = KvSender::with_timeouts(sent_tx, options.kv_timeouts);
            let side = Prefill::new(sender.clone(), shape, eos);
            Ok((spawn(&worker.name, EngineLoop { side, resources, inbox, log })?, Transfer::Sender(sender)))
        }
        Phase::Decode => {
            let own = options.kv_listener.local_addr().map_err(WorkerError::Start)?;
            if options.kv_address.is_none() && own.ip().is_unspecified() {
                return Err(WorkerError::KvAddress(own));
            }
            let config = DecodeConfig {
                shape,
                eos,
                stream_interval: worker.stream_interval.max(1) as usize,
                kv_address: options.kv_address.unwrap_or_else(|| own.to_string()),
                reservation_deadline: deadline,
            };
            let receiver = KvReceiver::start_with(options.kv_listener, arrived_tx, options.kv_timeouts);
            let side = Decode::new(config, receiver.clone());
            Ok((spawn(&worker.name, EngineLoop { side, resources, inbox, log })?, Transfer::Receiver(receiver)))
        }
    }
}

fn spawn<S: Side + 'static>(name: &str, engine_loop: EngineLoop<S>) -> Result<EngineThread, WorkerError> {
    let (sender, ended) = oneshot::channel();
    // Its end is seen by the channel, also when it panics, so the handle is not needed.
    thread::Builder::new()
        .name(format!("{name}-engine"))
        .spawn(move || {
            // Nobody listens when the worker's future was dropped.
            let _ = sender.send(engine_loop.run());
        })
        .map_err(|e: io::Error| WorkerError::Start(e))?;
    Ok(EngineThread { ended })
}
