//! What a prefill and a decode worker cost by themselves: modeled engines that cost nothing, a frontend
//! that does nothing but route, closed loop.
//!
//! `cargo bench -p tandem-worker --bench pair -- [CONCURRENCY] [REQUESTS] [ISL] [OSL] [STREAM_INTERVAL]`
//! prints requests/s, tokens/s, token events/s and CPU time a token (of the whole process, this frontend included).
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]
#![expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
#![expect(clippy::print_stdout, reason = "the result is its output")]

#[path = "../tests/worker/common.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
mod common;

use std::time::{Duration, Instant};

use common::{Spec, Worker, prompt, sampling};
use tandem_plan::{EngineLimits, Phase};
use tandem_wire::worker::FromWorker;

/// CPU time of this process so far, from the kernel's accounting in ticks of 10 ms.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(10 * ticks)
}

struct Load {
    concurrency: u64,
    n_requests: u64,
    isl: u32,
    osl: u32,
    interval: u32,
}

/// Runs the closed loop: the number of token events of the decode worker.
async fn drive(load: &Load, prefill: &mut Worker, decode: &mut Worker) -> u64 {
    let (mut n_sent, mut n_done, mut n_events) = (0, 0, 0);
    let tokens = prompt(1, load.isl);
    while n_done < load.n_requests {
        while n_sent < load.n_requests && n_sent < n_done + load.concurrency {
            decode.link.reserve(n_sent, load.isl, sampling(load.osl)).await;
            n_sent += 1;
        }
        tokio::select! {
            message = decode.link.next() => match message {
                FromWorker::Reserved { id, target } => prefill.link.prefill(id.0, tokens.clone(), sampling(load.osl), Some(target)).await,
                FromWorker::Tokens { events } => {
                    n_events += events.len() as u64;
                    n_done += events.iter().filter(|e| e.finish.is_some()).count() as u64;
                }
                other => panic!("{other:?}"),
            },
            message = prefill.link.next() => assert!(matches!(message, FromWorker::Tokens { .. }), "{message:?}"),
        }
    }
    n_events
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let number = |i: usize, default: u32| numbers.get(i).copied().unwrap_or(default);
    let load = Load {
        concurrency: number(0, 512).into(),
        n_requests: number(1, 10_000).into(),
        isl: number(2, 740),
        osl: number(3, 64),
        interval: number(4, 1),
    };
    let spec = |phase| {
        Spec::new(phase).with(|s| {
            let max_seq_len = load.isl + load.osl;
            s.worker.limits = EngineLimits { max_batch_size: 512, max_num_tokens: 8192, max_seq_len, chunked_prefill: true };
            s.worker.kv.block_size = 32;
            s.worker.kv.n_blocks = 512 * max_seq_len.div_ceil(32);
            s.worker.stream_interval = load.interval;
        })
    };
    let mut prefill = Worker::start(spec(Phase::Prefill)).await;
    let mut decode = Worker::start(spec(Phase::Decode)).await;
    let (begin, cpu) = (Instant::now(), cpu_time());
    let n_events = drive(&load, &mut prefill, &mut decode).await;
    let (wall, cpu) = (begin.elapsed().as_secs_f64(), cpu_time() - cpu);
    let stats = decode.link.until(|s| s.n_output_tokens == load.n_requests * u64::from(load.osl - 1)).await;
    let n_tokens = (load.n_requests * u64::from(load.osl)) as f64;
    println!(
        "concurrency {} isl {} osl {} interval {}: {:.0} requests/s, {:.0} tokens/s, {:.0} events/s, {:.2} us CPU a token, {} decode steps",
        load.concurrency,
        load.isl,
        load.osl,
        load.interval,
        load.n_requests as f64 / wall,
        n_tokens / wall,
        n_events as f64 / wall,
        cpu.as_secs_f64() * 1e6 / n_tokens,
        stats.n_steps,
    );
    prefill.stop().await.unwrap();
    decode.stop().await.unwrap();
}
