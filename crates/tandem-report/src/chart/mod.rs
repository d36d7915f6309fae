//! Small SVG charts: as much as the page needs, written by hand so that it stays one small file.
//!
//! Charts know numbers, labels and colours by index, not runs. Each has a title and a description for those who cannot see it, and
//! `hover` data from which the page's script shows values. Text inside is drawn at 11 units of a 480 unit wide picture, so that it is
//! still read when a phone shrinks the picture.

mod cloud;
mod lines;
mod pareto;
mod quantiles;
mod scale;
mod waterfall;

pub(crate) use cloud::{CloudChart, Group, Spot};
pub(crate) use lines::{Line, LineChart, Shade};
pub(crate) use pareto::{KnobSource, Marker, ParetoChart, Trail};
pub(crate) use quantiles::{Curve, QuantileChart, quantiles_of};
pub(crate) use waterfall::WaterfallChart;

use std::fmt::Write;

use serde_json::json;

use crate::escape::esc;
use scale::Scale;

/// Colours that the style sheet has; more lines than that begin again, dashed.
pub(crate) const N_COLOURS: usize = 8;

const WIDTH: f64 = 480.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 38.0;

/// A finished picture, and what stands around it.
#[derive(Debug, Clone)]
pub(crate) struct Picture {
    pub(crate) title: String,
    /// For those who cannot see it: what is drawn and what it shows.
    pub(crate) about: String,
    pub(crate) legend: Vec<(usize, String)>,
    /// Everything within the `svg` element.
    pub(crate) body: String,
    pub(crate) height: f64,
    /// JSON for the page's script.
    pub(crate) hover: Option<String>,
}

/// What an axis measures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Axis<'a> {
    pub(crate) label: &'a str,
}

/// The rectangle in which data are drawn, with its scales.
#[derive(Debug)]
struct Frame {
    x: Scale,
    y: Scale,
    height: f64,
}

impl Frame {
    fn new(x: Scale, y: Scale, height: f64) -> Self {
        Frame { x: x.onto(LEFT, WIDTH - RIGHT), y: y.onto(height - BOTTOM, TOP), height }
    }

    fn bottom(&self) -> f64 {
        self.height - BOTTOM
    }

    /// Grid, ticks and the names of both axes.
    fn axes(&self, x_label: &str, y_label: &str) -> String {
        let mut out = String::new();
        let (right, bottom) = (WIDTH - RIGHT, self.bottom());
        for (value, text) in self.y.ticks(5) {
            let y = self.y.at(value);
            let _ = write!(
                out,
                r#"<path class="grid" d="M{LEFT} {y:.1}H{right}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{text}</text>"#,
                LEFT - 5.0,
                y + 3.5
            );
        }
        for (value, text) in self.x.ticks(6) {
            let x = self.x.at(value);
            let _ = write!(
                out,
                r#"<path class="tick" d="M{x:.1} {bottom}v4"/><text x="{x:.1}" y="{:.1}" text-anchor="middle">{text}</text>"#,
                bottom + 16.0
            );
        }
        let _ = write!(out, r#"<path class="axis" d="M{LEFT} {bottom}H{right}"/>"#);
        let _ = write!(out, r#"<text class="name" x="2" y="12">{}</text>"#, esc(y_label));
        let _ = write!(out, r#"<text class="name" x="{right}" y="{:.1}" text-anchor="end">{}</text>"#, bottom + 32.0, esc(x_label));
        out
    }

    /// A line through the points; gaps where there is none.
    fn path(&self, points: impl Iterator<Item = Option<(f64, f64)>>) -> String {
        let mut d = String::new();
        // Points since the last gap.
        let mut n = 0;
        for point in points.chain([None]) {
            if let Some((x, y)) = point {
                let _ = write!(d, "{}{:.1} {:.1}", if n > 0 { 'L' } else { 'M' }, self.x.at(x), self.y.at(y));
                n += 1;
                continue;
            }
            // A point between two gaps is a dot.
            if n == 1 {
                d.push_str("h0");
            }
            n = 0;
        }
        d
    }
}

/// The class of a line's colour, dashed from the second round on.
fn colour_class(index: usize) -> String {
    let dash = if index >= N_COLOURS { " dash" } else { "" };
    format!("c{}{dash}", index % N_COLOURS)
}

/// What the script shows at a place along one axis: a key, and a value of each line. Texts are joined by `|`, which no number has.
fn hover_json(axis: &str, frame: &Frame, places: &[f64], keys: &[String], values: &[(String, Vec<String>)]) -> String {
    let places: Vec<f64> = places.iter().map(|place| (place * 10.0).round() / 10.0).collect();
    json!({
        "axis": axis,
        "box": [LEFT, TOP, WIDTH - RIGHT, frame.bottom()],
        "at": places,
        "key": keys.join("|"),
        "lines": values.iter().map(|(name, texts)| (name, texts.join("|"))).collect::<Vec<_>>(),
    })
    .to_string()
}
