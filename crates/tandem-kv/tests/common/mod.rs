//! What the transfer tests share: random caches, a pair of peers on loopback, and waiting with a deadline.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod raw;

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use tandem_kv::{CommitAck, KvEvent, KvPush, KvReceiver, KvSendEvent, KvSender, KvShape, KvTimeouts};
use tandem_wire::worker::KvTarget;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// No condition in these tests takes longer, however busy the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The content of a KV cache: per layer, token-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cache {
    pub(crate) shape: KvShape,
    pub(crate) n_tokens: usize,
    layers: Vec<Vec<u8>>,
}

impl Cache {
    pub(crate) fn empty(shape: KvShape, n_tokens: usize) -> Self {
        Self { shape, n_tokens, layers: vec![vec![0; n_tokens * shape.bytes_per_token_layer]; shape.n_layers] }
    }

    pub(crate) fn random(shape: KvShape, n_tokens: usize, seed: u64) -> Self {
        let mut cache = Self::empty(shape, n_tokens);
        let mut random = Random(seed);
        for layer in &mut cache.layers {
            for eight in layer.chunks_mut(8) {
                let n = eight.len();
                eight.copy_from_slice(&random.next().to_le_bytes()[..n]);
            }
        }
        cache
    }

    pub(crate) fn slice(&self, layer: usize, tokens: Range<usize>) -> Bytes {
        let b = self.shape.bytes_per_token_layer;
        Bytes::copy_from_slice(&self.layers[layer][tokens.start * b..tokens.end * b])
    }

    pub(crate) fn write(&mut self, layer: usize, tokens: Range<usize>, bytes: &[u8]) {
        let b = self.shape.bytes_per_token_layer;
        self.layers[layer][tokens.start * b..tokens.end * b].copy_from_slice(bytes);
    }

    /// As chunked prefill does: chunk by chunk, and layer by layer within each.
    pub(crate) fn push_in_chunks(&self, push: &KvPush, chunk: usize) {
        for (layer, tokens) in self.chunks(chunk) {
            push.piece(layer, tokens.clone(), self.slice(layer, tokens));
        }
    }

    pub(crate) fn push_shuffled(&self, push: &KvPush, chunk: usize, seed: u64) {
        let mut chunks = self.chunks(chunk);
        let mut random = Random(seed);
        chunks.sort_by_cached_key(|_| random.next());
        for (layer, tokens) in chunks {
            push.piece(layer, tokens.clone(), self.slice(layer, tokens));
        }
    }

    fn chunks(&self, chunk: usize) -> Vec<(usize, Range<usize>)> {
        let starts = (0..self.n_tokens).step_by(chunk);
        starts.flat_map(|s| (0..self.shape.n_layers).map(move |layer| (layer, s..(s + chunk).min(self.n_tokens)))).collect()
    }
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

pub(crate) fn target(address: &str, ticket: u64) -> KvTarget {
    KvTarget { address: address.to_owned(), ticket, deadline_ms: 60_000 }
}

/// Timeouts with a short deadline where a test waits for it.
pub(crate) fn quick() -> KvTimeouts {
    KvTimeouts {
        connect: Duration::from_secs(5),
        stall: Duration::from_millis(300),
        ack: Duration::from_millis(300),
        idle: Duration::from_millis(300),
    }
}

pub(crate) async fn next(events: &mut mpsc::Receiver<KvEvent>) -> KvEvent {
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("an event in time").expect("the receiver lives")
}

pub(crate) async fn send_event(events: &mut mpsc::UnboundedReceiver<KvSendEvent>) -> KvSendEvent {
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("an event in time").expect("the sender lives")
}

/// Waits until the condition holds.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    let all = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("the condition in time");
}

/// A sender and a receiver.
pub(crate) struct Peers {
    pub(crate) receiver: KvReceiver,
    pub(crate) events: mpsc::Receiver<KvEvent>,
    pub(crate) sender: KvSender,
    pub(crate) sent: mpsc::UnboundedReceiver<KvSendEvent>,
    pub(crate) address: String,
}

impl Peers {
    pub(crate) async fn start(capacity: usize) -> Self {
        Self::start_with(capacity, KvTimeouts::default(), KvTimeouts::default()).await
    }

    pub(crate) async fn start_with(capacity: usize, sending: KvTimeouts, receiving: KvTimeouts) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket").to_string();
        let (events_in, events) = mpsc::channel(capacity);
        let receiver = KvReceiver::start_with(listener, events_in, receiving);
        let (sent_in, sent) = mpsc::unbounded_channel();
        Self { receiver, events, sender: KvSender::with_timeouts(sent_in, sending), sent, address }
    }

    /// Reads events of one ticket until its commit.
    pub(crate) async fn collect(&mut self, ticket: u64, shape: KvShape, n_tokens: usize) -> (Cache, u32, CommitAck) {
        let mut cache = Cache::empty(shape, n_tokens);
        loop {
            match next(&mut self.events).await {
                KvEvent::Piece { ticket: t, layer, tokens, bytes } if t == ticket => cache.write(layer, tokens, &bytes),
                KvEvent::Commit { ticket: t, first_token, ack } if t == ticket => return (cache, first_token, ack),
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// A whole honest transfer, to show that the pair still works.
    pub(crate) async fn complete(&mut self, ticket: u64, shape: KvShape, n_tokens: usize) {
        let cache = Cache::random(shape, n_tokens, ticket);
        self.receiver.register(ticket, shape, n_tokens, PATIENCE).expect("a new ticket");
        let push = self.sender.open(&target(&self.address, ticket), shape, n_tokens);
        cache.push_in_chunks(&push, 16);
        push.commit(1);
        let (arrived, _, ack) = self.collect(ticket, shape, n_tokens).await;
        assert!(arrived == cache);
        ack.accept();
        assert_eq!(send_event(&mut self.sent).await, KvSendEvent::Acked { ticket });
    }

    pub(crate) async fn stop(self) {
        let both = async { tokio::join!(self.sender.shutdown(), self.receiver.shutdown()) };
        tokio::time::timeout(PATIENCE, both).await.expect("shutdown in time");
    }
}
