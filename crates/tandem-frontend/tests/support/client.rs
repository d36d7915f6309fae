//! A small HTTP/1.1 client that shows bytes as they are.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::DEADLINE;

/// One keep-alive connection.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// A whole response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The `code` and `param` of an OpenAI error.
    pub fn error(&self) -> (u16, String, String) {
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{error}");
        assert!(error["type"].is_string(), "{error}");
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (self.status, text(&error["code"]), text(&error["param"]))
    }

    /// The data of each event of a stream.
    pub fn events(&self) -> Vec<String> {
        let text = self.text();
        let body = text.strip_suffix("\n\n").unwrap_or(&text);
        body.split("\n\n").map(|e| e.strip_prefix("data: ").unwrap_or_else(|| panic!("not a data event: {e:?}")).to_owned()).collect()
    }

    /// The events that are JSON.
    pub fn chunks(&self) -> Vec<Value> {
        self.events().iter().filter(|e| *e != "[DONE]").map(|e| serde_json::from_str(e).unwrap()).collect()
    }

    /// The text of all chunks.
    pub fn streamed_text(&self) -> String {
        self.chunks().iter().filter_map(|c| Some(c["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect()
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, buffer: Vec::new() }
    }

    pub async fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await;
        self.response().await
    }

    pub async fn post(&mut self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.start(path, headers, body).await;
        self.response().await
    }

    /// Sends a request and does not wait for its response.
    pub async fn start(&mut self, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.send(&[head.as_bytes(), body].concat()).await;
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        timeout(DEADLINE, self.stream.write_all(bytes)).await.unwrap().unwrap();
    }

    /// Reads one whole response.
    pub async fn response(&mut self) -> Response {
        timeout(DEADLINE, self.read_response()).await.expect("no whole response in time")
    }

    /// Reads until what has arrived contains `text`.
    pub async fn until(&mut self, text: &str) {
        let wait = async {
            while !String::from_utf8_lossy(&self.buffer).contains(text) {
                assert!(self.fill().await, "the connection closed before {text:?}: {}", String::from_utf8_lossy(&self.buffer));
            }
        };
        timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("never saw {text:?}"));
    }

    /// Reads to the end of the connection.
    pub async fn rest(mut self) -> String {
        timeout(DEADLINE, async { while self.fill().await {} }).await.expect("the connection stays open");
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    async fn read_response(&mut self) -> Response {
        let (status, headers) = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let head = String::from_utf8(self.buffer.drain(..end + 4).collect()).unwrap();
                let mut lines = head.trim_end().split("\r\n");
                let status: u16 = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
                let header = |l: &str| l.split_once(": ").map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned())).unwrap();
                break (status, lines.map(header).collect::<Vec<_>>());
            }
            assert!(self.fill().await, "the connection closed before the head: {}", String::from_utf8_lossy(&self.buffer));
        };
        let mut response = Response { status, headers, body: Vec::new() };
        if response.header("transfer-encoding") == Some("chunked") {
            self.read_chunked(&mut response.body).await;
        } else {
            let n: usize = response.header("content-length").unwrap().parse().unwrap();
            while self.buffer.len() < n {
                assert!(self.fill().await, "the connection closed inside the body");
            }
            response.body = self.buffer.drain(..n).collect();
        }
        response
    }

    async fn read_chunked(&mut self, body: &mut Vec<u8>) {
        loop {
            let Some(end) = find(&self.buffer, b"\r\n") else {
                assert!(self.fill().await, "the connection closed inside the stream");
                continue;
            };
            let n = usize::from_str_radix(std::str::from_utf8(&self.buffer[..end]).unwrap(), 16).unwrap();
            while self.buffer.len() < end + 2 + n + 2 {
                assert!(self.fill().await, "the connection closed inside a chunk");
            }
            body.extend_from_slice(&self.buffer[end + 2..end + 2 + n]);
            self.buffer.drain(..end + 2 + n + 2);
            if n == 0 {
                return;
            }
        }
    }

    async fn fill(&mut self) -> bool {
        self.stream.read_buf(&mut self.buffer).await.is_ok_and(|n| n > 0)
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}
