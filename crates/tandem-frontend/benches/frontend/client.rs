//! A closed-loop client that counts chunks and takes the times of requests.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use memchr::memmem::{self, Finder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// What was seen while the clock ran.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) seconds: f64,
    pub(crate) n_requests: u64,
    pub(crate) n_chunks: u64,
    ttft_s: Vec<f64>,
    gap_s: Vec<f64>,
}

impl Seen {
    pub(crate) fn ttft_ms(&self, quantile: f64) -> f64 {
        quantile_of(&self.ttft_s, quantile) * 1e3
    }

    pub(crate) fn gap_ms(&self, quantile: f64) -> f64 {
        quantile_of(&self.gap_s, quantile) * 1e3
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index within the vector")]
fn quantile_of(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((quantile * sorted.len().saturating_sub(1) as f64) as usize).copied().unwrap_or(0.0)
}

/// Keeps `n` requests in flight for a while.
pub(crate) fn drive(http: SocketAddr, n: usize, n_prompt_bytes: usize, n_output: u32, time: Duration) -> Seen {
    let content = "x".repeat(n_prompt_bytes);
    let body = format!(
        r#"{{"model":"nano","messages":[{{"role":"user","content":"{content}"}}],"max_tokens":{n_output},"ignore_eos":true,"stream":true}}"#
    );
    let request = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let begin = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..n {
            tasks.spawn(one_client(http, request.clone().into_bytes(), begin + time));
        }
        let mut all = Seen::default();
        while let Some(seen) = tasks.join_next().await {
            let seen = seen.unwrap();
            all.n_requests += seen.n_requests;
            all.n_chunks += seen.n_chunks;
            all.ttft_s.extend(seen.ttft_s);
            all.gap_s.extend(seen.gap_s);
        }
        all.seconds = begin.elapsed().as_secs_f64();
        all
    })
}

async fn one_client(http: SocketAddr, request: Vec<u8>, until: Instant) -> Seen {
    let mut stream = TcpStream::connect(http).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (content, end) = (Finder::new("\"content\":\""), Finder::new("\r\n0\r\n\r\n"));
    let (mut seen, mut buffer) = (Seen::default(), vec![0; 64 << 10]);
    while Instant::now() < until {
        let sent = Instant::now();
        stream.write_all(&request).await.unwrap();
        let (mut last, mut filled) = (None, 0);
        loop {
            let n = stream.read(&mut buffer[filled..]).await.unwrap();
            assert!(n > 0, "the frontend closed the connection: {}", String::from_utf8_lossy(&buffer[..filled]));
            filled += n;
            let now = Instant::now();
            let n_new = content.find_iter(&buffer[..filled]).count() as u64;
            if n_new > 0 {
                match last {
                    None => seen.ttft_s.push((now - sent).as_secs_f64()),
                    Some(before) => seen.gap_s.push((now - before as Instant).as_secs_f64()),
                }
                last = Some(now);
            }
            seen.n_chunks += n_new;
            if end.find(&buffer[filled.saturating_sub(7)..filled]).is_some() {
                break;
            }
            // What a later read may complete: the tail after the last whole event.
            let kept = memmem::rfind(&buffer[..filled], b"\n\n").map_or(0, |at| at + 2);
            buffer.copy_within(kept..filled, 0);
            filled -= kept;
        }
        // The chunk that names the role has empty content.
        seen.n_chunks -= 1;
        seen.n_requests += 1;
    }
    seen
}
