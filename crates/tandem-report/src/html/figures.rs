//! From the data of runs to charts, each with the table that says the same.

use tandem_plan::Phase;

use super::parts::{Cell, Page, Table};
use crate::chart::{Axis, Curve, Line, LineChart, QuantileChart, Shade, WaterfallChart, quantiles_of};
use crate::compare::Comparison;
use crate::data::iterations::{EngineStep, PhaseLog, RankSteps};
use crate::data::run::Run;
use crate::data::{Bins, Digest, RequestMetric, TokenStamps};
use crate::numbers::{count, number};

/// Curves beyond this in one picture cannot be told apart; the second number is for pages with many runs.
const MAX_CURVES: [usize; 2] = [16, 4];
/// Rows of the table beside a time series.
const MAX_TABLE_ROWS: usize = 16;
/// Workers with a line each; of more, one line and the band that holds all.
const MAX_WORKER_LINES: usize = 4;
/// Bins of a series of steps; the second number is for pages with many runs.
const N_STEP_BINS: [usize; 2] = [160, 64];

static DISTRIBUTIONS: [(RequestMetric, &str); 3] = [
    (RequestMetric::Ttft, "Time to first token (TTFT)"),
    (RequestMetric::Tpot, "Time per output token (TPOT)"),
    (RequestMetric::Latency, "Request latency"),
];

/// Latencies of all load points of a run.
pub(super) fn distributions(page: &mut Page, run: &Run) {
    let max_curves = MAX_CURVES[usize::from(page.is_crowded)];
    let sources: Vec<(String, &Digest)> =
        run.points().filter_map(|(point, digest)| Some((point.load.label(), digest?))).take(max_curves).collect();
    distribution_grid(page, &sources);
    if run.points().len() > max_curves {
        page.paragraph("quiet", &format!("The first {max_curves} of {} load points are drawn.", run.points().len()));
    }
}

/// The same load in all runs: that of the first comparison's most loaded common point.
pub(super) fn overlays(page: &mut Page, runs: &[Run], comparisons: &[Comparison]) {
    let Some(first) = comparisons.iter().find_map(|comparison| comparison.points.last()) else { return };
    let baseline = first.indices.0;
    let mut sources: Vec<(String, &Digest)> = Vec::new();
    sources.extend(runs[0].digests[baseline].as_ref().map(|digest| (runs[0].name.clone(), digest)));
    for (run, comparison) in runs[1..].iter().zip(comparisons) {
        let point = comparison.points.iter().find(|point| point.indices.0 == baseline);
        sources.extend(point.and_then(|point| run.digests[point.indices.1].as_ref()).map(|digest| (run.name.clone(), digest)));
    }
    if sources.len() > 1 {
        page.heading(3, None, &format!("Distributions at {}", first.load));
        sources.truncate(MAX_CURVES[0]);
        distribution_grid(page, &sources);
    }
}

fn distribution_grid(page: &mut Page, sources: &[(String, &Digest)]) {
    page.out.push_str("<div class=\"grid\">");
    for (metric, title) in &DISTRIBUTIONS {
        distribution(page, *metric, title, sources);
    }
    page.out.push_str("</div>");
}

fn distribution(page: &mut Page, metric: RequestMetric, title: &str, sources: &[(String, &Digest)]) {
    let samples: Vec<(usize, &str, Vec<f64>)> = sources
        .iter()
        .enumerate()
        .map(|(i, (name, digest))| (i, name.as_str(), digest.sorted(metric)))
        .filter(|(_, _, v)| !v.is_empty())
        .collect();
    if samples.is_empty() {
        return;
    }
    let unit = metric.metric().unit.as_str();
    let curve = |(colour, name, sorted): &(usize, &str, Vec<f64>)| {
        Some(Curve { name: (*name).to_owned(), colour: *colour, quantiles: quantiles_of(sorted)? })
    };
    let chart = QuantileChart {
        title: format!("{title}, {unit}"),
        about: format!("Cumulative distribution of {title} over requests, one line for each of {}.", samples.len()),
        x: Axis { label: unit },
        curves: samples.iter().filter_map(curve).collect(),
    };
    page.figure(&chart.draw(), Some(&distribution_table(&samples, unit)));
}

fn distribution_table(samples: &[(usize, &str, Vec<f64>)], unit: &str) -> Table {
    const SHOWN: [(usize, &str); 7] = [(0, "min"), (10, "p10"), (50, "p50"), (90, "p90"), (95, "p95"), (99, "p99"), (103, "max")];
    let row = |(_, name, sorted): &(usize, &str, Vec<f64>)| {
        let quantiles = quantiles_of(sorted);
        let cells = SHOWN.iter().map(|(i, _)| Cell::number(quantiles.as_ref().map(|q| q[*i])));
        [Cell::text(name), Cell::figure(&count(sorted.len() as u64))].into_iter().chain(cells).collect()
    };
    let head = ["", "requests"].into_iter().chain(SHOWN.iter().map(|(_, name)| *name)).map(str::to_owned).collect();
    Table { caption: format!("in {unit}"), head, rows: samples.iter().map(row).collect() }
}

/// Requests in flight and tokens a second over time, and requests one below the other.
pub(super) fn over_time(page: &mut Page, digest: &Digest) {
    let warmup = (digest.n_warmup > 0 && digest.from_s < 0.0).then_some(Shade { range: (digest.from_s, 0.0), label: "warm-up" });
    let about_warmup = if warmup.is_some() { format!(" Before 0 s: {} requests of warm-up.", digest.n_warmup) } else { String::new() };
    page.out.push_str("<div class=\"grid\">");
    let bin = number(digest.bin_s);
    let about = format!("Mean over {bin} s.{about_warmup}");
    let shade = warmup.as_ref().map(|w| Shade { range: w.range, label: w.label });
    let in_flight = time_series(digest, "Requests in flight", about, "requests", &digest.in_flight, shade);
    page.figure(&in_flight.draw(), Some(&time_table(digest, "requests in flight", &digest.in_flight)));
    if digest.stamps != TokenStamps::Unknown {
        let how = match digest.stamps {
            TokenStamps::Counted => "Tokens as counted in each chunk, at the time it arrived.",
            _ => "Chunks do not say how many tokens they hold: the output length is spread evenly over a request's chunks.",
        };
        let tokens = time_series(
            digest,
            "Output tokens a second",
            format!("{how} Over {bin} s.{about_warmup}"),
            "tokens/s",
            &digest.tokens_per_s,
            warmup,
        );
        page.figure(&tokens.draw(), Some(&time_table(digest, "tokens/s", &digest.tokens_per_s)));
    }
    waterfall(page, digest);
    page.out.push_str("</div>");
}

fn time_series<'a>(digest: &Digest, title: &str, about: String, label: &'a str, values: &[f64], shade: Option<Shade<'a>>) -> LineChart<'a> {
    LineChart {
        title: title.to_owned(),
        about,
        x: Axis { label: "s" },
        y: Axis { label },
        range: (digest.from_s, digest.until_s),
        places: digest.times_s.clone(),
        lines: vec![Line { name: label.to_owned(), colour: 0, values: values.iter().copied().map(Some).collect(), band: None }],
        shade,
    }
}

fn time_table(digest: &Digest, label: &str, values: &[f64]) -> Table {
    let per_row = values.len().div_ceil(MAX_TABLE_ROWS);
    let row = |(i, chunk): (usize, &[f64])| {
        let from = digest.from_s + (i * per_row) as f64 * digest.bin_s;
        let to = from + chunk.len() as f64 * digest.bin_s;
        let mean = chunk.iter().sum::<f64>() / chunk.len() as f64;
        vec![Cell::text(&format!("{} to {}", number(from), number(to))), Cell::number(Some(mean))]
    };
    Table {
        caption: String::new(),
        head: vec!["s".to_owned(), label.to_owned()],
        rows: values.chunks(per_row).enumerate().map(row).collect(),
    }
}

fn waterfall(page: &mut Page, digest: &Digest) {
    let rows = &digest.waterfall;
    let n = digest.n_measured as u64;
    let title = if rows.len() == digest.n_measured {
        format!("Waterfall of all {} requests", count(n))
    } else {
        format!("Waterfall of {} of {} requests", rows.len(), count(n))
    };
    let about = if rows.len() == digest.n_measured {
        "One row a request: waiting for the first token, then receiving.".to_owned()
    } else {
        "A sample: evenly spaced requests in order of issue, and the first failed ones. One row a request: waiting for the first token, then receiving.".to_owned()
    };
    let table_row = |row: &crate::data::WaterfallRow| {
        vec![
            Cell::text(&row.index.to_string()),
            Cell::number(Some(row.start)),
            Cell::number(row.first_chunk.map(|first| (first - row.start) * 1e3)),
            Cell::number(Some((row.end - row.start) * 1e3)),
            Cell::number(row.osl.map(f64::from)),
            Cell::text(row.outcome),
        ]
    };
    let head = ["request", "sent, s", "first token after, ms", "ended after, ms", "tokens", "outcome"].map(str::to_owned).into();
    let step = rows.len().div_ceil(MAX_TABLE_ROWS).max(1);
    let table = Table { caption: String::new(), head, rows: rows.iter().step_by(step).map(table_row).collect() };
    page.figure(&WaterfallChart { title, about, rows }.draw(), Some(&table));
}

/// From the first step of any worker to the end of the last one, seconds; none when a log does not say when steps began.
pub(super) fn common_span(logs: &[(Phase, PhaseLog)]) -> Option<(f64, f64)> {
    let spans: Vec<(f64, f64)> = logs.iter().map(|(_, log)| log.span_s()).collect::<Option<_>>()?;
    spans.into_iter().reduce(|(a, b), (from, to)| (a.min(from), b.max(to)))
}

/// Where steps lie along x.
#[derive(Debug, Clone, Copy)]
enum Places {
    /// By their number, up to that of the last.
    Number(f64),
    /// Seconds from the first of these.
    Time(f64, f64),
}

impl Places {
    fn range(self) -> (f64, f64) {
        match self {
            Places::Number(last) => (1.0, last.max(2.0)),
            Places::Time(from, to) => (0.0, to - from),
        }
    }

    fn of(self, i: usize, step: &EngineStep) -> f64 {
        match self {
            Places::Number(_) => (i + 1) as f64,
            Places::Time(from, _) => step.begin_s.unwrap_or(from) - from,
        }
    }
}

/// Draws what a step of a phase's engines held, over time where that is known (`span`, seconds).
pub(super) fn engine_steps(page: &mut Page, phase: Phase, log: &PhaseLog, span: Option<(f64, f64)>) {
    type Value = fn(&EngineStep) -> Option<f64>;
    let charts: [(&str, &str, Value); 4] = [
        ("Requests in a step", "requests", |step| Some(f64::from(step.n_requests))),
        ("Tokens in a step", "tokens", |step| Some(f64::from(step.n_ctx_tokens) + f64::from(step.n_gen_tokens))),
        ("Time of a step", "ms", |step| step.took_ms),
        ("KV cache in use", "% of blocks", |step| step.kv_used.map(|share| share * 100.0)),
    ];
    page.out.push_str("<div class=\"grid\">");
    for (title, unit, value) in charts {
        step_chart(page, &format!("{title}, {phase}"), unit, log, span, value);
    }
    page.out.push_str("</div>");
}

/// Mean, smallest and largest value of a bin.
type StepBin = Option<(f64, f64, f64)>;

fn step_chart(
    page: &mut Page,
    title: &str,
    unit: &str,
    log: &PhaseLog,
    span: Option<(f64, f64)>,
    value: impl Fn(&EngineStep) -> Option<f64> + Copy,
) {
    let longest = log.ranks().iter().map(|r| r.steps.len()).max().unwrap_or(0);
    let n_bins = longest.clamp(1, N_STEP_BINS[usize::from(page.is_crowded)]);
    let along = span.map_or(Places::Number(longest as f64), |(from, to)| Places::Time(from, to));
    let range = along.range();
    let ranks = log.ranks();
    let is_single_line = ranks.len() == 1 || ranks.len() > MAX_WORKER_LINES;
    let series: Vec<Vec<StepBin>> = if is_single_line {
        vec![binned(ranks, n_bins, along, value)]
    } else {
        ranks.iter().map(|rank| binned(std::slice::from_ref(rank), n_bins, along, value)).collect()
    };
    if series.iter().flatten().all(Option::is_none) {
        return;
    }
    let places = Bins::new(range.0, range.1, n_bins).centres();
    let line = |(i, bins): (usize, &Vec<StepBin>)| Line {
        name: if is_single_line { unit.to_owned() } else { rank_name(log, &ranks[i]) },
        colour: i,
        values: bins.iter().map(|bin| bin.map(|(mean, ..)| mean)).collect(),
        band: is_single_line.then(|| bins.iter().map(|bin| bin.map(|(_, low, high)| (low, high))).collect()),
    };
    let band = if is_single_line { " The band goes from the smallest to the largest value." } else { "" };
    let chart = LineChart {
        title: title.to_owned(),
        about: format!("{} steps of {}, mean of {n_bins} bins.{band}", count(log.n_steps() as u64), makers(log)),
        x: Axis { label: if span.is_some() { "s" } else { "step" } },
        y: Axis { label: unit },
        range,
        places,
        lines: series.iter().enumerate().map(line).collect(),
        shade: None,
    };
    page.figure(&chart.draw(), Some(&step_table(log, unit, value)));
}

/// Whose steps a log has.
fn makers(log: &PhaseLog) -> String {
    let (workers, ranks) = (log.n_workers(), log.ranks().len());
    let s = if workers == 1 { "" } else { "s" };
    if workers == ranks { format!("{workers} worker{s}") } else { format!("{ranks} ranks of {workers} worker{s}") }
}

fn rank_name(log: &PhaseLog, rank: &RankSteps) -> String {
    let name = format!("worker {}", rank.worker);
    if log.n_workers() == log.ranks().len() { name } else { format!("{name}, rank {}", rank.rank) }
}

fn binned(ranks: &[RankSteps], n_bins: usize, along: Places, value: impl Fn(&EngineStep) -> Option<f64>) -> Vec<StepBin> {
    let range = along.range();
    let bins = Bins::new(range.0, range.1, n_bins);
    let mut found: Vec<Option<(f64, f64, f64, u64)>> = vec![None; n_bins];
    for (i, step) in ranks.iter().flat_map(|rank| rank.steps.iter().enumerate()) {
        if let Some(v) = value(step) {
            let bin = bins.index(along.of(i, step));
            let (sum, low, high, n) = found[bin].unwrap_or((0.0, v, v, 0));
            found[bin] = Some((sum + v, low.min(v), high.max(v), n + 1));
        }
    }
    found.into_iter().map(|bin| bin.map(|(sum, low, high, n)| (sum / n as f64, low, high))).collect()
}

fn step_table(log: &PhaseLog, unit: &str, value: impl Fn(&EngineStep) -> Option<f64>) -> Table {
    let row = |name: &str, ranks: &[RankSteps]| {
        let mut values: Vec<f64> = ranks.iter().flat_map(|rank| &rank.steps).filter_map(&value).collect();
        values.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| {
            let last = values.len().checked_sub(1)?;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the last index")]
            let index = (share * last as f64).round() as usize;
            Some(values[index])
        };
        let mean = (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
        let cells = [mean, at(0.0), at(0.5), at(0.99), at(1.0)].map(Cell::number);
        let n: usize = ranks.iter().map(|rank| rank.steps.len()).sum();
        [Cell::text(name), Cell::figure(&count(n as u64))].into_iter().chain(cells).collect()
    };
    let head = ["", "steps", "mean", "min", "p50", "p99", "max"].map(str::to_owned).into();
    let ranks = log.ranks();
    let mut rows: Vec<Vec<Cell>> =
        ranks.iter().take(MAX_TABLE_ROWS).map(|rank| row(&rank_name(log, rank), std::slice::from_ref(rank))).collect();
    if ranks.len() > MAX_TABLE_ROWS {
        rows.push(row(&format!("all {}", makers(log)), ranks));
    }
    Table { caption: format!("in {unit}"), head, rows }
}
