//! What was predicted for the load points of a run, beside what was measured.

use tandem_metrics::metrics::{output_throughput_per_gpu, output_throughput_per_user};

use super::parts::{Cell, Page, Table};
use crate::chart::{CloudChart, Group, Marker, Spot};
use crate::data::prediction::{Beside, Predicted};
use crate::data::result_file::SavedPoint;
use crate::data::run::Run;
use crate::labels::figure_label;
use crate::numbers::{number, percent};

pub(super) fn write(page: &mut Page, run: &Run) {
    let pairs: Vec<(&SavedPoint, &Predicted)> =
        run.points().zip(&run.predictions).filter_map(|((point, _), predicted)| Some((point, predicted.as_ref()?))).collect();
    if pairs.is_empty() && run.prediction_remarks.is_empty() {
        return;
    }
    page.heading(3, None, "Prediction beside measurement");
    let mut remarks = run.prediction_remarks.clone();
    remarks.extend(pairs.iter().flat_map(|(_, predicted)| predicted.extrapolates.iter().map(|reason| format!("extrapolated: {reason}"))));
    let mut seen = Vec::new();
    remarks.retain(|remark| !seen.contains(remark) && (seen.push(remark.clone()), true).1);
    if !pairs.is_empty() {
        let what = if run.is_simulated() {
            " This run was simulated itself, step by step, and predictions come from a faster simulation: TTFT may differ where requests wait, since \
             that keeps one queue before all decode ranks."
        } else {
            ""
        };
        let text = format!("From the plan and the constants alone; a range is expected to hold 8 of 10 measurements.{what}");
        page.paragraph("quiet", &text);
    }
    if !remarks.is_empty() {
        page.list("reasons", remarks);
    }
    if pairs.is_empty() {
        return;
    }
    page.out.push_str("<div class=\"split\"><div>");
    table(page, run, &pairs);
    page.out.push_str("</div><div>");
    chart(page, run, &pairs);
    page.out.push_str("</div></div>");
}

fn table(page: &mut Page, run: &Run, pairs: &[(&SavedPoint, &Predicted)]) {
    let measured = if run.is_simulated() { "simulated" } else { "measured" };
    let row = |(point, beside): (&SavedPoint, Beside)| {
        let [value, low, high] = beside.predicted.range;
        let (reading, tone) = if beside.is_inside() { ("in range", "good") } else { ("outside", "bad") };
        vec![
            Cell::label(&point.load.label()),
            Cell::label(&figure_label(beside.predicted.metric, beside.predicted.stat)),
            Cell::number(Some(beside.measured)),
            Cell::number(Some(value)),
            Cell::figure(&format!("{} to {}", number(low), number(high))),
            Cell::figure(&beside.off().map_or_else(|| "–".to_owned(), percent)),
            Cell::toned(reading, tone),
        ]
    };
    let rows = pairs.iter().flat_map(|(point, predicted)| predicted.beside(point).into_iter().map(|beside| row((point, beside)))).collect();
    let head = ["load", "figure", measured, "predicted", "range", "off by", "reading"].map(str::to_owned).into();
    page.table(&Table { caption: String::new(), head, rows });
}

fn chart(page: &mut Page, run: &Run, pairs: &[(&SavedPoint, &Predicted)]) {
    let marker = |x: f64, y: f64, point: &SavedPoint, what: &str| Marker {
        x,
        y,
        label: point.load.concurrency.map_or_else(String::new, |n| format!("c{n}")),
        tip: format!("{what} at {}\n{} tokens/s/GPU\n{} tokens/s/user", point.load.label(), number(y), number(x)),
        is_invalid: false,
        knobs: None,
    };
    let predicted = pairs.iter().map(|(point, p)| Spot {
        marker: marker(p.per_user[0], p.per_gpu[0], point, "predicted"),
        x_range: Some((p.per_user[1], p.per_user[2])),
        y_range: Some((p.per_gpu[1], p.per_gpu[2])),
    });
    let measured = pairs.iter().filter_map(|(point, _)| {
        let (x, y) = (point.stat(&output_throughput_per_user::METRIC, "avg")?, point.stat(&output_throughput_per_gpu::METRIC, "avg")?);
        let marker = Marker { label: String::new(), ..marker(x, y, point, if run.is_simulated() { "simulated" } else { "measured" }) };
        Some(Spot { marker, x_range: None, y_range: None })
    });
    let groups = vec![
        Group { name: "predicted, with range", spots: predicted.collect() },
        Group { name: if run.is_simulated() { "simulated" } else { "measured" }, spots: measured.collect() },
    ];
    let chart = CloudChart {
        title: "Predicted and measured load points",
        about: format!("{} load points; bars are ranges that hold 8 of 10 measurements.", pairs.len()),
        cloud: &[],
        groups,
        frontier: &[],
    };
    page.figure(&chart.draw(), None);
}
