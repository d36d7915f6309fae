//! The report of a real run, the page of a search and the live page in a real browser: no complaints, charts with something in them,
//! nothing wider than the screen; on a desktop, a phone, in the dark and on paper. Screenshots are left in the build folder.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

mod common;

use std::path::{Path, PathBuf};

use common::{Live, output, stderr};
use tandem_testkit::{Browser, View};

/// Where the screenshots of this test lie: below the build folder, so outside of git.
fn picture(name: &str, view: View) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots").join(format!("{name}-{}.png", view.name))
}

/// For each chart: its title, and how many of its marks have an extent.
const DRAWN: &str = "return [...document.querySelectorAll('svg.chart')].map((svg) => {
    const marks = [...svg.querySelectorAll('.line, .dot, .trail, .cloud, .frontier, .band, .row rect, .bar')].filter((mark) => {
        const box = mark.getBBox();
        return (box.width > 0 || box.height > 0) && !/NaN|Infinity/.test(mark.outerHTML);
    });
    return [svg.getAttribute('aria-label') || '', marks.length];
})";

/// Elements that stick out of the screen, except inside of what scrolls by itself.
const TOO_WIDE: &str = "const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    return [...document.body.querySelectorAll('*')].filter((e) => !e.closest('.wide') && e.getBoundingClientRect().right > width + 1)
        .slice(0, 5).map((e) => e.outerHTML.slice(0, 160))";

/// Texts of one chart that lie on each other.
const COVERED: &str = "const found = [];
    for (const svg of document.querySelectorAll('svg.chart')) {
        const texts = [...svg.querySelectorAll('text')].map((t) => [t.textContent, t.getBoundingClientRect()]).filter(([, r]) => r.width > 0);
        texts.forEach(([a, r], i) => texts.slice(i + 1).forEach(([b, s]) => {
            const x = Math.min(r.right, s.right) - Math.max(r.left, s.left), y = Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top);
            if (x > 2 && y > 4) found.push([svg.getAttribute('aria-label'), a, b]);
        }));
    }
    return found.slice(0, 5)";

/// Checks what any page must keep at any size, and takes its picture.
fn look(browser: &Browser, name: &str, view: View, least_charts: usize) {
    let drawn = browser.eval(DRAWN);
    let drawn = drawn.as_array().unwrap();
    assert!(drawn.len() >= least_charts, "{name}, {}: {} charts", view.name, drawn.len());
    // Charts of a point that is folded up have no size until somebody opens it.
    let n_empty = drawn.iter().filter(|chart| chart[1] == 0).count();
    assert_eq!(n_empty, 0, "{name}, {}: {drawn:?}", view.name);
    if !view.is_print {
        assert_eq!(browser.eval(TOO_WIDE), serde_json::json!([]), "{name}, {}", view.name);
    }
    assert_eq!(browser.eval(COVERED), serde_json::json!([]), "{name}, {}", view.name);
    let light = "const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number); return (r + g + b) / 3";
    let light = browser.eval(light).as_f64().unwrap();
    assert_eq!(light < 128.0, view.is_dark, "{name}, {}: background of lightness {light}", view.name);
    browser.screenshot(&picture(name, view), view);
    assert_eq!(browser.complaints(), Vec::<String>::new(), "{name}, {}", view.name);
}

const OPEN_ALL: &str = "document.querySelectorAll('details.point').forEach((d) => { d.open = true; })";

fn run(out: &Path, more: &[&str]) -> String {
    let mut args = vec!["run", "tiny", "--set", "ENGINE=modeled", "--set", "CONCURRENCY=1,2,4", "--set", "OSL=24", "--port", "0", "--out"];
    args.push(out.to_str().unwrap());
    args.extend(more);
    let done = output(&args);
    assert!(done.status.success(), "{}", stderr(&done));
    out.to_str().unwrap().to_owned()
}

#[test]
fn the_report_of_real_runs_in_a_browser() {
    let dir = tempfile::tempdir().unwrap();
    let Some(browser) = Browser::start(dir.path(), "the report of a real run in a browser") else { return };
    let slow = ["--set", "MODELED_STEP_US=3000", "--set", "GEN_MAX_BATCH_SIZE=2"];
    let runs = [run(&dir.path().join("first"), &[]), run(&dir.path().join("slower"), &slow)];
    let page = dir.path().join("report.html");
    let done = output(&["report", &runs[0], &runs[1], "--html", page.to_str().unwrap()]);
    assert!(done.status.success(), "{}", stderr(&done));
    for view in View::ALL {
        browser.look(view);
        browser.open(&format!("file://{}", page.display()));
        browser.wait("return document.documentElement.dataset.ready");
        browser.eval(OPEN_ALL);
        look(&browser, "report", view, 12);
    }
    assert!(browser.pdf().starts_with(b"%PDF"));
}

#[test]
fn the_page_of_a_search_in_a_browser() {
    let dir = tempfile::tempdir().unwrap();
    let Some(browser) = Browser::start(dir.path(), "the page of a search in a browser") else { return };
    let out = dir.path().join("search");
    let axes = ["NCTX=1..8", "GEN_WORLD_SIZE=8,16", "GEN_MAX_BATCH_SIZE=16..256:x2", "GEN_MTP_SIZE=0,1", "CONCURRENCY=GEN_MAX_BATCH_SIZE*GEN_WORLD_SIZE"];
    let mut args = vec!["explore", "deepseek-r1", "--gpu-type", "gb200", "--max-gpus", "48", "--out", out.to_str().unwrap()];
    axes.iter().for_each(|axis| args.extend(["--set", axis]));
    let done = output(&args);
    assert!(done.status.success(), "{}", stderr(&done));
    for view in View::ALL {
        browser.look(view);
        browser.open(&format!("file://{}", out.join("explore.html").display()));
        browser.wait("return document.documentElement.dataset.ready");
        look(&browser, "explore", view, 1);
    }
}

#[test]
fn the_live_page_in_a_browser() {
    let dir = tempfile::tempdir().unwrap();
    let Some(browser) = Browser::start(dir.path(), "the live page in a browser") else { return };
    let live = Live::start();
    for view in View::ALL.into_iter().filter(|view| !view.is_print) {
        browser.look(view);
        browser.open(&format!("http://{}/", live.address));
        browser.wait("return document.documentElement.dataset.shown");
        look(&browser, "live", view, 1);
    }
}
