//! Requests one below the other: waiting for the first token, then receiving.

use std::fmt::Write;

use super::scale::Scale;
use super::{BOTTOM, Frame, Picture, TOP};
use crate::data::WaterfallRow;
use crate::escape::esc;
use crate::numbers::number;

const ROW: f64 = 5.0;
const BAR: f64 = 3.6;

/// The picture of sampled requests.
#[derive(Debug)]
pub(crate) struct WaterfallChart<'a> {
    pub(crate) title: String,
    pub(crate) about: String,
    pub(crate) rows: &'a [WaterfallRow],
}

impl WaterfallChart<'_> {
    pub(crate) fn draw(&self) -> Picture {
        let height = TOP + BOTTOM + ROW * self.rows.len().max(4) as f64;
        let (from, to) = self.rows.iter().fold((0.0, 0.0), |(from, to), row| (f64::min(from, row.scheduled), f64::max(to, row.end)));
        let frame = Frame::new(Scale::exact(from, to), Scale::exact(0.0, 1.0), height);
        let mut body = self.axis(&frame);
        for (i, row) in self.rows.iter().enumerate() {
            draw_row(&mut body, &frame, TOP + ROW * i as f64, row);
        }
        Picture {
            title: self.title.clone(),
            about: self.about.clone(),
            legend: vec![(0, "until the first token".to_owned()), (1, "receiving tokens".to_owned()), (7, "failed".to_owned())],
            body,
            height,
            hover: None,
        }
    }

    fn axis(&self, frame: &Frame) -> String {
        let mut out = String::new();
        let bottom = frame.bottom();
        for (value, text) in frame.x.ticks(6) {
            let x = frame.x.at(value);
            let _ = write!(
                out,
                r#"<path class="grid" d="M{x:.1} {TOP}V{bottom:.1}"/><text x="{x:.1}" y="{:.1}" text-anchor="middle">{text}</text>"#,
                bottom + 16.0
            );
        }
        let last = self.rows.last().map_or(0, |row| row.index);
        let first = self.rows.first().map_or(0, |row| row.index);
        let _ = write!(
            out,
            r#"<text class="name" x="2" y="12">request</text><text class="name" x="466" y="{:.1}" text-anchor="end">s</text>"#,
            bottom + 32.0
        );
        let _ = write!(out, r#"<text x="43" y="{:.1}" text-anchor="end">{first}</text>"#, TOP + 6.0);
        if self.rows.len() > 4 {
            let _ = write!(out, r#"<text x="43" y="{bottom:.1}" text-anchor="end">{last}</text>"#);
        }
        out
    }
}

fn draw_row(body: &mut String, frame: &Frame, y: f64, row: &WaterfallRow) {
    let _ = write!(body, r#"<g class="row" data-tip="{}">"#, esc(&tip(row)));
    let mut bar = |class: &str, from: f64, to: f64| {
        let (from, to) = (frame.x.at(from), frame.x.at(to));
        // What is too short to be drawn is still there.
        let width = (to - from).max(0.4);
        let _ = write!(body, r#"<rect class="{class}" x="{from:.1}" y="{y:.1}" width="{width:.1}" height="{BAR}"/>"#);
    };
    if row.start > row.scheduled && frame.x.at(row.start) - frame.x.at(row.scheduled) > 0.5 {
        bar("wait", row.scheduled, row.start);
    }
    if row.outcome != "ok" {
        bar("c7", row.start, row.end);
    } else {
        let first = row.first_chunk.unwrap_or(row.end);
        bar("c0", row.start, first);
        if row.end > first {
            bar("c1", first, row.end);
        }
    }
    body.push_str("</g>");
}

fn tip(row: &WaterfallRow) -> String {
    let mut tip = format!("request {}\nsent at {} s", row.index, number(row.start));
    if let Some(first) = row.first_chunk {
        let _ = write!(tip, "\nfirst token after {} ms", number((first - row.start) * 1e3));
    }
    let _ = write!(tip, "\nended after {} ms", number((row.end - row.start) * 1e3));
    if let Some(osl) = row.osl {
        let _ = write!(tip, "\n{osl} tokens");
    }
    if row.outcome != "ok" {
        let _ = write!(tip, "\nfailed: {}", row.outcome);
    }
    tip
}
