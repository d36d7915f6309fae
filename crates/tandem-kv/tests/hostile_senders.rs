//! What a receiver does with damaged, cut, late, forged and foreign bytes: it fails exactly the transfers concerned and serves the others.

mod common;

use std::time::Duration;

use common::raw::{self, Answer, RawSender};
use common::{Cache, PATIENCE, Peers, next, quick, until};
use tandem_kv::{KvEvent, KvShape, KvTimeouts};

const SHAPE: KvShape = KvShape { n_layers: 3, bytes_per_token_layer: 8 };
const N: usize = 10;

async fn expect_failed(peers: &mut Peers, ticket: u64, because: &str) {
    loop {
        match next(&mut peers.events).await {
            KvEvent::Piece { .. } => {}
            KvEvent::Failed { ticket: t, reason } => {
                assert_eq!(t, ticket);
                assert!(reason.contains(because), "{reason:?} does not say {because:?}");
                return;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn refused(raw: &mut RawSender, ticket: u64, because: &str) {
    let Answer::Refused(t, reason) = raw.answer() else { panic!("accepted") };
    assert_eq!(t, ticket);
    assert!(reason.contains(because), "{reason:?} does not say {because:?}");
}

fn register(peers: &Peers, ticket: u64) -> Cache {
    peers.receiver.register(ticket, SHAPE, N, PATIENCE).expect("a new ticket");
    Cache::random(SHAPE, N, ticket)
}

/// Finishes a raw transfer whose frames are sent already.
async fn expect_commit(peers: &mut Peers, raw: &mut RawSender, ticket: u64, cache: &Cache) {
    let (arrived, first_token, ack) = peers.collect(ticket, SHAPE, N).await;
    assert_eq!((&arrived, first_token), (cache, 5));
    ack.accept();
    assert_eq!(raw.answer(), Answer::Acked(ticket));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_bytes_are_a_transfer() {
    let mut peers = Peers::start(64).await;
    let cache = register(&peers, 1);
    let mut raw = RawSender::introduced(&peers.address);
    raw.send(&raw::transfer(1, &cache).concat());
    expect_commit(&mut peers, &mut raw, 1, &cache).await;
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_payload_byte_fails_its_transfer_and_no_other_on_the_connection() {
    let mut peers = Peers::start(64).await;
    let (bad, good) = (register(&peers, 1), register(&peers, 2));
    let mut frames = raw::transfer(1, &bad);
    frames[2][40 + 17] ^= 4;
    let mut raw = RawSender::introduced(&peers.address);
    raw.send(&raw::open(2, SHAPE, N));
    raw.send(&frames.concat());
    raw.send(&raw::transfer(2, &good)[1..].concat());
    expect_failed(&mut peers, 1, "layer 1, tokens 0..10 arrived damaged").await;
    refused(&mut raw, 1, "arrived damaged");
    expect_commit(&mut peers, &mut raw, 2, &good).await;
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_header_ends_the_connection_and_fails_what_it_carried() {
    let mut peers = Peers::start(64).await;
    let (first, second, elsewhere) = (register(&peers, 1), register(&peers, 2), register(&peers, 3));
    let mut other = RawSender::introduced(&peers.address);
    other.send(&raw::open(3, SHAPE, N));
    let mut raw = RawSender::introduced(&peers.address);
    raw.send(&raw::open(1, SHAPE, N));
    raw.send(&raw::open(2, SHAPE, N));
    let mut damaged = raw::piece(1, 0, 0..N, &first.slice(0, 0..N));
    damaged[13] ^= 1;
    raw.send(&damaged);
    let mut failed = Vec::new();
    while failed.len() < 2 {
        let KvEvent::Failed { ticket, reason } = next(&mut peers.events).await else { panic!("not failed") };
        assert!(reason.contains("damaged frame header"), "{reason}");
        failed.push(ticket);
    }
    failed.sort_unstable();
    assert_eq!(failed, [1, 2]);
    raw.wait_closed();
    other.send(&raw::transfer(3, &elsewhere)[1..].concat());
    expect_commit(&mut peers, &mut other, 3, &elsewhere).await;
    assert_eq!(second.n_tokens, N);
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_cut_anywhere_fails_a_begun_transfer_once_and_leaves_an_unbegun_one_usable() {
    let mut peers = Peers::start(64).await;
    let cache = Cache::random(SHAPE, N, 1);
    let frames = raw::transfer(1, &cache);
    let mut stream = raw::PREAMBLE.to_vec();
    let mut cuts = vec![0, 3, stream.len()];
    for frame in &frames {
        // Inside the header, between header and payload, inside the payload, and at the frame's end.
        cuts.extend([1, 39, 40, 57, frame.len()].map(|n| stream.len() + n.min(frame.len())));
        stream.extend(frame);
    }
    let begun_at = raw::PREAMBLE.len() + 40;
    for (i, cut) in cuts.into_iter().filter(|c| *c < stream.len()).enumerate() {
        let ticket = 100 + i as u64;
        peers.receiver.register(ticket, SHAPE, N, PATIENCE).unwrap();
        let bytes = [raw::PREAMBLE.to_vec(), raw::transfer(ticket, &cache).concat()].concat();
        let mut raw = RawSender::connect(&peers.address);
        raw.send(&bytes[..cut]);
        raw.close();
        if cut >= begun_at {
            expect_failed(&mut peers, ticket, "connection lost").await;
        } else {
            let mut again = RawSender::introduced(&peers.address);
            again.send(&raw::transfer(ticket, &cache).concat());
            expect_commit(&mut peers, &mut again, ticket, &cache).await;
        }
        assert_eq!(peers.receiver.n_registered(), 0, "cut at {cut}");
    }
    assert!(peers.events.is_empty());
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_after_release_is_refused_and_the_connection_goes_on() {
    let mut peers = Peers::start(64).await;
    let (cache, other) = (register(&peers, 1), register(&peers, 2));
    let mut raw = RawSender::introduced(&peers.address);
    let frames = raw::transfer(1, &cache);
    raw.send(&frames[..2].concat());
    assert!(matches!(next(&mut peers.events).await, KvEvent::Piece { ticket: 1, .. }));
    peers.receiver.release(1);
    refused(&mut raw, 1, "released");
    raw.send(&frames[2..].concat());
    refused(&mut raw, 1, "no such reservation");
    raw.send(&raw::transfer(2, &other).concat());
    expect_commit(&mut peers, &mut raw, 2, &other).await;
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_expires_once_begun_or_not_and_later_pushes_are_refused() {
    let mut peers = Peers::start(64).await;
    let cache = Cache::random(SHAPE, N, 1);
    let mut raw = RawSender::introduced(&peers.address);
    for ticket in [1, 2] {
        peers.receiver.register(ticket, SHAPE, N, Duration::from_millis(200)).unwrap();
    }
    raw.send(&raw::open(1, SHAPE, N));
    let mut expired = Vec::new();
    while expired.len() < 2 {
        let KvEvent::Expired { ticket } = next(&mut peers.events).await else { panic!("not expired") };
        expired.push(ticket);
    }
    expired.sort_unstable();
    assert_eq!(expired, [1, 2]);
    refused(&mut raw, 1, "expired");
    raw.send(&raw::transfer(1, &cache)[1..].concat());
    refused(&mut raw, 1, "no such reservation");
    raw.send(&raw::transfer(2, &cache).concat());
    refused(&mut raw, 2, "no such reservation");
    let good = register(&peers, 3);
    raw.send(&raw::transfer(3, &good).concat());
    expect_commit(&mut peers, &mut raw, 3, &good).await;
    assert!(peers.events.is_empty(), "an event after the end");
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_transfers_are_answered_once_however_many_pieces_follow() {
    let mut peers = Peers::start(64).await;
    let good = register(&peers, 2);
    let mut raw = RawSender::introduced(&peers.address);
    raw.send(&raw::open(1, SHAPE, N));
    for _ in 0..100 {
        raw.send(&raw::piece(1, 0, 0..N, &[0; 80]));
    }
    raw.send(&raw::header(4, 1, [0; 3], 0, 0));
    raw.send(&raw::transfer(2, &good).concat());
    refused(&mut raw, 1, "no such reservation");
    expect_commit(&mut peers, &mut raw, 2, &good).await;
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_shapes_places_lengths_repeats_and_gaps_fail_their_transfer() {
    let mut peers = Peers::start(64).await;
    let cache = Cache::random(SHAPE, N, 1);
    let all = cache.slice(0, 0..N);
    let opened = |ticket| raw::open(ticket, SHAPE, N);
    let wide = KvShape { bytes_per_token_layer: 16, ..SHAPE };
    let cases: Vec<(Vec<Vec<u8>>, &str)> = vec![
        (vec![raw::open(0, wide, N)], "push of 3 layers x 10 tokens x 16 bytes"),
        (vec![raw::open(1, SHAPE, N + 1)], "for a reservation of 3 layers x 10 tokens x 8 bytes"),
        (vec![opened(2), raw::piece(2, 3, 0..N, &all)], "outside"),
        (vec![opened(3), raw::piece(3, 0, 5..N + 5, &all)], "outside"),
        (vec![opened(4), raw::piece(4, 0, 0..N, &all[1..])], "has 79 bytes, not 80"),
        (vec![opened(5), raw::piece(5, 0, 0..N, &all), raw::piece(5, 0, 9..10, &all[..8])], "arrived twice"),
        (vec![opened(6), raw::piece(6, 0, 0..N, &all), raw::commit(6, 0, &[(0, 0, 10, all.to_vec())])], "20 token-layers missing"),
        (raw::transfer(7, &cache)[..4].iter().cloned().chain([raw::commit(7, 0, &[])]).collect(), "checksum over all pieces"),
    ];
    for (ticket, (frames, because)) in cases.into_iter().enumerate() {
        let ticket = ticket as u64;
        register(&peers, ticket);
        let mut raw = RawSender::introduced(&peers.address);
        raw.send(&frames.concat());
        expect_failed(&mut peers, ticket, because).await;
        refused(&mut raw, ticket, because);
    }
    assert_eq!(peers.receiver.n_registered(), 0);
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_connection_cannot_take_over_or_disturb_a_begun_transfer() {
    let mut peers = Peers::start(64).await;
    let cache = register(&peers, 1);
    let frames = raw::transfer(1, &cache);
    let mut owner = RawSender::introduced(&peers.address);
    owner.send(&frames[..2].concat());
    assert!(matches!(next(&mut peers.events).await, KvEvent::Piece { ticket: 1, .. }));
    let mut thief = RawSender::introduced(&peers.address);
    thief.send(&frames[0]);
    refused(&mut thief, 1, "another transfer has begun");
    let mut saboteur = RawSender::introduced(&peers.address);
    saboteur.send(&raw::header(4, 1, [0; 3], 0, 0));
    saboteur.send(&frames[4]);
    refused(&mut saboteur, 1, "another connection has begun");
    owner.send(&frames[2..].concat());
    loop {
        match next(&mut peers.events).await {
            KvEvent::Piece { .. } => {}
            KvEvent::Commit { ticket: 1, ack, .. } => break ack.accept(),
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(owner.answer(), Answer::Acked(1));
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_cut_off_and_cost_nobody_else_anything() {
    let mut peers = Peers::start_with(64, KvTimeouts::default(), quick()).await;
    let strangers: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0; 4096],
        &[0xff; 64],
        b"tandkv\0\x02", // Another version.
        &[raw::PREAMBLE, &[0xa5; 40]].concat(),
    ];
    for bytes in strangers {
        let mut raw = RawSender::connect(&peers.address);
        raw.try_send(bytes);
        raw.wait_closed();
    }
    // Frames that only a receiver may send, and a length that must not be allocated.
    for frame in [raw::header(5, 1, [0; 3], 0, 0), raw::header(2, 1, [0, 0, 1], 1 << 30, 0)] {
        let mut raw = RawSender::introduced(&peers.address);
        raw.send(&frame);
        raw.wait_closed();
    }
    // Silence: before the preamble, and in the middle of a frame.
    RawSender::connect(&peers.address).wait_closed();
    let mut half = RawSender::introduced(&peers.address);
    register(&peers, 1);
    half.send(&raw::open(1, SHAPE, N));
    half.send(&raw::piece(1, 0, 0..N, &[0; 80])[..60]);
    expect_failed(&mut peers, 1, "no progress").await;
    half.wait_closed();
    peers.complete(9, SHAPE, N).await;
    peers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_floods_and_never_reads_is_cut_off() {
    let mut peers = Peers::start(64).await;
    let mut raw = RawSender::introduced(&peers.address);
    let flood = std::thread::spawn(move || {
        let mut ticket = 0;
        while raw.try_send(&raw::open(ticket, SHAPE, N)) {
            ticket += 1;
            assert!(ticket < 10_000_000, "never cut off");
        }
    });
    until(|| flood.is_finished()).await;
    flood.join().unwrap();
    peers.complete(1, SHAPE, N).await;
    peers.stop().await;
}
