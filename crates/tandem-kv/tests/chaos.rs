//! Many transfers at once with everything that can happen to them, by a seed: what must hold for every one of them.
//!
//! - a registered ticket ends in exactly one event (or a release), and nothing follows that end;
//! - a push that is not aborted gives exactly one event, and an acknowledged one was accepted, whole and unchanged;
//! - at the end no reservation and no task is left.

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::{Cache, PATIENCE, Random, target};
use tandem_kv::{KvEvent, KvReceiver, KvSendEvent, KvSender, KvShape};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const SHAPE: KvShape = KvShape { n_layers: 3, bytes_per_token_layer: 24 };
const N_TRANSFERS: u64 = 3000;
const N_SENDERS: u64 = 3;

/// What happens to one transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Complete,
    Abort,
    Drop,
    ShortDeadline,
    ReleaseEarly,
    RefuseCommit,
    DropCommit,
    NeverRegistered,
    WrongShape,
    Incomplete,
    PushedTwice,
}

const FATES: [Fate; 14] = [
    Fate::Complete,
    Fate::Complete,
    Fate::Complete,
    Fate::Complete,
    Fate::Abort,
    Fate::Drop,
    Fate::ShortDeadline,
    Fate::ReleaseEarly,
    Fate::RefuseCommit,
    Fate::DropCommit,
    Fate::NeverRegistered,
    Fate::WrongShape,
    Fate::Incomplete,
    Fate::PushedTwice,
];

fn fate(ticket: u64) -> Fate {
    let mut random = Random(ticket);
    FATES[usize::try_from(random.next() % FATES.len() as u64).expect("small")]
}

fn n_tokens(ticket: u64) -> usize {
    usize::try_from(1 + ticket * 7 % 200).expect("small")
}

/// How a ticket ended on the decode side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Accepted,
    Refused,
    Failed,
    Aborted,
    Expired,
    Released,
}

#[test]
fn every_transfer_ends_once_on_each_side_and_acknowledged_ones_arrived_whole() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (events_in, events) = mpsc::channel(8);
    let (receiver, address) = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (KvReceiver::start(listener, events_in), address)
    });
    let engine = {
        let receiver = receiver.clone();
        std::thread::spawn(move || drain(&receiver, events))
    };
    let (sent_in, sent) = mpsc::unbounded_channel();
    let senders: Vec<KvSender> = (0..N_SENDERS)
        .map(|_| {
            let _inside = runtime.enter();
            KvSender::new(sent_in.clone())
        })
        .collect();
    let pushers: Vec<_> = senders
        .iter()
        .zip(0..)
        .map(|(sender, n)| {
            let (sender, receiver, address) = (sender.clone(), receiver.clone(), address.clone());
            std::thread::spawn(move || (n..N_TRANSFERS).step_by(3).for_each(|ticket| push(&sender, &receiver, &address, ticket)))
        })
        .collect();
    pushers.into_iter().for_each(|p| p.join().unwrap());
    // Every push that was not aborted has an event now or soon, and every reservation an end.
    let sent = runtime.block_on(outcomes(sent));
    runtime.block_on(common::until(|| receiver.n_registered() == 0));
    runtime.block_on(async {
        for sender in &senders {
            sender.shutdown().await;
        }
        receiver.shutdown().await;
    });
    drop(receiver);
    let ends = engine.join().unwrap();
    for ticket in 0..N_TRANSFERS {
        check(ticket, ends.get(&ticket).copied(), sent.get(&ticket));
    }
}

fn push(sender: &KvSender, receiver: &KvReceiver, address: &str, ticket: u64) {
    let (fate, n) = (fate(ticket), n_tokens(ticket));
    if fate != Fate::NeverRegistered {
        let deadline = if fate == Fate::ShortDeadline { Duration::from_millis(ticket % 4) } else { PATIENCE };
        receiver.register(ticket, SHAPE, n, deadline).expect("a new ticket");
    }
    let shape = if fate == Fate::WrongShape { KvShape { n_layers: 2, ..SHAPE } } else { SHAPE };
    let cache = Cache::random(shape, n, ticket);
    let push = sender.open(&target(address, ticket), shape, n);
    if fate != Fate::Incomplete {
        cache.push_shuffled(&push, 1 + n / 3, ticket);
    }
    match fate {
        Fate::Abort => push.abort(),
        Fate::Drop => drop(push),
        Fate::PushedTwice => {
            // One piece again: more bytes than there are.
            push.piece(0, 0..1, cache.slice(0, 0..1));
            push.commit(9);
        }
        _ => push.commit(9),
    }
}

/// The decode worker's engine thread: writes pieces, answers commits, and asserts that nothing follows an end.
fn drain(receiver: &KvReceiver, mut events: mpsc::Receiver<KvEvent>) -> HashMap<u64, End> {
    let mut caches: HashMap<u64, Cache> = HashMap::new();
    let mut ends: HashMap<u64, End> = HashMap::new();
    while let Some(event) = events.blocking_recv() {
        let (ticket, how) = match event {
            KvEvent::Piece { ticket, layer, tokens, bytes } => {
                let released = ends.get(&ticket) == Some(&End::Released);
                assert!(released || !ends.contains_key(&ticket), "a piece of ticket {ticket} after its end");
                caches.entry(ticket).or_insert_with(|| Cache::empty(SHAPE, n_tokens(ticket))).write(layer, tokens, &bytes);
                if fate(ticket) != Fate::ReleaseEarly || released {
                    continue;
                }
                receiver.release(ticket);
                (ticket, End::Released)
            }
            KvEvent::Commit { ticket, first_token, ack } => {
                assert_eq!(first_token, 9);
                if ends.get(&ticket) == Some(&End::Released) {
                    ack.refuse("released");
                    continue;
                }
                assert_eq!(caches.get(&ticket), Some(&Cache::random(SHAPE, n_tokens(ticket), ticket)), "ticket {ticket}");
                match fate(ticket) {
                    Fate::RefuseCommit => ack.refuse("no"),
                    Fate::DropCommit => drop(ack),
                    _ => ack.accept(),
                }
                let refused = matches!(fate(ticket), Fate::RefuseCommit | Fate::DropCommit);
                (ticket, if refused { End::Refused } else { End::Accepted })
            }
            KvEvent::Failed { ticket, .. } => (ticket, End::Failed),
            KvEvent::Aborted { ticket } => (ticket, End::Aborted),
            KvEvent::Expired { ticket } => (ticket, End::Expired),
        };
        match ends.get(&ticket) {
            // It was in the channel when the ticket was released.
            Some(End::Released) => {}
            before => {
                assert_eq!(before, None, "ticket {ticket} ended before it ended as {how:?}");
                ends.insert(ticket, how);
            }
        }
    }
    ends
}

/// The events of all pushes that were not aborted.
async fn outcomes(mut sent: mpsc::UnboundedReceiver<KvSendEvent>) -> HashMap<u64, KvSendEvent> {
    let n_expected = (0..N_TRANSFERS).filter(|t| !matches!(fate(*t), Fate::Abort | Fate::Drop)).count();
    let mut all = HashMap::new();
    let mut n = 0;
    while n < n_expected {
        let event = common::send_event(&mut sent).await;
        let (KvSendEvent::Acked { ticket } | KvSendEvent::Failed { ticket, .. }) = event;
        // An abort may come too late to prevent the receiver's refusal from being reported.
        if !matches!(fate(ticket), Fate::Abort | Fate::Drop) {
            n += 1;
            assert_eq!(all.insert(ticket, event), None, "two events of ticket {ticket}");
        }
    }
    all
}

fn check(ticket: u64, end: Option<End>, sent: Option<&KvSendEvent>) {
    let fate = fate(ticket);
    let acked = matches!(sent, Some(KvSendEvent::Acked { .. }));
    assert_eq!(acked, end == Some(End::Accepted), "ticket {ticket}, {fate:?}: {end:?}, {sent:?}");
    let expected: &[Option<End>] = match fate {
        Fate::Complete => &[Some(End::Accepted)],
        Fate::Abort | Fate::Drop => &[Some(End::Aborted)],
        Fate::ShortDeadline => &[Some(End::Expired), Some(End::Accepted), Some(End::Aborted)],
        // The first piece releases it, before its commit.
        Fate::ReleaseEarly => &[Some(End::Released)],
        Fate::RefuseCommit | Fate::DropCommit => &[Some(End::Refused)],
        Fate::NeverRegistered => &[None],
        Fate::WrongShape | Fate::Incomplete => &[Some(End::Failed)],
        Fate::PushedTwice => &[Some(End::Aborted)],
    };
    assert!(expected.contains(&end), "ticket {ticket}, {fate:?}: {end:?}, {sent:?}");
}
