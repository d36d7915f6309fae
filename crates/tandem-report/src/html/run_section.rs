//! One run: what it was, what came out of each load point, how to run it again, and which files say so.

use std::fmt::Write;

use tandem_metrics::Metric;
use tandem_metrics::metrics::{
    self, output_throughput_per_gpu, output_throughput_per_user, request_latency, steady_concurrency, tpot, ttft,
};

use super::overview::reasons;
use super::parts::{Cell, Page, Table, badge};
use super::prediction;
use super::{figures, gpus};
use crate::data::plan_facts::{PlanFacts, WorkerGroup};
use crate::data::result_file::SavedPoint;
use crate::data::run::Run;
use crate::escape::esc;
use crate::labels::figure_label;
use crate::numbers::{bytes, count, number};

/// Runs whose engine steps are drawn.
const MAX_RUNS_WITH_STEPS: usize = 8;

/// `is_detailed` says for each load point whether its requests are shown.
pub(super) fn write(page: &mut Page, index: usize, run: &Run, is_detailed: &[bool]) {
    let _ = write!(page.out, "<section id=\"run-{}\"><h2>{} {}</h2>", index + 1, esc(&run.name), badge(run.verdict()));
    reasons(page, run);
    facts(page, run);
    if let Some(point) = run.summary_point() {
        summary(page, run, point);
    }
    if run.points().len() > 0 {
        points(page, run);
        prediction::write(page, run);
        if run.points().any(|(_, digest)| digest.is_some()) {
            page.heading(3, None, "Latency distributions");
            figures::distributions(page, run);
        }
        details(page, run, is_detailed);
    }
    gpus::write(page, run);
    if !run.logs.is_empty() && index >= MAX_RUNS_WITH_STEPS {
        page.heading(3, None, "Engine steps");
        page.paragraph("quiet", "Left out, to keep this page small: a page with fewer runs has them.");
    } else if !run.logs.is_empty() {
        page.heading(3, None, "Engine steps");
        let span = figures::common_span(&run.logs);
        let placed = match span {
            Some(_) => "From the iteration lines of the workers, warm-up included; times count from the first step of any of them.",
            None => {
                "From the iteration lines of the workers, which do not say when a step began: steps are placed by their number, warm-up included."
            }
        };
        page.paragraph("quiet", placed);
        run.logs.iter().for_each(|(phase, log)| figures::engine_steps(page, *phase, log, span));
    }
    reproduce(page, index, run);
    evidence(page, run);
    page.out.push_str("</section>\n");
}

fn facts(page: &mut Page, run: &Run) {
    let result = &run.result;
    let mut facts = vec![
        ("recipe", result.recipe.clone()),
        ("model", result.model.clone()),
        ("kind", if result.partial { format!("{}, partial", result.kind) } else { result.kind.clone() }),
        ("GPUs", result.n_gpus.to_string()),
        // The clock of a simulation begins in 1970.
        ("began", if run.is_simulated() { String::new() } else { to_the_second(&result.started_at) }),
        ("took", format!("{} s", number(result.duration_s))),
    ];
    if let Some(plan) = &run.plan {
        facts.insert(2, ("engine", plan.engine.clone()));
        facts.insert(3, ("hardware", plan.gpu_type.clone()));
        facts.insert(4, ("routing", plan.routing.clone()));
    }
    page.out.push_str("<dl class=\"facts\">");
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = write!(page.out, "<div><dt>{name}</dt><dd>{}</dd></div>", esc(value));
    }
    page.out.push_str("</dl>");
    if let Some(plan) = &run.plan {
        workers(page, plan);
    }
}

/// `2026-11-24T06:41:57.123Z` without the fraction; the whole of it stands under how to reproduce.
fn to_the_second(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(seconds, _)| format!("{seconds}Z"))
}

fn workers(page: &mut Page, plan: &PlanFacts) {
    let row = |group: &WorkerGroup| {
        vec![
            Cell::label(&format!("{} × {}", group.n, group.phase)),
            Cell::label(&group.layout),
            Cell::figure(&group.n_ranks.to_string()),
            Cell::figure(&count(group.max_batch_size.into())),
            Cell::figure(&count(group.max_num_tokens.into())),
            Cell::figure(&format!("{} × {}", count(group.kv_blocks.into()), group.block_size)),
            Cell::figure(&group.mtp_size.to_string()),
        ]
    };
    let head = ["workers", "layout", "ranks each", "max batch", "max tokens a step", "KV blocks × tokens", "MTP"];
    page.table(&Table { caption: String::new(), head: head.map(str::to_owned).into(), rows: plan.workers.iter().map(row).collect() });
}

static STATS: [&str; 6] = ["avg", "p50", "p90", "p99", "min", "max"];

/// All figures of the point that stands for the run, in the order of the summary.
fn summary(page: &mut Page, run: &Run, point: &SavedPoint) {
    page.heading(3, None, "Summary");
    if run.points().len() > 1 {
        let text =
            format!("At {}, of the load points with the best verdict the one with the highest throughput per GPU.", point.load.label());
        page.paragraph("quiet", &text);
    }
    let known = metrics::ALL.into_iter().map(|metric| (metric.name, metric.title));
    let ours: Vec<(&str, &str)> = known.filter(|(name, _)| point.summary.contains_key(*name)).collect();
    let later = point.summary.keys().filter(|name| metrics::by_name(name).is_none()).map(|name| (name.as_str(), name.as_str()));
    let row = |(name, title): (&str, &str)| {
        let figure = &point.summary[name];
        let cells = STATS.iter().map(|stat| Cell::number(figure.stats.get(*stat).copied()));
        [Cell::text(title), Cell::text(&figure.unit)].into_iter().chain(cells).collect()
    };
    let rows = ours.iter().copied().chain(later).map(row).collect();
    let head = ["metric", "unit", "mean or value", "p50", "p90", "p99", "min", "max"].map(str::to_owned).into();
    page.table(&Table { caption: String::new(), head, rows });
}

fn points(page: &mut Page, run: &Run) {
    let columns: [(&Metric, &str); 7] = [
        (&output_throughput_per_gpu::METRIC, "avg"),
        (&output_throughput_per_user::METRIC, "avg"),
        (&ttft::METRIC, "avg"),
        (&ttft::METRIC, "p99"),
        (&tpot::METRIC, "avg"),
        (&tpot::METRIC, "p99"),
        (&request_latency::METRIC, "avg"),
    ];
    // Responses that come at once have no TTFT: a column of dashes says nothing.
    let columns: Vec<(&Metric, &str)> = columns.into_iter().filter(|(metric, _)| run.has(metric)).collect();
    page.heading(3, None, "Load points");
    let mut lengths: Vec<String> = run.points().map(|(point, _)| point.load.lengths()).collect();
    lengths.dedup();
    page.paragraph("quiet", &format!("{}.", lengths.join("; then ")));
    let row = |point: &SavedPoint| {
        let (ok, all) = point.ok_of();
        let mut cells = vec![
            Cell::label(&point.load.label()),
            Cell::badge(point.validity),
            Cell::figure(&format!("{} of {}", count(ok), count(all))),
            Cell::number(point.stat(&steady_concurrency::METRIC, "avg")),
        ];
        cells.extend(columns.iter().map(|(metric, stat)| Cell::number(point.stat(metric, stat))));
        cells
    };
    let head = ["load", "verdict", "requests ok", "held in flight"].map(str::to_owned);
    let named = columns.iter().map(|(metric, stat)| figure_label(metric, stat));
    let rows = run.points().map(|(point, _)| row(point)).collect();
    page.table(&Table { caption: String::new(), head: head.into_iter().chain(named).collect(), rows });
    let named = |point: &SavedPoint| -> Vec<String> {
        point.validity_reasons.iter().map(|reason| format!("{}: {}, {}", point.load.label(), reason.verdict, reason.message)).collect()
    };
    let reasons: Vec<String> = run.points().flat_map(|(point, _)| named(point)).collect();
    if !reasons.is_empty() && run.points().len() > 1 {
        page.list("reasons", reasons);
    }
}

fn details(page: &mut Page, run: &Run, is_detailed: &[bool]) {
    page.heading(3, None, "Over time");
    for (i, (point, digest)) in run.points().enumerate() {
        let label = esc(&point.directory).to_string();
        match digest {
            Some(digest) if is_detailed[i] => {
                let open = if run.result.summary_point == Some(i) || run.points().len() == 1 { " open" } else { "" };
                let _ =
                    write!(page.out, "<details class=\"point\"{open}><summary>{} <code>{label}</code></summary>", esc(&point.load.label()));
                figures::over_time(page, digest);
                page.out.push_str("</details>");
            }
            Some(_) => page.paragraph("quiet", &format!("{}: left out, to keep this page small.", point.load.label())),
            None => page.paragraph("quiet", &format!("{}: no records of measured requests.", point.load.label())),
        }
    }
}

fn reproduce(page: &mut Page, index: usize, run: &Run) {
    page.heading(3, None, "How to reproduce");
    let result = &run.result;
    match &run.plan {
        Some(plan) => {
            let _ = write!(page.out, "<pre><code>{}</code></pre>", esc(&plan.command(run.is_simulated())));
            page.paragraph("quiet", "The command sets everything that was not as in the built-in recipe, whichever layer it came from.");
            if run.is_simulated() {
                page.paragraph("quiet", "Arrivals, faults, constants and calibrations that the simulation was given are flags, not knobs: add them.");
            }
            knobs(page, index, plan);
        }
        None => page.paragraph("quiet", "There is no plan.json: the endpoint was not deployed by this run. Each profile_export_genai_perf.json has the load under input_config."),
    }
    let versions: Vec<String> = result.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let rows = [
        ("plan hash", result.plan_hash.clone().unwrap_or_default()),
        ("recipe", result.recipe.clone()),
        ("versions", versions.join(", ")),
        ("machines", result.machines.join(", ")),
        ("nodes", run.plan.as_ref().map(|plan| plan.n_nodes.to_string()).unwrap_or_default()),
        ("began", if run.is_simulated() { "in virtual time".to_owned() } else { result.started_at.clone() }),
        ("ended", if run.is_simulated() { String::new() } else { result.ended_at.clone() }),
    ];
    let rows = rows.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| vec![Cell::text(name), Cell::code(&value)]);
    page.table(&Table { caption: String::new(), head: vec!["what".to_owned(), "value".to_owned()], rows: rows.collect() });
}

fn knobs(page: &mut Page, index: usize, plan: &PlanFacts) {
    let row = |knob: &crate::data::plan_facts::Knob| vec![Cell::code(&knob.name), Cell::code(&knob.value), Cell::text(&knob.layer)];
    let head: Vec<String> = ["knob", "value", "set by"].map(str::to_owned).into();
    let set: Vec<Vec<Cell>> = plan.set_knobs().map(row).collect();
    if set.is_empty() {
        page.paragraph("", "Every knob has the value of the built-in recipe.");
    } else {
        page.table(&Table { caption: "Knobs that differ from the built-in recipe".to_owned(), head: head.clone(), rows: set });
    }
    page.folded_knobs(&knob_table_id(index), &Table { caption: String::new(), head, rows: plan.knobs.iter().map(row).collect() });
}

/// Names the table of all knobs of run `index`.
pub(super) fn knob_table_id(index: usize) -> String {
    format!("knobs-{}", index + 1)
}

fn evidence(page: &mut Page, run: &Run) {
    page.heading(3, None, "Evidence");
    let _ = write!(page.out, "<p class=\"quiet\">Everything above comes from these files of <code>{}</code>.</p>", esc(&run.path));
    let row = |file: &crate::data::run::Evidence| vec![Cell::code(&file.path), Cell::figure(&bytes(file.bytes))];
    let rows = run.evidence.iter().map(row).collect();
    page.table(&Table { caption: String::new(), head: vec!["file".to_owned(), "size".to_owned()], rows });
}
