//! Lines over time or steps, each with an optional band from its smallest to its largest value.

use std::fmt::Write;

use super::scale::Scale;
use super::{Axis, Frame, Picture, colour_class, hover_json};
use crate::escape::esc;
use crate::numbers::number;

const HEIGHT: f64 = 230.0;

/// Lines that share their places along x.
#[derive(Debug)]
pub(crate) struct LineChart<'a> {
    pub(crate) title: String,
    pub(crate) about: String,
    pub(crate) x: Axis<'a>,
    pub(crate) y: Axis<'a>,
    /// Ends of the x axis.
    pub(crate) range: (f64, f64),
    pub(crate) places: Vec<f64>,
    pub(crate) lines: Vec<Line>,
    pub(crate) shade: Option<Shade<'a>>,
}

/// One line; a value for each place, none where there is a gap.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) colour: usize,
    pub(crate) values: Vec<Option<f64>>,
    pub(crate) band: Option<Vec<Option<(f64, f64)>>>,
}

/// A stretch of x that is set apart.
#[derive(Debug)]
pub(crate) struct Shade<'a> {
    pub(crate) range: (f64, f64),
    pub(crate) label: &'a str,
}

impl LineChart<'_> {
    pub(crate) fn draw(&self) -> Picture {
        let highest = |line: &Line| {
            let bands = line.band.iter().flatten().flatten().map(|(_, high)| *high);
            line.values.iter().flatten().copied().chain(bands).fold(0.0, f64::max)
        };
        let top = self.lines.iter().map(highest).fold(0.0, f64::max);
        let frame = Frame::new(Scale::exact(self.range.0, self.range.1), Scale::from_zero(0.0, top), HEIGHT);
        let mut body = self.shading(&frame);
        body.push_str(&frame.axes(self.x.label, self.y.label));
        for line in &self.lines {
            let class = colour_class(line.colour);
            if let Some(band) = &line.band {
                let _ = write!(body, r#"<path class="band {class}" d="{}"/>"#, self.band_path(&frame, band));
            }
            let points = self.places.iter().zip(&line.values).map(|(x, value)| value.map(|value| (*x, value)));
            let _ = write!(body, r#"<path class="line {class}" d="{}"/>"#, frame.path(points));
        }
        Picture {
            title: self.title.clone(),
            about: self.about.clone(),
            legend: self.lines.iter().map(|line| (line.colour, line.name.clone())).collect(),
            body,
            height: HEIGHT,
            hover: Some(self.hover(&frame)),
        }
    }

    fn shading(&self, frame: &Frame) -> String {
        let Some(shade) = &self.shade else { return String::new() };
        let (from, to) = (frame.x.at(shade.range.0), frame.x.at(shade.range.1));
        let (y, height) = (super::TOP, frame.bottom() - super::TOP);
        let mut out = format!(r#"<rect class="shade" x="{from:.1}" y="{y}" width="{:.1}" height="{height}"/>"#, to - from);
        // A narrow stretch has no room for its name; the description has it.
        if to - from > 50.0 {
            let _ = write!(out, r#"<text class="name" x="{:.1}" y="{:.1}">{}</text>"#, from + 4.0, y + 11.0, esc(shade.label));
        }
        out
    }

    /// Along the upper edge and back along the lower one; gaps are skipped.
    fn band_path(&self, frame: &Frame, band: &[Option<(f64, f64)>]) -> String {
        let places: Vec<(f64, Option<(f64, f64)>)> = self.places.iter().copied().zip(band.iter().copied()).collect();
        // A band of its own between any two gaps.
        let stretches = places.split(|(_, b)| b.is_none()).filter(|stretch| stretch.len() > 1);
        let outline = |stretch: &[(f64, Option<(f64, f64)>)]| {
            let upper = stretch.iter().filter_map(|(x, b)| Some((*x, b.as_ref()?.1)));
            let lower = stretch.iter().rev().filter_map(|(x, b)| Some((*x, b.as_ref()?.0)));
            frame.path(upper.chain(lower).map(Some)) + "Z"
        };
        stretches.map(outline).collect()
    }

    fn hover(&self, frame: &Frame) -> String {
        let places: Vec<f64> = self.places.iter().map(|place| frame.x.at(*place)).collect();
        let keys: Vec<String> = self.places.iter().map(|place| format!("{} {}", number(*place), self.x.label)).collect();
        let text = |line: &Line, i: usize| {
            let value = line.values.get(i).copied().flatten().map_or_else(|| "–".to_owned(), number);
            match line.band.as_ref().and_then(|band| band.get(i).copied().flatten()) {
                Some((low, high)) if low < high => format!("{value} ({} to {})", number(low), number(high)),
                _ => value,
            }
        };
        let values: Vec<(String, Vec<String>)> =
            self.lines.iter().map(|line| (line.name.clone(), (0..self.places.len()).map(|i| text(line, i)).collect())).collect();
        hover_json("x", frame, &places, &keys, &values)
    }
}
