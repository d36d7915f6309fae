//! The page in a real browser: it runs its script, complains about nothing, and has its charts.
//!
//! Needs Chromium and its driver; without them the test says that it was not run, and passes. Whole runs, sizes and dark mode: `crates/tandem/tests/pages.rs`.

use tandem_testkit::Browser;

use crate::fixture::{page, run};

#[test]
fn a_browser_draws_the_page_without_complaint() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.html");
    let html = page(&[run("a"), run("b")]);
    let n_charts = html.matches("<svg class=\"chart\"").count();
    std::fs::write(&file, html).unwrap();
    let Some(browser) = Browser::start(dir.path(), "the report in a browser") else { return };
    browser.open(&format!("file://{}", file.display()));
    browser.wait("return document.documentElement.dataset.ready");
    assert_eq!(browser.complaints(), Vec::<String>::new());
    assert_eq!(browser.eval("return Number(document.documentElement.dataset.ready)"), n_charts, "the script has not run to its end");
    let n_lines = browser.eval("return document.querySelectorAll('.line').length").as_u64();
    assert!(n_charts > 20 && n_lines > Some(20), "charts have no lines: {n_lines:?}");
}
