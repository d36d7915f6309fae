//! What the sender says when the receiver is missing, deaf, mute, foreign or dies, and what the receiver says when the sender dies.

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use common::{Cache, PATIENCE, Peers, next, quick, send_event, target, until};
use tandem_kv::{KvEvent, KvPush, KvSendEvent, KvSender, KvShape, KvTimeouts};
use tokio::sync::mpsc;

const SHAPE: KvShape = KvShape { n_layers: 2, bytes_per_token_layer: 8 };
const N: usize = 10;

fn sender(timeouts: KvTimeouts) -> (KvSender, mpsc::UnboundedReceiver<KvSendEvent>) {
    let (events, sent) = mpsc::unbounded_channel();
    (KvSender::with_timeouts(events, timeouts), sent)
}

async fn failure(sent: &mut mpsc::UnboundedReceiver<KvSendEvent>) -> (u64, String) {
    match send_event(sent).await {
        KvSendEvent::Failed { ticket, reason } => (ticket, reason),
        other => panic!("unexpected {other:?}"),
    }
}

/// Opens a push and queues everything but the commit.
fn push_all(sender: &KvSender, address: &str, ticket: u64) -> KvPush {
    let push = sender.open(&target(address, ticket), SHAPE, N);
    Cache::random(SHAPE, N, ticket).push_in_chunks(&push, 3);
    push
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_to_nobody_fail_and_say_where_to() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (sender, mut sent) = sender(quick());
    for target_address in [address.as_str(), "not an address", "127.0.0.1:99999"] {
        let push = push_all(&sender, target_address, 1);
        push.commit(1);
        let (ticket, reason) = failure(&mut sent).await;
        assert_eq!(ticket, 1);
        assert!(reason.contains(target_address) && reason.contains("cannot connect"), "{reason}");
    }
    sender.shutdown().await;
    assert!(sent.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn impossible_pushes_fail_at_once() {
    let mut peers = Peers::start(64).await;
    let open = |n| peers.sender.open(&target(&peers.address, n as u64), SHAPE, n);
    assert!(open(0).is_dead());
    peers.receiver.register(N as u64, SHAPE, N, PATIENCE).unwrap();
    let push = open(N);
    let twin = open(N);
    twin.commit(0);
    for (ticket, because) in [(0, "number of tokens of 0"), (N as u64, "being pushed already")] {
        let (failed, reason) = failure(&mut peers.sent).await;
        assert_eq!(failed, ticket);
        assert!(reason.contains(because), "{reason}");
    }
    push.piece(0, 0..N, bytes::Bytes::from_static(&[0; 7]));
    let (_, reason) = failure(&mut peers.sent).await;
    assert!(reason.contains("has 7 bytes, not 80"), "{reason}");
    assert!(push.is_dead());
    drop(push);
    let event = next(&mut peers.events).await;
    assert!(matches!(event, KvEvent::Aborted { ticket: 10 }), "unexpected {event:?}");
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_receiver_dies_exactly_the_pushes_to_it_fail() {
    let (mut dying, mut living) = (Peers::start(64).await, Peers::start(64).await);
    let sender = living.sender.clone();
    for ticket in 1..=3 {
        dying.receiver.register(ticket, SHAPE, N, PATIENCE).unwrap();
    }
    living.receiver.register(4, SHAPE, N, PATIENCE).unwrap();
    let mut pushes: Vec<_> = (1..=3).map(|ticket| push_all(&sender, &dying.address, ticket)).collect();
    let survivor = push_all(&sender, &living.address, 4);
    // One is committed and waits for its acknowledgement, the others are half-way.
    pushes.remove(0).commit(1);
    while !matches!(next(&mut dying.events).await, KvEvent::Commit { .. }) {}
    dying.receiver.shutdown().await;
    let mut failed = BTreeSet::new();
    for _ in 0..3 {
        let (ticket, reason) = failure(&mut living.sent).await;
        assert!(reason.contains(&dying.address) || reason.contains("dropped"), "{reason}");
        failed.insert(ticket);
    }
    assert_eq!(failed, BTreeSet::from([1, 2, 3]));
    until(|| pushes.iter().all(KvPush::is_dead)).await;
    survivor.commit(1);
    let (_, _, ack) = living.collect(4, SHAPE, N).await;
    ack.accept();
    assert_eq!(send_event(&mut living.sent).await, KvSendEvent::Acked { ticket: 4 });
    living.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_comes_back_at_the_same_address_is_reached_again() {
    let mut peers = Peers::start(64).await;
    peers.complete(1, SHAPE, N).await;
    peers.receiver.shutdown().await;
    let (events_in, events) = mpsc::channel(64);
    let listener = tokio::net::TcpSocket::new_v4().unwrap();
    listener.set_reuseaddr(true).unwrap();
    listener.bind(peers.address.parse().unwrap()).unwrap();
    peers.receiver = tandem_kv::KvReceiver::start(listener.listen(16).unwrap(), events_in);
    peers.events = events;
    // The old connection may be found dead only now: pushes on it fail, later ones connect anew.
    let mut ticket = 10;
    loop {
        peers.receiver.register(ticket, SHAPE, N, PATIENCE).unwrap();
        push_all(&peers.sender, &peers.address, ticket).commit(1);
        tokio::select! {
            event = next(&mut peers.events) => { assert!(matches!(event, KvEvent::Piece { .. })); break }
            failed = failure(&mut peers.sent) => assert_eq!(failed.0, ticket),
        }
        ticket += 1;
    }
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_sender_goes_exactly_its_transfers_fail_here() {
    let mut peers = Peers::start(64).await;
    let (other, mut other_sent) = sender(KvTimeouts::default());
    for ticket in 1..=3 {
        peers.receiver.register(ticket, SHAPE, N, PATIENCE).unwrap();
    }
    let _one = push_all(&peers.sender, &peers.address, 1);
    let two = push_all(&other, &peers.address, 2);
    let mut n_pieces = 0;
    while n_pieces < 2 * 2 * 4 {
        assert!(matches!(next(&mut peers.events).await, KvEvent::Piece { .. }));
        n_pieces += 1;
    }
    peers.sender.shutdown().await;
    let KvEvent::Failed { ticket: 1, reason } = next(&mut peers.events).await else { panic!("not failed") };
    assert!(reason.contains("connection lost"), "{reason}");
    assert_eq!(failure(&mut peers.sent).await.0, 1);
    two.commit(6);
    let KvEvent::Commit { ticket: 2, first_token: 6, ack } = next(&mut peers.events).await else { panic!("not committed") };
    ack.accept();
    assert_eq!(send_event(&mut other_sent).await, KvSendEvent::Acked { ticket: 2 });
    assert_eq!(peers.receiver.n_registered(), 1, "the ticket that nobody pushed is still expected");
    other.shutdown().await;
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_never_answered_fails_at_its_deadline() {
    let mut peers = Peers::start_with(64, quick(), KvTimeouts::default()).await;
    peers.receiver.register(1, SHAPE, N, PATIENCE).unwrap();
    let mut to = target(&peers.address, 1);
    to.deadline_ms = 100;
    let push = peers.sender.open(&to, SHAPE, N);
    Cache::random(SHAPE, N, 1).push_in_chunks(&push, 10);
    push.commit(1);
    let (_, _, ack) = peers.collect(1, SHAPE, N).await;
    let (ticket, reason) = failure(&mut peers.sent).await;
    assert_eq!(ticket, 1);
    assert!(reason.contains("no answer"), "{reason}");
    // Too late, and harmless.
    ack.accept();
    peers.complete(2, SHAPE, N).await;
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_accepts_and_never_reads_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, mut sent) = sender(quick());
    let shape = KvShape { n_layers: 64, bytes_per_token_layer: 1 << 20 };
    let push = sender.open(&target(&address, 1), shape, 1);
    let page = bytes::Bytes::from(vec![0; 1 << 20]);
    (0..64).for_each(|layer| push.piece(layer, 0..1, page.clone()));
    push.commit(1);
    let (_held, _) = listener.accept().unwrap();
    let (_, reason) = failure(&mut sent).await;
    assert!(reason.contains("no progress"), "{reason}");
    sender.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_no_kv_receiver_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let (sender, mut sent) = sender(quick());
    push_all(&sender, &address, 1).commit(1);
    let (_, reason) = failure(&mut sent).await;
    assert!(reason.contains("does not speak this version"), "{reason}");
    sender.shutdown().await;
    until(|| server.is_finished()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_closes_and_the_next_push_opens_another() {
    let mut peers =
        Peers::start_with(64, KvTimeouts { idle: Duration::from_millis(20), ..KvTimeouts::default() }, KvTimeouts::default()).await;
    for ticket in 0..5 {
        peers.complete(ticket, SHAPE, N).await;
        tokio::time::sleep(Duration::from_millis(10 * ticket)).await;
    }
    assert!(peers.sent.is_empty() && peers.events.is_empty());
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_after_shutdown_fails_and_shutdown_does_not_wait_for_undelivered_events() {
    let mut peers = Peers::start(1).await;
    peers.receiver.register(1, SHAPE, N, PATIENCE).unwrap();
    push_all(&peers.sender, &peers.address, 1).commit(1);
    until(|| peers.events.len() == 1).await;
    peers.receiver.shutdown().await;
    assert!(matches!(next(&mut peers.events).await, KvEvent::Piece { .. }));
    assert!(peers.events.recv().await.is_none(), "the channel is closed although a handle remains");
    assert_eq!(failure(&mut peers.sent).await.0, 1);
    peers.sender.shutdown().await;
    assert!(push_all(&peers.sender, &peers.address, 2).is_dead());
    assert_eq!(failure(&mut peers.sent).await.0, 2);
}
