//! Workers without an engine: one that does what the test tells it, one that serves everything at once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tandem_plan::Phase;
use tandem_wire::frame;
use tandem_wire::worker::{
    FailureKind, FinishReason, FromWorker, HEARTBEAT_MS, KvTarget, PROTOCOL_VERSION, RequestId, SamplingParams, ToWorker, TokenEvent,
    WorkerStats,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::DEADLINE;

/// A registered worker in the hands of a test.
pub struct Worker {
    pub phase: Phase,
    pub sender: UnboundedSender<FromWorker>,
    pub inbox: UnboundedReceiver<ToWorker>,
    tasks: JoinSet<()>,
}

impl Worker {
    /// Connects, says hello and expects to be welcomed; sends heartbeats from then on.
    pub async fn connect(control: SocketAddr, plan_hash: &str, name: &str, phase: Phase) -> Self {
        let (stream, answer) = Self::hello(control, PROTOCOL_VERSION, plan_hash, name, phase).await;
        assert_eq!(answer, Some(ToWorker::Welcome));
        Self::over(stream, phase, true)
    }

    /// Connects and says hello; returns what the frontend answers.
    pub async fn hello(control: SocketAddr, version: u32, plan_hash: &str, name: &str, phase: Phase) -> (TcpStream, Option<ToWorker>) {
        let mut stream = TcpStream::connect(control).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let hello = FromWorker::Hello { version, plan_hash: plan_hash.into(), name: name.into(), phase, max_seq_len: 4096 };
        stream.write_all(&encoded(&hello)).await.unwrap();
        let mut buffer = Vec::new();
        let answer = timeout(DEADLINE, read_message(&mut stream, &mut buffer)).await.unwrap();
        (stream, answer)
    }

    /// Serves a connection that was welcomed, with or without heartbeats.
    pub fn over(stream: TcpStream, phase: Phase, heartbeats: bool) -> Self {
        let (mut reader, mut writer) = stream.into_split();
        let (to_test, inbox) = unbounded_channel();
        let (sender, mut from_test) = unbounded_channel::<FromWorker>();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut buffer = Vec::new();
            while let Some(message) = read_message(&mut reader, &mut buffer).await {
                if to_test.send(message).is_err() {
                    return;
                }
            }
        });
        tasks.spawn(async move {
            let period = Duration::from_millis(if heartbeats { HEARTBEAT_MS / 2 } else { 1 << 30 });
            let mut stats = WorkerStats::default();
            loop {
                let message = match timeout(period, from_test.recv()).await {
                    Ok(Some(message)) => message,
                    Ok(None) => return,
                    Err(_) => FromWorker::Heartbeat { stats },
                };
                if let FromWorker::Heartbeat { stats: new } = &message {
                    stats = *new;
                }
                if writer.write_all(&encoded(&message)).await.is_err() {
                    return;
                }
            }
        });
        Worker { phase, sender, inbox, tasks }
    }

    pub fn send(&self, message: FromWorker) {
        let _ = self.sender.send(message);
    }

    /// The next message of the frontend.
    pub async fn next(&mut self) -> ToWorker {
        timeout(DEADLINE, self.inbox.recv()).await.expect("no message from the frontend").expect("the frontend closed the connection")
    }

    /// The next message, which must be a reservation.
    pub async fn reserve(&mut self) -> (RequestId, SamplingParams) {
        match self.next().await {
            ToWorker::Reserve { id, sampling, .. } => (id, sampling),
            other => panic!("expected Reserve, got {other:?}"),
        }
    }

    /// The next message, which must be a prompt.
    pub async fn prefill(&mut self) -> (RequestId, Vec<u32>, Option<KvTarget>) {
        match self.next().await {
            ToWorker::Prefill { id, tokens, target, .. } => (id, tokens, target),
            other => panic!("expected Prefill, got {other:?}"),
        }
    }

    /// The next message, which must be a cancellation.
    pub async fn cancel(&mut self) -> RequestId {
        match self.next().await {
            ToWorker::Cancel { id } => id,
            other => panic!("expected Cancel, got {other:?}"),
        }
    }

    /// Answers a reservation.
    pub fn reserved(&self, id: RequestId) {
        self.send(FromWorker::Reserved { id, target: target(id) });
    }

    /// Sends the bytes of `text` as tokens.
    pub fn text(&self, id: RequestId, text: &str, finish: Option<FinishReason>) {
        self.tokens(id, text.bytes().map(u32::from).collect(), finish);
    }

    pub fn tokens(&self, id: RequestId, tokens: Vec<u32>, finish: Option<FinishReason>) {
        self.send(FromWorker::Tokens { events: vec![TokenEvent { id, tokens, finish }] });
    }

    pub fn fail(&self, id: RequestId, kind: FailureKind, message: &str) {
        self.send(FromWorker::Failed { id, kind, message: message.into() });
    }

    /// Closes the connection at once, as a killed process does.
    pub async fn kill(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Where the KV of a request would go.
pub fn target(id: RequestId) -> KvTarget {
    KvTarget { address: "127.0.0.1:9".into(), ticket: id.0, deadline_ms: 1000 }
}

/// Reserves at once, answers each prompt at once, and generates at once: token `i` is the `i`-th letter.
///
/// A decode worker cannot know when its KV arrives, as nothing is transferred: it sends its
/// tokens right after the reservation, and the frontend puts them in order.
pub struct Auto {
    pub seen: Arc<Mutex<Seen>>,
    pub tasks: JoinSet<()>,
}

/// What an automatic worker was asked.
#[derive(Debug, Default)]
pub struct Seen {
    pub sampling: Vec<SamplingParams>,
    pub prompts: Vec<Vec<u32>>,
    pub cancels: Vec<RequestId>,
}

impl Auto {
    pub fn start(mut worker: Worker) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let (theirs, mut tasks) = (Arc::clone(&seen), JoinSet::new());
        tasks.spawn(async move {
            let mut outputs = HashMap::new();
            while let Some(message) = worker.inbox.recv().await {
                match message {
                    ToWorker::Reserve { id, sampling, .. } => {
                        worker.reserved(id);
                        for i in 1..sampling.max_tokens {
                            worker.tokens(id, vec![letter(i)], (i + 1 == sampling.max_tokens).then_some(FinishReason::Length));
                        }
                        theirs.lock().unwrap().sampling.push(sampling.clone());
                        outputs.insert(id, sampling);
                    }
                    ToWorker::Prefill { id, tokens, sampling, target } => {
                        worker.tokens(id, vec![letter(0)], target.is_none().then_some(FinishReason::Length));
                        let mut seen = theirs.lock().unwrap();
                        seen.prompts.push(tokens);
                        seen.sampling.push(sampling);
                    }
                    ToWorker::Cancel { id } => theirs.lock().unwrap().cancels.push(id),
                    ToWorker::Welcome | ToWorker::Rejected { .. } => {}
                }
            }
        });
        Auto { seen, tasks }
    }

    pub async fn kill(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Token `i` of an automatic worker.
pub fn letter(i: u32) -> u32 {
    u32::from(b'a') + i % 26
}

pub fn encoded(message: &FromWorker) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(message, &mut bytes).unwrap();
    bytes
}

async fn read_message(stream: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> Option<ToWorker> {
    loop {
        if let Some((message, used)) = frame::decode(buffer).unwrap() {
            buffer.drain(..used);
            return Some(message);
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}
