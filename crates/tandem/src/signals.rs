//! Interrupts: ctrl-C, SIGTERM, the SIGUSR1 with which Slurm announces the time limit, and a standard input that closes.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, Failure, OrExit};

/// Counts SIGINT and SIGTERM from the moment it is created.
#[derive(Debug)]
pub(crate) struct Interrupts {
    int: tokio::signal::unix::Signal,
    term: tokio::signal::unix::Signal,
    usr1: tokio::signal::unix::Signal,
    told_to_end: bool,
}

/// What an interrupt means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// Somebody wants it to end.
    Stop,
    /// The time limit of the job is near.
    TimeLimit,
}

impl Interrupts {
    /// Must be called inside a runtime.
    pub(crate) fn install() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).or_exit(Exit::Bug);
        Ok(Interrupts {
            int: listen(SignalKind::interrupt())?,
            term: listen(SignalKind::terminate())?,
            usr1: listen(SignalKind::user_defined1())?,
            told_to_end: false,
        })
    }

    /// Pends until the next one of either kind. Safe to cancel.
    pub(crate) async fn next_kind(&mut self) -> Interrupt {
        let kind = tokio::select! {
            _ = self.int.recv() => Interrupt::Stop,
            _ = self.term.recv() => Interrupt::Stop,
            _ = self.usr1.recv() => Interrupt::TimeLimit,
        };
        self.told_to_end = true;
        kind
    }

    /// Whether any came so far: nothing new should begin.
    pub(crate) fn told_to_end(&self) -> bool {
        self.told_to_end
    }

    /// Pends until the next one. Safe to cancel.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
        self.told_to_end = true;
    }
}

/// Runs a serving process until it ends by itself, is interrupted, or (if asked) its standard input closes.
///
/// `body` gets the token that is cancelled then, and is awaited to its end.
pub(crate) async fn until_stopped<F, T>(stop_with_stdin: bool, body: impl FnOnce(CancellationToken) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let shutdown = CancellationToken::new();
    let mut interrupts = Interrupts::install()?;
    let body = body(shutdown.clone());
    tokio::pin!(body);
    tokio::select! {
        done = &mut body => return done,
        () = interrupts.next() => tracing::info!("stopping: interrupted"),
        () = stdin_closed(), if stop_with_stdin => tracing::info!("stopping: standard input closed"),
    }
    shutdown.cancel();
    tokio::select! {
        done = body => done,
        () = interrupts.next() => Err(Failure::message(Exit::Interrupted, "interrupted twice")),
    }
}

/// Pends until standard input ends. The reading thread is left behind: a blocked read cannot be cancelled.
async fn stdin_closed() {
    let (tx, rx) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = tx.send(());
    });
    let _ = rx.await;
}
