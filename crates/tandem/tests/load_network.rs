//! `tandem load` on its way to the server: sockets, proxies, refusals, interrupts; and that no secret is left behind.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use common::{Background, output, read_json, read_request, stderr, tandem, wait_for};
use rustix::process::Signal;
use tandem_load::paced::{PacedConfig, PacedServer};
use tandem_plan::Nanos;

fn paced() -> PacedServer {
    PacedServer::start(PacedConfig { ttft: Nanos::from_millis(2), itl: Nanos::from_millis(1), tokens_per_chunk: 1, n_prompt: 32 }).unwrap()
}

/// Every file below `folder`.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    found
}

#[test]
fn keys_headers_and_a_proxys_password_are_in_no_artifact_and_no_output() {
    // A server that takes whole URLs is its own proxy.
    let server = paced();
    let (dir, secrets) = (tempfile::tempdir().unwrap(), ["key-secret", "header-secret", "proxy-secret", "cHJveHktc2VjcmV0"]);
    let out = dir.path().join("run");
    let mut command = tandem();
    command.env("TANDEM_API_KEY", secrets[0]).args(["load", "--url", "http://elsewhere.invalid:81", "--model", "m"]);
    command.args(["--header", &format!("X-Token: {}", secrets[1]), "--concurrency", "2", "--requests", "4", "--isl", "32", "--osl", "3"]);
    command.args(["--proxy", &format!("http://user:{}@{}", secrets[2], server.url().strip_prefix("http://").unwrap()), "--out"]).arg(&out);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", stderr(&done));
    let mut all = files(&out);
    assert!(all.len() > 5, "{all:?}");
    all.extend([("stdout".to_owned(), done.stdout), ("stderr".to_owned(), done.stderr)]);
    for (name, bytes) in &all {
        let text = String::from_utf8_lossy(bytes);
        for secret in secrets {
            assert!(!text.contains(secret), "{name} holds {secret}");
        }
    }
}

#[test]
fn a_report_says_who_stamped_and_how_long_sending_took() {
    let server = paced();
    let dir = tempfile::tempdir().unwrap();
    for stamps in ["kernel", "clock"] {
        let out = dir.path().join(stamps);
        let done = output(&[
            "load",
            "--url",
            &server.url(),
            "--model",
            "m",
            "--concurrency",
            "2,2",
            "--requests",
            "6",
            "--isl",
            "32",
            "--osl",
            "3",
            "--stamps",
            stamps,
            "--out",
            out.to_str().unwrap(),
        ]);
        assert!(done.status.success(), "{}", stderr(&done));
        let result = read_json(&out.join("result.json"));
        let client = &result["points"][0]["client"];
        if cfg!(target_os = "linux") {
            assert_eq!((&client["stamp_source"], &client["send_stamp_source"]), (&stamps.into(), &stamps.into()), "{client}");
        }
        assert!(client["send_time_p99_us"].as_f64().is_some_and(|us| us > 0.0), "{client}");
        // Two points with one load have two directories, each with its own records.
        let texts = ["m-openai-chat-concurrency2", "m-openai-chat-concurrency2_2"].map(|name| {
            let text = std::fs::read_to_string(out.join(name).join("profile_export.jsonl")).unwrap();
            assert_eq!((text.lines().count(), text.matches("\"send_stamp_ns\":").count()), (6, 6));
            text
        });
        assert_ne!(texts[0], texts[1]);
        assert_eq!(result["points"][1]["directory"], "m-openai-chat-concurrency2_2");
    }
}

/// Reads requests and holds its answers back until it is told; counts what it has read.
struct Holding {
    url: String,
    n_read: Arc<AtomicUsize>,
    release: Arc<(Mutex<bool>, Condvar)>,
}

impl Holding {
    fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let held = Holding { url: format!("http://{}", listener.local_addr().unwrap()), n_read: Arc::default(), release: Arc::default() };
        let (n_read, release) = (held.n_read.clone(), held.release.clone());
        // It ends with the process of the test.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (n_read, release) = (n_read.clone(), release.clone());
                std::thread::spawn(move || serve(stream, answer, &n_read, &release));
            }
        });
        held
    }

    fn release(&self) {
        *self.release.0.lock().unwrap() = true;
        self.release.1.notify_all();
    }
}

fn serve(mut stream: TcpStream, answer: &str, n_read: &AtomicUsize, (released, changed): &(Mutex<bool>, Condvar)) {
    let Ok(mut reader) = stream.try_clone().map(BufReader::new) else { return };
    while read_request(&mut reader) {
        n_read.fetch_add(1, Ordering::SeqCst);
        let guard = released.lock().unwrap();
        drop(changed.wait_while(guard, |released| !*released).unwrap());
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 136\r\n\r\n{\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"abc\"},\"finish_reason\":\"length\"}],\"usage\":{\"completion_tokens\":3}}       ";

fn held_load(server: &Holding) -> Background {
    let url = &server.url;
    let run = Background::start(&[
        "load",
        "--url",
        url,
        "--model",
        "m",
        "--concurrency",
        "2",
        "--requests",
        "100",
        "--warmup",
        "0",
        "--streaming",
        "false",
        "--isl",
        "32",
        "--osl",
        "3",
        "--grace",
        "60",
    ]);
    wait_for("two requests", || (server.n_read.load(Ordering::SeqCst) >= 2).then_some(()));
    run
}

#[test]
fn one_interrupt_finishes_what_is_in_flight_and_writes_it_as_partial() {
    let server = Holding::start(GOOD);
    let mut run = held_load(&server);
    run.signal(Signal::INT);
    wait_for("the interrupt", || run.stderr().contains("once more to end now").then_some(()));
    // Only now: what is sent from here on would be one request too many.
    server.release();
    assert_eq!(run.wait(), Some(130), "{}", run.stderr());
    let result = read_json(&run.out.join("result.json"));
    let n = server.n_read.load(Ordering::SeqCst);
    assert_eq!(
        (&result["partial"], &result["validity"], &result["outcomes"]["ok"]),
        (&true.into(), &"invalid".into(), &n.into()),
        "{result}"
    );
    assert!(n < 100 && run.out.join("m-openai-chat-concurrency2/profile_export.jsonl").exists());
}

#[test]
fn a_second_interrupt_cuts_what_is_in_flight_and_still_accounts_for_it() {
    let server = Holding::start(GOOD);
    let mut run = held_load(&server);
    run.signal(Signal::INT);
    wait_for("the interrupt", || run.stderr().contains("once more to end now").then_some(()));
    run.signal(Signal::INT);
    assert_eq!(run.wait(), Some(130), "{}", run.stderr());
    let result = read_json(&run.out.join("result.json"));
    assert_eq!((&result["partial"], &result["outcomes"]["cancelled"]), (&true.into(), &2.into()), "{result}");
    server.release();
}

#[test]
fn a_server_that_refuses_a_field_is_told_apart_with_what_to_pass() {
    let refusal = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 57\r\n\r\n{\"error\":{\"message\":\"Unsupported parameter: min_tokens\"}}";
    let server = Holding::start(refusal);
    server.release();
    let dir = tempfile::tempdir().unwrap();
    let done = output(&[
        "load",
        "--url",
        &server.url,
        "--model",
        "m",
        "--requests",
        "2",
        "--isl",
        "32",
        "--out",
        dir.path().join("run").to_str().unwrap(),
    ]);
    assert!(stderr(&done).contains(r#"--extra-inputs '{"min_tokens":null}'"#), "{}", stderr(&done));
    assert_eq!(read_json(&dir.path().join("run/result.json"))["validity"], "invalid");
}

/// One load from clients, and its records.
fn from_clients(server: &PacedServer, args: &[&str]) -> (std::process::Output, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = tandem();
    command.args(["load", "--url", &server.url(), "--model", "m", "--requests", "24", "--isl", "32", "--osl", "3", "--out"]);
    command.arg(dir.path().join("run")).args(args);
    (command.output().unwrap(), dir)
}

#[test]
fn several_processes_make_one_run_of_all_their_records() {
    let server = paced();
    let (done, dir) = from_clients(&server, &["--clients", "3", "--concurrency", "6,7", "--warmup", "6"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let result = read_json(&dir.path().join("run/result.json"));
    for (i, concurrency) in [(0, 6), (1, 7)] {
        let point = &result["points"][i];
        assert_eq!((&point["outcomes"]["ok"], &point["load"]["concurrency"]), (&24.into(), &concurrency.into()), "{point}");
        let clients: Vec<u64> = point["client"]["clients"].as_array().unwrap().iter().map(|c| c["n_records"].as_u64().unwrap()).collect();
        assert_eq!(clients, [10, 10, 10]);
        let path = dir.path().join(format!("run/m-openai-chat-concurrency{concurrency}/profile_export.jsonl"));
        let lines: Vec<serde_json::Value> =
            std::fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let ids: Vec<&str> = lines.iter().map(|l| l["metadata"]["x_request_id"].as_str().unwrap()).collect();
        assert_eq!(ids, (0..24).map(|k| format!("profiling-{k}")).collect::<Vec<_>>());
        // The figures are those of all records: their mean and their largest, whoever made them.
        let of = |l: &serde_json::Value| l["metrics"]["request_latency"]["value"].as_f64().unwrap();
        let mean = lines.iter().map(of).sum::<f64>() / 24.0;
        let max = lines.iter().map(of).fold(0.0, f64::max);
        let figure = |key: &str| point["summary"]["request_latency"][key].as_f64().unwrap();
        assert!((figure("avg") - mean).abs() < 1e-6 && (figure("max") - max).abs() < 1e-6, "{} {mean}", figure("avg"));
    }
}

#[test]
fn agents_take_part_with_the_token_alone_and_a_dead_one_makes_the_point_invalid() {
    let server =
        PacedServer::start(PacedConfig { ttft: Nanos::from_millis(300), itl: Nanos::from_millis(50), tokens_per_chunk: 1, n_prompt: 32 })
            .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "0123456789abcdef0123456789abcdef\n").unwrap();
    let mut agents: Vec<(std::process::Child, String)> = (0..2)
        .map(|_| {
            let mut command = tandem();
            command
                .args(["load", "agent", "--token-file"])
                .arg(&token)
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::null());
            let mut child = command.spawn().unwrap();
            let mut address = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut address).unwrap();
            (child, address.trim().to_owned())
        })
        .collect();
    let clients = format!("{},{}", agents[0].1, agents[1].1);
    let wrong = dir.path().join("wrong");
    std::fs::write(&wrong, "another token, another token").unwrap();
    let (refused, _) = from_clients(&server, &["--clients", &clients, "--agent-token-file", wrong.to_str().unwrap(), "--concurrency", "2"]);
    assert!(!refused.status.success() && stderr(&refused).contains("token"), "{}", stderr(&refused));

    let mut run = Background::start(&[
        "load",
        "--url",
        &server.url(),
        "--model",
        "m",
        "--requests",
        "400",
        "--concurrency",
        "4",
        "--warmup",
        "0",
        "--isl",
        "32",
        "--osl",
        "3",
        "--clients",
        &clients,
        "--agent-token-file",
        token.to_str().unwrap(),
    ]);
    // Progress is told once requests are on their way.
    wait_for("requests", || run.stderr().contains("in flight").then_some(()));
    agents[1].0.kill().unwrap();
    let code = run.wait();
    let result = read_json(&run.out.join("result.json"));
    assert_eq!(result["validity"], "invalid", "{code:?} {}", run.stderr());
    let reasons = result["validity_reasons"].to_string();
    assert!(reasons.contains("client_lost") && reasons.contains(&agents[1].1), "{reasons}");
    for (agent, _) in &mut agents {
        let _ = agent.kill();
        agent.wait().unwrap();
    }
}

#[test]
fn four_thousand_connections_open_within_the_hard_limit_and_are_refused_beyond_it() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limits = getrlimit(Resource::Nofile);
    if limits.maximum.is_some_and(|n| n < 9000) {
        tandem_testkit::not_run("4,096 connections", "the hard limit of open files is too low");
        return;
    }
    // For the server, which is in this process.
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: Some(9000), ..limits }).unwrap();
    let server = paced();
    let (url, dir) = (server.url(), tempfile::tempdir().unwrap());
    let limited = |limit: &str, out: &str| {
        let mut command = std::process::Command::new("sh");
        let script = format!("{limit} && exec \"$0\" \"$@\"");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_tandem"), "load", "--url", &url, "--model", "m", "--concurrency", "4096"]);
        command.args(["--requests", "4096", "--warmup", "0", "--isl", "32", "--osl", "2", "--out"]).arg(dir.path().join(out));
        command.output().unwrap()
    };
    let done = limited("ulimit -Sn 256", "raised");
    assert!(done.status.success(), "{}", stderr(&done));
    let result = read_json(&dir.path().join("raised/result.json"));
    assert_eq!(result["outcomes"]["ok"], 4096);
    let refused = limited("ulimit -Sn 256 && ulimit -Hn 1024", "refused");
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("open files") && stderr(&refused).contains("ulimit -n"), "{}", stderr(&refused));
}
