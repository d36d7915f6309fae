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
        let _ = browser.eval(OPEN_ALL);
        look(&browser, "report", view, 12);
    }
    assert!(browser.pdf().starts_with(b"%PDF"));
}

#[test]
fn the_page_of_a_search_in_a_browser() {
    let dir = tempfile::tempdir().unwrap();
    let Some(browser) = Browser::start(dir.path(), "the page of a search in a browser") else { return };
    let out = dir.path().join("search");
    let axes = [
        "NCTX=1..8",
        "GEN_WORLD_SIZE=8,16",
        "GEN_MAX_BATCH_SIZE=16..256:x2",
        "GEN_MTP_SIZE=0,1",
        "CONCURRENCY=GEN_MAX_BATCH_SIZE*GEN_WORLD_SIZE",
    ];
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
    // Pointing at a mark shows all of its knobs, its own first.
    browser.look(View::ALL[0]);
    assert_eq!(browser.eval(PANEL), serde_json::json!([]), "nothing is picked yet");
    browser.point_at(".pt.c0 .hit");
    browser.wait("return document.querySelectorAll('#picked dl div').length > 40");
    let panel = browser.eval(PANEL);
    assert_eq!(panel[0][0], "NCTX", "{panel}");
    assert!(panel.as_array().unwrap().iter().any(|row| row[0] == "ISL" && row[1] == "8150"), "{panel}");
    browser.screenshot(&picture("explore-picked", View::ALL[0]), View::ALL[0]);
}

const PANEL: &str =
    "return [...document.querySelectorAll('#picked dl div')].map((row) => [row.children[0].textContent, row.children[1].textContent])";

#[test]
fn the_live_page_in_a_browser() {
    let dir = tempfile::tempdir().unwrap();
    let Some(browser) = Browser::start(dir.path(), "the live page in a browser") else { return };
    let live = Live::start();
    let url = format!("http://{}/", live.address);
    // What a slider does, and what comes of it.
    let slide = |name: &str, at: usize| {
        let shown = browser.eval("return Number(document.documentElement.dataset.shown)");
        let _ = browser.eval(&format!(
            "const s = document.querySelector('input[name={name}]'); s.value = {at}; s.dispatchEvent(new Event('input', {{bubbles: true}}))"
        ));
        browser.wait(&format!("return Number(document.documentElement.dataset.shown) > {shown}"));
    };
    let text = |id: &str| browser.eval(&format!("return document.getElementById('{id}').textContent")).as_str().unwrap().to_owned();
    for view in View::ALL.into_iter().filter(|view| !view.is_print) {
        browser.look(view);
        // Another document, not another place in the same one.
        browser.open("about:blank");
        browser.open(&url);
        browser.wait("return document.documentElement.dataset.shown");
        let before = text("figures");
        assert!(text("verdict").contains("Fits, on 32 GPUs; throughput is limited by"), "{}", text("verdict"));
        let _ = browser.eval("document.getElementById('keep').click()");
        slide("NCTX", 0);
        assert!(text("verdict").contains("Fits, on 20 GPUs") && text("figures") != before, "{}", text("verdict"));
        assert!(text("kept-table").contains("NCTX=6"), "{}", text("kept-table"));
        // Its buttons can be reached without scrolling the table.
        let hidden = "return [...document.querySelectorAll('#kept-table button')].filter((b) => \
                      b.getBoundingClientRect().right > b.closest('.wide').getBoundingClientRect().right).length";
        assert_eq!(browser.eval(hidden), 0, "{}", view.name);
        assert!(text("command").contains("--set NCTX=3"), "{}", text("command"));
        // Whoever moves a slider sees what comes of it, on a phone too.
        let seen = "document.querySelector('input[name=OSL]').scrollIntoView({block: 'center'}); \
                    const r = document.getElementById('verdict').getBoundingClientRect(); return r.top >= 0 && r.bottom <= innerHeight";
        assert_eq!(browser.eval(seen), true, "{}", view.name);
        look(&browser, "live", view, 1);
    }
    // A knob that makes it impossible is named and marked, also when it was folded away.
    slide("GEN_GPU_MEMORY_FRACTION", 0);
    slide("GEN_MAX_BATCH_SIZE", 1);
    slide("ISL", 4);
    assert!(text("verdict").starts_with("Does not work: "), "{}", text("verdict"));
    let marked = browser.eval("return [...document.querySelectorAll('.knob.binding')].map((box) => box.dataset.name)");
    assert_eq!(marked.as_array().unwrap().len(), 1, "{marked}");
    browser.screenshot(&picture("live-impossible", View::ALL[0]), View::ALL[0]);
    // The address alone brings everything back.
    slide("ISL", 0);
    let state = "return [document.getElementById('verdict').textContent, document.getElementById('figures').textContent, \
                 document.getElementById('kept-table').textContent, document.getElementById('command').textContent]";
    let (link, before) = (browser.eval("return location.href"), browser.eval(state));
    browser.open("about:blank");
    browser.open(link.as_str().unwrap());
    browser.wait("return document.documentElement.dataset.shown");
    assert_eq!(browser.eval(state), before, "{link}");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}
