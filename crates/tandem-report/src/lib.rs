//! From the files of runs to one page that a person can read, trust and repeat.
//!
//! Pure: texts and records in, text out. Who reads the run folders and where the page goes is not known here: no
//! file, no clock, no environment, so equal runs give equal bytes. Large runs are reduced on the way in (a load
//! point is binned as soon as its records come), so a page stays small however many requests there were.
//!
//! Reading order: `data` (what is known of a run), `compare` (differences with intervals, the gate), `chart` (small SVG),
//! `html` (the page), `markdown` and `json` (the same for other readers).

mod chart;
mod compare;
mod data;
mod escape;
mod frontier;
mod html;
mod json;
mod labels;
mod markdown;
mod numbers;

pub use compare::gate::{Gate, GateError, Judgement};
pub use compare::{Change, Comparison, MatchedPoint, compare};
pub use data::error::ReportError;
pub use data::iterations::PhaseLog;
pub use data::prediction::{Predicted, PredictedFigure};
pub use data::run::{Evidence, PointSource, Run, RunSpot};
pub use html::{ExplorePage, ExplorePoint, ExplorePoints, ExploreTable, explore_html, html, live_html};
pub use json::json;
pub use markdown::{comparison_markdown, markdown};
