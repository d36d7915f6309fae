//! A server whose every answer is written by the test: plain threads and blocking sockets, so that it shares no code with the client.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a helper of tests")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longer than any test may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A request as the server read it.
pub(crate) struct Request {
    pub(crate) id: String,
    pub(crate) head: String,
    pub(crate) body: serde_json::Value,
    /// Requests that this connection had carried before.
    pub(crate) n_before: usize,
    pub(crate) received: Instant,
}

/// What to do with the connection after an answer.
pub(crate) enum Then {
    Keep,
    Close,
    /// Close it, and listen no more.
    Die,
}

type Script = dyn Fn(&Request, &mut TcpStream) -> Then + Send + Sync;

/// What the server counted.
#[derive(Default)]
pub(crate) struct Counts {
    /// Connections that carried at least one request.
    pub(crate) n_connections: AtomicUsize,
    pub(crate) n_requests: AtomicUsize,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(script: impl Fn(&Request, &mut TcpStream) -> Then + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (counts, stop): (Arc<Counts>, Arc<AtomicBool>) = Default::default();
        let (c, s, script): (_, _, Arc<Script>) = (counts.clone(), stop.clone(), Arc::new(script));
        let thread = std::thread::spawn(move || {
            let mut threads = Vec::new();
            for stream in listener.incoming() {
                if s.load(Ordering::SeqCst) {
                    break;
                }
                let (counts, script, stop) = (c.clone(), script.clone(), s.clone());
                threads.push(std::thread::spawn(move || serve(stream.unwrap(), &counts, &*script, &stop)));
            }
            drop(listener);
            threads.into_iter().for_each(|t| t.join().unwrap());
        });
        Self { address, counts, stop, thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        close(self.address, &self.stop);
        let result = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            result.expect("a script failed");
        }
    }
}

/// Makes the accepting thread end.
fn close(address: SocketAddr, stop: &AtomicBool) {
    stop.store(true, Ordering::SeqCst);
    let _ = TcpStream::connect(address);
}

fn serve(mut stream: TcpStream, counts: &Counts, script: &Script, stop: &AtomicBool) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut buffer, mut n_before) = (Vec::new(), 0);
    while let Some((head, body)) = read_request(&mut stream, &mut buffer) {
        let received = Instant::now();
        let id = header(&head, "x-request-id").unwrap().to_owned();
        let request = Request { id, body: serde_json::from_slice(&body).unwrap(), head, n_before, received };
        counts.n_connections.fetch_add(usize::from(n_before == 0), Ordering::SeqCst);
        counts.n_requests.fetch_add(1, Ordering::SeqCst);
        let then = script(&request, &mut stream);
        n_before += 1;
        match then {
            Then::Keep => {}
            Then::Close => break,
            Then::Die => return close(stream.local_addr().unwrap(), stop),
        }
    }
}

/// The next request of a connection: its head and its body; what came after it stays in `buffer`.
pub(crate) fn read_request(stream: &mut impl Read, buffer: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let mut piece = [0; 4096];
    loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
            let n: usize = header(&head, "content-length").unwrap().parse().unwrap();
            if buffer.len() >= end + 4 + n {
                let body = buffer[end + 4..end + 4 + n].to_vec();
                buffer.drain(..end + 4 + n);
                return Some((head, body));
            }
        }
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(n) => buffer.extend_from_slice(&piece[..n]),
        }
    }
}

pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|l| l.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v))
}

pub(crate) const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

pub(crate) fn event(json: &str) -> String {
    format!("data: {json}\n\n")
}

pub(crate) fn content(text: &str) -> String {
    event(&format!(r#"{{"choices":[{{"delta":{{"content":"{text}"}}}}]}}"#))
}

/// The events that end a good stream.
pub(crate) fn ending(n_prompt: usize, n_output: usize) -> String {
    let usage = format!(r#"{{"choices":[],"usage":{{"prompt_tokens":{n_prompt},"completion_tokens":{n_output}}}}}"#);
    event(r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#) + &event(&usage) + "data: [DONE]\n\n"
}

pub(crate) fn chunked(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

pub(crate) const LAST_CHUNK: &str = "0\r\n\r\n";

/// Writes; a client that has gone away is its own business.
pub(crate) fn put(stream: &mut TcpStream, text: &str) {
    let _ = stream.write_all(text.as_bytes());
}

/// Prompt length of a request, bytes.
pub(crate) fn prompt_len(request: &Request) -> usize {
    request.body["messages"][0]["content"].as_str().unwrap().len()
}

/// A good streamed answer of `n` one-token chunks, in one write.
pub(crate) fn good_answer(request: &Request, n: usize) -> String {
    let body: String = (0..n).map(|_| content("x")).chain([ending(prompt_len(request), n)]).map(|e| chunked(&e)).collect();
    format!("{STREAM_HEAD}{body}{LAST_CHUNK}")
}

/// Something that threads wait for, with a deadline.
#[derive(Default)]
pub(crate) struct Signals {
    seen: Mutex<HashMap<String, usize>>,
    changed: Condvar,
}

impl Signals {
    pub(crate) fn raise(&self, name: &str) {
        *self.seen.lock().unwrap().entry(name.to_owned()).or_default() += 1;
        self.changed.notify_all();
    }

    /// Whether `name` was raised `n` times before the deadline.
    pub(crate) fn wait(&self, name: &str, n: usize) -> bool {
        let seen = self.seen.lock().unwrap();
        let missing = |seen: &mut HashMap<String, usize>| seen.get(name).copied().unwrap_or(0) < n;
        !self.changed.wait_timeout_while(seen, DEADLINE, missing).unwrap().1.timed_out()
    }
}
