//! Transfers between an honest sender and an honest receiver: what arrives, in which order, and how each side ends.

mod common;

use std::time::Duration;

use common::{Cache, Peers, next, send_event, target};
use tandem_kv::{KvEvent, KvSendEvent, KvShape};

const SHAPE: KvShape = KvShape { n_layers: 3, bytes_per_token_layer: 8 };
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_cache_arrives_and_is_acknowledged() {
    let mut peers = Peers::start(64).await;
    let cache = Cache::random(SHAPE, 100, 1);
    peers.receiver.register(7, SHAPE, 100, MINUTE).unwrap();
    let push = peers.sender.open(&target(&peers.address, 7), SHAPE, 100);
    cache.push_in_chunks(&push, 32);
    push.commit(4711);
    let (arrived, first_token, ack) = peers.collect(7, SHAPE, 100).await;
    assert_eq!(arrived, cache);
    assert_eq!(first_token, 4711);
    ack.accept();
    assert_eq!(send_event(&mut peers.sent).await, KvSendEvent::Acked { ticket: 7 });
    assert_eq!(peers.receiver.n_registered(), 0);
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_chunking_in_any_order_gives_the_same_cache() {
    let mut peers = Peers::start(8).await;
    for (ticket, chunk) in [(1, 1), (2, 7), (3, 64), (4, 99), (5, 100)] {
        let cache = Cache::random(SHAPE, 100, ticket);
        peers.receiver.register(ticket, SHAPE, 100, MINUTE).unwrap();
        let push = peers.sender.open(&target(&peers.address, ticket), SHAPE, 100);
        cache.push_shuffled(&push, chunk, ticket);
        push.commit(1);
        let (arrived, _, ack) = peers.collect(ticket, SHAPE, 100).await;
        assert_eq!(arrived, cache, "chunks of {chunk}");
        ack.accept();
        assert_eq!(send_event(&mut peers.sent).await, KvSendEvent::Acked { ticket });
    }
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interleaved_transfers_do_not_mix() {
    let mut peers = Peers::start(16).await;
    let caches: Vec<_> = (0..4).map(|t| Cache::random(SHAPE, 40 + t, t as u64)).collect();
    let open = |cache: &Cache, ticket| {
        peers.receiver.register(ticket, SHAPE, cache.n_tokens, MINUTE).unwrap();
        peers.sender.open(&target(&peers.address, ticket), SHAPE, cache.n_tokens)
    };
    let pushes: Vec<_> = caches.iter().zip(0..).map(|(cache, ticket)| open(cache, ticket)).collect();
    for layer in 0..SHAPE.n_layers {
        for start in (0..44).step_by(5) {
            for (push, cache) in pushes.iter().zip(&caches) {
                let tokens = start..(start + 5).min(cache.n_tokens);
                if !tokens.is_empty() {
                    push.piece(layer, tokens.clone(), cache.slice(layer, tokens));
                }
            }
        }
    }
    pushes.into_iter().for_each(|p| p.commit(9));
    let mut arrived: Vec<_> = (0..4).map(|t| Cache::empty(SHAPE, 40 + t)).collect();
    let mut n_committed = 0;
    while n_committed < 4 {
        match next(&mut peers.events).await {
            KvEvent::Piece { ticket, layer, tokens, bytes } => arrived[usize::try_from(ticket).unwrap()].write(layer, tokens, &bytes),
            KvEvent::Commit { ack, .. } => {
                n_committed += 1;
                ack.accept();
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(arrived, caches);
    for _ in 0..4 {
        assert!(matches!(send_event(&mut peers.sent).await, KvSendEvent::Acked { .. }));
    }
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_megabytes_arrive_through_a_small_channel_pushed_from_a_plain_thread() {
    let mut peers = Peers::start(2).await;
    let shape = KvShape { n_layers: 8, bytes_per_token_layer: 1152 };
    let n_tokens = (64 << 20) / (8 * 1152);
    let cache = Cache::random(shape, n_tokens, 3);
    peers.receiver.register(1, shape, n_tokens, MINUTE).unwrap();
    let (sender, address, copy) = (peers.sender.clone(), peers.address.clone(), cache.clone());
    let pusher = std::thread::spawn(move || {
        let push = sender.open(&target(&address, 1), shape, n_tokens);
        copy.push_in_chunks(&push, 2048);
        push.commit(1);
    });
    let (arrived, _, ack) = peers.collect(1, shape, n_tokens).await;
    pusher.join().unwrap();
    assert!(arrived == cache, "the caches differ");
    ack.accept();
    assert_eq!(send_event(&mut peers.sent).await, KvSendEvent::Acked { ticket: 1 });
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_or_dropped_commit_fails_the_push_with_the_reason() {
    let mut peers = Peers::start(64).await;
    for ticket in [1, 2] {
        let cache = Cache::random(SHAPE, 10, ticket);
        peers.receiver.register(ticket, SHAPE, 10, MINUTE).unwrap();
        let push = peers.sender.open(&target(&peers.address, ticket), SHAPE, 10);
        cache.push_in_chunks(&push, 10);
        push.commit(1);
        let (_, _, ack) = peers.collect(ticket, SHAPE, 10).await;
        if ticket == 1 {
            ack.refuse("no blocks left");
        } else {
            drop(ack);
        }
        let KvSendEvent::Failed { ticket: failed, reason } = send_event(&mut peers.sent).await else { panic!("acknowledged") };
        assert_eq!(failed, ticket);
        assert!(reason.contains(if ticket == 1 { "no blocks left" } else { "dropped" }), "{reason}");
    }
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_receiver_stops_the_sender_and_loses_nothing() {
    // One megabyte a piece, a channel of two: nearly all of the 48 MB must wait on the sender's side until the events are read.
    let mut peers = Peers::start(2).await;
    let shape = KvShape { n_layers: 1, bytes_per_token_layer: 1 << 20 };
    let cache = Cache::random(shape, 48, 5);
    peers.receiver.register(1, shape, 48, MINUTE).unwrap();
    let push = peers.sender.open(&target(&peers.address, 1), shape, 48);
    cache.push_in_chunks(&push, 1);
    push.commit(1);
    common::until(|| peers.events.len() == 2).await;
    // Nothing but the reader takes events out, so the bound holds for as long as it sleeps.
    for _ in 0..50 {
        tokio::task::yield_now().await;
        assert!(peers.events.len() <= 2);
    }
    let (arrived, _, ack) = peers.collect(1, shape, 48).await;
    assert!(arrived == cache, "the caches differ");
    ack.accept();
    assert_eq!(send_event(&mut peers.sent).await, KvSendEvent::Acked { ticket: 1 });
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_or_dropped_push_ends_the_reservation_and_gives_no_send_event() {
    let mut peers = Peers::start(64).await;
    for ticket in [1, 2] {
        let cache = Cache::random(SHAPE, 10, ticket);
        peers.receiver.register(ticket, SHAPE, 10, MINUTE).unwrap();
        let push = peers.sender.open(&target(&peers.address, ticket), SHAPE, 10);
        push.piece(0, 0..10, cache.slice(0, 0..10));
        while !matches!(next(&mut peers.events).await, KvEvent::Piece { .. }) {}
        if ticket == 1 {
            push.abort();
        } else {
            drop(push);
        }
        let KvEvent::Aborted { ticket: aborted } = next(&mut peers.events).await else { panic!("not aborted") };
        assert_eq!(aborted, ticket);
    }
    // The connection is alive, and nothing was said about the aborted ones.
    peers.complete(3, SHAPE, 10).await;
    assert!(peers.sent.is_empty());
    peers.stop().await;
}
