//! What the GPUs consumed and did: a table of energy, and power, temperatures, clocks and utilisation over time by role.

use super::parts::{Cell, Page, Table};
use crate::chart::{Axis, Line, LineChart};
use crate::data::Bins;
use crate::data::gpus::{Fold, GpuBin, Gpus};
use crate::data::run::Run;
use crate::numbers::number;

/// Bins of a line; the second number is for pages with many runs.
const N_BINS: [usize; 2] = [160, 64];

/// Title, unit, quantity, how GPUs become one line, factor.
static CHARTS: [(&str, &str, &str, Fold, f64); 8] = [
    ("GPU power", "W", "power_w", Fold::Sum, 1.0),
    ("GPU utilisation", "%", "gpu_utilization_percent", Fold::Mean, 1.0),
    ("GPU temperature", "°C", "temperature_c", Fold::Mean, 1.0),
    ("GPU memory temperature", "°C", "memory_temperature_c", Fold::Mean, 1.0),
    ("SM clock", "MHz", "sm_clock_mhz", Fold::Mean, 1.0),
    ("GPU memory clock", "MHz", "memory_clock_mhz", Fold::Mean, 1.0),
    ("GPU memory in use", "GB", "memory_used_bytes", Fold::Sum, 1e-9),
    ("Memory bandwidth utilisation", "%", "memory_utilization_percent", Fold::Mean, 1.0),
];

pub(super) fn write(page: &mut Page, run: &Run) {
    let rows = energy_rows(run);
    if rows.is_empty() && run.gpus.is_none() {
        return;
    }
    page.heading(3, None, "GPUs and energy");
    if !rows.is_empty() {
        page.paragraph("quiet", "From the first measured start to the last output chunk; tokens are those of the load point.");
        let head = ["load", "role", "GPUs", "energy, J", "mean power, W", "J per output token", "output tokens/s/W"];
        page.table(&Table { caption: String::new(), head: head.map(str::to_owned).into(), rows });
    }
    if let Some(gpus) = &run.gpus {
        let roles: Vec<String> = gpus.roles().map(|(role, n)| format!("{n} × {role}")).collect();
        let about = format!("The whole run, warm-up included; seconds count from the first sample. GPUs: {}.", roles.join(", "));
        page.paragraph("quiet", &about);
        page.out.push_str("<div class=\"grid\">");
        CHARTS.iter().for_each(|(title, unit, quantity, fold, scale)| chart(page, gpus, title, unit, (quantity, *fold, *scale)));
        page.out.push_str("</div>");
    }
}

fn energy_rows(run: &Run) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for (point, _) in run.points() {
        let energy = point.telemetry.as_ref().and_then(|telemetry| telemetry.energy.as_ref());
        rows.extend(energy.into_iter().flat_map(|energy| energy.rows()).map(|row| {
            vec![
                Cell::label(&point.load.label()),
                Cell::label(row.role),
                Cell::figure(&row.n_gpus.to_string()),
                Cell::number(Some(row.energy_j)),
                Cell::number(Some(row.mean_power_w)),
                Cell::number(row.joules_per_token),
                Cell::number(row.tokens_per_s_w),
            ]
        }));
    }
    rows
}

fn chart(page: &mut Page, gpus: &Gpus, title: &str, unit: &str, (quantity, fold, scale): (&str, Fold, f64)) {
    let n_bins = N_BINS[usize::from(page.is_crowded)];
    let series = gpus.lines(quantity, fold, scale, n_bins);
    if series.is_empty() {
        return;
    }
    let range = (0.0, gpus.duration_s().max(1e-3));
    let is_mean = fold == Fold::Mean;
    let line = |(i, (role, bins)): (usize, &(&str, Vec<GpuBin>))| Line {
        name: (*role).to_owned(),
        colour: i,
        values: bins.iter().map(|bin| bin.map(|(value, ..)| value)).collect(),
        band: is_mean.then(|| bins.iter().map(|bin| bin.map(|(_, low, high)| (low, high))).collect()),
    };
    let how = if is_mean { "mean of a role's GPUs; the band goes from the lowest to the highest" } else { "all GPUs of a role together" };
    let chart = LineChart {
        title: format!("{title}, by role"),
        about: format!("{title} in {unit}: {how}. Over {} s a bin.", number(range.1 / n_bins as f64)),
        x: Axis { label: "s" },
        y: Axis { label: unit },
        range,
        places: Bins::new(range.0, range.1, n_bins).centres(),
        lines: series.iter().enumerate().map(line).collect(),
        shade: None,
    };
    let row = |(role, bins): &(&str, Vec<GpuBin>)| {
        let drawn: Vec<f64> = bins.iter().flatten().map(|(value, ..)| *value).collect();
        let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
        let ends = drawn.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)));
        vec![Cell::text(role), Cell::number(Some(mean)), Cell::number(Some(ends.0)), Cell::number(Some(ends.1))]
    };
    let head = ["role", "mean", "lowest bin", "highest bin"].map(str::to_owned).into();
    page.figure(&chart.draw(), Some(&Table { caption: format!("in {unit}"), head, rows: series.iter().map(row).collect() }));
}
