//! `tandem explore` as a process: files, resuming, and what it says when nothing is left.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tandem_testkit::not_run;

fn explore(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    command.args(["explore", "deepseek-r1", "--gpu-type", "gb200"]).args(args);
    // Knobs of the environment of whoever runs the tests must not count.
    command.env_clear().output().unwrap()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_search_writes_its_files_and_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("search");
    let run = |nctx: &str| explore(&["--set", nctx, "--set", "GEN_MAX_BATCH_SIZE=64,128", "--out", out.to_str().unwrap()]);
    let first = run("NCTX=3,4");
    assert!(first.status.success(), "{first:?}");
    let text = String::from_utf8(first.stdout).unwrap();
    assert!(text.contains("simulated 4 in") && text.contains("Measure next"), "{text}");
    let before = json(&out.join("explore.json"));
    assert_eq!(before["screened"]["points"], 4);
    assert!(std::fs::read_to_string(out.join("explore.html")).unwrap().contains("<svg class=\"chart\""));
    assert_eq!(std::fs::read_to_string(out.join("explore.csv")).unwrap().lines().count(), 5);

    let again = String::from_utf8(run("NCTX=3,4").stdout).unwrap();
    assert!(again.contains("simulated 0 in") && again.contains("(4 taken from before)"), "{again}");
    assert_eq!(json(&out.join("explore.json")), before);
    let wider = String::from_utf8(run("NCTX=3,4,5").stdout).unwrap();
    assert!(wider.contains("simulated 2 in") && wider.contains("(4 taken from before)"), "{wider}");
}

#[test]
fn nothing_left_is_an_error_with_the_nearest_change() {
    let output = explore(&["--set", "NCTX=4,6", "--slo", "tpot:1"]);
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("2 × misses the SLO tpot") && text.contains("hint: nearest change: --slo tpot:"), "{text}");
}

#[test]
fn bad_axes_and_conditions_are_usage_errors() {
    for args in [["--set", "NCTX=4..1"], ["--where", "NTCX > 1"], ["--slo", "speed:3"], ["--where", "NCTX >"]] {
        assert_eq!(explore(&args).status.code(), Some(2), "{args:?}");
    }
    assert_eq!(explore(&["--set", "NTCX=1,2"]).status.code(), Some(3));
}

/// A served live page, ended with the test.
struct Live {
    child: Child,
    address: String,
}

impl Live {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
        command.args([
            "explore",
            "deepseek-r1",
            "--gpu-type",
            "gb200",
            "--set",
            "NCTX=3,4,6",
            "--set",
            "GEN_MAX_BATCH_SIZE=64,128",
            "--serve",
        ]);
        let mut child = command.env_clear().stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.filter_map(|l| Some(l.split_once("live page: http://")?.1.split_once('/')?.0.to_owned())).next();
        Live { address: address.expect("it says where it serves"), child }
    }

    /// Status and body of a request with these headers.
    fn ask(&self, head: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let text = format!("{head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        // A server that refuses a long body may close before it has read it.
        let _ = stream.write_all(text.as_bytes());
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        let reply = String::from_utf8_lossy(&reply).into_owned();
        let status = reply.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, reply.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned()))
    }

    fn predict(&self, knobs: &str) -> (u16, serde_json::Value) {
        let (status, body) = self.ask("POST /api/predict HTTP/1.1\r\nHost: localhost", &format!("{{\"knobs\": {knobs}}}"));
        (status, serde_json::from_str(&body).unwrap())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_live_api_predicts_and_refuses() {
    let live = Live::start();
    let (status, space) = live.ask("GET /api/space HTTP/1.1\r\nHost: 127.0.0.1", "");
    assert_eq!(status, 200);
    let space: serde_json::Value = serde_json::from_str(&space).unwrap();
    assert_eq!(space["axes"][0]["values"], serde_json::json!(["3", "4", "6"]));
    assert!(!space["frontier"].as_array().unwrap().is_empty());

    let value = |answer: &serde_json::Value| answer["prediction"]["tokens_per_gpu"]["value"].as_f64().unwrap();
    let (few, many) = (live.predict(r#"{"NCTX": "1"}"#).1, live.predict(r#"{"NCTX": "6"}"#).1);
    assert!(few["gpus"].as_u64() < many["gpus"].as_u64() && value(&few) != value(&many), "{few} {many}");
    // The page answers as the command does.
    let again = live.predict(r#"{"NCTX": 6}"#).1;
    assert_eq!(again, many);
    let (status, starved) = live.predict(r#"{"GEN_MAX_BATCH_SIZE": "5000"}"#);
    assert!(status == 200 && starved["fits"] == false && starved["verdict"].as_str().unwrap().contains("KV cache"), "{starved}");

    for knobs in [r#"{"NTCX": "1"}"#, r#"{"NCTX": "many"}"#, r#"{"MODEL": "/somewhere"}"#] {
        assert_eq!(live.predict(knobs).0, 400, "{knobs}");
    }
    assert_eq!(live.ask("POST /api/predict HTTP/1.1\r\nHost: localhost", "no json").0, 400);
    assert_eq!(live.ask("POST /api/predict HTTP/1.1\r\nHost: localhost", &"x".repeat(70_000)).0, 413);
    assert_eq!(live.ask("GET /api/space HTTP/1.1\r\nHost: elsewhere.example", "").0, 403);
    assert_eq!(live.ask("GET /etc HTTP/1.1\r\nHost: localhost", "").0, 404);
    assert_eq!(live.ask("DELETE / HTTP/1.1\r\nHost: localhost", "").0, 405);
}

#[test]
fn a_browser_shows_the_live_page_without_complaint() {
    const WHAT: &str = "the live page in a browser";
    let live = Live::start();
    let dir = tempfile::tempdir().unwrap();
    for (size, dark) in [("1280,900", false), ("500,1700", true)] {
        let mut command = Command::new("chromium");
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"]);
        command.args(["--virtual-time-budget=8000", "--dump-dom", &format!("--window-size={size}")]);
        command.args(dark.then_some("--force-dark-mode"));
        command.arg(format!("--user-data-dir={}", dir.path().join(size).display())).arg(format!("http://{}/", live.address));
        let files = ["dom", "log"].map(|name| dir.path().join(format!("{name}-{size}")));
        let to = |path: &Path| Stdio::from(std::fs::File::create(path).unwrap());
        let Ok(mut browser) = command.stdin(Stdio::null()).stdout(to(&files[0])).stderr(to(&files[1])).spawn() else {
            return not_run(WHAT, "there is no Chromium (Debian: apt-get install chromium)");
        };
        let deadline = Instant::now() + Duration::from_secs(120);
        while browser.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                browser.kill().unwrap();
                browser.wait().unwrap();
                panic!("the browser did not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let [dom, log] = files.map(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned());
        if !dom.contains("<html") {
            return not_run(WHAT, format!("Chromium does not start here: {}", log.lines().last().unwrap_or_default()));
        }
        let complaints: Vec<&str> = log.lines().filter(|line| line.contains("CONSOLE")).collect();
        assert!(complaints.is_empty(), "{complaints:#?}");
        for part in ["data-shown=\"", "class=\"frontier\"", "id=\"here\"", "type=\"range\"", "Fits, on"] {
            assert!(dom.contains(part), "{size}: no {part}");
        }
    }
}
