//! The report as Markdown: for a pull request, a chat or a terminal.

use std::fmt::Write;

use tandem_metrics::Metric;
use tandem_metrics::metrics::{output_throughput_per_gpu, output_throughput_per_user, request_latency, tpot, ttft};

use crate::compare::{Change, Comparison};
use crate::data::result_file::SavedPoint;
use crate::data::run::Run;
use crate::escape::md;
use crate::frontier;
use crate::labels::{figure_label, label_by_name};
use crate::numbers::{number, percent};

/// The report on `runs`; `comparisons` are those of later runs with the first.
#[must_use]
pub fn markdown(runs: &[Run], comparisons: &[Comparison]) -> String {
    let mut out = String::from("# Tandem report\n");
    for run in runs {
        let _ = write!(out, "\n## {}: {}\n", md(&run.name), run.verdict());
        let reasons = run.result.validity_reasons.iter().map(|reason| format!("{}: {}", reason.verdict, reason.message));
        let lines: Vec<String> = reasons.chain(run.problems.iter().map(|problem| format!("not shown: {problem}"))).collect();
        if !lines.is_empty() {
            out.push('\n');
        }
        lines.iter().for_each(|line| out.push_str(&format!("- {}\n", md(line))));
        about(&mut out, run);
        points(&mut out, run);
        energy(&mut out, run);
        predictions(&mut out, run);
    }
    frontier_line(&mut out, runs);
    for comparison in comparisons {
        let _ = write!(out, "\n## {} against {}\n\n", md(&comparison.candidate), md(&comparison.baseline));
        out.push_str(&comparison_markdown(comparison));
    }
    out
}

fn about(out: &mut String, run: &Run) {
    let result = &run.result;
    let partial = if result.partial { ", partial" } else { "" };
    let _ = write!(
        out,
        "\n{} on {} GPUs, recipe {}, {}{partial}, {}",
        md(&result.model),
        result.n_gpus,
        md(&result.recipe),
        md(&result.kind),
        if run.is_simulated() { "in virtual time".to_owned() } else { md(&result.started_at).to_string() }
    );
    if let Some(hash) = &result.plan_hash {
        let _ = write!(out, ", plan {}", md(&hash.chars().take(12).collect::<String>()));
    }
    out.push_str(".\n");
    if let Some(plan) = &run.plan {
        let _ = write!(out, "\n    {}\n", plan.command(run.is_simulated()).replace(['\n', '\r'], " "));
    }
}

fn points(out: &mut String, run: &Run) {
    if run.points().len() == 0 {
        out.push_str("\nNo load point was measured.\n");
        return;
    }
    let columns: [(&Metric, &str, &str); 7] = [
        (&output_throughput_per_gpu::METRIC, "avg", "tokens/s/GPU"),
        (&output_throughput_per_user::METRIC, "avg", "tokens/s/user"),
        (&ttft::METRIC, "avg", "TTFT ms"),
        (&ttft::METRIC, "p99", "TTFT p99 ms"),
        (&tpot::METRIC, "avg", "TPOT ms"),
        (&tpot::METRIC, "p99", "TPOT p99 ms"),
        (&request_latency::METRIC, "avg", "latency ms"),
    ];
    let columns: Vec<_> = columns.into_iter().filter(|(metric, ..)| run.has(metric)).collect();
    out.push_str("\n| load | verdict | ok |");
    columns.iter().for_each(|(_, _, name)| out.push_str(&format!(" {name} |")));
    out.push_str("\n| --- | --- | ---: |");
    columns.iter().for_each(|_| out.push_str(" ---: |"));
    out.push('\n');
    for (point, _) in run.points() {
        let (ok, all) = point.ok_of();
        let _ = write!(out, "| {} | {} | {ok} of {all} |", md(&point.load.label()), point.validity);
        columns.iter().for_each(|(metric, stat, _)| out.push_str(&format!(" {} |", value(point, metric, stat))));
        out.push('\n');
    }
}

fn energy(out: &mut String, run: &Run) {
    let mut has_head = false;
    for (point, _) in run.points() {
        let Some(energy) = point.telemetry.as_ref().and_then(|telemetry| telemetry.energy.as_ref()) else { continue };
        if !has_head {
            out.push_str("\n| load | GPUs of | n | energy J | mean power W | J/output token | output tokens/s/W |\n");
            out.push_str("| --- | --- | ---: | ---: | ---: | ---: | ---: |\n");
            has_head = true;
        }
        for row in energy.rows() {
            let [per_token, per_watt] = [row.joules_per_token, row.tokens_per_s_w].map(|v| v.map_or_else(|| "–".to_owned(), number));
            let (load, role, joules, watts) = (md(&point.load.label()), md(row.role), number(row.energy_j), number(row.mean_power_w));
            let _ = writeln!(out, "| {load} | {role} | {} | {joules} | {watts} | {per_token} | {per_watt} |", row.n_gpus);
        }
    }
}

fn predictions(out: &mut String, run: &Run) {
    let pairs: Vec<_> = run.points().zip(&run.predictions).filter_map(|((point, _), p)| Some((point, p.as_ref()?))).collect();
    if !pairs.is_empty() {
        let measured = if run.is_simulated() { "simulated" } else { "measured" };
        let _ = write!(
            out,
            "\n| load | figure | {measured} | predicted | range (8 of 10) | off by |\n| --- | --- | ---: | ---: | ---: | ---: |\n"
        );
    }
    for (point, predicted) in &pairs {
        for b in predicted.beside(point) {
            let [value, low, high] = b.predicted.range.map(number);
            let label = figure_label(b.predicted.metric, b.predicted.stat);
            let off = b.off().map_or_else(|| "–".to_owned(), percent);
            let _ = writeln!(
                out,
                "| {} | {} | {} | {value} | {low} to {high} | {off} |",
                md(&point.load.label()),
                md(&label),
                number(b.measured)
            );
        }
    }
    let mut remarks: Vec<String> = pairs.iter().flat_map(|(_, p)| p.extrapolates.iter().map(|r| format!("extrapolated: {r}"))).collect();
    remarks.extend(run.prediction_remarks.iter().cloned());
    remarks.sort_unstable();
    remarks.dedup();
    if !remarks.is_empty() {
        out.push('\n');
    }
    remarks.iter().for_each(|remark| out.push_str(&format!("- {}\n", md(remark))));
}

fn value(point: &SavedPoint, metric: &Metric, stat: &str) -> String {
    point.stat(metric, stat).map_or_else(|| "–".to_owned(), number)
}

fn frontier_line(out: &mut String, runs: &[Run]) {
    let spots = frontier::spots(runs);
    let line = frontier::line(&spots);
    if line.is_empty() {
        return;
    }
    out.push_str("\n## Frontier\n\n| run | load | tokens/s/user | tokens/s/GPU |\n| --- | --- | ---: | ---: |\n");
    for spot in line {
        let run = &runs[spot.run];
        let load = run.result.points[spot.point].load.label();
        let _ = writeln!(out, "| {} | {} | {} | {} |", md(&run.name), md(&load), number(spot.per_user), number(spot.per_gpu));
    }
}

/// One comparison as warnings and a table.
#[must_use]
pub fn comparison_markdown(comparison: &Comparison) -> String {
    let mut out = String::new();
    comparison.warnings.iter().for_each(|warning| out.push_str(&format!("- {}\n", md(warning))));
    if !comparison.warnings.is_empty() {
        out.push('\n');
    }
    if comparison.points.is_empty() {
        out.push_str("The runs have no load point in common.\n");
    } else {
        let (a, b) = (md(&comparison.baseline), md(&comparison.candidate));
        let _ = write!(
            out,
            "| load | figure | {a} | {b} | change | 95 % interval | reading |\n| --- | --- | ---: | ---: | ---: | ---: | --- |\n"
        );
        for point in &comparison.points {
            point.changes.iter().for_each(|change| change_row(&mut out, &point.load, change));
        }
    }
    if !comparison.unmatched.is_empty() {
        let _ = write!(out, "\nNot compared: {}.\n", md(&comparison.unmatched.join("; ")));
    }
    out
}

fn change_row(out: &mut String, load: &str, change: &Change) {
    let interval = change.interval.map_or_else(|| "–".to_owned(), |(low, high)| format!("{} to {}", percent(low), percent(high)));
    let relative = change.relative.map_or_else(|| "–".to_owned(), percent);
    let _ = writeln!(
        out,
        "| {} | {} | {} | {} | {relative} | {interval} | {} |",
        md(load),
        md(&label_by_name(change.metric, change.stat)),
        number(change.baseline),
        number(change.candidate),
        change.reading().as_str(),
    );
}
