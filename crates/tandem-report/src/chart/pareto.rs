//! Load points in the plane of throughput per user and per GPU, with their frontier.

use std::fmt::Write;

use super::scale::Scale;
use super::{Frame, LEFT, N_COLOURS, Picture, TOP, WIDTH};
use crate::escape::esc;

const HEIGHT: f64 = 330.0;
/// Room that a label needs; closer ones would cover each other.
const LABEL: (f64, f64) = (34.0, 11.0);

/// The plot.
#[derive(Debug)]
pub(crate) struct ParetoChart {
    pub(crate) title: String,
    pub(crate) about: String,
    pub(crate) trails: Vec<Trail>,
    /// Corners of the frontier, x ascending.
    pub(crate) frontier: Vec<(f64, f64)>,
}

/// The points of one run, in order of load.
#[derive(Debug)]
pub(crate) struct Trail {
    pub(crate) name: String,
    pub(crate) colour: usize,
    pub(crate) markers: Vec<Marker>,
}

/// One load point.
#[derive(Debug)]
pub(crate) struct Marker {
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// A few letters beside it.
    pub(crate) label: String,
    /// What is shown when it is pointed at, line by line.
    pub(crate) tip: String,
    /// Whether its figures must not be used.
    pub(crate) is_invalid: bool,
    /// Where the page has its knobs.
    pub(crate) knobs: Option<KnobSource>,
}

/// The knobs of a point: a table of the page, and what differs from it.
#[derive(Debug, Clone)]
pub(crate) struct KnobSource {
    /// Id of the element that holds the table.
    pub(crate) table: String,
    /// Knobs of this point with their values, to be shown first.
    pub(crate) changed: Vec<(String, String)>,
}

impl KnobSource {
    /// Attributes for the page's script.
    fn attributes(&self) -> String {
        let changed: Vec<String> = self.changed.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!(r#" data-knobs="{}" data-changed="{}""#, esc(&self.table), esc(&changed.join("\n")))
    }
}

impl ParetoChart {
    pub(crate) fn draw(&self) -> Picture {
        let markers = || self.trails.iter().flat_map(|trail| &trail.markers);
        let (right, top) = markers().fold((0.0, 0.0), |(x, y), marker| (f64::max(x, marker.x), f64::max(y, marker.y)));
        // A little more than the data, so that the outermost label has room.
        let frame = Frame::new(Scale::from_zero(0.0, right * 1.08), Scale::from_zero(0.0, top * 1.04), HEIGHT);
        let mut body = frame.axes("tokens/s/user", "tokens/s/GPU");
        let _ = write!(body, r#"<path class="frontier" d="{}"/>"#, staircase(&frame, &self.frontier));
        for trail in &self.trails {
            let points = trail.markers.iter().map(|marker| Some((marker.x, marker.y)));
            let _ = write!(body, r#"<path class="trail c{}" d="{}"/>"#, trail.colour % N_COLOURS, frame.path(points));
        }
        let mut labels = Vec::new();
        for trail in &self.trails {
            trail.markers.iter().for_each(|marker| draw_marker(&mut body, &frame, trail.colour, marker, &mut labels));
        }
        Picture {
            title: self.title.clone(),
            about: self.about.clone(),
            legend: self.trails.iter().map(|trail| (trail.colour, trail.name.clone())).collect(),
            body,
            height: HEIGHT,
            hover: None,
        }
    }
}

/// What the frontier's points guarantee: a user rate up to theirs at their throughput per GPU.
pub(super) fn staircase(frame: &Frame, frontier: &[(f64, f64)]) -> String {
    let Some(first) = frontier.first() else { return String::new() };
    let mut d = format!("M{LEFT} {:.1}", frame.y.at(first.1));
    for (x, y) in frontier {
        let _ = write!(d, "V{:.1}H{:.1}", frame.y.at(*y), frame.x.at(*x));
    }
    let _ = write!(d, "V{:.1}", frame.bottom());
    d
}

pub(super) fn draw_marker(body: &mut String, frame: &Frame, colour: usize, marker: &Marker, labels: &mut Vec<(f64, f64)>) {
    let (x, y) = (frame.x.at(marker.x), frame.y.at(marker.y));
    let hollow = if marker.is_invalid { " hollow" } else { "" };
    let tip = esc(&marker.tip);
    let _ = write!(
        body,
        r#"<g class="pt c{}{hollow}" tabindex="0" role="img" aria-label="{tip}" data-tip="{tip}"{}><circle class="hit" cx="{x:.1}" cy="{y:.1}" r="11"/>{}</g>"#,
        colour % N_COLOURS,
        marker.knobs.as_ref().map_or_else(String::new, KnobSource::attributes),
        shape(colour, x, y),
    );
    let is_free = !marker.label.is_empty() && labels.iter().all(|(a, b)| (a - x).abs() > LABEL.0 || (b - y).abs() > LABEL.1);
    if is_free {
        labels.push((x, y));
        // Near the right edge the label goes to the left, near the top below.
        let (dx, anchor) = if x > WIDTH - 60.0 { (-8.0, "end") } else { (8.0, "start") };
        let dy = if y < TOP + 12.0 { 14.0 } else { -6.0 };
        let _ = write!(body, r#"<text x="{:.1}" y="{:.1}" text-anchor="{anchor}">{}</text>"#, x + dx, y + dy, esc(&marker.label));
    }
}

/// Runs differ in shape as well as in colour.
fn shape(index: usize, x: f64, y: f64) -> String {
    match index % 4 {
        0 => format!(r#"<circle class="dot" cx="{x:.1}" cy="{y:.1}" r="5"/>"#),
        1 => format!(r#"<rect class="dot" x="{:.1}" y="{:.1}" width="9" height="9"/>"#, x - 4.5, y - 4.5),
        2 => format!(r#"<path class="dot" d="M{x:.1} {:.1}l5.5 10h-11z"/>"#, y - 6.0),
        _ => format!(r#"<path class="dot" d="M{x:.1} {:.1}l6 6l-6 6l-6 -6z"/>"#, y - 6.0),
    }
}
