//! The page in a real browser: it runs its script, complains about nothing, and has its charts.
//!
//! Needs Chromium; without one the test says that it was not run, and passes.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use tandem_testkit::not_run;

use crate::fixture::{page, run};

const WHAT: &str = "the report in a browser";
const PROGRAMS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];
/// Between two looks at whether the browser has ended, and how many looks it gets: two minutes.
const POLL: Duration = Duration::from_millis(20);
const MAX_POLLS: u32 = 6_000;

/// Standard output and standard error of a program that ends within the deadline.
fn output(command: &mut Command) -> Option<(String, String)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().ok()?;
    let read = |mut pipe: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = pipe.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let out = read(Box::new(child.stdout.take().unwrap()));
    let err = read(Box::new(child.stderr.take().unwrap()));
    let mut n_polls = 0;
    while child.try_wait().unwrap().is_none() {
        n_polls += 1;
        if n_polls > MAX_POLLS {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the browser did not end: {}", err.join().unwrap());
        }
        std::thread::sleep(POLL);
    }
    Some((out.join().unwrap(), err.join().unwrap()))
}

#[test]
fn a_browser_draws_the_page_without_complaint() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.html");
    let html = page(&[run("a"), run("b")]);
    let n_charts = html.matches("<svg class=\"chart\"").count();
    std::fs::write(&file, html).unwrap();
    let dump = |program: &&str| {
        let profile = format!("--user-data-dir={}", dir.path().join("profile").display());
        let flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr", "--dump-dom"];
        output(Command::new(program).args(flags).arg(profile).arg(format!("file://{}", file.display())))
    };
    let Some((dom, log)) = PROGRAMS.iter().find_map(dump) else {
        return not_run(WHAT, "there is no Chromium (Debian: apt-get install chromium)");
    };
    if !dom.contains("<html") {
        return not_run(WHAT, format!("Chromium does not start here: {}", log.lines().last().unwrap_or_default()));
    }
    let complaints: Vec<&str> = log.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    assert!(dom.contains(&format!("data-ready=\"{n_charts}\"")), "the script has not run to its end");
    assert!(n_charts > 20 && dom.matches("class=\"line ").count() > 20, "charts have no lines");
}
