//! The top of the page: can it be trusted, what came out, where does it lie.

use std::fmt::Write;

use tandem_metrics::metrics::{output_throughput_per_gpu, output_throughput_per_user, request_latency, tpot, ttft};
use tandem_metrics::{Metric, Verdict};

use super::parts::{Cell, Page, Table, badge};
use super::run_section::knob_table_id;
use crate::chart::{KnobSource, Marker, ParetoChart, Trail};
use crate::data::plan_facts::{Knob, PlanFacts};
use crate::data::result_file::SavedPoint;
use crate::data::run::Run;
use crate::escape::esc;
use crate::frontier::{self, Spot};
use crate::numbers::number;

pub(super) fn write(page: &mut Page, runs: &[Run]) {
    page.out.push_str("<section id=\"overview\">");
    page.heading(2, None, "Overview");
    page.out.push_str("<div class=\"cards\">");
    runs.iter().enumerate().for_each(|(i, run)| card(page, i, run));
    page.out.push_str("</div>");
    page.out.push_str("<div class=\"split\"><div>");
    frontier_part(page, runs);
    page.out.push_str("</div><div>");
    knob_part(page, runs);
    page.out.push_str("</div></div>");
    page.knob_panel();
    page.out.push_str("</section>\n");
}

/// Verdict, reasons, and the figures of the point that stands for the run.
fn card(page: &mut Page, index: usize, run: &Run) {
    let verdict = run.verdict();
    let _ = write!(
        page.out,
        "<article class=\"card {}\"><h3><a href=\"#run-{}\">{}</a> {}",
        verdict.as_str(),
        index + 1,
        esc(&run.name),
        badge(verdict)
    );
    if run.is_simulated() {
        page.out.push_str(" <span class=\"badge\">simulated</span>");
    }
    page.out.push_str("</h3>");
    reasons(page, run);
    match run.summary_point() {
        Some(point) => headline(page, run, point),
        None => page.paragraph("", "No load point was measured: there are no figures."),
    }
    page.out.push_str("</article>");
}

/// Why a run is not valid, and what of it could not be read.
pub(super) fn reasons(page: &mut Page, run: &Run) {
    let reasons = run.result.validity_reasons.iter().map(|reason| format!("{}: {}", reason.verdict, reason.message));
    let unread = run.problems.iter().map(|problem| format!("not shown: {problem}"));
    let all: Vec<String> = reasons.chain(unread).collect();
    if !all.is_empty() {
        page.list("reasons", all);
    }
}

fn headline(page: &mut Page, run: &Run, point: &SavedPoint) {
    let figures: [(&Metric, &str, &str); 5] = [
        (&output_throughput_per_gpu::METRIC, "avg", "tokens/s/GPU"),
        (&output_throughput_per_user::METRIC, "avg", "tokens/s/user"),
        (&ttft::METRIC, "p99", "ms TTFT p99"),
        (&tpot::METRIC, "avg", "ms TPOT"),
        (&request_latency::METRIC, "p99", "ms latency p99"),
    ];
    if run.verdict() == Verdict::Invalid {
        page.paragraph("bad", "These figures must not be used:");
    }
    page.out.push_str("<dl class=\"headline\">");
    for (metric, stat, label) in figures {
        if let Some(value) = point.stat(metric, stat) {
            let _ = write!(page.out, "<div><dd>{}</dd><dt>{label}</dt></div>", number(value));
        }
    }
    page.out.push_str("</dl>");
    let n = run.points().len();
    let which = if n > 1 { format!(", the best of {n} load points by tokens/s/GPU") } else { String::new() };
    page.paragraph("quiet", &format!("at {}{which}; {} GPUs", point.load.label(), run.result.n_gpus));
}

fn frontier_part(page: &mut Page, runs: &[Run]) {
    page.heading(3, None, "Frontier");
    let spots = frontier::spots(runs);
    if spots.is_empty() {
        let message = "No load point has both throughput per GPU and per user (responses that come at once have no rate per user).";
        return page.paragraph("quiet", message);
    }
    let chart = chart(runs, &spots);
    page.figure(&chart.draw(), Some(&table(runs, &spots)));
    let mut works: Vec<String> = spots.iter().map(|spot| work(&runs[spot.run], spot)).collect();
    works.sort_unstable();
    works.dedup();
    if works.len() > 1 {
        page.list(
            "reasons",
            [format!("These points did different work, so being better here may mean having had less to do: {}.", works.join("; "))],
        );
    }
}

/// What was asked of a point besides the concurrency.
fn work(run: &Run, spot: &Spot) -> String {
    format!("{}, {}", run.result.model, run.result.points[spot.point].load.lengths())
}

fn chart(runs: &[Run], spots: &[Spot]) -> ParetoChart {
    let line = frontier::line(spots);
    let trail = |(index, run): (usize, &Run)| {
        let mut own: Vec<&Spot> = spots.iter().filter(|spot| spot.run == index).collect();
        own.sort_by_key(|spot| run.result.points[spot.point].load.concurrency);
        Trail { name: run.name.clone(), colour: index, markers: own.into_iter().map(|spot| marker(run, spot)).collect() }
    };
    let frontier: Vec<(f64, f64)> = line.iter().map(|spot| (spot.per_user, spot.per_gpu)).collect();
    let corners: Vec<String> =
        line.iter().map(|s| format!("{} at {}", name(runs, s), runs[s.run].result.points[s.point].load.label())).collect();
    ParetoChart {
        title: "Throughput per GPU against throughput per user".to_owned(),
        about: format!("{} load points; to the upper right is better. On the frontier: {}.", spots.len(), corners.join(", ")),
        trails: runs.iter().enumerate().map(trail).collect(),
        frontier,
    }
}

fn name<'a>(runs: &'a [Run], spot: &Spot) -> &'a str {
    &runs[spot.run].name
}

fn marker(run: &Run, spot: &Spot) -> Marker {
    let point = &run.result.points[spot.point];
    let mut tip = format!("{} at {}", run.name, point.load.label());
    let _ = write!(tip, "\n{} tokens/s/GPU\n{} tokens/s/user", number(spot.per_gpu), number(spot.per_user));
    for (metric, label) in [(&ttft::METRIC, "TTFT"), (&tpot::METRIC, "TPOT")] {
        if let (Some(avg), Some(p99)) = (point.stat(metric, "avg"), point.stat(metric, "p99")) {
            let _ = write!(tip, "\n{label} {} ms, p99 {}", number(avg), number(p99));
        }
    }
    let _ = write!(tip, "\n{}{}", spot.verdict, if spot.is_on_frontier { ", on the frontier" } else { "" });
    Marker {
        x: spot.per_user,
        y: spot.per_gpu,
        label: point.load.concurrency.map_or_else(String::new, |n| format!("c{n}")),
        tip,
        is_invalid: spot.verdict == Verdict::Invalid,
        knobs: run.plan.as_ref().map(|plan| KnobSource { table: knob_table_id(spot.run), changed: changed_knobs(plan, point) }),
    }
}

/// Knobs that somebody set, with the load of this point in place of the list that was swept.
fn changed_knobs(plan: &PlanFacts, point: &SavedPoint) -> Vec<(String, String)> {
    let value = |knob: &Knob| match point.load.concurrency {
        Some(n) if knob.name == "CONCURRENCY" && knob.value.contains(',') => n.to_string(),
        _ => knob.value.clone(),
    };
    plan.set_knobs().map(|knob| (knob.name.clone(), value(knob))).collect()
}

fn table(runs: &[Run], spots: &[Spot]) -> Table {
    let row = |spot: &Spot| {
        vec![
            Cell::text(name(runs, spot)),
            Cell::label(&runs[spot.run].result.points[spot.point].load.label()),
            Cell::number(Some(spot.per_user)),
            Cell::number(Some(spot.per_gpu)),
            Cell::text(if spot.is_on_frontier { "yes" } else { "no" }),
            Cell::badge(spot.verdict),
        ]
    };
    Table {
        caption: String::new(),
        head: ["run", "load", "tokens/s/user", "tokens/s/GPU", "on the frontier", "verdict"].map(str::to_owned).into(),
        rows: spots.iter().map(row).collect(),
    }
}

/// Knobs in which the runs differ, or that were set in the only one.
fn knob_part(page: &mut Page, runs: &[Run]) {
    let planned: Vec<&Run> = runs.iter().filter(|run| run.plan.is_some()).collect();
    let mut names: Vec<&str> =
        planned.iter().filter_map(|run| run.plan.as_ref()).flat_map(|plan| plan.set_knobs()).map(|k| k.name.as_str()).collect();
    let everywhere = planned.iter().filter_map(|run| run.plan.as_ref()).flat_map(|plan| &plan.knobs).map(|knob| knob.name.as_str());
    let value = |run: &Run, name: &str| run.plan.as_ref().and_then(|plan| plan.knob(name)).map(str::to_owned);
    let differs = |name: &&str| planned.iter().any(|run| value(run, name) != value(planned[0], name));
    names.extend(everywhere.filter(differs));
    names.sort_unstable();
    names.dedup();
    page.heading(3, None, if runs.len() > 1 { "Knobs that were set or differ" } else { "Knobs that were set" });
    if planned.is_empty() {
        return page.paragraph("quiet", "Not known: there is no plan.json.");
    }
    if names.is_empty() {
        return page.paragraph("quiet", "None: every knob has the value of the built-in recipe.");
    }
    let row = |name: &str| {
        let values = planned.iter().map(|run| Cell::text(&value(run, name).unwrap_or_else(|| "–".to_owned())));
        std::iter::once(Cell::code(name)).chain(values).collect()
    };
    let head = std::iter::once("knob".to_owned()).chain(planned.iter().map(|run| run.name.clone())).collect();
    page.table(&Table { caption: String::new(), head, rows: names.into_iter().map(row).collect() });
}
