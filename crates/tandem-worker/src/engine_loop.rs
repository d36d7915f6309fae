//! The engine thread: wait, handle, step, respond.

use std::time::Instant;

use tandem_engine::{Batch, Engine, EngineError, StepOutput};
use tandem_kv::{KvEvent, KvSendEvent};
use tandem_sched::{Outcome, Scheduler, SeqId, Step};
use tandem_wire::worker::{FailureKind, ToWorker, WorkerStats};

use crate::inbox::{Command, Event, Inbox};
use crate::iteration_log::IterationLog;
use crate::options::WorkerError;
use crate::outgoing::Outgoing;
use crate::push::Pusher;

/// Events handled between two steps, at most, so that arriving KV cannot starve those that decode.
const N_EVENTS_PER_STEP: usize = 512;

/// What both phases work with.
pub(crate) struct Resources {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) scheduler: Scheduler,
    pub(crate) out: Outgoing,
    pub(crate) totals: Totals,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) n_requests: u64,
    pub(crate) n_prefill_tokens: u64,
    pub(crate) n_output_tokens: u64,
}

/// What one phase does with its requests.
pub(crate) trait Side: Send {
    /// The frontend said something.
    fn message(&mut self, message: ToWorker, rs: &mut Resources);

    /// KV arrived.
    fn arrived(&mut self, _event: KvEvent, _rs: &mut Resources) {}

    /// A push ended.
    fn sent(&mut self, _event: KvSendEvent, _rs: &mut Resources) {}

    /// Blocks may have become free.
    fn settle(&mut self, _rs: &mut Resources) {}

    /// The engine's batch of a step, entry by entry.
    fn batch(&mut self, step: &Step, rs: &Resources) -> Batch;

    /// Who is told about layers while the step runs.
    fn pusher<'a>(&'a self, step: &'a Step, batch: &'a Batch) -> Pusher<'a>;

    /// The step has been computed: emits tokens; one outcome an entry.
    fn complete(&mut self, step: &Step, batch: Batch, output: &StepOutput, rs: &mut Resources) -> Vec<Outcome>;

    /// Releases a request and tells the frontend why.
    fn fail(&mut self, id: SeqId, kind: FailureKind, message: &str, rs: &mut Resources);

    /// Releases everything and tells nobody.
    fn release_all(&mut self, rs: &mut Resources);
}

/// The state of the engine thread.
pub(crate) struct EngineLoop<S> {
    pub(crate) side: S,
    pub(crate) resources: Resources,
    pub(crate) inbox: Inbox,
    pub(crate) log: IterationLog,
}

impl<S: Side> EngineLoop<S> {
    /// Runs until shutdown.
    ///
    /// An engine that refuses a batch ([`EngineError::Batch`]) fails the requests of that batch and goes on; any other
    /// engine error ends the worker without a word about its requests: its supervision notices, and to the frontend it is
    /// a lost worker, whose requests are tried elsewhere where that is possible.
    pub(crate) fn run(mut self) -> Result<(), WorkerError> {
        let ended = self.run_until_shutdown();
        self.side.release_all(&mut self.resources);
        self.respond();
        self.log.flush();
        ended
    }

    fn run_until_shutdown(&mut self) -> Result<(), WorkerError> {
        loop {
            for _ in 0..N_EVENTS_PER_STEP {
                let Some(event) = self.inbox.poll() else { break };
                if !self.handle(event) {
                    return Ok(());
                }
            }
            self.side.settle(&mut self.resources);
            let step = self.resources.scheduler.next_step();
            self.respond();
            if let Some(step) = step {
                self.step(&step)?;
                continue;
            }
            self.log.flush();
            let event = self.inbox.wait();
            if !self.handle(event) {
                return Ok(());
            }
        }
    }

    /// False when the worker is to end.
    fn handle(&mut self, event: Event) -> bool {
        let Self { side, resources, .. } = self;
        match event {
            Event::Command(Command::Message(message)) => side.message(message, resources),
            Event::Command(Command::Disconnected(answer)) => {
                side.release_all(resources);
                resources.out.reset();
                self.respond();
                // The connection waits for this, unless it is gone too.
                let _ = answer.send(());
            }
            Event::Arrived(event) => side.arrived(event, resources),
            Event::Sent(event) => side.sent(event, resources),
            Event::Shutdown => return false,
        }
        true
    }

    fn step(&mut self, step: &Step) -> Result<(), WorkerError> {
        let begin = Instant::now();
        let Self { side, resources, log, .. } = self;
        let stats = resources.scheduler.stats();
        let batch = side.batch(step, resources);
        let result = {
            let mut pusher = side.pusher(step, &batch);
            resources.engine.step(&batch, &mut pusher)
        };
        match result.and_then(|output| check_output(step, output)) {
            Ok(output) => {
                resources.totals.n_prefill_tokens += u64::from(step.n_ctx_tokens);
                let outcomes = side.complete(step, batch, &output, resources);
                resources.totals.n_output_tokens += outcomes.iter().map(|o| u64::from(o.n_new)).sum::<u64>();
                resources.scheduler.complete_step(step, &outcomes);
                log.step(step, &stats, begin);
                Ok(())
            }
            Err(error) => self.fail_step(step, error),
        }
    }

    fn fail_step(&mut self, step: &Step, error: EngineError) -> Result<(), WorkerError> {
        tracing::error!(%error, n_requests = step.entries.len(), "engine step failed");
        self.resources.scheduler.abandon_step(step);
        if !matches!(error, EngineError::Batch(_)) {
            return Err(WorkerError::Engine(error));
        }
        for entry in &step.entries {
            self.side.fail(entry.id, FailureKind::Engine, &error.to_string(), &mut self.resources);
        }
        Ok(())
    }

    /// Sends what has gathered, with the occupancy of now.
    fn respond(&mut self) {
        let Resources { scheduler, totals, out, .. } = &mut self.resources;
        let stats = scheduler.stats();
        out.flush(WorkerStats {
            n_waiting: stats.n_waiting,
            n_running: stats.n_running,
            n_transferring: stats.n_transferring,
            kv_blocks_used: stats.blocks_used,
            kv_blocks_total: stats.blocks_total,
            n_steps: self.log.n_steps(),
            n_prefill_tokens: totals.n_prefill_tokens,
            n_output_tokens: totals.n_output_tokens,
            n_requests: totals.n_requests,
        });
    }
}

/// An engine that answers for another number of entries or tokens must not shift tokens between requests.
fn check_output(step: &Step, output: StepOutput) -> Result<StepOutput, EngineError> {
    let fits = output.tokens.len() == step.entries.len() && step.entries.iter().zip(&output.tokens).all(|(e, t)| e.emits != t.is_empty());
    if fits { Ok(output) } else { Err(EngineError::Batch("the engine's answer does not fit its batch".into())) }
}
