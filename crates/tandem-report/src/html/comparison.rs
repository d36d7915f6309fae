//! Later runs against the first, with intervals, and their distributions in one picture.

use super::figures;
use super::parts::{Cell, Page, Table};
use crate::compare::{Change, Comparison, MatchedPoint, Reading};
use crate::data::run::Run;
use crate::labels::label_by_name;
use crate::numbers::{number, percent};

pub(super) fn write(page: &mut Page, runs: &[Run], comparisons: &[Comparison]) {
    page.out.push_str("<section id=\"comparison\">");
    page.heading(2, None, "Comparison");
    page.paragraph(
        "quiet",
        "Intervals hold 95 %: they come from redrawing blocks of successive requests, each block as long as the concurrency. \
         They cover chance within these runs, not how much another run on another day would differ. \
         A dash means: too few requests (below 8, or below 100 for p99), or no records.",
    );
    for comparison in comparisons {
        page.heading(3, None, &format!("{} against {}", comparison.candidate, comparison.baseline));
        if !comparison.warnings.is_empty() {
            page.list("reasons", comparison.warnings.iter().cloned());
        }
        if comparison.points.is_empty() {
            page.paragraph("", "The runs have no load point in common: nothing can be compared.");
        } else {
            page.out.push_str("<div class=\"grid tables\">");
            comparison.points.iter().for_each(|point| page.table(&table(comparison, point)));
            page.out.push_str("</div>");
        }
        if !comparison.unmatched.is_empty() {
            page.paragraph("quiet", &format!("Not compared: {}.", comparison.unmatched.join("; ")));
        }
    }
    figures::overlays(page, runs, comparisons);
    page.out.push_str("</section>\n");
}

fn table(comparison: &Comparison, point: &MatchedPoint) -> Table {
    let head = ["figure", &comparison.baseline, &comparison.candidate, "change", "95 % interval", "reading"];
    Table { caption: point.load.clone(), head: head.map(str::to_owned).into(), rows: point.changes.iter().map(row).collect() }
}

fn row(change: &Change) -> Vec<Cell> {
    let interval = change.interval.map_or_else(|| "–".to_owned(), |(low, high)| format!("{} to {}", percent(low), percent(high)));
    let reading = change.reading();
    let tone = match reading {
        Reading::Better => "good",
        Reading::Worse => "bad",
        Reading::Unclear | Reading::Unjudged => "quiet",
    };
    vec![
        Cell::label(&label_by_name(change.metric, change.stat)),
        Cell::figure(&number(change.baseline)),
        Cell::figure(&number(change.candidate)),
        Cell::figure(&change.relative.map_or_else(|| "–".to_owned(), percent)),
        Cell::figure(&interval),
        Cell::toned(reading.as_str(), tone),
    ]
}
