//! What the frontend costs: requests and chunks a second, CPU time of each, time it adds to the first token.
//!
//! The frontend runs on one thread, between workers that compute nothing and a client that
//! only counts, all in this process and over loopback. `cargo bench -p tandem-frontend`
//! runs all rows; arguments after `--` choose rows by a part of their name.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark reports on stdout and ends at the first surprise")]

mod client;
#[expect(unreachable_pub, reason = "shared with the tests, where it is reachable")]
#[path = "../../tests/support/plan.rs"]
mod plan;
mod workers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tandem_frontend::{Options, serve};
use tandem_tokenizer::{ByteLevelConfig, Tokenizer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// One line of the table.
struct Row {
    name: &'static str,
    n_concurrent: usize,
    n_prompt_bytes: usize,
    n_output: u32,
    /// Time of one decode step; none = as fast as possible.
    step: Option<Duration>,
    seconds: f64,
}

const fn row(name: &'static str, n_concurrent: usize, n_prompt_bytes: usize, n_output: u32, step_ms: u64) -> Row {
    let step = if step_ms == 0 { None } else { Some(Duration::from_millis(step_ms)) };
    Row { name, n_concurrent, n_prompt_bytes, n_output, step, seconds: 4.0 }
}

const ROWS: [Row; 9] = [
    row("burst, one client", 1, 740, 64, 0),
    row("burst", 64, 740, 64, 0),
    row("burst", 512, 740, 64, 0),
    row("burst, long outputs", 64, 740, 1024, 0),
    row("first token only", 1, 740, 1, 0),
    row("first token only, long prompt", 1, 3500, 1, 0),
    row("paced", 64, 740, 128, 10),
    row("paced", 512, 740, 128, 10),
    row("paced, fast steps", 512, 740, 128, 5),
];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    println!(
        "{:<30} {:>5} {:>6} {:>5} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "row", "conc", "prompt", "osl", "step ms", "req/s", "chunks/s", "us/req", "us/chunk", "ttft p50", "ttft p99", "gap p99"
    );
    for row in ROWS.iter().filter(|r| wanted.is_empty() || wanted.iter().any(|w| r.name.contains(w.as_str()))) {
        measure(row);
    }
}

fn measure(row: &Row) {
    let mut plan = plan::plan(1, 1);
    plan.frontend.max_inflight = 4096;
    for worker in &mut plan.workers {
        worker.limits.max_seq_len = 16_384;
    }
    let (stop, (http, control), frontend) = start(&plan);
    let workers = workers::start(control, &plan.hash(), row.step);
    let cpu_before = cpu_seconds("frontend");
    let result = client::drive(http, row.n_concurrent, row.n_prompt_bytes, row.n_output, Duration::from_secs_f64(row.seconds));
    let cpu = cpu_seconds("frontend") - cpu_before;
    stop.cancel();
    frontend.join().unwrap();
    workers.join();
    let (n_requests, n_chunks) = (result.n_requests as f64, result.n_chunks as f64);
    println!(
        "{:<30} {:>5} {:>6} {:>5} {:>8} {:>9.0} {:>9.0} {:>9.1} {:>9.2} {:>9.3} {:>9.3} {:>9.3}",
        row.name,
        row.n_concurrent,
        row.n_prompt_bytes,
        row.n_output,
        row.step.map_or(0, |s| s.as_millis()),
        n_requests / result.seconds,
        n_chunks / result.seconds,
        cpu * 1e6 / n_requests,
        cpu * 1e6 / n_chunks,
        result.ttft_ms(0.5),
        result.ttft_ms(0.99),
        result.gap_ms(0.99),
    );
}

/// A frontend on a thread of its own.
fn start(plan: &tandem_plan::Plan) -> (CancellationToken, (SocketAddr, SocketAddr), std::thread::JoinHandle<()>) {
    let (stop, plan) = (CancellationToken::new(), plan.clone());
    let (send, receive) = std::sync::mpsc::channel();
    let stopping = stop.clone();
    let serving = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let control = TcpListener::bind("127.0.0.1:0").await.unwrap();
            send.send((http.local_addr().unwrap(), control.local_addr().unwrap())).unwrap();
            let options = Options { api_key: None, tokenizer: Arc::new(Tokenizer::byte_level(&ByteLevelConfig::deepseek())) };
            serve(plan, http, control, options, stopping).await.unwrap();
        });
    };
    let thread = std::thread::Builder::new().name("frontend".into()).spawn(serving).unwrap();
    (stop, receive.recv().unwrap(), thread)
}

/// CPU time that threads of this name have used so far.
fn cpu_seconds(name: &str) -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
    let of_task = |task: std::fs::DirEntry| {
        let comm = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        let nanos: f64 = stat.split(' ').next()?.parse().ok()?;
        (comm.trim() == name).then_some(nanos * 1e-9)
    };
    tasks.filter_map(of_task).sum()
}
