//! Many points in the plane of throughput per user and per GPU: a cloud behind, and groups of marked points with their ranges.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::pareto::{Marker, draw_marker, staircase};
use super::scale::Scale;
use super::{Frame, N_COLOURS, Picture};

const HEIGHT: f64 = 360.0;

/// The plot.
#[derive(Debug)]
pub(crate) struct CloudChart<'a> {
    pub(crate) title: &'a str,
    pub(crate) about: String,
    /// Points without a name.
    pub(crate) cloud: &'a [(f64, f64)],
    pub(crate) groups: Vec<Group<'a>>,
    /// Corners of the frontier, x ascending.
    pub(crate) frontier: &'a [(f64, f64)],
}

/// Marked points of one kind.
#[derive(Debug)]
pub(crate) struct Group<'a> {
    pub(crate) name: &'a str,
    pub(crate) spots: Vec<Spot>,
}

/// A marked point and the ranges in which it may really lie.
#[derive(Debug)]
pub(crate) struct Spot {
    pub(crate) marker: Marker,
    pub(crate) x_range: Option<(f64, f64)>,
    pub(crate) y_range: Option<(f64, f64)>,
}

impl CloudChart<'_> {
    pub(crate) fn draw(&self) -> Picture {
        let spots = || self.groups.iter().flat_map(|group| &group.spots);
        let marked = spots().map(|s| (s.marker.x, s.marker.y));
        let (right, top) = marked.chain(self.cloud.iter().copied()).fold((0.0, 0.0), |(x, y), p| (f64::max(x, p.0), f64::max(y, p.1)));
        let frame = Frame::new(Scale::from_zero(0.0, right * 1.08), Scale::from_zero(0.0, top * 1.06), HEIGHT);
        let mut body = frame.axes("tokens/s/user", "tokens/s/GPU");
        self.dots(&frame, &mut body);
        let _ = write!(body, r#"<path class="frontier" d="{}"/>"#, staircase(&frame, self.frontier));
        for (colour, group) in self.groups.iter().enumerate() {
            group.spots.iter().for_each(|spot| ranges(&frame, colour, spot, &mut body));
        }
        let mut labels = Vec::new();
        for (colour, group) in self.groups.iter().enumerate() {
            group.spots.iter().for_each(|spot| draw_marker(&mut body, &frame, colour, &spot.marker, &mut labels));
        }
        Picture {
            title: self.title.to_owned(),
            about: self.about.clone(),
            legend: self.groups.iter().enumerate().map(|(i, g)| (i % N_COLOURS, g.name.to_owned())).collect(),
            body,
            height: HEIGHT,
            hover: None,
        }
    }

    /// One dot for each two units of the picture, however many points fall on it: a page of a hundred thousand points stays small.
    fn dots(&self, frame: &Frame, body: &mut String) {
        #[expect(clippy::cast_possible_truncation, reason = "a place in the picture")]
        let place = |v: f64| (v / 2.0).round() as i32;
        let places: BTreeSet<(i32, i32)> = self.cloud.iter().map(|&(x, y)| (place(frame.x.at(x)), place(frame.y.at(y)))).collect();
        if places.is_empty() {
            return;
        }
        let d: String = places.iter().map(|(x, y)| format!("M{} {}h2v2h-2z", x * 2 - 1, y * 2 - 1)).collect();
        let _ = write!(body, r#"<path class="cloud" d="{d}"/>"#);
    }
}

fn ranges(frame: &Frame, colour: usize, spot: &Spot, body: &mut String) {
    let (x, y) = (frame.x.at(spot.marker.x), frame.y.at(spot.marker.y));
    let clip_x = |v: f64| frame.x.at(v).min(super::WIDTH - 2.0);
    let clip_y = |v: f64| frame.y.at(v).max(2.0);
    let mut d = String::new();
    if let Some((low, high)) = spot.x_range {
        let _ = write!(d, "M{:.1} {y:.1}H{:.1}", clip_x(low), clip_x(high));
    }
    if let Some((low, high)) = spot.y_range {
        let _ = write!(d, "M{x:.1} {:.1}V{:.1}", clip_y(low), clip_y(high));
    }
    if !d.is_empty() {
        let _ = write!(body, r#"<path class="range c{}" d="{d}"/>"#, colour % N_COLOURS);
    }
}
