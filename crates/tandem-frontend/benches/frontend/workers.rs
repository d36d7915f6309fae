//! A prefill and a decode worker that compute nothing: all sequences advance by one token a step.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tandem_plan::Phase;
use tandem_wire::frame;
use tandem_wire::worker::{
    FinishReason, FromWorker, HEARTBEAT_MS, KvTarget, PROTOCOL_VERSION, RequestId, ToWorker, TokenEvent, WorkerStats,
};

/// Sequences of one step.
const MAX_BATCH: usize = 1024;

/// The threads of both workers; they end when the frontend closes their connections.
pub(crate) struct Workers {
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    pub(crate) fn join(self) {
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

/// Connects both workers and waits until they are registered.
pub(crate) fn start(control: SocketAddr, plan_hash: &str, step: Option<Duration>) -> Workers {
    let (to_decode, from_prefill) = channel();
    let prefill = Link::connect(control, plan_hash, "prefill-0", Phase::Prefill);
    let decode = Link::connect(control, plan_hash, "decode-0", Phase::Decode);
    let (p, d, d2) = (prefill.clone(), decode.clone(), decode.clone());
    let spawn = |f: Box<dyn FnOnce() + Send>| std::thread::spawn(f);
    let threads = vec![
        spawn(Box::new(move || run_prefill(&prefill, &to_decode))),
        spawn(Box::new(move || run_reservations(&decode))),
        spawn(Box::new(move || run_decode(&d2, &from_prefill, step))),
        spawn(Box::new(move || while p.heartbeat() && d.heartbeat() {})),
    ];
    Workers { threads }
}

/// One connection to the frontend.
#[derive(Clone)]
struct Link {
    reader: Arc<TcpStream>,
    writer: Arc<Mutex<TcpStream>>,
}

impl Link {
    fn connect(control: SocketAddr, plan_hash: &str, name: &str, phase: Phase) -> Self {
        let stream = TcpStream::connect(control).unwrap();
        stream.set_nodelay(true).unwrap();
        let link = Link { writer: Arc::new(Mutex::new(stream.try_clone().unwrap())), reader: Arc::new(stream) };
        let hello =
            FromWorker::Hello { version: PROTOCOL_VERSION, plan_hash: plan_hash.into(), name: name.into(), phase, max_seq_len: 1 << 20 };
        assert!(link.send(&[hello]));
        let mut welcome = Vec::new();
        while frame::decode::<ToWorker>(&welcome).unwrap().is_none() {
            let mut byte = [0];
            (&*link.reader).read_exact(&mut byte).unwrap();
            welcome.push(byte[0]);
        }
        link
    }

    /// Sends messages in one write; false when the frontend is gone.
    fn send(&self, messages: &[FromWorker]) -> bool {
        let mut bytes = Vec::new();
        for message in messages {
            frame::encode(message, &mut bytes).unwrap();
        }
        self.writer.lock().unwrap().write_all(&bytes).is_ok()
    }

    fn heartbeat(&self) -> bool {
        std::thread::sleep(Duration::from_millis(HEARTBEAT_MS / 3));
        self.send(&[FromWorker::Heartbeat { stats: WorkerStats::default() }])
    }

    /// Calls `handle` with all messages of each read until the frontend closes the connection.
    fn read_all(&self, mut handle: impl FnMut(Vec<ToWorker>) -> bool) {
        let (mut buffer, mut piece) = (Vec::new(), vec![0; 256 << 10]);
        loop {
            let n = (&*self.reader).read(&mut piece).unwrap_or(0);
            if n == 0 {
                return;
            }
            buffer.extend_from_slice(&piece[..n]);
            let (mut messages, mut used_in_all) = (Vec::new(), 0);
            while let Some((message, used)) = frame::decode(&buffer[used_in_all..]).unwrap() {
                used_in_all += used;
                messages.push(message);
            }
            buffer.drain(..used_in_all);
            if !messages.is_empty() && !handle(messages) {
                return;
            }
        }
    }
}

fn run_prefill(link: &Link, to_decode: &Sender<(RequestId, u32)>) {
    link.read_all(|messages| {
        let mut events = Vec::new();
        for message in messages {
            if let ToWorker::Prefill { id, sampling, target, .. } = message {
                let finish = target.is_none().then_some(FinishReason::Length);
                events.push(TokenEvent { id, tokens: vec![97], finish });
                if target.is_some() {
                    let _ = to_decode.send((id, sampling.max_tokens - 1));
                }
            }
        }
        events.is_empty() || link.send(&[FromWorker::Tokens { events }])
    });
}

fn run_reservations(link: &Link) {
    link.read_all(|messages| {
        let mut answers = Vec::new();
        for message in messages {
            if let ToWorker::Reserve { id, .. } = message {
                let target = KvTarget { address: "127.0.0.1:1".into(), ticket: id.0, deadline_ms: 1000 };
                answers.push(FromWorker::Reserved { id, target });
            }
        }
        answers.is_empty() || link.send(&answers)
    });
}

fn run_decode(link: &Link, new: &Receiver<(RequestId, u32)>, step: Option<Duration>) {
    let mut running: Vec<(RequestId, u32)> = Vec::new();
    let mut next = Instant::now();
    loop {
        if running.is_empty() {
            let Ok(first) = new.recv() else { return };
            running.push(first);
            next = Instant::now();
        }
        running.extend(new.try_iter().take(MAX_BATCH - running.len()));
        if let Some(step) = step {
            next += step;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        let event = |(id, left): &mut (RequestId, u32)| {
            *left -= 1;
            TokenEvent { id: *id, tokens: vec![98 + *left % 20], finish: (*left == 0).then_some(FinishReason::Length) }
        };
        let events = running.iter_mut().map(event).collect();
        running.retain(|(_, left)| *left > 0);
        if !link.send(&[FromWorker::Tokens { events }]) {
            return;
        }
    }
}
