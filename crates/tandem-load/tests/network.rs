//! The ways to a server: TLS against a real rustls server, unix sockets, proxies with and without a tunnel; and stamps of what was sent.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![cfg(all(feature = "tls", unix))]

mod scripted;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use scripted::{DEADLINE, LAST_CHUNK, STREAM_HEAD, chunked, content, ending, header, read_request};
use tandem_load::{ByteTexts, LoadError, LoadReport, LoadSpec, NoProgress, Proxy, StopSignal, Target, TlsOptions, run};
use tandem_metrics::{FailureKind, Outcome};

const N_OUTPUT: u32 = 3;

/// What a server does with each connection, on a thread of its own.
type Handler = dyn Fn(TcpStream) + Send + Sync;

/// Accepts until it is dropped, and waits for its connections.
struct Listening {
    address: SocketAddr,
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    fn start(handler: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, handler, stop): (_, Arc<Handler>, Arc<std::sync::atomic::AtomicBool>) =
            (listener.local_addr().unwrap(), Arc::new(handler), Arc::default());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut threads = Vec::new();
            for stream in listener.incoming() {
                if stopped.load(std::sync::atomic::Ordering::SeqCst) {
                    break;
                }
                let (stream, handler) = (stream.unwrap(), handler.clone());
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                stream.set_nodelay(true).unwrap();
                threads.push(std::thread::spawn(move || handler(stream)));
            }
            threads.into_iter().for_each(|t| t.join().unwrap());
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let result = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(result, Some(Ok(()))), "a handler failed");
        }
    }
}

/// Answers every request of a connection with a good stream, chunk by chunk.
fn answer_all(stream: &mut (impl Read + Write), heads: &Mutex<Vec<String>>) {
    let mut buffer = Vec::new();
    while let Some((head, body)) = read_request(stream, &mut buffer) {
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let n_prompt = body["messages"][0]["content"].as_str().unwrap().len();
        heads.lock().unwrap().push(head);
        let parts = std::iter::once(STREAM_HEAD.to_owned())
            .chain((0..N_OUTPUT).map(|_| chunked(&content("x"))))
            .chain([chunked(&ending(n_prompt, N_OUTPUT as usize)), LAST_CHUNK.to_owned()]);
        for part in parts {
            if stream.write_all(part.as_bytes()).and_then(|()| stream.flush()).is_err() {
                return;
            }
        }
    }
}

/// A certificate authority's file, and a server's configuration with a certificate for `name`.
struct Identity {
    folder: tempfile::TempDir,
    config: Arc<ServerConfig>,
}

impl Identity {
    fn new(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), made.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(made.cert.der().to_vec())], key)
            .unwrap();
        Self { folder, config: Arc::new(config) }
    }

    fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn trusted(&self) -> TlsOptions {
        TlsOptions { ca_file: Some(self.ca_file()), insecure: false }
    }

    /// A server that answers everything; with the heads that it saw.
    fn serve(&self) -> (Listening, Arc<Mutex<Vec<String>>>) {
        let (config, heads): (_, Arc<Mutex<Vec<String>>>) = (self.config.clone(), Arc::default());
        let seen = heads.clone();
        (Listening::start(move |stream| answer_all(&mut encrypted(&config, stream), &seen)), heads)
    }
}

fn encrypted(config: &Arc<ServerConfig>, stream: TcpStream) -> StreamOwned<ServerConnection, TcpStream> {
    StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream)
}

fn spec(url: &str, isl: u32) -> LoadSpec {
    let mut spec = LoadSpec::closed_loop(url, "m", 4, 24, isl, N_OUTPUT).unwrap();
    spec.load.n_warmup = 4;
    spec
}

fn go(spec: &LoadSpec) -> Result<LoadReport, LoadError> {
    run(spec, Arc::new(ByteTexts { template_tokens: 0 }), &mut NoProgress, &Arc::new(StopSignal::new()))
}

fn assert_all_whole(report: &LoadReport) {
    assert_eq!((report.records.len(), report.n_isl_mismatches), (28, 0));
    for record in &report.records {
        assert_eq!((&record.outcome, record.chunks.len()), (&Outcome::Ok, N_OUTPUT as usize), "{}", record.x_request_id);
        let (sent, first) = (record.sent_ns.unwrap(), record.chunks.first().unwrap().at_ns);
        assert!(record.start_ns <= sent && sent <= record.end_ns && record.start_ns <= first, "{record:?}");
    }
    assert_eq!(report.health.receive.n_connects, 4, "connections are kept");
    assert_eq!(report.health.receive.n_sends, 28);
}

/// The error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

#[test]
fn https_carries_the_same_load_and_keeps_the_kernels_stamps() {
    let identity = Identity::new("localhost");
    let (server, heads) = identity.serve();
    // A prompt that no socket takes at once.
    for isl in [24, 3_000_000] {
        let mut spec = spec(&format!("https://localhost:{}", server.address.port()), isl);
        spec.tls = identity.trusted();
        let report = go(&spec).unwrap();
        assert_all_whole(&report);
        if cfg!(target_os = "linux") {
            assert_eq!(report.health.receive.stamp_source(), "kernel");
        }
    }
    let heads = heads.lock().unwrap();
    assert!(heads.iter().all(|head| head.starts_with("POST /v1/chat/completions ")), "{heads:?}");
}

#[test]
fn a_certificate_that_nobody_vouches_for_or_for_another_name_ends_the_run_before_it_begins() {
    let identity = Identity::new("localhost");
    let (server, heads) = identity.serve();
    let url = format!("https://localhost:{}", server.address.port());
    let refused = |url: &str, tls: TlsOptions| {
        let mut spec = spec(url, 8);
        spec.tls = tls;
        let error = go(&spec).unwrap_err();
        assert!(matches!(error, LoadError::Unreachable { .. }), "{error}");
        chain(&error)
    };
    let stranger = Identity::new("localhost");
    assert!(refused(&url, stranger.trusted()).contains("certificate"));
    let by_address = format!("https://127.0.0.1:{}", server.address.port());
    assert!(refused(&by_address, identity.trusted()).contains("not valid for name"));
    let missing = TlsOptions { ca_file: Some(identity.folder.path().join("absent.pem")), insecure: false };
    assert!(matches!(go(&LoadSpec { tls: missing, ..spec(&url, 8) }), Err(LoadError::Spec { field: "ca_file", .. })));
    assert!(heads.lock().unwrap().is_empty(), "no request was sent");
    let report = go(&LoadSpec { tls: TlsOptions { ca_file: None, insecure: true }, ..spec(&by_address, 8) }).unwrap();
    assert_all_whole(&report);
}

#[test]
fn a_session_that_ends_without_saying_so_truncates_what_only_its_end_would_have_ended() {
    let identity = Identity::new("localhost");
    let config = identity.config.clone();
    // A body that lasts until the connection closes: properly for every other request.
    let server = Listening::start(move |stream| {
        let (mut tls, mut buffer) = (encrypted(&config, stream), Vec::new());
        let Some((head, body)) = read_request(&mut tls, &mut buffer) else { return };
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let n_prompt = body["messages"][0]["content"].as_str().unwrap().len();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n{}", content("x"));
        let id: usize = header(&head, "x-request-id").unwrap().rsplit_once('-').unwrap().1.parse().unwrap();
        let end = if id.is_multiple_of(2) { ending(n_prompt, 1) } else { String::new() };
        tls.write_all((answer + &end).as_bytes()).unwrap();
        if id.is_multiple_of(2) {
            tls.conn.send_close_notify();
        }
        let _ = tls.flush();
    });
    let mut spec = spec(&format!("https://localhost:{}", server.address.port()), 8);
    (spec.tls, spec.load.n_warmup, spec.load.n_requests) = (identity.trusted(), 0, 8);
    for record in go(&spec).unwrap().records {
        let wanted = if record.index.is_multiple_of(2) { None } else { Some(FailureKind::Truncated) };
        assert_eq!(record.outcome.failure(), wanted, "{record:?}");
        assert_eq!(record.chunks.len(), 1);
    }
}

#[test]
fn a_unix_socket_serves_as_a_port_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = heads.clone();
    let server = std::thread::spawn(move || {
        let mut threads = Vec::new();
        // The load tries the socket once, then opens four connections; one more ends this.
        for stream in listener.incoming().take(6) {
            let (mut stream, seen): (UnixStream, _) = (stream.unwrap(), seen.clone());
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            threads.push(std::thread::spawn(move || answer_all(&mut stream, &seen)));
        }
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
    let report = go(&spec(&format!("unix:{}", path.display()), 24)).unwrap();
    drop(UnixStream::connect(&path).unwrap());
    server.join().unwrap();
    assert_all_whole(&report);
    assert_eq!((report.health.receive.stamp_source(), report.health.receive.send_stamp_source()), ("clock", "clock"));
    assert!(heads.lock().unwrap().iter().all(|head| header(head, "host") == Some("localhost")));
    assert!(matches!(go(&spec("unix:/nonexistent/socket", 8)), Err(LoadError::Unreachable { .. })));
}

/// A proxy: tunnels what asks for it, and forwards the rest with the request line that a server expects. Notes what it was asked.
fn proxy(asked: Arc<Mutex<Vec<String>>>) -> Listening {
    Listening::start(move |mut client| {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if !matches!(client.read(&mut byte), Ok(1)) {
                return;
            }
            head.push(byte[0]);
        }
        let mut head = String::from_utf8(head).unwrap();
        asked.lock().unwrap().push(head.clone());
        // printf 'user:secret' | base64
        if header(&head, "proxy-authorization") != Some("Basic dXNlcjpzZWNyZXQ=") {
            let _ = client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
            return;
        }
        let target = head.split(' ').nth(1).unwrap().to_owned();
        let rest = target.strip_prefix("http://");
        let authority = rest.map_or(target.as_str(), |rest| rest.split('/').next().unwrap()).to_owned();
        let mut server = TcpStream::connect(authority.replace("localhost", "127.0.0.1")).unwrap();
        server.set_nodelay(true).unwrap();
        if rest.is_some() {
            head = head.replacen(&format!("http://{authority}"), "", 1);
            server.write_all(head.as_bytes()).unwrap();
        } else {
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
        }
        let (mut back_from, mut back_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let back = std::thread::spawn(move || {
            let _ = io::copy(&mut back_from, &mut back_to);
            let _ = back_to.shutdown(std::net::Shutdown::Write);
        });
        if rest.is_some() {
            forward(&mut client, &mut server, &authority);
        } else {
            let _ = io::copy(&mut client, &mut server);
        }
        let _ = server.shutdown(std::net::Shutdown::Write);
        back.join().unwrap();
    })
}

/// Hands requests on, the URL in each request line made a path. The first head has been handed on already.
fn forward(client: &mut TcpStream, server: &mut TcpStream, authority: &str) {
    let mut piece = vec![0; 1 << 16];
    while let Ok(n @ 1..) = client.read(&mut piece) {
        // Requests of this test are small: each comes in reads of its own.
        let bytes = String::from_utf8_lossy(&piece[..n]).replacen(&format!("http://{authority}"), "", 1);
        if server.write_all(bytes.as_bytes()).is_err() {
            return;
        }
    }
}

fn through(spec: LoadSpec, proxy: &Listening, credentials: &str) -> LoadSpec {
    let proxy = Proxy::parse(&format!("http://{credentials}{}", proxy.address)).unwrap();
    LoadSpec { target: spec.target.clone().through(proxy).unwrap(), ..spec }
}

#[test]
fn a_proxy_forwards_plain_requests_and_tunnels_encrypted_ones() {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let proxy = proxy(asked.clone());
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = heads.clone();
    let plain = Listening::start(move |mut stream| answer_all(&mut stream, &seen));
    let report = go(&through(spec(&format!("http://{}", plain.address), 24), &proxy, "user:secret@")).unwrap();
    assert_all_whole(&report);
    assert!(asked.lock().unwrap().iter().all(|head| head.starts_with(&format!("POST http://{}/v1/chat", plain.address))));
    assert!(heads.lock().unwrap().iter().all(|head| head.starts_with("POST /v1/chat/completions ")));

    asked.lock().unwrap().clear();
    let identity = Identity::new("localhost");
    let (server, heads) = identity.serve();
    let port = server.address.port();
    let mut encrypted = through(spec(&format!("https://localhost:{port}"), 24), &proxy, "user:secret@");
    encrypted.tls = identity.trusted();
    assert_all_whole(&go(&encrypted).unwrap());
    assert!(asked.lock().unwrap().iter().all(|head| head.starts_with(&format!("CONNECT localhost:{port} HTTP/1.1\r\n"))));
    assert!(heads.lock().unwrap().iter().all(|head| header(head, "proxy-authorization").is_none()), "the server sees no credentials");
    // A proxy that refuses is named before any request.
    let mut refused = through(spec(&format!("https://localhost:{port}"), 24), &proxy, "user:wrong@");
    refused.tls = identity.trusted();
    assert!(chain(&go(&refused).unwrap_err()).contains("refused the tunnel: 407"));
}

#[test]
fn what_was_sent_has_a_stamp_of_the_kernel_or_of_the_clock() {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let server = Listening::start(move |mut stream| answer_all(&mut stream, &heads));
    let url = format!("http://{}", server.address);
    let by_kernel = go(&spec(&url, 24)).unwrap();
    let by_clock = go(&LoadSpec { kernel_stamps: false, ..spec(&url, 24) }).unwrap();
    for (report, source) in [(&by_kernel, "kernel"), (&by_clock, "clock")] {
        assert_all_whole(report);
        assert_eq!(report.health.receive.send_time.n(), 28);
        if cfg!(target_os = "linux") {
            assert_eq!(report.health.receive.send_stamp_source(), source);
        }
        // Sent before it was answered: the stamp belongs to this request and to no other.
        for record in &report.records {
            assert!(record.sent_ns.unwrap() <= record.ack_ns.unwrap(), "{record:?}");
        }
    }
    // A request that one write does not take has the stamp of its last byte.
    let large = go(&spec(&url, 4_000_000)).unwrap();
    assert_all_whole(&large);
    assert!(large.health.receive.n_partial_writes > 0);
}

#[test]
fn a_proxys_credentials_do_not_show() {
    let target = Target::parse("http://h").unwrap().through(Proxy::parse("http://user:secret@p:1").unwrap()).unwrap();
    let spec = LoadSpec { target, ..spec("http://h", 8) };
    let shown = format!("{spec:?}");
    assert!(!shown.contains("secret") && !shown.contains("c2VjcmV0"), "{shown}");
}
