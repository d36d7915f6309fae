//! Bytes per second of whole transfers over loopback, from the first piece to the acknowledgement.
//!
//! `cargo bench -p tandem-kv`. Prints one line a payload: nano's cache of 256 tokens, and DeepSeek-R1's of 8150 tokens
//! (61 layers of 1152 bytes) pushed as one chunk and as chunks of 2048 tokens. The consumer copies each piece once, as
//! a decode worker does that writes it into its blocks. Both ends share this machine's cores and memory bandwidth.
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use tandem_kv::{KvEvent, KvReceiver, KvSendEvent, KvSender, KvShape};
use tandem_wire::worker::KvTarget;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

struct Payload {
    name: &'static str,
    shape: KvShape,
    n_tokens: usize,
    /// Tokens a piece.
    chunk: usize,
    /// Transfers per measurement, one after the other.
    n_transfers: u64,
}

/// Measurements a payload; the median is shown with the extremes.
const N_ROUNDS: usize = 7;

fn main() {
    // `cargo test --benches` passes this; a single small round shows that the bench still works.
    let smoke = std::env::args().any(|a| a == "--test");
    let nano = KvShape { n_layers: 8, bytes_per_token_layer: 144 * 4 };
    let r1 = KvShape { n_layers: 61, bytes_per_token_layer: 1152 };
    let payloads = [
        Payload { name: "nano, 256 tokens", shape: nano, n_tokens: 256, chunk: 256, n_transfers: 200 },
        Payload { name: "R1, 8150 tokens, one chunk", shape: r1, n_tokens: 8150, chunk: 8150, n_transfers: 2 },
        Payload { name: "R1, 8150 tokens, chunks of 2048", shape: r1, n_tokens: 8150, chunk: 2048, n_transfers: 2 },
    ];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    for payload in payloads {
        if smoke {
            runtime.block_on(measure(&Payload { n_transfers: 1, ..payload }, 1));
        } else {
            println!("{}", runtime.block_on(measure(&payload, N_ROUNDS)));
        }
    }
}

async fn measure(payload: &Payload, n_rounds: usize) -> String {
    let Payload { name, shape, n_tokens, n_transfers, .. } = *payload;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket").to_string();
    let (events_in, events) = mpsc::channel(64);
    let receiver = KvReceiver::start(listener, events_in);
    let (sent_in, mut sent) = mpsc::unbounded_channel();
    let sender = KvSender::new(sent_in);
    let consumer = std::thread::spawn(move || consume(events, shape, n_tokens));
    let layer = Bytes::from(vec![0x5a; n_tokens * shape.bytes_per_token_layer]);

    let mut seconds = Vec::new();
    for round in 0..=n_rounds {
        let start = Instant::now();
        for i in 0..n_transfers {
            let ticket = round as u64 * n_transfers + i;
            receiver.register(ticket, shape, n_tokens, Duration::from_secs(60)).expect("a new ticket");
            push(&sender, &address, ticket, payload, &layer);
            assert_eq!(sent.recv().await, Some(KvSendEvent::Acked { ticket }));
        }
        // The first round connects and warms up.
        if round > 0 {
            seconds.push(start.elapsed().as_secs_f64() / n_transfers as f64);
        }
    }
    sender.shutdown().await;
    receiver.shutdown().await;
    drop(receiver);
    consumer.join().expect("the consumer ends");
    seconds.sort_by(f64::total_cmp);
    let bytes = (shape.n_layers * shape.bytes_per_token_layer * n_tokens) as f64;
    let rate = |s: f64| bytes / s / 1e9;
    let median = seconds[seconds.len() / 2];
    format!(
        "{name}: {:.1} MB in {:.2} ms, {:.2} GB/s (slowest {:.2}, fastest {:.2} of {} rounds)",
        bytes / 1e6,
        median * 1e3,
        rate(median),
        rate(seconds[seconds.len() - 1]),
        rate(seconds[0]),
        seconds.len()
    )
}

fn push(sender: &KvSender, address: &str, ticket: u64, payload: &Payload, layer: &Bytes) {
    let target = KvTarget { address: address.to_owned(), ticket, deadline_ms: 60_000 };
    let push = sender.open(&target, payload.shape, payload.n_tokens);
    let b = payload.shape.bytes_per_token_layer;
    for start in (0..payload.n_tokens).step_by(payload.chunk) {
        let end = (start + payload.chunk).min(payload.n_tokens);
        for l in 0..payload.shape.n_layers {
            push.piece(l, start..end, layer.slice(start * b..end * b));
        }
    }
    push.commit(1);
}

/// Copies pieces into a cache and accepts commits until the receiver is gone.
fn consume(mut events: mpsc::Receiver<KvEvent>, shape: KvShape, n_tokens: usize) {
    let b = shape.bytes_per_token_layer;
    let mut cache = vec![0; shape.n_layers * n_tokens * b];
    while let Some(event) = events.blocking_recv() {
        match event {
            KvEvent::Piece { layer, tokens, bytes, .. } => {
                let at = (layer * n_tokens + tokens.start) * b;
                cache[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            KvEvent::Commit { ack, .. } => ack.accept(),
            other => panic!("unexpected {other:?}"),
        }
    }
}
