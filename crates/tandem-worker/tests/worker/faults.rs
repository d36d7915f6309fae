//! Whatever goes wrong: the right failure is told, only those concerned fail, and no block stays held.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tandem_engine::ModeledEngine;
use tandem_plan::{EngineKind, ParallelLayout, Phase};
use tandem_wire::worker::{FailureKind, FinishReason, FromWorker, KvTarget, RequestId, ToWorker};
use tandem_worker::{WorkerError, WorkerOptions};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::common::{
    FREE, Fault, Gate, LIMIT, Link, Spec, VOCAB, Worker, dead_address, first_tokens, plan, prompt, reference, sampling, serve, silent_peer,
    texts,
};

async fn failed(link: &mut Link, expected: (u64, FailureKind)) -> String {
    match link.next().await {
        FromWorker::Failed { id, kind, message } => {
            assert_eq!((id.0, kind), expected, "{message}");
            message
        }
        other => panic!("not failed: {other:?}"),
    }
}

fn target(address: String, ticket: u64) -> Option<KvTarget> {
    Some(KvTarget { address, ticket, deadline_ms: 60_000 })
}

/// Whether the pair still serves: one more request through both.
async fn works(prefill: &mut Link, decode: &mut Link) {
    let tokens = prompt(77, 30);
    decode.reserve(1000, 30, sampling(5)).await;
    let (_, target) = decode.reserved().await;
    prefill.prefill(1000, tokens.clone(), sampling(5), Some(target)).await;
    let mut text = first_tokens(prefill).await[0].1.clone();
    text.extend(&texts(decode, 1).await[&1000].tokens);
    assert_eq!(text, reference(&tokens, 5));
    prefill.until_idle().await;
    decode.until_idle().await;
}

#[tokio::test]
async fn a_cancelled_prefill_gives_back_its_blocks_in_every_state() {
    let gate = Gate::closed();
    let mut peers = JoinSet::new();
    let silent = silent_peer(&mut peers).await;
    let mut prefill = Worker::start(Spec::new(Phase::Prefill).with(|s| {
        s.gate = Arc::clone(&gate);
        s.worker.limits.max_batch_size = 1;
    }))
    .await;
    // The first is in its first chunk, the second waits.
    prefill.link.prefill(1, prompt(1, 50), sampling(5), target(silent.clone(), 1)).await;
    prefill.link.until(|s| s.n_running == 1).await;
    prefill.link.prefill(2, prompt(2, 50), sampling(5), target(silent.clone(), 2)).await;
    prefill.link.cancel(2).await;
    prefill.link.cancel(2).await;
    prefill.link.cancel(1).await;
    // By then the worker has read it, while the step is held.
    prefill.link.beats(2).await;
    gate.allow(1);
    prefill.link.until_idle().await;
    // The third is computed and waits for an acknowledgement that never comes.
    gate.open();
    prefill.link.prefill(3, prompt(3, 50), sampling(5), target(silent, 3)).await;
    assert_eq!(first_tokens(&mut prefill.link).await[0].0, 3);
    let stats = prefill.link.until(|s| s.n_transferring == 1).await;
    assert_eq!((stats.n_running, stats.kv_blocks_used), (0, 7));
    prefill.link.cancel(3).await;
    prefill.link.until_idle().await;
    prefill.link.cancel(99).await;
    assert!(prefill.link.is_silent(), "cancelling is not failing");
    let mut decode = Worker::start(Spec::new(Phase::Decode)).await;
    works(&mut prefill.link, &mut decode.link).await;
}

#[tokio::test]
async fn a_cancelled_decode_gives_back_its_blocks_in_every_state() {
    let gate = Gate::closed();
    let mut decode = Worker::start(Spec::new(Phase::Decode).with(|s| {
        s.gate = Arc::clone(&gate);
        s.worker.limits.max_batch_size = 1;
        s.worker.kv.n_blocks = 21;
    }))
    .await;
    let mut prefill = Worker::start(Spec::new(Phase::Prefill)).await;
    // Seven blocks each: three are reserved, the fourth waits for blocks.
    for id in 1..=4 {
        decode.link.reserve(id, 20, sampling(30)).await;
    }
    let mut targets = Vec::new();
    for id in 1..=3 {
        let (reserved, target) = decode.link.reserved().await;
        assert_eq!(reserved, id);
        targets.push(target);
    }
    let stats = decode.link.until(|s| s.n_waiting == 1).await;
    assert_eq!((stats.n_transferring, stats.kv_blocks_used), (3, 21));
    decode.link.cancel(4).await;
    decode.link.until(|s| s.n_waiting == 0).await;
    // The third stays reserved. The first and second get their KV and are committed, one of them without a place in the batch.
    for (id, target) in (1..=2).zip(&targets) {
        prefill.link.prefill(id, prompt(1, 20), sampling(30), Some(target.clone())).await;
    }
    decode.step_until(|s| s.n_running == 1 && s.n_waiting == 1 && s.n_transferring == 1).await;
    for id in [1, 2, 3, 1] {
        decode.link.cancel(id).await;
    }
    gate.open();
    decode.link.until_idle().await;
    prefill.link.until_idle().await;
    // A push for what was cancelled is refused.
    prefill.link.prefill(5, prompt(1, 20), sampling(30), Some(targets[2].clone())).await;
    while !matches!(prefill.link.next().await, FromWorker::Failed { id: RequestId(5), kind: FailureKind::Transfer, .. }) {}
    prefill.link.until_idle().await;
    while !decode.link.is_silent() {
        assert!(matches!(decode.link.next().await, FromWorker::Tokens { .. }), "cancelling is not failing");
    }
    works(&mut prefill.link, &mut decode.link).await;
}

#[tokio::test]
async fn cancelling_takes_effect_within_one_step() {
    let gate = Gate::closed();
    let mut decode = Worker::start(Spec::new(Phase::Decode).with(|s| s.gate = Arc::clone(&gate))).await;
    let mut prefill = Worker::start(Spec::new(Phase::Prefill)).await;
    decode.link.reserve(1, 10, sampling(100)).await;
    let (_, target) = decode.link.reserved().await;
    prefill.link.prefill(1, prompt(1, 10), sampling(100), Some(target)).await;
    decode.link.until(|s| s.n_running == 1).await;
    decode.link.cancel(1).await;
    // By then the worker has read it, while the step is held.
    decode.link.beats(2).await;
    gate.allow(1);
    decode.link.until_idle().await;
    let stats = decode.link.until(|s| s.n_steps > 0).await;
    assert_eq!(stats.n_steps, 1);
}

#[tokio::test]
async fn a_prefill_worker_killed_in_mid_push_frees_the_reservation() {
    let gate = Gate::closed();
    let mut decode = Worker::start(Spec::new(Phase::Decode)).await;
    let mut prefill = Worker::start(Spec::new(Phase::Prefill).with(|s| s.gate = Arc::clone(&gate))).await;
    decode.link.reserve(1, 100, sampling(5)).await;
    let (_, target) = decode.link.reserved().await;
    prefill.link.prefill(1, prompt(1, 100), sampling(5), Some(target)).await;
    // Two of seven chunks are computed; their KV is on its way or there.
    gate.allow(2);
    prefill.link.until(|s| s.n_prefill_tokens == 32).await;
    let stats = decode.link.until(|s| s.n_transferring == 1).await;
    assert!(stats.kv_blocks_used > 0);
    prefill.kill().await;
    failed(&mut decode.link, (1, FailureKind::Transfer)).await;
    decode.link.until_idle().await;
    let mut other = Worker::start(Spec::new(Phase::Prefill)).await;
    works(&mut other.link, &mut decode.link).await;
}

#[tokio::test]
async fn a_decode_worker_killed_in_mid_push_frees_the_prefill() {
    let gate = Gate::closed();
    let mut decode = Worker::start(Spec::new(Phase::Decode)).await;
    let mut prefill = Worker::start(Spec::new(Phase::Prefill).with(|s| s.gate = Arc::clone(&gate))).await;
    decode.link.reserve(1, 100, sampling(5)).await;
    let (_, target) = decode.link.reserved().await;
    prefill.link.prefill(1, prompt(1, 100), sampling(5), Some(target)).await;
    gate.allow(2);
    prefill.link.until(|s| s.n_prefill_tokens == 32).await;
    decode.kill().await;
    gate.open();
    while !matches!(prefill.link.next().await, FromWorker::Failed { id: RequestId(1), kind: FailureKind::Transfer, .. }) {}
    prefill.link.until_idle().await;
    let mut other = Worker::start(Spec::new(Phase::Decode)).await;
    works(&mut prefill.link, &mut other.link).await;
}

#[tokio::test]
async fn a_decode_worker_that_is_not_there_fails_the_transfer() {
    let mut prefill = Worker::start(Spec::new(Phase::Prefill)).await;
    prefill.link.prefill(1, prompt(1, 100), sampling(5), target(dead_address().await, 1)).await;
    while !matches!(prefill.link.next().await, FromWorker::Failed { id: RequestId(1), kind: FailureKind::Transfer, .. }) {}
    prefill.link.until_idle().await;
}

#[tokio::test]
async fn an_uncommitted_reservation_expires_and_a_late_push_is_refused() {
    let deadline = Some(Duration::from_millis(150));
    let mut decode = Worker::start(Spec::new(Phase::Decode).with(|s| s.reservation_deadline = deadline)).await;
    let mut prefill = Worker::start(Spec::new(Phase::Prefill)).await;
    decode.link.reserve(1, 20, sampling(5)).await;
    let (_, target) = decode.link.reserved().await;
    assert_eq!(target.deadline_ms, 150);
    failed(&mut decode.link, (1, FailureKind::Expired)).await;
    decode.link.until_idle().await;
    prefill.link.prefill(1, prompt(1, 20), sampling(5), Some(target)).await;
    while !matches!(prefill.link.next().await, FromWorker::Failed { id: RequestId(1), kind: FailureKind::Transfer, .. }) {}
    prefill.link.until_idle().await;
    assert!(decode.link.is_silent());
    works(&mut prefill.link, &mut decode.link).await;
}

#[tokio::test]
async fn a_lost_frontend_frees_everything_and_is_dialled_again_if_wanted() {
    let mut peers = JoinSet::new();
    let silent = silent_peer(&mut peers).await;
    let mut workers = Vec::new();
    for phase in [Phase::Prefill, Phase::Decode] {
        let mut worker = Worker::start(Spec::new(phase).with(|s| s.reconnect = true)).await;
        match phase {
            Phase::Prefill => worker.link.prefill(1, prompt(1, 50), sampling(5), target(silent.clone(), 1)).await,
            Phase::Decode => worker.link.reserve(1, 50, sampling(5)).await,
        }
        worker.link.until(|s| s.n_transferring == 1).await;
        // Closes the connection.
        worker.link.reopen(&worker.frontend).await;
        worker.link.until_idle().await;
        workers.push(worker);
    }
    let [prefill, decode] = &mut workers[..] else { unreachable!() };
    assert!(prefill.link.is_silent() && decode.link.is_silent(), "nothing is left over from the connection before");
    works(&mut prefill.link, &mut decode.link).await;
}

#[tokio::test]
async fn a_lost_frontend_ends_the_worker_unless_told_otherwise() {
    let mut worker = Worker::start(Spec::new(Phase::Decode)).await;
    worker.link.close();
    assert!(matches!(worker.ended().await, Err(WorkerError::FrontendLost(_))));
}

#[tokio::test]
async fn a_refused_worker_ends_with_the_reason() {
    let frontend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut task = JoinSet::new();
    let spec = Spec::new(Phase::Decode).with(|s| s.reconnect = true);
    task.spawn(serve(spec, frontend.local_addr().unwrap().to_string(), CancellationToken::new()));
    let mut link = Link::accept_only(&frontend).await;
    link.send(ToWorker::Rejected { reason: "another plan".into() }).await;
    let ended = timeout(LIMIT, task.join_next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(ended, Err(WorkerError::Rejected { reason }) if reason == "another plan"));
}

#[tokio::test]
async fn a_frontend_that_never_comes_is_an_error_and_one_that_comes_late_is_found() {
    let address = dead_address().await;
    let ended = serve(Spec::new(Phase::Prefill), address.clone(), CancellationToken::new()).await;
    assert!(matches!(ended, Err(WorkerError::Connect { .. })));
    let spec = Spec::new(Phase::Prefill).with(|s| s.connect_within = LIMIT);
    let mut task = JoinSet::new();
    task.spawn(serve(spec, address.clone(), CancellationToken::new()));
    tokio::task::yield_now().await;
    let frontend = TcpListener::bind(address).await.unwrap();
    Link::accept(&frontend).await;
}

#[tokio::test]
async fn an_engine_that_refuses_a_batch_fails_its_requests_only() {
    let mut prefill = Worker::start(Spec::new(Phase::Prefill).with(|s| s.fault = Fault::Refuses(200))).await;
    let mut decode = Worker::start(Spec::new(Phase::Decode)).await;
    decode.link.reserve(1, 20, sampling(5)).await;
    let (_, target) = decode.link.reserved().await;
    let mut tokens: Vec<u32> = (0..20).collect();
    tokens[18] = 200;
    prefill.link.prefill(1, tokens, sampling(5), Some(target)).await;
    let message = failed(&mut prefill.link, (1, FailureKind::Engine)).await;
    assert!(message.contains("poison"));
    prefill.link.until_idle().await;
    decode.link.until_idle().await;
    assert!(decode.link.is_silent(), "the prefill worker has told it");
    prefill.link.prefill(2, (0..20).collect(), sampling(1), None).await;
    assert_eq!(first_tokens(&mut prefill.link).await, [(2, reference(&(0..20).collect::<Vec<_>>(), 1), Some(FinishReason::Length))]);
}

#[tokio::test]
async fn a_broken_or_panicking_engine_ends_the_worker_and_closes_its_connection() {
    for fault in [Fault::Breaks, Fault::Panics] {
        let mut worker = Worker::start(Spec::new(Phase::Prefill).with(|s| s.fault = fault)).await;
        worker.link.prefill(1, prompt(1, 5), sampling(1), None).await;
        let ended = worker.ended().await;
        assert!(matches!((fault, ended), (Fault::Breaks, Err(WorkerError::Engine(_))) | (Fault::Panics, Err(WorkerError::Panicked))));
        assert_eq!(worker.link.try_next().await, None, "a lost worker's requests are tried elsewhere, a failed one's are not");
    }
}

#[tokio::test]
async fn kv_that_cannot_be_written_fails_the_request_on_both_sides() {
    let mut prefill = Worker::start(Spec::new(Phase::Prefill)).await;
    let mut decode = Worker::start(Spec::new(Phase::Decode).with(|s| s.fault = Fault::KvWrite)).await;
    decode.link.reserve(1, 40, sampling(5)).await;
    let (_, target) = decode.link.reserved().await;
    prefill.link.prefill(1, prompt(1, 40), sampling(5), Some(target)).await;
    failed(&mut decode.link, (1, FailureKind::Transfer)).await;
    while !matches!(prefill.link.next().await, FromWorker::Failed { id: RequestId(1), kind: FailureKind::Transfer, .. }) {}
    prefill.link.until_idle().await;
    decode.link.until_idle().await;
}

#[tokio::test]
async fn a_plan_of_several_ranks_is_refused() {
    let worker = Spec::new(Phase::Decode).with(|s| s.worker.layout = ParallelLayout { tp: 4, ..ParallelLayout::SINGLE }).worker;
    let plan = plan(&worker, EngineKind::Cpu, None);
    let engine = Box::new(ModeledEngine::new(FREE, &worker.kv, VOCAB));
    let options = WorkerOptions::new(dead_address().await, TcpListener::bind("127.0.0.1:0").await.unwrap());
    let ended = tandem_worker::run(&plan, &worker, engine, options, CancellationToken::new()).await;
    assert!(matches!(ended, Err(WorkerError::Layout { n_ranks: 4, .. })));
}

#[tokio::test]
async fn shutdown_ends_cleanly_while_requests_run() {
    let mut worker = Worker::start(Spec::new(Phase::Decode)).await;
    worker.link.reserve(1, 40, sampling(5)).await;
    worker.link.reserved().await;
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn random_cancels_leave_nothing_behind_and_do_not_touch_the_others() {
    let small = |phase, n_blocks| {
        Spec::new(phase).with(|s| {
            s.worker.limits.max_batch_size = 4;
            s.worker.kv.n_blocks = n_blocks;
            s.costs.step_us = 200.0;
        })
    };
    let mut prefill = Worker::start(small(Phase::Prefill, 16)).await;
    let mut decode = Worker::start(small(Phase::Decode, 40)).await;
    let mut random = 1u64;
    let mut below = move |n: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % n
    };
    const N: u64 = 200;
    let n_prompt = |id: u64| 1 + u32::try_from(id * 13 % 60).unwrap();
    let n_output = |id: u64| 2 + u32::try_from(id * 7 % 30).unwrap();
    let mut cancelled = HashSet::new();
    let (mut texts, mut finished) = (HashMap::<u64, [Vec<u32>; 2]>::new(), HashSet::new());
    for id in 0..N {
        decode.link.reserve(id, n_prompt(id), sampling(n_output(id))).await;
    }
    let mut n_open = N;
    while n_open > 0 {
        let (side, message) = tokio::select! {
            message = prefill.link.next() => (0, message),
            message = decode.link.next() => (1, message),
        };
        match message {
            FromWorker::Reserved { id, target } if !cancelled.contains(&id.0) => {
                prefill.link.prefill(id.0, prompt(7, n_prompt(id.0)), sampling(n_output(id.0)), Some(target)).await;
            }
            FromWorker::Tokens { events } => {
                for event in events {
                    texts.entry(event.id.0).or_default()[side].extend(event.tokens);
                    finished.extend(event.finish.map(|_| event.id.0));
                }
            }
            // The side that is cancelled later may see the transfer break first.
            FromWorker::Failed { id, kind, message } => {
                assert!(kind == FailureKind::Transfer && cancelled.contains(&id.0), "{id:?}: {message}");
            }
            _ => {}
        }
        if below(12) == 0 {
            let id = below(N);
            cancelled.insert(id);
            let mut links = [&mut prefill.link, &mut decode.link];
            links.rotate_left(usize::try_from(below(2)).unwrap());
            for link in links {
                link.cancel(id).await;
            }
        }
        let is_whole = |id: &u64| finished.contains(id) && texts.get(id).is_some_and(|t| !t[0].is_empty());
        n_open = (0..N).filter(|id| !cancelled.contains(id) && !is_whole(id)).count() as u64;
    }
    prefill.link.until_idle().await;
    decode.link.until_idle().await;
    let whole: Vec<u64> = (0..N).filter(|id| !cancelled.contains(id)).collect();
    assert!(!whole.is_empty() && !cancelled.is_empty());
    for id in whole {
        assert_eq!(texts[&id].concat(), reference(&prompt(7, n_prompt(id)), n_output(id)), "request {id}");
    }
    prefill.link.drain();
    decode.link.drain();
    works(&mut prefill.link, &mut decode.link).await;
}

#[tokio::test]
async fn a_listener_without_a_reachable_address_is_refused() {
    let spec = Spec::new(Phase::Decode).with(|s| s.kv_listen = "0.0.0.0:0");
    let ended = serve(spec, dead_address().await, CancellationToken::new()).await;
    assert!(matches!(ended, Err(WorkerError::KvAddress(_))));
}
