//! The page: one file without any other, that opens from a disk, prints, and needs no network.
//!
//! A content security policy in the page forbids everything but its own style and its one script, so that not even a mistake here
//! could make it load something or run what a file of a run contains. The script only shows values where the pointer is; without it
//! everything is still there, in tables.
//!
//! Reading order: `overview` (verdicts and frontier), `comparison`, `run_section` (one run), `prediction`, `exploration` and `live` (pages of their own), `figures` (data to charts), `parts` (tables, badges).

mod comparison;
mod exploration;
mod figures;
mod gpus;
mod live;
mod overview;
mod parts;
mod policy;
mod prediction;
mod run_section;

use std::fmt::Write;

use crate::compare::Comparison;
use crate::data::run::Run;
use crate::escape::esc;
pub use exploration::{ExplorePage, ExplorePoint, ExplorePoints, ExploreTable, explore_html};
pub use live::live_html;
use parts::Page;

const STYLE: &str = include_str!("../assets/page.css");
const SCRIPT: &str = include_str!("../assets/page.js");

/// Load points that are shown request by request; of more, only the figures. The second number is for pages with many runs.
const MAX_DETAILED_POINTS: [usize; 2] = [24, 8];

/// With more runs than this, each is drawn with fewer bins, curves and lines.
const MAX_RUNS_IN_FULL: usize = 4;

/// The page about `runs`; `comparisons` are those of later runs with the first. `command` is how it was made, for who reads it later.
#[must_use]
pub fn html(runs: &[Run], comparisons: &[Comparison], command: &str) -> String {
    let mut page = Page::new(runs.len() > MAX_RUNS_IN_FULL);
    page.out.push_str(&head(runs));
    overview::write(&mut page, runs);
    if !comparisons.is_empty() {
        comparison::write(&mut page, runs, comparisons);
    }
    let detailed = detailed_points(runs);
    for (index, run) in runs.iter().enumerate() {
        run_section::write(&mut page, index, run, &detailed[index]);
    }
    close(&mut page, command);
    page.out
}

/// Who made the page, and its script.
fn close(page: &mut Page, command: &str) {
    let version = env!("CARGO_PKG_VERSION");
    let _ = write!(page.out, "<footer><p>Made by tandem {version}: <code>{}</code></p></footer></main>", esc(command));
    let _ = writeln!(page.out, "<div id=\"tip\" role=\"status\" hidden></div><script>{SCRIPT}</script></body></html>");
}

fn head(runs: &[Run]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let mut out = opening(&names.join(", "), "Tandem report");
    out.push_str("<nav aria-label=\"Contents\"><a href=\"#overview\">Overview</a>");
    if runs.len() > 1 {
        out.push_str("<a href=\"#comparison\">Comparison</a>");
    }
    for (i, run) in runs.iter().enumerate() {
        let _ = write!(out, "<a href=\"#run-{}\">{}</a>", i + 1, esc(&run.name));
    }
    out.push_str("</nav></header>\n<main>\n");
    out
}

/// Everything up to the contents, which stand in the open header.
fn opening(title: &str, heading: &str) -> String {
    let policy = policy::content(SCRIPT);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
         <link rel=\"icon\" href=\"data:,\"><title>{} – {heading}</title><style>{STYLE}</style></head>\n<body><header><h1>{heading}</h1>",
        esc(title)
    )
}

/// For each run, which points are shown in detail: those that stand for their runs first, then the others in order.
fn detailed_points(runs: &[Run]) -> Vec<Vec<bool>> {
    let mut chosen: Vec<Vec<bool>> = runs.iter().map(|run| vec![false; run.points().len()]).collect();
    let standing = runs.iter().enumerate().filter_map(|(i, run)| run.result.summary_point.map(|point| (i, point)));
    let all = runs.iter().enumerate().flat_map(|(i, run)| (0..run.points().len()).map(move |point| (i, point)));
    let mut left = MAX_DETAILED_POINTS[usize::from(runs.len() > MAX_RUNS_IN_FULL)];
    for (run, point) in standing.chain(all) {
        if let Some(is_chosen) = chosen[run].get_mut(point).filter(|is_chosen| !**is_chosen && left > 0) {
            *is_chosen = true;
            left -= 1;
        }
    }
    chosen
}
