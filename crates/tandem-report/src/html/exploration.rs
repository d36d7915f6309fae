//! The page of a search: what was searched, the frontier with ranges and measurements, what to measure next.

use std::fmt::Write;

use super::opening;
use super::parts::{Cell, Page, Table};
use crate::chart::{CloudChart, Group, KnobSource, Marker, Spot};

/// What the page shows; texts may come from anywhere.
#[derive(Debug, Clone, Default)]
pub struct ExplorePage {
    /// Name of the recipe.
    pub title: String,
    /// How the page was made.
    pub command: String,
    /// The space in words, a line each.
    pub about: Vec<String>,
    /// What to know before the frontier is believed.
    pub remarks: Vec<String>,
    /// Every knob and its value, before a point changes it.
    pub base: Vec<(String, String)>,
    /// Points without a name (tokens/s/user, tokens/s/GPU): the screened ones.
    pub cloud: Vec<(f64, f64)>,
    /// Corners of the frontier, tokens/s/user ascending.
    pub frontier: Vec<(f64, f64)>,
    /// Marked points by kind.
    pub groups: Vec<ExplorePoints>,
    /// Tables below the chart.
    pub tables: Vec<ExploreTable>,
}

/// Marked points of one kind.
#[derive(Debug, Clone, Default)]
pub struct ExplorePoints {
    /// What they are, for the legend.
    pub name: String,
    /// The points.
    pub points: Vec<ExplorePoint>,
}

/// A marked point.
#[derive(Debug, Clone, Default)]
pub struct ExplorePoint {
    /// Tokens/s/user.
    pub x: f64,
    /// Tokens/s/GPU.
    pub y: f64,
    /// Range of `x`.
    pub x_range: Option<(f64, f64)>,
    /// Range of `y`.
    pub y_range: Option<(f64, f64)>,
    /// A few letters beside it.
    pub label: String,
    /// Shown when it is pointed at, line by line.
    pub tip: String,
    /// Knobs that differ from the page's `base`, or may: shown with all others when it is pointed at.
    pub knobs: Vec<(String, String)>,
}

/// A table with a heading.
#[derive(Debug, Clone, Default)]
pub struct ExploreTable {
    /// The heading.
    pub title: String,
    /// A sentence below it; may be empty.
    pub note: String,
    /// Names of the columns.
    pub head: Vec<String>,
    /// The cells; a cell that is a number is set like one.
    pub rows: Vec<Vec<String>>,
}

/// The page.
#[must_use]
pub fn explore_html(page: &ExplorePage) -> String {
    let mut out = Page::new(false);
    out.out = opening(&page.title, "Tandem exploration");
    out.out.push_str("</header>\n<main><section id=\"overview\">");
    out.heading(2, None, &page.title);
    out.out.push_str("<div class=\"split\"><div>");
    let marked: usize = page.groups.iter().map(|g| g.points.len()).sum();
    let chart = CloudChart {
        title: "Throughput per GPU against throughput per user",
        about: format!("{} screened points, {marked} marked ones; to the upper right is better.", page.cloud.len()),
        cloud: &page.cloud,
        groups: page.groups.iter().map(group).collect(),
        frontier: &page.frontier,
    };
    out.figure(&chart.draw(), None);
    out.paragraph(
        "quiet",
        "Grey: screened. Bars: the range in which 8 of 10 measurements are expected. Dashed: the frontier of the simulated points. \
         Point at a mark for its knobs.",
    );
    if !page.remarks.is_empty() {
        out.list("reasons", page.remarks.clone());
    }
    out.out.push_str("</div><div>");
    out.heading(3, None, "Searched");
    out.list("reasons", page.about.clone());
    out.out.push_str("</div></div>");
    out.knob_panel();
    out.out.push_str("</section>");
    for (i, table) in page.tables.iter().enumerate() {
        let _ = write!(out.out, "<section id=\"table-{}\">", i + 1);
        out.heading(2, None, &table.title);
        if !table.note.is_empty() {
            out.paragraph("quiet", &table.note);
        }
        out.table(&Table {
            caption: String::new(),
            head: table.head.clone(),
            rows: table.rows.iter().map(|row| row.iter().map(|c| cell(c)).collect()).collect(),
        });
        out.out.push_str("</section>");
    }
    if !page.base.is_empty() {
        out.out.push_str("<section id=\"base\">");
        out.heading(2, None, "The recipe");
        out.paragraph("quiet", "Each knob as it is where a point does not change it.");
        let row = |(name, value): &(String, String)| vec![Cell::code(name), Cell::code(value)];
        let rows = page.base.iter().map(row).collect();
        out.folded_knobs(BASE, &Table { caption: String::new(), head: vec!["knob".to_owned(), "value".to_owned()], rows });
        out.out.push_str("</section>");
    }
    super::close(&mut out, &page.command);
    out.out
}

/// Names the table of the recipe's knobs.
const BASE: &str = "knobs-base";

fn group(group: &ExplorePoints) -> Group<'_> {
    let spot = |p: &ExplorePoint| Spot {
        marker: Marker { x: p.x, y: p.y, label: p.label.clone(), tip: p.tip.clone(), is_invalid: false, knobs: knobs(p) },
        x_range: p.x_range,
        y_range: p.y_range,
    };
    Group { name: &group.name, spots: group.points.iter().map(spot).collect() }
}

fn knobs(p: &ExplorePoint) -> Option<KnobSource> {
    (!p.knobs.is_empty()).then(|| KnobSource { table: BASE.to_owned(), changed: p.knobs.clone() })
}

fn cell(text: &str) -> Cell {
    let is_number = text.trim_start_matches(['+', '-', '−']).trim_end_matches([' ', '%']).parse::<f64>().is_ok();
    // The first column heads its row and is set as text: it must not break.
    match text.chars().count() {
        _ if is_number => Cell::figure(text),
        0..=28 => Cell::label(text),
        _ => Cell::text(text),
    }
}
