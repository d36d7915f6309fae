//! Prefill and decode workers together: the right text, in the right events, within the limits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tandem_engine::{Sampling, build_engine};
use tandem_kv::{KvEvent, KvReceiver, KvShape};
use tandem_plan::{EngineKind, KvDtype, KvPlan, ModeledCosts, Phase};
use tandem_wire::worker::{FailureKind, FinishReason, FromWorker, KvTarget, PROTOCOL_VERSION, RequestId, SamplingParams};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::common::{FREE, Gate, LIMIT, Link, Spec, Worker, aggregated, first_tokens, plan, prompt, reference, sampling, texts};

/// Sends one request through both workers; its first token comes from the prefill worker.
async fn begin(prefill: &mut Link, decode: &mut Link, id: u64, tokens: &[u32], sampling: &SamplingParams) {
    decode.reserve(id, u32::try_from(tokens.len()).unwrap(), sampling.clone()).await;
    let (reserved, target) = decode.reserved().await;
    assert_eq!(reserved, id);
    prefill.prefill(id, tokens.to_vec(), sampling.clone(), Some(target)).await;
}

async fn whole_text(prefill: &mut Link, decode: &mut Link, id: u64, tokens: &[u32], sampling: &SamplingParams) -> Vec<u32> {
    begin(prefill, decode, id, tokens, sampling).await;
    let first = first_tokens(prefill).await;
    let mut text = first[0].1.clone();
    text.extend(&texts(decode, 1).await[&id].tokens);
    text
}

#[tokio::test]
async fn the_text_is_that_of_the_engine_alone_whatever_chunks_and_blocks() {
    for (chunk, prefill_block, decode_block) in [(200, 8, 8), (16, 4, 32), (7, 32, 4), (1, 8, 5)] {
        let mut prefill = Worker::start(Spec::new(Phase::Prefill).with(|s| {
            s.worker.limits.max_num_tokens = chunk;
            s.worker.kv.block_size = prefill_block;
        }))
        .await;
        let mut decode = Worker::start(Spec::new(Phase::Decode).with(|s| s.worker.kv.block_size = decode_block)).await;
        for n_prompt in [1, 2, 31, 32, 33, 100] {
            let tokens = prompt(n_prompt, n_prompt);
            let text = whole_text(&mut prefill.link, &mut decode.link, n_prompt.into(), &tokens, &sampling(20)).await;
            assert_eq!(text, reference(&tokens, 20), "{n_prompt} tokens in chunks of {chunk}");
        }
        prefill.link.until_idle().await;
        decode.link.until_idle().await;
        prefill.stop().await.unwrap();
        decode.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_real_model_gives_the_same_text_in_two_processes_as_in_one() {
    let cpu = |phase, block_size, dtype| {
        Spec::new(phase).with(|s| {
            s.engine = EngineKind::Cpu;
            s.worker.kv = KvPlan { block_size, dtype, ..s.worker.kv };
        })
    };
    for dtype in [KvDtype::F32, KvDtype::Bf16] {
        let mut prefill = Worker::start(cpu(Phase::Prefill, 4, dtype)).await;
        let mut decode = Worker::start(cpu(Phase::Decode, 16, dtype)).await;
        let alone = cpu(Phase::Decode, 200, dtype).worker;
        let mut alone = build_engine(&plan(&alone, EngineKind::Cpu, None), &alone).unwrap();
        for (id, n_prompt, temperature) in [(1u64, 1, 0.0), (2, 16, 0.0), (3, 50, 0.0), (4, 50, 0.8)] {
            let tokens = prompt(n_prompt, n_prompt);
            let params = SamplingParams { temperature, seed: 5, top_k: 40, ..sampling(20) };
            let chosen = Sampling { temperature, seed: 5, top_k: 40, ..Sampling::GREEDY };
            let text = whole_text(&mut prefill.link, &mut decode.link, id, &tokens, &params).await;
            assert_eq!(text, aggregated(alone.as_mut(), &tokens, 20, &chosen), "request {id} with {dtype:?}");
        }
        prefill.link.until_idle().await;
        decode.link.until_idle().await;
    }
}

#[tokio::test]
async fn a_worker_says_who_it_is() {
    let worker = Worker::start(Spec::new(Phase::Decode)).await;
    let FromWorker::Hello { version, plan_hash, name, phase, max_seq_len } = &worker.link.hello else { panic!("no hello") };
    assert_eq!((*version, name.as_str(), *phase, *max_seq_len), (PROTOCOL_VERSION, "decode-0", Phase::Decode, 200));
    assert_eq!(plan_hash.len(), 64);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn tokens_come_in_events_of_the_stream_interval() {
    let mut prefill = Worker::start(Spec::new(Phase::Prefill)).await;
    let mut decode = Worker::start(Spec::new(Phase::Decode).with(|s| s.worker.stream_interval = 4)).await;
    for (max_tokens, events) in [(2, vec![1]), (5, vec![4]), (6, vec![4, 1]), (11, vec![4, 4, 2])] {
        let tokens = prompt(max_tokens, 20);
        begin(&mut prefill.link, &mut decode.link, max_tokens.into(), &tokens, &sampling(max_tokens)).await;
        let first = first_tokens(&mut prefill.link).await;
        assert_eq!(first, [(max_tokens.into(), reference(&tokens, 1), None)], "the first is sent alone and at once");
        let text = &texts(&mut decode.link, 1).await[&max_tokens.into()];
        assert_eq!((&text.events, text.finish), (&events, Some(FinishReason::Length)));
    }
}

#[tokio::test]
async fn a_layer_is_pushed_while_later_layers_are_computed_and_held_until_acknowledged() {
    let layers = Gate::closed();
    let mut prefill = Worker::start(Spec::new(Phase::Prefill).with(|s| s.layer_gate = Arc::clone(&layers))).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = KvTarget { address: listener.local_addr().unwrap().to_string(), ticket: 5, deadline_ms: 60_000 };
    let (events_tx, mut events) = mpsc::channel(16);
    let receiver = KvReceiver::start(listener, events_tx);
    receiver.register(5, KvShape { n_layers: 2, bytes_per_token_layer: 8 }, 20, LIMIT).unwrap();
    prefill.link.prefill(1, prompt(1, 20), sampling(3), Some(target)).await;
    // Chunks of 16 and 4 tokens (whole blocks), two layers each.
    for (layer, tokens) in [(0, 0..16), (1, 0..16), (0, 16..20), (1, 16..20)] {
        let event = timeout(LIMIT, events.recv()).await.unwrap().unwrap();
        let KvEvent::Piece { layer: l, tokens: t, .. } = event else { panic!("{event:?}") };
        assert_eq!((l, t), (layer, tokens), "the step is held after this layer");
        assert!(events.is_empty() && prefill.link.is_silent());
        layers.allow(1);
    }
    let first = first_tokens(&mut prefill.link).await[0].1[0];
    let event = timeout(LIMIT, events.recv()).await.unwrap().unwrap();
    let KvEvent::Commit { first_token, ack, .. } = event else { panic!("{event:?}") };
    assert_eq!(first_token, first);
    let stats = prefill.link.until(|s| s.n_transferring == 1).await;
    assert_eq!(stats.kv_blocks_used, 3);
    ack.accept();
    prefill.link.until_idle().await;
}

#[tokio::test]
async fn one_token_needs_no_decode_worker_and_frees_a_reservation_that_was_made() {
    let mut prefill = Worker::start(Spec::new(Phase::Prefill)).await;
    let mut decode = Worker::start(Spec::new(Phase::Decode)).await;
    let tokens = prompt(1, 40);
    let expected = |id| vec![(id, reference(&tokens, 1), Some(FinishReason::Length))];
    prefill.link.prefill(1, tokens.clone(), sampling(1), None).await;
    assert_eq!(first_tokens(&mut prefill.link).await, expected(1));
    begin(&mut prefill.link, &mut decode.link, 2, &tokens, &sampling(1)).await;
    assert_eq!(first_tokens(&mut prefill.link).await, expected(2));
    decode.link.until(|s| s.n_requests == 1).await;
    decode.link.until_idle().await;
    prefill.link.until_idle().await;
    assert!(decode.link.is_silent(), "the decode worker has nothing to say about it");
}

#[tokio::test]
async fn a_stop_token_ends_the_text_and_is_its_last_token() {
    let tokens = prompt(3, 30);
    let text = reference(&tokens, 20);
    let at = (1..20).find(|&i| !text[..i].contains(&text[i])).unwrap();
    let mut prefill = Worker::start(Spec::new(Phase::Prefill).with(|s| s.eos = Some(text[0]))).await;
    let mut decode = Worker::start(Spec::new(Phase::Decode)).await;
    let stop_at = |token| SamplingParams { stop_token_ids: vec![token], ..sampling(20) };
    // In the middle, at the decode worker. The prefill worker of this test takes the first token for an end.
    let ignoring = SamplingParams { ignore_eos: true, ..sampling(20) };
    begin(&mut prefill.link, &mut decode.link, 1, &tokens, &ignoring).await;
    assert_eq!(first_tokens(&mut prefill.link).await[0].1, text[..1]);
    assert_eq!(texts(&mut decode.link, 1).await[&1].tokens, text[1..], "ends are ignored on demand");
    // At once, at the prefill worker, by the model's own end token.
    begin(&mut prefill.link, &mut decode.link, 2, &tokens, &sampling(20)).await;
    assert_eq!(first_tokens(&mut prefill.link).await, [(2, text[..1].to_vec(), Some(FinishReason::Stop))]);
    decode.link.until_idle().await;
    prefill.link.until_idle().await;
    let mut prefill = Worker::start(Spec::new(Phase::Prefill)).await;
    begin(&mut prefill.link, &mut decode.link, 3, &tokens, &stop_at(text[at])).await;
    assert_eq!(first_tokens(&mut prefill.link).await[0].1, text[..1]);
    let ended = &texts(&mut decode.link, 1).await[&3];
    assert_eq!((&ended.tokens[..], ended.finish), (&text[1..=at], Some(FinishReason::Stop)));
    // Not before min_tokens: the token is not chosen, and the text goes on differently.
    let late = SamplingParams { min_tokens: 20, ..stop_at(text[at]) };
    begin(&mut prefill.link, &mut decode.link, 4, &tokens, &late).await;
    first_tokens(&mut prefill.link).await;
    let other = &texts(&mut decode.link, 1).await[&4];
    assert_eq!((other.tokens.len(), other.finish), (19, Some(FinishReason::Length)));
    assert!(!other.tokens.contains(&text[at]));
    decode.link.until_idle().await;
}

#[tokio::test]
async fn requests_wait_for_blocks_and_all_complete() {
    // Blocks for two sequences of the largest kind here, and a batch of three.
    let small = |s: &mut Spec| {
        s.worker.kv.n_blocks = 13;
        s.worker.limits.max_batch_size = 3;
    };
    let mut prefill = Worker::start(Spec::new(Phase::Prefill).with(small)).await;
    let mut decode = Worker::start(Spec::new(Phase::Decode).with(small)).await;
    let requests: HashMap<u64, (Vec<u32>, u32)> = (0..40u32).map(|i| (i.into(), (prompt(i, 1 + i % 37), 2 + i % 13))).collect();
    for id in 0..40 {
        decode.link.reserve(id, u32::try_from(requests[&id].0.len()).unwrap(), sampling(requests[&id].1)).await;
    }
    let (mut n_finished, mut granted, mut decoded) = (0, Vec::new(), HashMap::<u64, Vec<u32>>::new());
    while n_finished < requests.len() {
        match decode.link.next().await {
            FromWorker::Reserved { id, target } => {
                granted.push(id.0);
                let (tokens, max_tokens) = requests[&id.0].clone();
                prefill.link.prefill(id.0, tokens, sampling(max_tokens), Some(target)).await;
            }
            FromWorker::Tokens { events } => {
                for event in events {
                    n_finished += usize::from(event.finish.is_some());
                    decoded.entry(event.id.0).or_default().extend(event.tokens);
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(granted, (0..40).collect::<Vec<_>>(), "first come, first served");
    let mut firsts = HashMap::new();
    while firsts.len() < requests.len() {
        firsts.extend(first_tokens(&mut prefill.link).await.into_iter().map(|(id, tokens, _)| (id, tokens)));
    }
    for (id, (tokens, max_tokens)) in &requests {
        assert_eq!([&firsts[id][..], &decoded[id][..]].concat(), reference(tokens, *max_tokens), "request {id}");
    }
    decode.link.until_idle().await;
    prefill.link.until_idle().await;
    let stats = decode.link.until(|s| s.n_requests == 40).await;
    assert_eq!(stats.n_output_tokens, requests.values().map(|(_, n)| u64::from(n - 1)).sum::<u64>());
    let stats = prefill.link.until(|s| s.n_output_tokens == 40).await;
    assert_eq!(stats.n_prefill_tokens, requests.values().map(|(t, _)| t.len() as u64).sum::<u64>());
}

#[tokio::test]
async fn what_can_never_run_is_refused_at_once() {
    let mut prefill = Worker::start(Spec::new(Phase::Prefill)).await;
    let mut decode = Worker::start(Spec::new(Phase::Decode)).await;
    prefill.link.prefill(1, prompt(0, 201), sampling(1), None).await;
    prefill.link.prefill(2, vec![1, 256], sampling(1), None).await;
    prefill.link.prefill(3, prompt(0, 5), sampling(2), None).await;
    prefill.link.prefill(4, vec![], sampling(1), None).await;
    prefill.link.prefill(5, prompt(0, 5), sampling(0), None).await;
    prefill.link.reserve(6, 1, sampling(2)).await;
    decode.link.reserve(1, 190, sampling(11)).await;
    decode.link.reserve(2, 0, sampling(1)).await;
    decode.link.reserve(3, u32::MAX, sampling(u32::MAX)).await;
    decode.link.prefill(4, vec![1], sampling(1), None).await;
    for (link, n) in [(&mut prefill.link, 6), (&mut decode.link, 4)] {
        for expected in 1..=n {
            let FromWorker::Failed { id, kind, message } = link.next().await else { panic!("not refused") };
            assert_eq!((id, kind), (RequestId(expected), FailureKind::Impossible), "{message}");
        }
    }
}

#[tokio::test]
async fn a_step_writes_one_line_that_scripts_can_cut_out() {
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let logs = [Shared::default(), Shared::default()];
    let mut prefill = Worker::start(Spec::new(Phase::Prefill).with(|s| s.log = Some(Box::new(logs[0].clone())))).await;
    let mut decode = Worker::start(Spec::new(Phase::Decode).with(|s| s.log = Some(Box::new(logs[1].clone())))).await;
    whole_text(&mut prefill.link, &mut decode.link, 1, &prompt(0, 20), &sampling(4)).await;
    prefill.stop().await.unwrap();
    decode.stop().await.unwrap();
    let lines = logs.map(|l| String::from_utf8(l.0.lock().unwrap().clone()).unwrap());
    let count = |text: &str, needle: &str| text.lines().filter(|l| l.contains(needle)).count();
    assert_eq!((lines[0].lines().count(), lines[1].lines().count()), (2, 3));
    assert_eq!(count(&lines[0], "'num_generation_tokens': 0"), 2);
    assert_eq!(count(&lines[1], "'num_ctx_requests': 0, 'num_ctx_tokens': 0"), 3);
    assert!(lines[0].starts_with("[tandem] iter = 1, rank = 0, host_step_time = "), "{}", lines[0]);
    assert!(lines.iter().flat_map(|l| l.lines()).all(|l| l.contains("kv_blocks_used = 3, kv_blocks_free = 61, begin = ")), "{lines:?}");
}

#[tokio::test]
async fn tokens_of_one_step_come_in_one_message() {
    let mut prefill = Worker::start(Spec::new(Phase::Prefill)).await;
    let slow = ModeledCosts { step_us: 5000.0, ..FREE };
    let mut decode = Worker::start(Spec::new(Phase::Decode).with(|s| s.costs = slow)).await;
    let mut targets = Vec::new();
    for id in 0..5 {
        decode.link.reserve(id, 10, sampling(60)).await;
        targets.push(decode.link.reserved().await);
    }
    for (id, target) in targets {
        prefill.link.prefill(id, prompt(0, 10), sampling(60), Some(target)).await;
    }
    let mut largest = 0;
    while let FromWorker::Tokens { events } = decode.link.next().await {
        largest = largest.max(events.len());
        if events.iter().any(|e| e.finish.is_some()) {
            break;
        }
    }
    assert!(largest > 1, "several requests share a message");
}
